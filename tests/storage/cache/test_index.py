"""The shards of a cache as columns and as one file: what is written comes back; what later versions add is ignored."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.digest import range_digest
from storage.base.errors import CorruptShard
from storage.cache.commits import Commit, Quarantined
from storage.cache.index import INDEX_SCHEMA, index_of, is_index_of, read_index
from storage.cache.seal import seal
from storage.format.sections import SECTIONS, ByteRange, RowGroup
from storage.objectstore.folder import Folder

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_TARGETS = (
    132,
    368,
    [(310, "3369794ba43ae6abeca243231c35ee82"), (368, "36a8a40e39763f8367a3ca1d87265f88")],
)


def random_commit(dice: random.Random) -> Commit:
    def digest() -> str:
        return f"{dice.getrandbits(128):032x}"

    def some_range() -> ByteRange:
        start = dice.randrange(2**40)
        return ByteRange(start, start + dice.randrange(2**24), dice.randrange(2**20), digest())

    def some_group() -> RowGroup:
        whole = some_range()
        inputs, plain = sorted(dice.randint(whole.start, whole.stop) for _ in range(2))
        return RowGroup(*whole, inputs, digest(), plain, digest(), digest())

    key, attempt = f"{dice.getrandbits(256):064x}", f"{dice.getrandbits(64):016x}"
    reasons = ["", "NaN in class 3", "zu groß: 9×9 \U0001f9ea", 'a "quoted" line\nand another']
    return Commit(
        shard_key=key,
        attempt=attempt,
        path=f"shards/{key[:2]}/{key}-{attempt}.parquet",
        bytes=dice.randrange(2**50),
        sha256=f"{dice.getrandbits(256):064x}",
        rows=dice.randrange(2**31),
        row_groups=tuple(some_group() for _ in range(dice.choice([0, 1, 1, 5]))),
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
    index = index_of(shards)
    again = read_index(index.to_bytes())
    assert again.commits() == index.commits() == shards
    assert again == index and len(again) == count
    assert is_index_of(index.to_bytes(), index)


@pytest.mark.parametrize("groups", [0, 1])
def test_a_shard_without_row_groups_comes_back_among_others(groups: int) -> None:
    first, second, third = commits(7, 3)
    bare = replace(second, row_groups=second.row_groups[:groups], quarantined=())
    assert read_index(index_of([first, bare, third]).to_bytes()).commits() == (first, bare, third)
    assert read_index(index_of([bare]).to_bytes()).commits() == (bare,)


def test_an_index_in_many_row_groups_comes_back() -> None:
    shards = commits(3, 100)
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(index_of(shards).to_bytes())), sink, row_group_size=7)
    index = read_index(sink.getvalue())
    assert index.commits() == shards and index == index_of(shards)


def test_the_schema_is_that_of_the_format() -> None:
    data = index_of(commits(1, 2)).to_bytes()
    assert pq.read_schema(io.BytesIO(data)).equals(INDEX_SCHEMA)
    assert index_of(commits(1, 2)).to_bytes() == data


# Columns


@pytest.mark.parametrize("read", [False, True])
def test_one_shard_is_told_alone(read: bool) -> None:
    shards = commits(11, 40)
    index = index_of(shards)
    index = read_index(index.to_bytes()) if read else index
    for number, shard in enumerate(shards):
        assert index.commit(number) == shard
        assert index.path(number) == shard.path


def test_facts_of_every_shard_are_told_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.cache.index._AT_ONCE", 3)
    for count in (0, 1, 3, 7):
        shards = commits(11, count)
        names = ("shard_key", "attempt", "path", "bytes", "sha256", "rows")
        assert list(index_of(shards).facts(*names)) == [tuple(getattr(s, name) for name in names) for s in shards]


@pytest.mark.parametrize("read", [False, True])
def test_row_groups_are_numbered_through_all_shards(read: bool) -> None:
    shards = commits(5, 60)
    index = index_of(shards)
    index = read_index(index.to_bytes()) if read else index
    places = [(number, within) for number, shard in enumerate(shards) for within in range(len(shard.row_groups))]
    groups = [group for shard in shards for group in shard.row_groups]
    assert list(zip(index.shard.tolist(), index.within.tolist(), strict=True)) == places
    assert [index.group(number) for number in range(len(groups))] == groups
    assert index.rows.tolist() == [group.rows for group in groups]
    kinds = {name: getattr(index, name).dtype.name for name in ("rows", "shard", "within")}
    assert kinds == {"rows": "int64", "shard": "int32", "within": "int32"}


@pytest.mark.parametrize("parts", [(), ("inputs",), ("targets",), SECTIONS])
def test_the_bytes_of_a_range_are_those_that_its_digests_name(
    local: Folder, put_shard: Any, parts: tuple[str, ...]
) -> None:
    index = index_of([put_shard(local, 9), put_shard(local, 5, 20)])
    read = whole = 0
    for group, shard in enumerate(index.shard.tolist()):
        held = index.group(group)
        start, stop, checks = held.part(parts)
        whole += held.stop - held.start
        assert checks[-1][0] == stop
        data, at = local.read_range(index.path(shard), start, stop), start
        for end, xxh3 in checks:
            assert range_digest(data[at - start : end - start]) == xxh3
            at = end
        read += len(data)
    assert read == whole if parts == SECTIONS else read < whole


def test_indexes_of_the_same_shards_are_equal_and_of_others_are_not() -> None:
    shards = commits(4, 12)
    index = index_of(shards)
    assert index == read_index(index.to_bytes()) and index != shards
    held = next(number for number, shard in enumerate(shards) if shard.row_groups)
    group = shards[held].row_groups[0]
    for other in (
        replace(shards[held], path="elsewhere"),
        replace(shards[held], quarantined=(Quarantined("s", "another"),)),
        replace(shards[held], footer=shards[held].footer._replace(xxh3="00")),
        replace(shards[held], row_groups=shards[held].row_groups[1:]),
        *(
            replace(shards[held], row_groups=(group._replace(**{name: "00"}), *shards[held].row_groups[1:]))
            for name in ("inputs_xxh3", "targets_xxh3")
        ),
    ):
        assert index_of([*shards[:held], other, *shards[held + 1 :]]) != index


# Other versions


def test_a_column_that_a_later_version_added_is_left_alone() -> None:
    shards = commits(2, 9)
    newer = altered(index_of(shards).to_bytes(), lambda table: table.append_column("new", pa.array(range(9))))
    assert read_index(newer).commits() == shards and read_index(newer) == index_of(shards)


def test_a_fact_of_a_row_group_that_a_later_version_added_is_left_alone() -> None:
    shards = commits(2, 9)

    def add(table: pa.Table) -> pa.Table:
        lists = table.column("row_groups").combine_chunks()
        groups = lists.flatten()
        arrays = [*groups.flatten(), pa.array(range(len(groups)))]
        more = pa.StructArray.from_arrays(arrays, [*(field.name for field in groups.type), "new"])
        at = table.schema.get_field_index("row_groups")
        return table.set_column(at, "row_groups", pa.ListArray.from_arrays(lists.offsets, more))

    assert read_index(altered(index_of(shards).to_bytes(), add)) == index_of(shards)


def test_the_golden_index_is_read_with_its_exact_values() -> None:
    data = (GOLDEN / "index-v1.parquet").read_bytes()
    index = read_index(data)
    first, second = index.commits()
    assert first == Commit.from_dict(json.loads((GOLDEN / "commit-v1.json").read_bytes()))
    assert (second.shard_key, second.row_groups, second.footer) == ("second-key", (), ByteRange(4, 10, 0, "cd" * 16))
    assert second.quarantined == (Quarantined("img-7-é", "NaN in class 3"),)
    assert index.rows.tolist() == [4, 4, 2] and index.shard.tolist() == [0, 0, 0] and index.within.tolist() == [0, 1, 2]
    assert index.group(0).part({"targets"}) == GOLDEN_TARGETS
    assert is_index_of(data, index_of([first, second]))


def without_a_section(table: pa.Table) -> pa.Table:
    """The first row group has no inputs section."""
    lists = table.column("row_groups").combine_chunks()
    groups = lists.flatten()
    names = [field.name for field in groups.type]
    arrays = [
        pa.array([None, *array.to_pylist()[1:]], array.type) if name.startswith("inputs_") else array
        for name, array in zip(names, groups.flatten(), strict=True)
    ]
    more = pa.StructArray.from_arrays(arrays, names)
    return table.set_column(6, "row_groups", pa.ListArray.from_arrays(lists.offsets, more))


@pytest.mark.parametrize(
    "alter",
    [lambda table: table.drop_columns(["quarantined"]), without_a_section],
    ids=["a column", "a section"],
)
def test_an_index_that_lacks_a_part_is_refused(alter: Any) -> None:
    data = altered(index_of(commits(2, 9)).to_bytes(), alter)
    with pytest.raises(CorruptShard, match=r"^somewhere/index\.parquet is no index of a cache.*seal it anew\.$"):
        read_index(data, "somewhere/index.parquet")


@pytest.mark.parametrize("junk", [b"", b"junk", b"PAR1junkPAR1"])
def test_what_is_no_index_is_one_of_no_shards(junk: bytes) -> None:
    assert not is_index_of(junk, index_of([]))
    assert not is_index_of(junk, index_of(commits(1, 1)))


def test_an_index_of_other_shards_or_another_order_is_no_index_of_these() -> None:
    shards = commits(1, 3)
    index = index_of(shards)
    for others in (shards[:2], shards[::-1], commits(2, 3), ()):
        assert not is_index_of(index_of(others).to_bytes(), index)
    assert not is_index_of(altered(index.to_bytes(), lambda table: table.drop_columns(["rows"])), index)


def test_a_cache_counts_what_was_quarantined(folder: Folder, put_shard: Any) -> None:
    whole, other = put_shard(folder, 4), put_shard(folder, 3, 10)
    holes = replace(whole, quarantined=(Quarantined("s1", "NaN"), Quarantined("s2", "infinite")))
    hole = replace(other, quarantined=(Quarantined("s11", "NaN"),))
    cache = seal(folder, "holes", [holes, hole], {})
    assert cache.quarantined == 3 and cache.shards == (holes, hole)
    assert cache.facts()["quarantined"] == 3
