"""The stream: the same global batches for every world, resumed by one integer, and never a wrong byte unseen."""

from __future__ import annotations

import itertools
import json
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage import order as ordering
from storage import shard as shards
from storage import stream as streams
from storage.cache import Cache, open_cache, seal
from storage.commits import commit_shard
from storage.errors import CorruptShard, ForeignState, RecipeError, SourceError
from storage.folder import Folder
from storage.shard import Rows
from storage.sources import make_source
from storage.stream import Batch, CacheRows, RowGroups, SourceRows, Stream, scan

Make = Callable[..., Any]
SIZES = (11, 3, 9)
N = 23


@pytest.fixture(autouse=True)
def few_places_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of a cache this small is over in no time; working out a thousand of them ahead is not."""
    monkeypatch.setattr(streams, "PLACES_AHEAD", 32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of four rows."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * 52)


@pytest.fixture
def cache(local: Folder, small: None, make_cache: Make) -> Cache:
    """23 rows in three shards, their row groups of 4, 4, 3, 3, 4, 4 and 1 rows."""
    return make_cache(local, SIZES)


def window_of(rows: int, groups: RowGroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make streams over these row groups mix that many rows."""
    monkeypatch.setattr(streams, "WINDOW_BYTES", -(-rows * groups.bytes // int(groups.rows.sum())))


def batches(stream: Stream, count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def values(rows: Rows) -> list[Any]:
    """All that a batch holds, to be compared."""
    held = [rows.sample_id, *rows.inputs.values(), rows.label]
    if rows.targets is not None:
        held += [rows.targets.logits_PV, rows.targets.temperature_P]
    return [(array.dtype.name, array.tolist()) for array in held if array is not None]


def joined(parts: list[Batch]) -> list[Any]:
    """The parts that the ranks took of one global batch, put together again."""
    columns = [values(part.rows) for part in parts]
    return [
        (of_rank[0][0], list(itertools.chain.from_iterable(column for _, column in of_rank)))
        for of_rank in zip(*columns, strict=True)
    ]


def ids(stream: Stream, count: int) -> list[int]:
    return [int(i) for batch in batches(stream, count) for i in batch.rows.sample_id]


def check_rows(rows: Rows, teacher: Make) -> None:
    """Every row is whole: what it holds follows from its id."""
    at = np.asarray(rows.sample_id)
    np.testing.assert_array_equal(rows.inputs["x"].reshape(len(at), 6), at[:, None] + np.arange(6) / 8)
    np.testing.assert_array_equal(rows.inputs["n"], at * 3)
    assert rows.label is not None
    np.testing.assert_array_equal(rows.label, at % 5)
    if rows.targets is not None:
        soft_PV = teacher(at)
        np.testing.assert_array_equal(rows.targets.logits_PV, soft_PV - soft_PV.max(axis=1, keepdims=True))


# Order and worlds


def test_the_shards_lie_in_small_row_groups(cache: Cache) -> None:
    groups = CacheRows(cache)
    assert groups.rows.tolist() == [4, 4, 3, 3, 4, 4, 1]
    assert (groups.digest, groups.where) == (cache.digest, cache.url)


@pytest.mark.parametrize("window", [5, N])
@pytest.mark.parametrize("batch_size", [4, 7, 30])
def test_the_ranks_of_every_world_share_the_same_global_batches(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, window: int, batch_size: int
) -> None:
    groups = CacheRows(cache)
    window_of(window, groups, monkeypatch)
    whole = batches(Stream(groups, batch_size=batch_size, seed=3), 7)
    for world in (2, 3, 4):
        ranks = [batches(Stream(groups, batch_size=batch_size, seed=3, rank=r, world=world), 7) for r in range(world)]
        for index, batch in enumerate(whole):
            parts = [rank[index] for rank in ranks]
            assert joined(parts) == values(batch.rows)
            assert {(part.place, part.global_size) for part in parts} == {(index * batch_size, batch_size)}
            assert sum(len(part.rows) for part in parts) == batch_size


@pytest.mark.parametrize("window", [2, N])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 22, 23, 24, 50])
def test_every_row_comes_once_an_epoch_whether_or_not_batches_divide_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, teacher: Make, window: int, batch_size: int
) -> None:
    groups = CacheRows(cache)
    window_of(window, groups, monkeypatch)
    stream = Stream(groups, batch_size=batch_size, seed=1)
    assert stream.order.window == window
    epochs = 4
    seen: list[int] = []
    for batch in stream:
        check_rows(batch.rows, teacher)
        seen += batch.rows.sample_id.tolist()
        if len(seen) >= epochs * N:
            break
    for number in range(epochs):
        assert sorted(seen[number * N : (number + 1) * N]) == list(range(N))
    assert set(Counter(seen[: epochs * N]).values()) == {epochs}
    assert seen[:N] != seen[N : 2 * N]


