"""One shard file: the same bytes for the same rows, readable a row group at a time, and by everybody.

The golden file was written once, by `PYTHONPATH=. python tests/storage/format/test_shard.py`. Every later reader must
give its exact values; a new layout gets a file beside it.
"""

from __future__ import annotations

import io
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.digest import range_digest
from storage.base.errors import CorruptShard, RecipeError
from storage.encodings.dense import Dense
from storage.format import shard as shards
from storage.format.byte_ranges import RangeFile, byte_ranges
from storage.format.header import FORMAT_VERSION, ShardHeader, read_header, shard_schema, stored_inputs
from storage.format.rows import DecodedRows, decode, sample_rows
from storage.format.sections import SECTIONS
from storage.format.shard import write_shard
from storage.samples import tensor_columns
from storage.samples.columns import Columns
from storage.samples.inputs_digest import INPUTS_XXH3_FIELD
from storage.samples.samples import as_samples
from tests.storage.helpers import rows_of

GOLDEN = Path(__file__).parents[1] / "golden" / "shard-v1.parquet"
CUTS = [[], [1], [50], [1, 2, 3], [7, 7, 30, 64], list(range(9, 100, 9)), list(range(1, 100))]


def cut(batch: pa.RecordBatch, cuts: list[int]) -> list[pa.RecordBatch]:
    return [batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, batch.num_rows], strict=True)]


def read_group(path: Path, index: int) -> DecodedRows:
    """One row group, from its byte range and the footer's alone."""
    groups, footer = byte_ranges(path)
    data = path.read_bytes()
    metadata = pq.read_metadata(io.BytesIO(data[footer.start :]))
    part = groups[index]
    file = pa.PythonFile(RangeFile(len(data), {part.start: data[part.start : part.stop]}), mode="r")
    table = pq.ParquetFile(file, metadata=metadata, pre_buffer=False).read_row_group(index, use_threads=False)
    return decode(table, read_header(metadata.schema.to_arrow_schema(), str(path)))


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 17 rows of the batches that are made here."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 17 * 52)


@pytest.fixture
def several(tmp_path: Path, small_groups: None, make_samples: Any, make_batch: Any) -> Path:
    """A shard of 100 rows in six row groups."""
    batch = make_batch(make_samples(100))
    write_shard(tmp_path / "several.parquet", batch.schema, [batch])
    return tmp_path / "several.parquet"


# Writing


def test_every_row_that_was_written_is_counted_and_kept(tmp_path: Path, make_samples: Any, make_batch: Any) -> None:
    batch = make_batch(make_samples(100))
    for number, cuts in enumerate(CUTS):
        path = tmp_path / str(number)
        assert write_shard(path, batch.schema, cut(batch, cuts)) == 100
        assert pq.read_table(path).equals(pa.Table.from_batches([batch]))


@pytest.mark.parametrize("cuts", CUTS)
def test_row_groups_do_not_depend_on_the_batches(
    tmp_path: Path, small_groups: None, make_samples: Any, make_batch: Any, cuts: list[int]
) -> None:
    batch = make_batch(make_samples(100))
    write_shard(tmp_path / "a", batch.schema, cut(batch, cuts))
    assert [group.rows for group in byte_ranges(tmp_path / "a")[0]] == [17, 17, 17, 17, 17, 15]


