"""One shard file: the same bytes for the same rows, readable a row group at a time, and by everybody.

The golden file was written once, by `PYTHONPATH=. python tests/storage/test_shard.py`. A reader of
format version 1 must give its exact values for ever; write a new file only for a new version.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import shard as shards
from storage import tensors
from storage.digest import range_digest
from storage.encodings.dense import Dense
from storage.errors import CorruptShard
from storage.samples import Columns, as_samples
from storage.shard import (
    FORMAT_VERSION,
    ByteRange,
    RangeFile,
    Rows,
    ShardHeader,
    byte_ranges,
    decode,
    read_header,
    sample_rows,
    shard_schema,
    write_shard,
)

GOLDEN = Path(__file__).parent / "golden" / "shard-v1.parquet"
CUTS = [[], [1], [50], [1, 2, 3], [7, 7, 30, 64], list(range(9, 100, 9)), list(range(1, 100))]


def cut(batch: pa.RecordBatch, cuts: list[int]) -> list[pa.RecordBatch]:
    return [batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, batch.num_rows], strict=True)]


def read_group(path: Path, index: int) -> Rows:
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


@pytest.mark.parametrize("page_bytes", [200, 1 << 20])
@pytest.mark.parametrize("group_rows", [17, 50, 1000])
def test_the_bytes_do_not_depend_on_the_batches(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_samples: Any,
    make_batch: Any,
    page_bytes: int,
    group_rows: int,
) -> None:
    """Otherwise a cache's digest would tell how large the teacher's batches were."""
    monkeypatch.setattr(shards, "PAGE_BYTES", page_bytes)
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


def test_a_shard_of_no_rows_can_be_read(tmp_path: Path, make_samples: Any, make_batch: Any) -> None:
    batch = make_batch(make_samples(1)).slice(0, 0)
    assert write_shard(tmp_path / "a", batch.schema, [batch]) == 0
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
    assert list(frame.columns) == ["sample_id", "x", "n", "label", "soft_logits"]
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

GOLDEN_RANGES = [
    (4, 368, 4, "16333df6e2682258bcad57bcb93b2473"),
    (368, 738, 4, "5b0467150630aac75fb9a4551ab0bd4d"),
    (738, 1064, 2, "39c26f25731afb51bec6c67d3b19374b"),
    (1064, 3627, 0, "39085e7c6ad92aa30c6a76c32a1f677e"),
]


def golden_table() -> pa.Table:
    ids = [f"img-{i}-é" for i in range(10)]
    pixels = (np.arange(40).reshape(10, 2, 2) * 6).astype(np.uint8)
    fixed = tensors.tensor_field("pixels", pixels.dtype, (2, 2), "input")
    weight = pa.array(np.arange(10) / 4, pa.float32())
    raw = pa.table(
        [pa.array(ids), tensors.pack(pixels), weight, pa.array([i % 3 for i in range(10)])],
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
    assert [(part.start, part.stop, part.rows, part.xxh3) for part in [*groups, footer]] == GOLDEN_RANGES
    assert isinstance(footer, ByteRange)


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
    arrays = [*(column.combine_chunks() for column in samples.columns), *encoding.encode(golden_soft())]
    path.parent.mkdir(exist_ok=True)
    write_shard(path, schema, [pa.RecordBatch.from_arrays(arrays, schema=schema)])


if __name__ == "__main__":
    shards.ROW_GROUP_BYTES = 4 * 58
    _make_golden(GOLDEN)
    print(byte_ranges(GOLDEN))