def test_the_places_of_a_batch_are_those_of_the_order(cache: Cache) -> None:
    groups = CacheRows(cache)
    stream = Stream(groups, batch_size=5, seed=8)
    first = np.concatenate([[0], np.cumsum(groups.rows)])
    expected: list[int] = []
    for number in range(3):
        group, row = ordering.locate(stream.order, groups.rows, number, np.arange(N))
        expected += (first[group] + row).tolist()
    assert ids(stream, 13) == expected[: 13 * 5]


def test_the_order_is_worked_out_ahead_without_changing_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = CacheRows(cache)
    expected = ids(Stream(groups, batch_size=6, seed=2), 20)
    for ahead in (1, 5, 6, 7, 40):
        monkeypatch.setattr(streams, "PLACES_AHEAD", ahead)
        assert ids(Stream(groups, batch_size=6, seed=2), 20) == expected


def test_another_seed_is_another_order_and_the_same_seed_the_same(cache: Cache) -> None:
    orders = [tuple(ids(Stream(CacheRows(cache), batch_size=N, seed=seed), 1)) for seed in (0, 1, 2, 0)]
    assert len(set(orders)) == 3 and orders[0] == orders[3]


def test_a_cache_that_fits_is_shuffled_whole(cache: Cache) -> None:
    assert Stream(CacheRows(cache), batch_size=4, seed=0).order.window == N


@pytest.mark.parametrize("rank, world, batch_size", [(0, 5, 4), (3, 3, 8), (-1, 2, 8), (0, 1, 0)])
def test_a_batch_that_does_not_reach_every_worker_is_refused(
    cache: Cache, rank: int, world: int, batch_size: int
) -> None:
    with pytest.raises(RecipeError, match=rf"batch_size is {batch_size} for {world} workers"):
        Stream(CacheRows(cache), batch_size=batch_size, seed=0, rank=rank, world=world)


# State


@pytest.mark.parametrize("window", [5, N])
@pytest.mark.parametrize("batch_size", [4, 9])
def test_a_state_resumes_exactly_after_every_batch(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, window: int, batch_size: int
) -> None:
    groups = CacheRows(cache)
    window_of(window, groups, monkeypatch)
    count = 2 * N // batch_size + 2
    states: list[str] = []
    expected: list[Any] = []
    stream = Stream(groups, batch_size=batch_size, seed=6)
    states.append(json.dumps(stream.state_dict()))
    for batch in itertools.islice(stream, count):
        expected.append(values(batch.rows))
        states.append(json.dumps(stream.state_dict()))
    for k, state in enumerate(states[:-1]):
        again = Stream(CacheRows(cache), batch_size=batch_size, seed=6)
        again.load_state_dict(json.loads(state))
        assert [values(batch.rows) for batch in batches(again, count - k)] == expected[k:]


@pytest.mark.parametrize("before, after", [(1, 3), (4, 1), (3, 2), (2, 4)])
def test_a_state_resumes_in_another_world(cache: Cache, before: int, after: int) -> None:
    groups = CacheRows(cache)
    whole = [values(batch.rows) for batch in batches(Stream(groups, batch_size=5, seed=6), 10)]
    for k in range(0, 10, 2):
        states: list[Any] = []
        for rank in range(before):
            stream = Stream(groups, batch_size=5, seed=6, rank=rank, world=before)
            batches(stream, k)
            states.append(stream.state_dict())
        assert all(state == states[0] for state in states)
        ranks: list[list[Batch]] = []
        for rank in range(after):
            stream = Stream(groups, batch_size=5, seed=6, rank=rank, world=after)
            stream.load_state_dict(states[0])
            ranks.append(batches(stream, 10 - k))
        assert [joined(list(parts)) for parts in zip(*ranks, strict=True)] == whole[k:]