@pytest.mark.parametrize("group_rows", [17, 50, 1000])
def test_the_bytes_do_not_depend_on_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_samples: Any, make_batch: Any, group_rows: int
) -> None:
    """Otherwise a cache's digest would tell how large the teacher's batches were."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", group_rows * 52)
    batch = make_batch(make_samples(100))
    write_shard(tmp_path / "whole", batch.schema, [batch])
    for cuts in CUTS:
        write_shard(tmp_path / "cut", batch.schema, cut(batch, cuts))
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes(), cuts


def test_rows_larger_than_a_row_group_get_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_samples: Any, make_batch: Any
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 10)
    batch = make_batch(make_samples(3))
    write_shard(tmp_path / "a", batch.schema, [batch])
    assert [group.rows for group in byte_ranges(tmp_path / "a")[0]] == [1, 1, 1]


def test_row_groups_are_cut_by_a_greater_width_where_one_is_said(
    tmp_path: Path, small_groups: None, make_samples: Any, make_batch: Any
) -> None:
    batch = make_batch(make_samples(100))
    for width, rows in ((104, [8] * 12 + [4]), (17 * 52, [1] * 100), (26, [17] * 5 + [15])):
        write_shard(tmp_path / "a", batch.schema, [batch], group_row_bytes=width)
        assert [group.rows for group in byte_ranges(tmp_path / "a")[0]] == rows


def test_columns_come_in_any_order(tmp_path: Path, make_samples: Any, make_batch: Any) -> None:
    batch = make_batch(make_samples(100))
    write_shard(tmp_path / "a", batch.schema, [batch])
    mixed = [batch.slice(0, 30).select(sorted(batch.schema.names)), batch.slice(30).select(batch.schema.names[::-1])]
    write_shard(tmp_path / "b", batch.schema, mixed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("batches", [[], [slice(0, 0)], [slice(0, 0), slice(0, 0)]])
def test_a_shard_of_no_rows_can_be_read(
    tmp_path: Path, make_samples: Any, make_batch: Any, batches: list[slice]
) -> None:
    batch = make_batch(make_samples(1))
    assert write_shard(tmp_path / "a", batch.schema, [batch[at] for at in batches]) == 0
    assert sum(group.rows for group in byte_ranges(tmp_path / "a")[0]) == 0
    assert pq.read_table(tmp_path / "a").num_rows == 0


def test_tensor_columns_have_no_dictionary_and_no_statistics_and_plain_ones_have(several: Path) -> None:
    metadata = pq.read_metadata(several)
    for group, column in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns)):
        facts = metadata.row_group(group).column(column)
        assert not facts.has_dictionary_page
        assert not any("DICTIONARY" in encoding for encoding in facts.encodings)
        assert facts.compression == "ZSTD"
        plain = facts.path_in_schema in ("sample_id", "n", "label")
        assert (facts.statistics is not None and facts.statistics.has_min_max) == plain


@pytest.mark.parametrize("column", range(5))
def test_page_checksums_find_a_flipped_byte(several: Path, column: int) -> None:
    facts = pq.read_metadata(several).row_group(2).column(column)
    data = bytearray(several.read_bytes())
    data[facts.data_page_offset + facts.total_compressed_size - 1] ^= 0x01
    with pytest.raises(OSError, match="CRC checksum"):
        pq.ParquetFile(io.BytesIO(bytes(data)), page_checksum_verification=True).read()


# Pages

WIDTHS = {"INT32": 4, "INT64": 8}


def narrow(rows: int) -> pa.RecordBatch:
    """Rows of which more go into a row group than pyarrow would put into a page."""
    ids = np.arange(rows)
    raw = {"sample_id": ids, "n": ids.astype(np.int16), "label": ids % 3}
    samples = as_samples(pa.table(raw), Columns(), "made by hand")
    header = ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 3, "teacher", "span")
    return rows_of(samples, Dense(1.0), -np.ones((rows, 3), np.float32), shard_schema(samples.schema, header))


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("rows", [1, 100, 50_000])
def test_each_column_of_a_row_group_is_one_page(tmp_path: Path, rows: int, compression: str) -> None:
    batch = narrow(rows)
    write_shard(tmp_path / "a", batch.schema, [batch], compression)
    group = pq.read_metadata(tmp_path / "a").row_group(0)
    assert group.num_rows == rows
    for column in (group.column(index) for index in range(group.num_columns)):
        width = WIDTHS.get(column.physical_type, 6)
        assert 0 < column.total_uncompressed_size - rows * width < 100, "one page has one header"
        assert column.compression == {"zstd": "ZSTD", "none": "UNCOMPRESSED"}[compression]
        assert not column.has_dictionary_page


@pytest.mark.parametrize(("width", "rows", "first"), [(1 << 12, 5000, 4084), (1 << 19, 40, 31)])
def test_of_wide_rows_too_each_column_of_a_row_group_is_one_page(
    tmp_path: Path, width: int, rows: int, first: int
) -> None:
    """Sixteen MiB of inputs are far more than Parquet's usual page."""
    ids, pixels = np.arange(rows), np.random.default_rng(0).integers(0, 255, (rows, width), np.uint8)
    field = tensor_columns.tensor_field("pixels", pixels.dtype, pixels.shape[1:], "input")
    schema = pa.schema([pa.field("sample_id", pa.int64(), nullable=False), field])
    samples = pa.table([pa.array(ids), tensor_columns.pack(pixels)], schema=schema)
    whole = shard_schema(schema, ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 2, "teacher", "span"))
    batch = rows_of(samples, Dense(1.0), np.zeros((rows, 2), np.float32), whole)
    write_shard(tmp_path / "a", batch.schema, [batch])
    groups = [pq.read_metadata(tmp_path / "a").row_group(index) for index in range(2)]
    assert [group.num_rows for group in groups] == [first, rows - first]
    for group in groups:
        assert 0 < group.column(0).total_uncompressed_size - group.num_rows * width < 100


