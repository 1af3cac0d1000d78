"""A cache's rows: the bytes that are asked for and no others, and never a wrong one unseen."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.digest import sha256_of
from storage.base.errors import CorruptShard, RecipeError, StoreError, StoreLost, UsageError
from storage.cache.cache import Cache
from storage.cache.commits import Commit, commit_shard, new_attempt
from storage.cache.open import open_cache
from storage.cache.seal import seal
from storage.encodings.dense import Dense
from storage.format import shard as shards
from storage.format.header import FORMAT_VERSION, ShardHeader, read_header, shard_schema
from storage.format.rows import decode
from storage.format.shard import COMPRESSIONS, write_shard
from storage.objectstore.folder import Folder
from storage.rows import cache_rows
from storage.rows.cache_rows import PARTS, CacheRows
from storage.rows.reading import Reading
from storage.rows.row_groups import read_group, row_bytes
from storage.samples.samples import Columns, as_samples
from storage.stream.scan import scan
from storage.stream.stream import Stream
from tests.storage.helpers import rows_of
from tests.storage.stream.fakes import Make, batches, check_rows, ids_of, values

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SIZES = (11, 3, 9)
N = 23
PARTED: list[tuple[str, ...]] = [("inputs", "targets"), ("targets",), ("inputs",), ()]
parted = pytest.mark.parametrize("parts", PARTED, ids=lambda parts: " and ".join(parts) or "neither")
compressions = pytest.mark.parametrize("compression", COMPRESSIONS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of four rows."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * 52)


@pytest.fixture
def cache(local: Folder, make_cache: Make) -> Cache:
    """23 rows in three shards, their row groups of 4, 4, 3, 3, 4, 4 and 1 rows."""
    return make_cache(local, SIZES)


@pytest.fixture
def put(local: Folder, make_samples: Make, make_batch: Make) -> Callable[..., Cache]:
    """`put(compression)`: a cache of the same rows, its shards compressed that way."""

    def sealed(compression: str) -> Cache:
        found: list[Commit] = []
        for rows, first in zip(SIZES, (0, 11, 14), strict=True):
            key, staged = sha256_of([compression, first]), local.stage()
            batch = make_batch(make_samples(rows, first), key)
            written = write_shard(staged, batch.schema, [batch], compression)
            found.append(commit_shard(local, key, new_attempt(), staged, written))
        return seal(local, compression, found, {})

    return sealed


class Requests:
    """What is asked of a store, and which of the answers go wrong."""

    def __init__(self, store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        # Given (path, start, bytes): the bytes that come instead. Or raises.
        self.fault: Callable[[str, int, bytes], bytes] | None = None
        self._read_range, self._read_pieces = store.read_range, store.read_pieces
        monkeypatch.setattr(store, "read_range", self.read_range)
        monkeypatch.setattr(store, "read_pieces", self.read_pieces)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        self.ranges.append((path, start, stop))
        data = self._read_range(path, start, stop)
        return data if self.fault is None else self.fault(path, start, data)

    def read_pieces(self, path: str, start: int, pieces: Sequence[memoryview]) -> int:
        size = sum(map(len, pieces))
        self.ranges.append((path, start, start + size))
        data = bytearray(size)
        count = self._read_pieces(path, start, [memoryview(data)])
        given = bytes(data[:count]) if self.fault is None else self.fault(path, start, bytes(data[:count]))
        at = 0
        for piece in pieces:
            part = given[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(part)
        return len(given)


@pytest.fixture
def requests(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(cache.store, monkeypatch)


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "stillhouse.stream")

    def told() -> list[str]:
        assert {record.name for record in caplog.records} <= {"stillhouse.stream"}
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return told


# What is read


@parted
@compressions
def test_every_row_has_the_parts_that_are_asked_for(
    put: Make, teacher: Make, parts: Collection[str], compression: str
) -> None:
    groups = CacheRows(put(compression), parts)
    seen: list[int] = []
    for group in range(len(groups.rows)):
        rows = read_group(groups, group)
        check_rows(rows, teacher)
        assert list(rows.inputs) == (["x", "n"] if "inputs" in parts else [])
        assert (rows.targets is not None) == ("targets" in parts)
        seen += rows.sample_id.tolist()
    assert seen == list(range(N))


def test_a_row_takes_the_memory_of_its_parts(cache: Cache) -> None:
    assert [row_bytes(CacheRows(cache, parts)) for parts in PARTED] == [52, 26, 42, 16]


@parted
def test_only_the_bytes_of_the_parts_are_read(cache: Cache, requests: Requests, parts: Collection[str]) -> None:
    groups = CacheRows(cache, parts)
    shard = cache.shards[1]
    [part] = shard.row_groups
    start = part.start if "inputs" in parts else part.inputs_stop
    stop = part.stop if "targets" in parts else part.plain_stop
    first = cache.shards[0]
    assert requests.ranges == [(first.path, first.footer.start, first.footer.stop)]
    requests.ranges.clear()
    read_group(groups, 3)
    footer = (shard.path, shard.footer.start, shard.footer.stop)
    assert requests.ranges == [footer, (shard.path, start, stop)]
    # The footer is known now.
    read_group(groups, 3)
    assert requests.ranges[2:] == [(shard.path, start, stop)]


def test_the_parts_together_are_little_more_than_the_whole(cache: Cache, requests: Requests) -> None:
    counts = Counter[tuple[str, ...]]()
    for parts in PARTED:
        groups = CacheRows(cache, parts)
        requests.ranges.clear()
        for _ in scan(groups, 5, Reading(prefetch_bytes=0, threads=1)):
            pass
        footers = {(s.path, s.footer.start, s.footer.stop) for s in cache.shards}
        counts[parts] = sum(stop - start for path, start, stop in requests.ranges if (path, start, stop) not in footers)
    whole = sum(group.stop - group.start for shard in cache.shards for group in shard.row_groups)
    assert counts[PARTS] == whole
    assert counts["targets",] + counts["inputs",] - counts[()] == whole
    assert counts[()] < counts["targets",] < whole


@pytest.mark.parametrize("part", ["target", "labels", ""])
def test_what_is_no_part_is_refused(cache: Cache, part: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"^'{part}' is no part of a cache's rows\..*The parts are: inputs, targets\.$"
    ):
        CacheRows(cache, ["inputs", part])


def test_a_part_that_is_nearly_one_is_guessed(cache: Cache) -> None:
    with pytest.raises(RecipeError, match="targets"):
        CacheRows(cache, ["target"])


@pytest.mark.parametrize("footers", [1, 2])
def test_footers_that_were_let_go_of_are_read_again(
    cache: Cache, teacher: Make, requests: Requests, monkeypatch: pytest.MonkeyPatch, footers: int
) -> None:
    monkeypatch.setattr(cache_rows, "FOOTERS", footers)
    groups = CacheRows(cache)
    for group in (0, 3, 4, 0, 6, 3, 1):
        check_rows(read_group(groups, group), teacher)
    assert sum(path == cache.shards[0].path for path, start, _ in requests.ranges if start != 4) > 2


def test_row_groups_are_named_for_people(cache: Cache) -> None:
    part = cache.shards[2].row_groups[1]
    url = cache.store.url_of(cache.shards[2].path)
    assert CacheRows(cache).name_of(5) == f"row group 1 (bytes {part.start} to {part.stop}) of {url}"
    targets = f"row group 1 (bytes {part.inputs_stop} to {part.stop}) of {url}"
    assert CacheRows(cache, ["targets"]).name_of(5) == targets


@parted
def test_rows_can_go_to_another_process(cache: Cache, parts: Collection[str]) -> None:
    groups = CacheRows(cache, parts)
    again = pickle.loads(pickle.dumps(groups))
    assert again.columns == groups.columns and again.digest == groups.digest
    for group in range(len(groups.rows)):
        assert values(read_group(again, group)) == values(read_group(groups, group))


@compressions
def test_many_threads_read_at_a_time(put: Make, teacher: Make, compression: str) -> None:
    groups = CacheRows(put(compression))
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda group: read_group(groups, group), [group % 7 for group in range(200)]):
            check_rows(rows, teacher)


@compressions
def test_rows_do_not_change_when_others_are_read(put: Make, compression: str) -> None:
    groups = CacheRows(put(compression))
    first = read_group(groups, 0)
    before = values(first)
    for group in range(1, 7):
        read_group(groups, group)
    assert values(first) == before


# Damage


def regions(shard: Commit, parts: Collection[str]) -> dict[str, tuple[int, int, bool]]:
    """The bytes [start, stop) of each region of a shard of one row group, and whether they are read."""
    [part] = shard.row_groups
    inputs, plain, targets = part.inputs_stop, part.plain_stop, part.stop
    return {
        "inputs": (part.start, inputs, "inputs" in parts),
        "plain": (inputs, plain, True),
        "targets": (plain, targets, "targets" in parts),
        "footer": (shard.footer.start, shard.footer.stop, True),
    }


@parted
def test_a_byte_that_is_read_cannot_be_wrong_unseen(cache: Cache, flip: Make, parts: Collection[str]) -> None:
    """The first, the last and some bytes of each region; one that is not read is not looked at."""
    shard = cache.shards[1]
    whole = cache.store.read(shard.path)
    right = values(read_group(CacheRows(cache, parts), 3))
    for start, stop, is_read in regions(shard, parts).values():
        for at in sorted({start, stop - 1, *range(start, stop, 61)}):
            flip(cache.store, shard.path, at)
            groups = CacheRows(cache, parts)
            if is_read:
                with pytest.raises(CorruptShard, match=re.escape(cache.store.url_of(shard.path))):
                    read_group(groups, 3)
            else:
                assert values(read_group(groups, 3)) == right
            cache.store.write(shard.path, whole)
    assert values(read_group(CacheRows(cache, parts), 3)) == right


@compressions
def test_every_byte_that_training_reads_is_checked(put: Make, flip: Make, compression: str) -> None:
    """Any byte of the shard but the four before its first row group."""
    cache = put(compression)
    shard = cache.shards[1]
    whole = cache.store.read(shard.path)
    for at in [*range(4, shard.bytes, 97), shard.bytes - 1]:
        flip(cache.store, shard.path, at)
        with pytest.raises(CorruptShard, match=shard.path):
            read_group(CacheRows(cache), 3)
        cache.store.write(shard.path, whole)
    assert len(read_group(CacheRows(cache), 3)) == 3


@pytest.mark.parametrize("shard_index, group", [(0, 0), (0, 2), (2, 1)])
def test_a_flipped_byte_in_a_row_group_is_named(cache: Cache, flip: Make, shard_index: int, group: int) -> None:
    shard = cache.shards[shard_index]
    part = shard.row_groups[group]
    flip(cache.store, shard.path, (part.start + part.stop) // 2)
    stream = Stream(CacheRows(open_cache(cache.url)), batch_size=5, seed=0)
    with pytest.raises(CorruptShard) as caught:
        batches(stream, 5)
    url = cache.store.url_of(shard.path)
    found, expected, remedy = caught.value.args
    where = rf"The shard {re.escape(url)} is damaged: row group {group} \(bytes {part.start} to {part.stop}\)"
    assert re.fullmatch(rf"{where} has the digest [0-9a-f]{{16}}\.", found)
    assert re.fullmatch(r"[0-9a-f]{16} was committed\.", expected)
    assert remedy.startswith("Restore the file from a copy, or remove the cache")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_shard_is_named(cache: Cache, kept: int) -> None:
    shard = cache.shards[2]
    cache.store.write(shard.path, cache.store.read(shard.path)[:kept])
    with pytest.raises(CorruptShard, match=shard.path):
        batches(Stream(CacheRows(cache), batch_size=N, seed=0), 1)


@parted
def test_a_range_that_is_cut_off_is_named(cache: Cache, parts: Collection[str]) -> None:
    """The file ends in the row group, whose footer is known."""
    groups = CacheRows(cache, parts)
    shard = cache.shards[0]
    start, stop, _ = cache.index.group(2).part(parts)
    whole = cache.store.read(shard.path)
    for kept in (stop - 1, (start + stop) // 2, start, 0):
        cache.store.write(shard.path, whole[:kept])
        count = max(0, kept - start)
        with pytest.raises(CorruptShard) as caught:
            read_group(groups, 2)
        assert caught.value.args[:2] == (
            f"The shard {cache.store.url_of(shard.path)} is damaged: row group 2 (bytes {start} to {stop}) "
            f"was cut off after {count} bytes.",
            f"{stop - start} bytes were committed.",
        )


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_that_is_gone_is_named(cache: Cache, shard: int) -> None:
    groups = CacheRows(cache)
    cache.store.remove(cache.shards[shard].path)
    with pytest.raises(CorruptShard, match=rf"{cache.shards[shard].path} is not there\. The cache lists it\."):
        batches(Stream(groups, batch_size=N, seed=0), 1)


# Faults that pass, and faults that last


def altered(_: str, __: int, data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def cut(_: str, __: int, data: bytes) -> bytes:
    return data[:-1]


def nothing(_: str, __: int, data: bytes) -> bytes:
    return b""


def too_much(_: str, __: int, data: bytes) -> bytes:
    """What a server sends that cuts no ranges."""
    return b"PAR1" + data


def lost(path: str, _: int, __: bytes) -> bytes:
    raise StoreLost(f"{path} did not answer as a store does: a test.", "What was committed stays.")


def gone(_: str, __: int, ___: bytes) -> bytes:
    raise FileNotFoundError(errno.ENOENT, "gone")


FAULTS = [altered, cut, nothing, too_much, lost, gone]
SAID = {
    "altered": "has the digest",
    "cut": "was cut off after",
    "nothing": "was cut off after 0 bytes",
    "too_much": "has the digest",
    "lost": "did not answer as a store does",
    "gone": "is not there",
}
faulty = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
# Every fault of a row group and of a footer; parts that are read alone differ in their bytes, so one fault shows them.
faulty_reads = pytest.mark.parametrize(
    "fault, parts, footer",
    [
        *((fault, PARTED[0], footer) for fault in FAULTS for footer in (False, True)),
        *((altered, parts, footer) for parts in PARTED[1:3] for footer in (False, True)),
    ],
    ids=lambda one: (
        one.__name__ if callable(one) else {True: "footer", False: "row group"}.get(one) or " and ".join(one)
    ),
)


class Failing:
    """A fault for the first so many requests of some bytes."""

    def __init__(self, fault: Callable[[str, int, bytes], bytes], start: int, times: int) -> None:
        self.fault, self.start, self.times = fault, start, times
        self.asked = 0

    def __call__(self, path: str, start: int, data: bytes) -> bytes:
        if start != self.start:
            return data
        self.asked += 1
        return self.fault(path, start, data) if self.asked <= self.times else data


def shard_range(cache: Cache, parts: Collection[str], footer: bool) -> tuple[int, int]:
    start, stop, _ = cache.index.group(3).part(parts)
    return (cache.shards[1].footer.start, cache.shards[1].footer.stop) if footer else (start, stop)


@faulty_reads
def test_a_fault_that_passes_is_one_line_in_the_log(
    cache: Cache,
    requests: Requests,
    teacher: Make,
    warnings_of: Callable[[], list[str]],
    fault: Callable[[str, int, bytes], bytes],
    parts: Collection[str],
    footer: bool,
) -> None:
    groups = CacheRows(cache, parts)
    failing = requests.fault = Failing(fault, shard_range(cache, parts, footer)[0], 1)
    rows = read_group(groups, 3)
    check_rows(rows, teacher)
    assert rows.sample_id.tolist() == [11, 12, 13]
    assert failing.asked == 2
    [line] = warnings_of()
    assert line.endswith(" It is fetched again.") and cache.shards[1].path in line
    assert SAID[fault.__name__] in line or (footer and "has the digest" in line)


@faulty_reads
def test_a_fault_that_lasts_is_told_after_the_second_time(
    cache: Cache,
    requests: Requests,
    warnings_of: Callable[[], list[str]],
    fault: Callable[[str, int, bytes], bytes],
    parts: Collection[str],
    footer: bool,
) -> None:
    groups = CacheRows(cache, parts)
    start, stop = shard_range(cache, parts, footer)
    failing = requests.fault = Failing(fault, start, 2)
    with pytest.raises(StoreLost if fault is lost else CorruptShard) as caught:
        read_group(groups, 3)
    assert failing.asked == 2 and len(warnings_of()) == 1
    if fault is not lost:
        assert cache.store.url_of(cache.shards[1].path) in str(caught.value)
        if fault is not gone:
            name = "the footer" if footer else "row group 0"
            assert f"{name} (bytes {start} to {stop})" in str(caught.value)
    # What was asked for a third time would have come, and does.
    assert read_group(groups, 3).sample_id.tolist() == [11, 12, 13]
    assert failing.asked == 3 and warnings_of() == []


@faulty
def test_a_stream_goes_on_after_an_error_when_the_fault_is_mended(
    cache: Cache, requests: Requests, fault: Callable[[str, int, bytes], bytes]
) -> None:
    expected = ids_of(batches(Stream(CacheRows(cache), batch_size=4, seed=2, lanes=2, window=5), 12))
    stream = Stream(
        CacheRows(cache), batch_size=4, seed=2, lanes=2, window=5, reading=Reading(prefetch_bytes=0, threads=1)
    )
    start, _, _ = cache.index.group(4).part(PARTS)
    requests.fault = lambda path, at, data: (
        fault(path, at, data) if (path, at) == (cache.shards[2].path, start) else data
    )
    seen: list[int] = []
    for _ in range(3):
        with pytest.raises((CorruptShard, StoreLost)):
            for batch in stream.endless():
                seen += batch.sample_id.tolist()
        assert stream.state_dict()["place"] == len(seen)
    requests.fault = None
    seen += ids_of(batches(stream, 12 - len(seen) // 4))
    assert seen == expected
    stream.close()


def test_what_no_second_try_can_mend_is_not_tried_twice(cache: Cache, requests: Requests) -> None:
    def refused(path: str, _: int, __: bytes) -> bytes:
        raise StoreError(f"{path}: access was refused.")

    groups = CacheRows(cache)
    failing = requests.fault = Failing(refused, cache.index.group(3).part(PARTS)[0], 9)
    with pytest.raises(StoreError):
        read_group(groups, 3)
    assert failing.asked == 1


def test_a_store_that_is_slow_is_named_in_the_log(
    cache: Cache, requests: Requests, warnings_of: Callable[[], list[str]]
) -> None:
    groups = CacheRows(cache)
    start = cache.index.group(3).part(PARTS)[0]

    def late(path: str, at: int, data: bytes) -> bytes:
        if (path, at) == (cache.shards[1].path, start):
            time.sleep(0.15)
        return data

    requests.fault = late
    stream = Stream(groups, batch_size=N, reading=Reading(prefetch_bytes=1 << 20, threads=4, stall_s=0.06))
    assert sorted(next(iter(stream)).sample_id.tolist()) == list(range(N))
    stream.close()
    told = warnings_of()
    assert 1 <= len(told) <= 3 and set(told) == {f"The stream has waited 0 s for {groups.name_of(3)}."}


# Shards of other kinds


def put_table(
    store: Folder, table: pa.Table, *, key: str = "ab" * 32, group_rows: int = 20, **options: Any
) -> CacheRows:
    """A cache of one shard, written as others than the store would."""
    staged = store.stage()
    pq.write_table(table, staged, row_group_size=group_rows, **{"compression": "zstd", **options})
    commit = commit_shard(store, key, new_attempt(), staged, table.num_rows)
    return CacheRows(seal(store, f"other-{new_attempt()}", [commit], {}))


PLAIN = {"use_dictionary": False}
LAYOUTS: dict[str, dict[str, Any]] = {
    "as the store writes": PLAIN,
    "without compression": {**PLAIN, "compression": "none"},
    "several pages": {**PLAIN, "data_page_size": 16, "write_batch_size": 4},
    "several pages, no compression": {**PLAIN, "data_page_size": 16, "write_batch_size": 4, "compression": "none"},
    "version 2 pages": {**PLAIN, "data_page_version": "2.0"},
    "version 2 pages, no compression": {**PLAIN, "data_page_version": "2.0", "compression": "none"},
    "snappy": {**PLAIN, "compression": "snappy"},
    "gzip": {**PLAIN, "compression": "gzip"},
    "dictionaries": {"use_dictionary": True},
    "a dictionary of labels": {"use_dictionary": ["label"]},
    "a dictionary, no compression": {"use_dictionary": ["label"], "compression": "none"},
    "statistics and checksums": {**PLAIN, "write_statistics": True, "write_page_checksum": True},
    "deltas": {"use_dictionary": False, "column_encoding": {"sample_id": "DELTA_BINARY_PACKED"}},
    "split bytes": {"use_dictionary": False, "column_encoding": {"x": "BYTE_STREAM_SPLIT"}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@parted
def test_other_layouts_give_the_same_rows(
    local: Folder, make_samples: Make, make_batch: Make, teacher: Make, layout: str, parts: Collection[str]
) -> None:
    table = pa.Table.from_batches([make_batch(make_samples(50), "ab" * 32)])
    groups = CacheRows(put_table(local, table, **LAYOUTS[layout]).cache, parts)
    assert groups.rows.tolist() == [20, 20, 10]
    seen: list[int] = []
    for rows in scan(groups, 7):
        check_rows(rows, teacher)
        seen += rows.sample_id.tolist()
    assert seen == list(range(50))


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("nulls", [0, 1, 2, 3])
def test_columns_that_may_be_null_are_read_by_pyarrow(
    local: Folder, make_samples: Make, make_batch: Make, compression: str, nulls: int
) -> None:
    """With two of 20 rows null a page has just as many bytes as one without any, levels and values together."""
    table = pa.Table.from_batches([make_batch(make_samples(20), "ab" * 32)])
    gone = np.arange(20) >= 20 - nulls
    weight = pa.array(np.arange(20, dtype=np.float32) / 4, mask=gone)
    at = table.schema.get_field_index("n")
    told = table.set_column(at, pa.field("n", pa.float32()), weight).replace_schema_metadata(table.schema.metadata)
    rows = read_group(put_table(local, told, use_dictionary=False, compression=compression), 0)
    assert rows.inputs["n"].tolist()[: 20 - nulls] == (np.arange(20) / 4).tolist()[: 20 - nulls]
    assert np.isnan(rows.inputs["n"][20 - nulls :]).all() and rows.sample_id.tolist() == list(range(20))


def golden_cache(local: Folder) -> Cache:
    staged = local.stage()
    shutil.copy(GOLDEN / "shard-v1.parquet", staged)
    commit = commit_shard(local, "golden-key", new_attempt(), staged, 10)
    facts = json.loads((GOLDEN / "commit-v1.json").read_bytes())
    assert [group.to_dict() for group in commit.row_groups] == facts["row_groups"]
    return seal(local, "golden", [commit], {})


@parted
def test_the_golden_shard_is_read_with_its_exact_values(local: Folder, parts: Collection[str]) -> None:
    """Its ids are text."""
    path = GOLDEN / "shard-v1.parquet"
    groups = CacheRows(golden_cache(local), parts)
    header = read_header(pq.read_schema(path), "golden")
    assert groups.rows.tolist() == [4, 4, 2]
    for group in range(3):
        right, rows = decode(pq.ParquetFile(path).read_row_group(group), header), read_group(groups, group)
        assert rows.sample_id.tolist() == right.sample_id.tolist() == [f"img-{i}-é" for i in range(10)][4 * group :][:4]
        assert rows.label is not None and right.label is not None and rows.label.tolist() == right.label.tolist()
        assert list(rows.inputs) == (["pixels", "weight"] if "inputs" in parts else [])
        for key, array in rows.inputs.items():
            assert array.dtype == right.inputs[key].dtype
            np.testing.assert_array_equal(array, right.inputs[key])
        assert (rows.targets is None) == ("targets" not in parts)
        if rows.targets is not None and right.targets is not None:
            np.testing.assert_array_equal(rows.targets.logits_PV, right.targets.logits_PV)
            np.testing.assert_array_equal(rows.targets.temperature_P, np.full(len(rows), 2, np.float32))
    if "targets" in parts and "inputs" in parts:
        assert read_group(groups, 0).targets.logits_PV[1].tolist() == [-2.5, 0.0, -0.375]  # type: ignore[union-attr]
        assert read_group(groups, 1).inputs["pixels"][0].tolist() == [[96, 102], [108, 114]]


def test_texts_stay_with_their_rows_in_a_stream(local: Folder) -> None:
    groups = CacheRows(golden_cache(local))
    right = {
        str(sample): label
        for group in range(3)
        for sample, label in zip(*(values(read_group(groups, group))[at][1] for at in (0, -3)), strict=True)
    }
    stream = Stream(groups, batch_size=4, seed=1, lanes=2, window=3)
    for batch in batches(stream, 10):
        assert batch.label is not None
        assert [right[sample] for sample in batch.sample_id.tolist()] == batch.label.tolist()
    stream.close()


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_every_shard_keeps_its_own_temperature(local: Folder, put_shard: Make, teacher: Make) -> None:
    """Three shards softened differently decode to the same teacher at T = 1."""
    temperatures = (1.0, 4.0, 1.0, 2.0)
    cache = seal(local, "mixed", [put_shard(local, 5, 5 * at, temperature=t) for at, t in enumerate(temperatures)], {})
    mixed = 0
    for batch in batches(Stream(CacheRows(cache, ["targets"]), batch_size=4, seed=0), 15):
        targets = batch.targets
        assert targets is not None
        at = np.asarray(batch.sample_id)
        expected = np.array(temperatures, np.float32)[at // 5]
        np.testing.assert_array_equal(targets.temperature_P, expected)
        mixed += len(set(targets.temperature_P.tolist())) > 1
        served = softmax(targets.logits_PV.astype(np.float64) * targets.temperature_P[:, None])
        np.testing.assert_allclose(served, softmax(teacher(at).astype(np.float64)), rtol=1e-6)
    assert mixed > 0


def test_shards_of_other_columns_are_refused(local: Folder, make_samples: Make) -> None:
    """Their bytes could be as many, and would be taken for values of another type."""

    def put(first: int, dtype: Any) -> Commit:
        ids = np.arange(first, first + 4)
        raw = {"sample_id": ids, "x": ids.astype(dtype), "label": ids % 2}
        samples = as_samples(pa.table(raw), Columns(), "made by hand")
        key, encoding, staged = sha256_of([first, str(dtype)]), Dense(1.0), local.stage()
        schema = shard_schema(samples.schema, ShardHeader(FORMAT_VERSION, key, encoding, 2, "teacher", "span"))
        batch = rows_of(samples, encoding, np.zeros((4, 2), np.float32), schema)
        return commit_shard(local, key, new_attempt(), staged, write_shard(staged, schema, [batch]))

    cache = seal(local, "odd", [put(0, np.float32), put(4, np.int32)], {})
    groups = CacheRows(cache)
    assert read_group(groups, 0).inputs["x"].tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError) as caught:
        read_group(groups, 1)
    path = cache.store.url_of(cache.shards[1].path)
    assert caught.value.args[0].startswith(f"The shard {path} has the columns x int32, ")
    assert caught.value.args[1].startswith(f"The first one of {cache.url} has x float32, ")
    # Without inputs they are alike.
    assert ids_of(batches(Stream(CacheRows(cache, ["targets"]), batch_size=8), 1)) != []


def test_a_store_that_lies_anywhere_gives_the_same(folder: Folder, make_cache: Make, teacher: Make) -> None:
    stream = Stream(CacheRows(make_cache(folder, SIZES)), batch_size=6, seed=3, lanes=2, window=5)
    told = batches(stream, 8)
    for batch in told:
        check_rows(batch.rows, teacher)
    assert sorted(ids_of(told)[:N]) == list(range(N))
    stream.close()