def test_a_state_taken_in_the_loops_body_belongs_to_the_next_batch(cache: Cache) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    for index, batch in enumerate(itertools.islice(stream, 4)):
        assert batch.place == 5 * index
        assert stream.state_dict()["place"] == 5 * (index + 1)


def test_a_state_can_be_loaded_while_the_stream_runs(cache: Cache) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    running = iter(stream)
    start = stream.state_dict()
    first = [values(next(running).rows) for _ in range(6)]
    stream.load_state_dict(start)
    assert [values(next(running).rows) for _ in range(6)] == first


def test_a_state_goes_on_with_another_batch_size_at_the_same_place(cache: Cache) -> None:
    groups = CacheRows(cache)
    everything = ids(Stream(groups, batch_size=1, seed=6), 60)
    stream = Stream(groups, batch_size=4, seed=6)
    batches(stream, 3)
    other = Stream(groups, batch_size=7, seed=6)
    other.load_state_dict(stream.state_dict())
    assert ids(other, 4) == everything[12:40]


def test_a_state_says_place_digest_and_order(cache: Cache) -> None:
    assert Stream(CacheRows(cache), batch_size=5, seed=6).state_dict() == {
        "place": 0,
        "digest": cache.digest,
        "order": {"version": "feistel6-v1", "seed": 6, "window": N},
    }


@pytest.mark.parametrize("change", ["digest", "seed", "window", "version"])
def test_a_state_of_other_content_or_another_order_is_refused(cache: Cache, change: str) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    state = json.loads(json.dumps(stream.state_dict()))
    state["place"] = 10
    if change == "digest":
        state["digest"] = "0" * 64
    else:
        state["order"][change] = "feistel7" if change == "version" else 5
    with pytest.raises(
        ForeignState, match=r"^The stream's state has the (digest|order) .* has .* Continue with the data"
    ):
        stream.load_state_dict(state)
    assert stream.state_dict()["place"] == 0


def test_a_state_of_another_cache_is_refused(cache: Cache, put_shard: Make) -> None:
    other = seal(cache.store, "other", [put_shard(cache.store, N)], {})
    state = Stream(CacheRows(other), batch_size=5, seed=6).state_dict()
    with pytest.raises(ForeignState, match=cache.digest):
        Stream(CacheRows(cache), batch_size=5, seed=6).load_state_dict(state)


# Damage