def test_uncompressed_a_column_of_a_row_group_is_one_run_of_its_values(tmp_path: Path) -> None:
    batch = narrow(50_000)
    write_shard(tmp_path / "a", batch.schema, [batch], "none")
    data, group = (tmp_path / "a").read_bytes(), pq.read_metadata(tmp_path / "a").row_group(0)
    ids = np.arange(50_000)
    for name, values in (
        ("sample_id", ids),
        ("label", ids % 3),
        ("n", ids.astype(np.int16).astype(np.int32)),
        ("soft_logits", np.full((50_000, 3), -1, np.float16)),
    ):
        column = group.column(batch.schema.names.index(name))
        stop = column.data_page_offset + column.total_compressed_size
        assert data[stop - values.nbytes : stop] == values.tobytes()


def test_an_older_pyarrow_without_a_limit_of_rows_is_not_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = pq.ParquetWriter

    def writer(*arguments: Any, **options: Any) -> Any:
        assert "max_rows_per_page" not in options
        return really(*arguments, **options)

    monkeypatch.setattr(shards, "_LIMITS_ROWS", False)
    monkeypatch.setattr(pq, "ParquetWriter", writer)
    assert write_shard(tmp_path / "a", narrow(10).schema, [narrow(10)]) == 10


def test_text_that_is_longer_than_a_page_may_be_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No schema tells how long texts are, and Parquet holds no page of 2 GiB."""
    monkeypatch.setattr(shards, "PAGE_BYTES", 1 << 20)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 32 * 3000)
    schema = pa.schema([pa.field("sample_id", pa.string(), nullable=False)])
    ids = pa.array([f"{index:0>1000}" for index in range(5000)])
    batch = pa.record_batch([ids], schema=schema)
    write_shard(tmp_path / "a", schema, [batch], "none")
    assert pq.read_table(tmp_path / "a").column(0).combine_chunks() == ids
    write_shard(tmp_path / "b", schema, cut(batch, [700, 1900, 3333]), "none")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    metadata = pq.read_metadata(tmp_path / "a")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3000, 2000]
    monkeypatch.setattr(shards, "PAGE_BYTES", 1 << 30)
    write_shard(tmp_path / "b", schema, [batch], "none")
    assert (tmp_path / "a").stat().st_size > (tmp_path / "b").stat().st_size, "every page has a header"


@pytest.mark.parametrize("width", [1 << 30, (1 << 30) + 1])
def test_a_row_larger_than_a_page_is_refused(tmp_path: Path, width: int) -> None:
    schema = pa.schema([pa.field("x", pa.binary(width - 8)), pa.field("sample_id", pa.int64())])
    if width == 1 << 30:
        assert write_shard(tmp_path / "a", schema, []) == 0
        return
    with pytest.raises(
        RecipeError, match=r"would take 1,073,741,825 bytes\. It may take 1,073,741,824: .* Store small"
    ):
        write_shard(tmp_path / "a", schema, [])
    assert not (tmp_path / "a").exists()


def test_a_compression_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is 'lz4'\. It is one of: zstd, none\."):
        write_shard(tmp_path / "a", narrow(1).schema, [], "lz4")


# Sections


def with_extras(samples: pa.Table, extras: bool = True, inputs: bool = True) -> pa.RecordBatch:
    """A shard's rows with the plain columns that are its own, and without inputs where they are kept elsewhere."""
    rows = samples.num_rows
    if not inputs:
        digests = tensor_columns.pack(np.arange(rows * 16, dtype=np.uint8).reshape(rows, 16))
        samples = samples.select(["sample_id", "label"]).append_column(INPUTS_XXH3_FIELD, digests)
    fields = [pa.field("soft_entropy", pa.float32(), nullable=False), pa.field("soft_top1", pa.int32(), nullable=False)]
    values = [pa.array(np.arange(rows) / 8, pa.float32()), pa.array(np.arange(rows) % 5, pa.int32())]
    header = ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 5, "teacher", "span")
    schema = shard_schema(samples.schema, header, fields if extras else ())
    for field, array in zip(fields, values, strict=True) if extras else ():
        samples = samples.append_column(field, array)
    return rows_of(samples, Dense(1.0), -np.ones((rows, 5), np.float32), schema)


