"""The shards of a cache as one Parquet file: what is written comes back, and so does what an older version wrote."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.cache import seal
from storage.commits import Commit, Quarantined
from storage.folder import Folder
from storage.index import INDEX_SCHEMA, is_index_of, read_index, write_index
from storage.shard import ByteRange


def random_commit(dice: random.Random) -> Commit:
    def some_range() -> ByteRange:
        start = dice.randrange(2**40)
        return ByteRange(start, start + dice.randrange(2**24), dice.randrange(2**20), f"{dice.getrandbits(128):032x}")

    key, attempt = f"{dice.getrandbits(256):064x}", f"{dice.getrandbits(64):016x}"
    reasons = ["", "NaN in class 3", "zu groß: 9×9 \U0001f9ea", 'a "quoted" line\nand another']
    return Commit(
        shard_key=key,
        attempt=attempt,
        path=f"shards/{key[:2]}/{key}-{attempt}.parquet",
        bytes=dice.randrange(2**50),
        sha256=f"{dice.getrandbits(256):064x}",
        rows=dice.randrange(2**31),
        row_groups=tuple(some_range() for _ in range(dice.choice([0, 1, 1, 5]))),
        footer=some_range(),
        quarantined=tuple(
            Quarantined(f"s{dice.randrange(100)}", dice.choice(reasons)) for _ in range(dice.choice([0, 0, 1, 3]))
        ),
    )


def commits(seed: int, count: int) -> tuple[Commit, ...]:
    dice = random.Random(seed)
    return tuple(random_commit(dice) for _ in range(count))


def altered(data: bytes, alter: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(alter(pq.read_table(io.BytesIO(data))), sink)
    return sink.getvalue()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 1000])
def test_an_index_comes_back_as_it_was_written(count: int) -> None:
    shards = commits(count, count)
    assert read_index(write_index(shards)) == shards
    assert is_index_of(write_index(shards), shards)


@pytest.mark.parametrize("groups", [0, 1])
def test_a_shard_without_row_groups_comes_back_among_others(groups: int) -> None:
    first, second, third = commits(7, 3)
    bare = replace(second, row_groups=second.row_groups[:groups], quarantined=())
    assert read_index(write_index([first, bare, third])) == (first, bare, third)
    assert read_index(write_index([bare])) == (bare,)


def test_an_index_in_many_row_groups_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = commits(3, 100)
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(write_index(shards))), sink, row_group_size=7)
    assert read_index(sink.getvalue()) == shards


def test_the_schema_is_that_of_the_format() -> None:
    assert pq.read_schema(io.BytesIO(write_index(commits(1, 2)))).equals(INDEX_SCHEMA)
    assert write_index(commits(1, 2)) == write_index(commits(1, 2))


def test_an_index_from_before_samples_were_quarantined_still_reads() -> None:
    shards = commits(2, 9)
    older = altered(write_index(shards), lambda table: table.drop_columns(["quarantined"]))
    assert read_index(older) == tuple(replace(shard, quarantined=()) for shard in shards)


def test_a_column_that_a_later_version_added_is_left_alone() -> None:
    shards = commits(2, 9)
    newer = altered(write_index(shards), lambda table: table.append_column("new", pa.array(range(9))))
    assert read_index(newer) == shards


@pytest.mark.parametrize("junk", [b"", b"junk", b"PAR1junkPAR1"])
def test_what_is_no_index_is_one_of_no_shards(junk: bytes) -> None:
    assert not is_index_of(junk, [])
    assert not is_index_of(junk, commits(1, 1))


def test_an_index_of_other_shards_or_another_order_is_no_index_of_these() -> None:
    shards = commits(1, 3)
    for others in (shards[:2], shards[::-1], commits(2, 3), ()):
        assert not is_index_of(write_index(others), shards)
    assert not is_index_of(altered(write_index(shards), lambda table: table.drop_columns(["rows"])), shards)


def test_a_cache_counts_what_was_quarantined(folder: Folder, put_shard: Any) -> None:
    whole, other = put_shard(folder, 4), put_shard(folder, 3, 10)
    holes = replace(whole, quarantined=(Quarantined("s1", "NaN"), Quarantined("s2", "infinite")))
    hole = replace(other, quarantined=(Quarantined("s11", "NaN"),))
    cache = seal(folder, "holes", [holes, hole], {})
    assert cache.quarantined == 3 and cache.shards == (holes, hole)
    assert cache.facts()["quarantined"] == 3