@pytest.mark.parametrize("shard_index, group", [(0, 0), (0, 2), (2, 1)])
def test_a_flipped_byte_in_a_row_group_is_named(cache: Cache, flip: Make, shard_index: int, group: int) -> None:
    shard = cache.shards[shard_index]
    part = shard.row_groups[group]
    flip(cache.store, shard.path, (part.start + part.stop) // 2)
    stream = Stream(CacheRows(open_cache(cache.url)), batch_size=5, seed=0)
    with pytest.raises(CorruptShard) as caught:
        batches(stream, 5)
    assert f"{cache.store.url_of(shard.path)} is damaged: row group {group} " in str(caught.value)


def test_every_byte_that_training_reads_is_checked(cache: Cache, flip: Make) -> None:
    """Any byte of the shard but the four before its first row group."""
    shard = cache.shards[1]
    size = shard.bytes
    whole = cache.store.read(shard.path)
    for at in [*range(4, size, 97), size - 1]:
        flip(cache.store, shard.path, at)
        with pytest.raises(CorruptShard, match=shard.path):
            CacheRows(cache).read(3)
        cache.store.write(shard.path, whole)
    assert len(CacheRows(cache).read(3)) == 3


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_shard_is_named(cache: Cache, kept: int) -> None:
    shard = cache.shards[2]
    cache.store.write(shard.path, cache.store.read(shard.path)[:kept])
    with pytest.raises(CorruptShard, match=shard.path):
        batches(Stream(CacheRows(cache), batch_size=N, seed=0), 1)


def test_a_shard_that_is_gone_is_named(cache: Cache) -> None:
    cache.store.remove(cache.shards[1].path)
    with pytest.raises(CorruptShard, match=rf"{cache.shards[1].path} is not there"):
        batches(Stream(CacheRows(cache), batch_size=N, seed=0), 1)


# Memory


class Counted:
    """Row groups that know how many of them are held, and how often each was read."""

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups
        self.rows, self.bytes, self.digest, self.where = groups.rows, groups.bytes, groups.digest, groups.where
        self.reads: Counter[int] = Counter()
        self._alive: list[tuple[int, weakref.ref[Rows]]] = []
        self.most = 0

    def read(self, group: int) -> Rows:
        rows = self._groups.read(group)
        self.reads[group] += 1
        self._alive.append((group, weakref.ref(rows)))
        self.most = max(self.most, len(self.held()))
        return rows

    def held(self) -> set[int]:
        return {group for group, rows in self._alive if rows() is not None}


@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2)])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
@pytest.mark.parametrize("batch_size", [5, 16])
def test_no_more_row_groups_are_held_than_the_windows_of_a_batch_draw_from(
    local: Folder,
    small: None,
    make_cache: Make,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    batch_size: int,
    rank: int,
    world: int,
) -> None:
    groups = Counted(CacheRows(make_cache(local, (40, 30, 26))))
    total = 96
    window_of(window, groups, monkeypatch)
    stream = Stream(groups, batch_size=batch_size, seed=4, rank=rank, world=world)
    assert stream.order.window == window
    most = 0
    start, stop = ordering.rank_slice(batch_size, rank, world)
    for batch in itertools.islice(stream, 3 * total // (2 * batch_size)):
        places = range(batch.place + start, batch.place + stop)
        needed: set[int] = set()
        for number, index in {(place // total, place % total // window) for place in places}:
            needed |= set(ordering.epoch(stream.order, groups.rows, number).window_groups(stream.order, index).tolist())
        assert groups.held() <= needed
        most = max(most, len(needed))
    assert groups.most <= most
    assert len(groups.rows) == 25 and most < 25


@pytest.mark.parametrize("window", [1, 3, 8, 20, 96])
def test_a_row_group_is_read_once_an_epoch(
    local: Folder, small: None, make_cache: Make, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    groups = Counted(CacheRows(make_cache(local, (40, 30, 26))))
    window_of(window, groups, monkeypatch)
    batches(Stream(groups, batch_size=6, seed=4), 96 // 6)
    assert groups.reads == Counter(range(25))


@pytest.mark.parametrize("batch_size", [1, 3, N, 40])
def test_a_batch_owns_its_memory(cache: Cache, batch_size: int) -> None:
    clean = Stream(CacheRows(cache), batch_size=batch_size, seed=1)
    expected = [values(batch.rows) for batch in batches(clean, 30)]
    spoilt = Stream(CacheRows(cache), batch_size=batch_size, seed=1)
    for batch, right in zip(spoilt, expected, strict=False):
        assert values(batch.rows) == right
        assert batch.rows.label is not None and batch.rows.targets is not None
        for array in (
            batch.rows.sample_id,
            *batch.rows.inputs.values(),
            batch.rows.label,
            batch.rows.targets.logits_PV,
            batch.rows.targets.temperature_P,
        ):
            array[...] = 99


def test_a_batch_of_one_row_group_owns_its_memory(local: Folder, make_cache: Make) -> None:
    stream = Stream(CacheRows(make_cache(local, (6,))), batch_size=6, seed=1)
    for batch in batches(stream, 2):
        batch.rows.inputs["x"][...] = -1
    assert all((batch.rows.inputs["x"] >= 0).all() for batch in batches(stream, 2))


# Sources, scans, temperatures


@pytest.fixture
def source_rows(tmp_path: Any, make_samples: Make) -> SourceRows:
    """The rows of `cache`, straight from a source of two files."""
    (tmp_path / "data").mkdir()
    pq.write_table(make_samples(14), tmp_path / "data" / "a.parquet", row_group_size=5)
    pq.write_table(make_samples(9, 14), tmp_path / "data" / "b.parquet", row_group_size=2)
    return SourceRows(make_source({"parquet": str(tmp_path / "data")}))


def test_a_source_and_a_cache_of_its_rows_give_the_same_values(
    local: Folder, make_cache: Make, source_rows: SourceRows, teacher: Make
) -> None:
    """In the same row groups, also in the same order."""
    from_cache = CacheRows(make_cache(local, (14, 9)))
    assert source_rows.rows.tolist() == from_cache.rows.tolist() == [14, 9]
    for labels, targets in zip(
        batches(Stream(source_rows, batch_size=6, seed=3), 9),
        batches(Stream(from_cache, batch_size=6, seed=3), 9),
        strict=True,
    ):
        check_rows(targets.rows, teacher)
        assert labels.rows.targets is None
        assert values(labels.rows) == values(targets.rows)[: len(values(labels.rows))]


def test_a_large_file_is_read_in_groups(source_rows: SourceRows, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(SourceRows, "GROUP_ROWS", 4)
    parts = SourceRows(make_source({"parquet": str(tmp_path / "data")}))
    assert parts.rows.tolist() == [4, 4, 4, 2, 4, 4, 1]
    assert sorted(ids(Stream(parts, batch_size=N, seed=0), 1)) == list(range(N))
    assert [values(rows) for rows in scan(parts, 100)] != []


def test_the_digest_of_a_source_is_that_of_its_values(tmp_path: Any, make_samples: Make) -> None:
    digests: list[str] = []
    for number, (first, group) in enumerate([(0, 5), (0, 3), (1, 5)]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(make_samples(10, first), path, row_group_size=group)
        digests.append(SourceRows(make_source({"parquet": str(path)})).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_source_without_rows_is_refused(tmp_path: Any, make_samples: Make) -> None:
    pq.write_table(make_samples(1).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"^The source .*a\.parquet is empty\."):
        SourceRows(make_source({"parquet": str(tmp_path / "a.parquet")}))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 100])
def test_a_scan_gives_every_row_once_in_stored_order(cache: Cache, teacher: Make, batch_size: int) -> None:
    seen: list[int] = []
    for rows in scan(CacheRows(cache), batch_size):
        assert 1 <= len(rows) <= batch_size
        check_rows(rows, teacher)
        seen += rows.sample_id.tolist()
        rows.inputs["x"][...] = 0
    assert seen == list(range(N))


def test_text_ids_stay_with_their_rows(local: Folder, small: None, module: Make) -> None:
    source = make_source(
        {
            "function": module(
                "import pyarrow as pa\n"
                "def rows():\n"
                "    for first in (0, 9):\n"
                "        ids = range(first, first + 9)\n"
                "        yield pa.table({'sample_id': [f's{i}' for i in ids], 'x': [float(i) for i in ids]})\n"
            )
            + ":rows"
        }
    )
    for batch in batches(Stream(SourceRows(source), batch_size=4, seed=0), 9):
        assert [f"s{int(x)}" for x in batch.rows.inputs["x"]] == batch.rows.sample_id.tolist()
        assert batch.rows.label is None


def test_every_shard_keeps_its_own_temperature(local: Folder, put_shard: Make, teacher: Make) -> None:
    """Two shards softened differently decode to the same teacher at T = 1."""
    cache = seal(local, "mixed", [put_shard(local, 6, 0, temperature=1.0), put_shard(local, 5, 6, temperature=4.0)], {})

    def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    mixed = 0
    for batch in batches(Stream(CacheRows(cache), batch_size=4, seed=0), 12):
        targets = batch.rows.targets
        assert targets is not None
        at = np.asarray(batch.rows.sample_id)
        np.testing.assert_array_equal(targets.temperature_P, np.where(at < 6, 1, 4).astype(np.float32))
        mixed += len(set(targets.temperature_P.tolist())) == 2
        served = softmax(targets.logits_PV.astype(np.float64) * targets.temperature_P[:, None])
        np.testing.assert_allclose(served, softmax(teacher(at).astype(np.float64)), rtol=1e-6)
    assert mixed > 0


def test_a_window_is_bounded_by_what_its_rows_take_in_memory_not_on_disk(
    local: Folder, module: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank images compress a thousandfold; a full shuffle would hold them all, decoded."""
    name = module(
        "import numpy as np, pyarrow as pa\n"
        "def rows():\n"
        "    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(64 * 4096, np.float32)), 4096)\n"
        "    return pa.table({'sample_id': range(64), 'x': x})\n"
    )
    source = make_source({"function": f"{name}:rows"})
    batch = make_batch(source.read(source.files()[0], 0, 64))
    row_bytes = 8 + 4096 * 4 + 10
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * row_bytes)
    staged = local.stage()
    commit = commit_shard(local, "ab" * 32, "a1", staged, shards.write_shard(staged, batch.schema, [batch]))
    cache = seal(local, "blank", [commit], {})
    monkeypatch.setattr(streams, "WINDOW_BYTES", 16 * row_bytes)
    groups = Counted(CacheRows(cache))
    batches(Stream(groups, batch_size=4, seed=0), 16)
    assert len(groups.rows) == 16 and groups.most <= 16 // 4 + 2