def test_inputs_come_first_and_targets_last(make_samples: Any) -> None:
    samples = make_samples(2)
    assert with_extras(samples).schema.names == [
        *("x", "n"),
        *("sample_id", "label", "soft_entropy", "soft_top1"),
        "soft_logits",
    ]
    assert with_extras(samples, inputs=False).schema.names == [
        *("sample_id", "label", "inputs_xxh3", "soft_entropy", "soft_top1"),
        "soft_logits",
    ]
    mixed = samples.select(["n", "label", "sample_id", "x"])
    assert with_extras(mixed, extras=False).schema.names == ["n", "x", "label", "sample_id", "soft_logits"]


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_each_section_is_the_bytes_of_its_columns_and_of_no_others(
    tmp_path: Path, small_groups: None, make_samples: Any, compression: str
) -> None:
    batch = with_extras(make_samples(100))
    write_shard(tmp_path / "a", batch.schema, [batch], compression)
    data, metadata = (tmp_path / "a").read_bytes(), pq.read_metadata(tmp_path / "a")
    groups, _ = byte_ranges(tmp_path / "a")
    assert len(groups) > 1
    for index, group in enumerate(groups):
        columns = [metadata.row_group(index).column(number) for number in range(len(batch.schema))]
        start = group.start
        held = (("x", "n"), batch.schema.names[2:6], ("soft_logits",))
        for (stop, xxh3), names in zip(group.sections.values(), held, strict=True):
            mine = [column for column in columns if column.path_in_schema in names]
            assert start == mine[0].data_page_offset
            assert stop - start == sum(column.total_compressed_size for column in mine)
            assert xxh3 == range_digest(data[start:stop])
            start = stop
        assert start == group.stop


def test_neighbouring_sections_are_read_from_their_own_bytes_alone(tmp_path: Path, make_samples: Any) -> None:
    batch = with_extras(make_samples(20))
    write_shard(tmp_path / "a", batch.schema, [batch])
    data, ([group], footer) = (tmp_path / "a").read_bytes(), byte_ranges(tmp_path / "a")
    metadata = pq.read_metadata(io.BytesIO(data[footer.start :]))
    for start, stop, names in (
        (group.start, group.plain_stop, batch.schema.names[:6]),
        (group.inputs_stop, group.stop, batch.schema.names[2:]),
        (group.inputs_stop, group.plain_stop, batch.schema.names[2:6]),
    ):
        file = pa.PythonFile(RangeFile(len(data), {start: data[start:stop]}), mode="r")
        read = pq.ParquetFile(file, metadata=metadata, pre_buffer=False).read_row_group(0, names, use_threads=False)
        assert read.equals(pa.Table.from_batches([batch.select(names)]).replace_schema_metadata(read.schema.metadata))


@pytest.mark.parametrize("part", SECTIONS)
def test_a_flipped_byte_changes_the_digest_of_its_own_section_only(several: Path, part: str) -> None:
    groups, _ = byte_ranges(several)
    stop, _ = groups[2].sections[part]
    data = bytearray(several.read_bytes())
    data[stop - 1] ^= 0x01
    several.write_bytes(bytes(data))
    changed, _ = byte_ranges(several)
    assert [a == b for a, b in zip(groups, changed, strict=True)] == [index != 2 for index in range(6)]
    same = {name: groups[2].sections[name] == changed[2].sections[name] for name in SECTIONS}
    assert same == {name: name != part for name in SECTIONS}
    assert changed[2].xxh3 != groups[2].xxh3


def test_without_inputs_the_first_section_is_empty(tmp_path: Path, make_samples: Any) -> None:
    batch = with_extras(make_samples(20), inputs=False)
    write_shard(tmp_path / "a", batch.schema, [batch])
    [group], _ = byte_ranges(tmp_path / "a")
    assert group.sections["inputs"] == (group.start, range_digest(b""))
    assert group.start < group.plain_stop < group.stop


@pytest.mark.parametrize("rows", [0, 1])
def test_the_smallest_shards_have_sections_too(tmp_path: Path, make_samples: Any, rows: int) -> None:
    batch = with_extras(make_samples(1))
    write_shard(tmp_path / "a", batch.schema, [batch.slice(0, rows)])
    [group], footer = byte_ranges(tmp_path / "a")
    assert group.start <= group.inputs_stop <= group.plain_stop <= group.stop
    assert footer.start == (group.stop if rows else 0)


def test_a_file_without_a_header_or_with_mixed_columns_is_no_shard(tmp_path: Path, make_samples: Any) -> None:
    batch = with_extras(make_samples(5))
    for number, names in enumerate((["sample_id", "x", "soft_logits"], ["soft_logits", "sample_id"])):
        path = tmp_path / str(number)
        pq.write_table(pa.Table.from_batches([batch]).select(names), path, use_dictionary=False)
        with pytest.raises(CorruptShard, match="A shard's columns lie one after another, in the order inputs, plain, "):
            byte_ranges(path)
    bare = pa.Table.from_batches([batch]).replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "bare", use_dictionary=False)
    with pytest.raises(CorruptShard, match="bare has no 'stillhouse' metadata"):
        byte_ranges(tmp_path / "bare")


def test_what_a_shard_adds_to_its_samples_is_no_input(make_samples: Any) -> None:
    samples = make_samples(4)
    header = ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 5, "teacher", "span")
    for batch, inputs in ((with_extras(samples), ["x", "n"]), (with_extras(samples, inputs=False), [])):
        assert stored_inputs(batch.schema, header) == inputs
        rows = decode(pa.Table.from_batches([batch]), header)
        assert (list(rows.inputs), rows.sample_id.tolist()) == (inputs, [0, 1, 2, 3])
        assert rows.label is not None and rows.label.tolist() == [0, 1, 2, 3] and rows.targets is not None


# Byte ranges


def test_the_ranges_cover_every_byte_after_the_magic_number_once(several: Path) -> None:
    groups, footer = byte_ranges(several)
    size = several.stat().st_size
    assert groups[0].start == 4
    assert all(a.stop == b.start for a, b in itertools.pairwise([*groups, footer]))
    assert (footer.stop, footer.rows) == (size, 0)
    data = several.read_bytes()
    assert [part.xxh3 for part in [*groups, footer]] == [
        range_digest(data[part.start : part.stop]) for part in [*groups, footer]
    ]


def test_a_flipped_byte_changes_the_digest_of_its_own_range_only(several: Path) -> None:
    groups, footer = byte_ranges(several)
    data = bytearray(several.read_bytes())
    data[groups[3].start + 30] ^= 0xFF
    several.write_bytes(bytes(data))
    changed, same_footer = byte_ranges(several)
    assert [a == b for a, b in zip(groups, changed, strict=True)] == [True, True, True, False, True, True]
    assert same_footer == footer


def test_a_row_group_is_read_from_its_byte_range_alone(several: Path, teacher: Callable[..., Any]) -> None:
    first = 0
    for index, size in enumerate([17, 17, 17, 17, 17, 15]):
        rows = read_group(several, index)
        ids = np.arange(first, first + size)
        np.testing.assert_array_equal(rows.sample_id, ids)
        np.testing.assert_array_equal(rows.inputs["x"].reshape(size, 6), ids[:, None] + np.arange(6) / 8)
        np.testing.assert_array_equal(rows.inputs["n"], ids * 3)
        assert rows.inputs["n"].dtype == np.int16 and rows.inputs["x"].shape == (size, 2, 3)
        np.testing.assert_array_equal(rows.label, ids % 5)
        soft_PV = teacher(ids)
        assert rows.targets is not None
        np.testing.assert_array_equal(rows.targets.logits_PV, soft_PV - soft_PV.max(axis=1, keepdims=True))
        assert len(rows) == size
        first += size


def test_a_range_that_was_not_fetched_is_not_made_up() -> None:
    file = RangeFile(100, {10: bytes(range(10, 30)), 50: bytes(range(50, 60))})
    assert (file.seek(12), file.read(3), file.tell()) == (12, b"\x0c\x0d\x0e", 15)
    assert (file.seek(-45, 2), file.read(5)) == (55, bytes(range(55, 60)))
    assert (file.seek(-10, 1), file.read(2)) == (50, b"\x32\x33")
    for place, size in ((0, 4), (5, 10), (25, 10), (29, 2), (60, 1), (20, -1)):
        file.seek(place)
        with pytest.raises(OSError, match="were not fetched"):
            file.read(size)


# What a shard says of itself


def test_a_header_comes_back_from_the_file(tmp_path: Path, make_samples: Any) -> None:
    samples = make_samples(1)
    header = ShardHeader(FORMAT_VERSION, "key é", Dense(4.0, "float32"), 7, "teacher digest", "span digest")
    schema = shard_schema(samples.schema, header)
    write_shard(tmp_path / "a", schema, [])
    assert read_header(pq.read_schema(tmp_path / "a"), "a") == header


def test_a_header_has_these_bytes() -> None:
    header = ShardHeader(1, "k", Dense(2.0), 3, "t", "s")
    assert header.to_metadata() == {
        b"stillhouse": b'{"classes":3,"format_version":1,"shard_key":"k","span":"s",'
        b'"targets":{"dtype":"float16","encoding":"dense","temperature":2.0},"teacher":"t"}'
    }


@pytest.mark.parametrize(
    "metadata, found",
    [
        (None, "has no 'stillhouse' metadata"),
        ({b"other": b"{}"}, "has no 'stillhouse' metadata"),
        ({b"stillhouse": b'{"format_version":2}'}, "has the format version 2. This version reads 1"),
        (
            {b"stillhouse": b'{"format_version":1,"targets":{"encoding":"sketch","r":64}}'},
            "is encoded in a way that is not known here: targets.encoding is 'sketch'",
        ),
        (
            {b"stillhouse": b'{"format_version":1,"targets":{"encoding":"dense","rank":64}}'},
            "is encoded in a way that is not known here: targets.rank is no setting",
        ),
        ({b"stillhouse": b"not JSON"}, ""),
        ({b"stillhouse": b"[1]"}, ""),
        ({b"stillhouse": b"{}"}, ""),
        ({b"stillhouse": b'{"format_version":1}'}, ""),
        ({b"stillhouse": b'{"format_version":1,"targets":{"encoding":"dense"}}'}, ""),
    ],
)
def test_a_header_that_cannot_be_read_is_a_corrupt_shard(metadata: dict[bytes, bytes] | None, found: str) -> None:
    with pytest.raises(CorruptShard) as caught:
        read_header(pa.schema([], metadata=metadata), "store/shards/x.parquet")
    assert str(caught.value).startswith("store/shards/x.parquet ")
    assert found in str(caught.value)


def test_others_read_a_shard_as_plain_columns(several: Path) -> None:
    frame = pd.read_parquet(several)
    assert list(frame.columns) == ["x", "n", "sample_id", "label", "soft_logits"]
    assert frame["sample_id"].tolist() == list(range(100))
    assert frame["label"].dtype == np.int64 and frame["label"].tolist() == [i % 5 for i in range(100)]
    assert frame["n"].sum() == 3 * sum(range(100))
    assert struct.unpack("<6f", frame["x"][3]) == (3.0, 3.125, 3.25, 3.375, 3.5, 3.625)
    schema = pq.read_schema(several)
    assert schema.field("soft_logits").type == pa.binary(10)
    assert schema.field("soft_logits").metadata[b"dtype"] == b"float16"
    assert schema.field("soft_logits").metadata[b"shape"] == b"[5]"


def test_samples_without_targets_or_labels_are_rows_too(make_samples: Any) -> None:
    rows = sample_rows(make_samples(3, 4).drop_columns(["label"]))
    assert (rows.sample_id.tolist(), list(rows.inputs), rows.label, rows.targets) == ([4, 5, 6], ["x", "n"], None, None)


# The golden file

GOLDEN_STOPS = [132, 310, 368]


def golden_table() -> pa.Table:
    ids = [f"img-{i}-é" for i in range(10)]
    pixels = (np.arange(40).reshape(10, 2, 2) * 6).astype(np.uint8)
    fixed = tensor_columns.tensor_field("pixels", pixels.dtype, (2, 2), "input")
    weight = pa.array(np.arange(10) / 4, pa.float32())
    raw = pa.table(
        [pa.array(ids), tensor_columns.pack(pixels), weight, pa.array([i % 3 for i in range(10)])],
        schema=pa.schema([("sample_id", pa.string()), fixed, ("weight", pa.float32()), ("label", pa.int64())]),
    )
    return as_samples(raw, Columns(), "golden")


def golden_soft() -> np.ndarray[Any, Any]:
    """Exact in float16: multiples of 1/8 from -10 to 0, and the lowest number."""
    soft_PV = -((np.arange(30).reshape(10, 3) * 37) % 91) / 8.0
    soft_PV[np.arange(10), np.arange(10) % 3] = 0
    soft_PV[9, 1] = -65504
    return soft_PV.astype(np.float32)


def test_the_golden_shard_is_read_with_its_exact_values() -> None:
    start = 0
    for index, size in enumerate([4, 4, 2]):
        rows = read_group(GOLDEN, index)
        at = slice(start, start + size)
        assert rows.sample_id.tolist() == [f"img-{i}-é" for i in range(10)][at]
        assert list(rows.inputs) == ["pixels", "weight"]
        assert rows.inputs["pixels"].dtype == np.uint8 and rows.inputs["weight"].dtype == np.float32
        np.testing.assert_array_equal(rows.inputs["pixels"], (np.arange(40).reshape(10, 2, 2) * 6)[at])
        np.testing.assert_array_equal(rows.inputs["weight"], (np.arange(10) / 4)[at])
        assert rows.label is not None and rows.label.tolist() == [i % 3 for i in range(10)][at]
        assert rows.targets is not None and rows.targets.logits_PV.dtype == np.float16
        np.testing.assert_array_equal(rows.targets.logits_PV, golden_soft()[at])
        np.testing.assert_array_equal(rows.targets.temperature_P, np.full(size, 2, np.float32))
        start += size
    assert start == pq.read_metadata(GOLDEN).num_rows == 10
    # A few of them literally, so that no helper above can drift along with the reader.
    assert read_group(GOLDEN, 0).targets.logits_PV[1].tolist() == [-2.5, 0.0, -0.375]  # type: ignore[union-attr]
    assert read_group(GOLDEN, 2).targets.logits_PV[1].tolist() == [0.0, -65504.0, -9.0]  # type: ignore[union-attr]
    assert read_group(GOLDEN, 1).inputs["pixels"][0].tolist() == [[96, 102], [108, 114]]


def test_the_golden_shard_says_what_it_is() -> None:
    header = read_header(pq.read_schema(GOLDEN), "golden")
    assert header == ShardHeader(1, "golden-key", Dense(2.0), 3, "golden-teacher", "golden-span")


def test_the_golden_shard_has_these_ranges_and_digests() -> None:
    groups, footer = byte_ranges(GOLDEN)
    facts = json.loads((GOLDEN.parent / "commit-v1.json").read_bytes())
    assert [part.to_dict() for part in groups] == facts["row_groups"] and footer._asdict() == facts["footer"]
    assert [stop for stop, _ in groups[0].sections.values()] == GOLDEN_STOPS


def test_the_writer_still_writes_the_golden_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte with the pyarrow that wrote it; with another, the same metadata, schema and row groups."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * 58)
    _make_golden(tmp_path / "shard.parquet")
    new, old = pq.read_metadata(tmp_path / "shard.parquet"), pq.read_metadata(GOLDEN)
    assert new.schema.to_arrow_schema().equals(old.schema.to_arrow_schema(), check_metadata=True)
    assert pq.read_schema(tmp_path / "shard.parquet").metadata == pq.read_schema(GOLDEN).metadata
    assert [new.row_group(i).num_rows for i in range(new.num_row_groups)] == [
        old.row_group(i).num_rows for i in range(old.num_row_groups)
    ]
    if new.created_by == old.created_by:
        assert (tmp_path / "shard.parquet").read_bytes() == GOLDEN.read_bytes()


def _make_golden(path: Path) -> None:
    samples, encoding = golden_table(), Dense(2.0)
    schema = shard_schema(
        samples.schema, ShardHeader(FORMAT_VERSION, "golden-key", encoding, 3, "golden-teacher", "golden-span")
    )
    write_shard(path, schema, [rows_of(samples, encoding, golden_soft(), schema)])


if __name__ == "__main__":
    shards.ROW_GROUP_BYTES = 4 * 58
    _make_golden(GOLDEN)
    print(byte_ranges(GOLDEN))
