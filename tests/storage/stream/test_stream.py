"""The stream: the same global batches for every world, resumed by one integer, in memory that is told before."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.base.errors import CorruptShard, RecipeError, VerificationError
from storage.cache.cache import Cache
from storage.cache.seal import seal
from storage.format import shard as shards
from storage.objectstore.folder import Folder
from storage.order import sample_order as ordering
from storage.order.sample_order import Order
from storage.rows.cache_rows import CacheRows
from storage.rows.prefetch import Reader
from storage.rows.reading import Reading
from storage.rows.row_groups import row_bytes
from storage.stream import batch_producer
from storage.stream import default_order as default_orders
from storage.stream import stream as streams
from storage.stream.scan import scan
from storage.stream.stream import Batch, Stream, default_order
from tests.storage.stream.fakes import (
    Fake,
    Make,
    batches,
    by_place,
    check_rows,
    ids,
    ids_of,
    stored_ids,
    stream_threads,
    values,
)

ROOT = Path(__file__).resolve().parents[3]
SIZES = (11, 3, 9)
N = 23
# Sizes that nothing divides, groups without rows, and one that is larger than a batch.
AWKWARD = [7, 0, 13, 1, 1, 40, 8, 0, 5, 16, 16]


@pytest.fixture(autouse=True)
def few_places_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of a cache this small is over in no time; working out a thousand of them ahead is not."""
    monkeypatch.setattr(batch_producer, "PLACES_AHEAD", 32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of four rows."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * 52)


@pytest.fixture
def cache(local: Folder, small: None, make_cache: Make) -> Cache:
    """23 rows in three shards, their row groups of 4, 4, 3, 3, 4, 4 and 1 rows."""
    return make_cache(local, SIZES)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[Reader]:
    """The readers that streams and scans make; none is collected before the test ends."""
    made: list[Reader] = []

    def make(*given: Any, **settings: Any) -> Reader:
        made.append(Reader(*given, **settings))
        return made[-1]

    monkeypatch.setattr(batch_producer, "Reader", make)
    monkeypatch.setattr("storage.stream.scan.Reader", make)
    return made


# Order and worlds


def test_the_shards_lie_in_small_row_groups(cache: Cache) -> None:
    groups = CacheRows(cache)
    assert groups.rows.tolist() == [4, 4, 3, 3, 4, 4, 1]
    assert (groups.digest, groups.where) == (cache.digest, cache.url)


@pytest.mark.parametrize(
    "lanes, window, batch_size",
    [(1, 5, 4), (1, 5, 7), (1, N, 7), (1, N, 30), (4, 3, 4), (4, 3, 7), (4, 3, 30), (30, 2, 7)],
)
def test_the_ranks_of_every_world_share_the_same_global_batches(
    cache: Cache, lanes: int, window: int, batch_size: int
) -> None:
    groups = CacheRows(cache)
    settings = {"batch_size": batch_size, "seed": 3, "lanes": lanes, "window": window}
    whole = batches(Stream(groups, **settings), 7)
    for world in (2, 3, 4):
        ranks = [batches(Stream(groups, **settings, rank=r, world=world), 7) for r in range(world)]
        for index, batch in enumerate(whole):
            parts = [rank[index] for rank in ranks]
            assert by_place(parts) == by_place([batch])
            assert {(part.first, part.global_size) for part in parts} == {(index * batch_size, batch_size)}
            assert sum(map(len, parts)) == batch_size


@pytest.mark.parametrize(
    "lanes, window, worlds",
    [(1, 107, (3, 5, 31, 64, 127, 128)), (8, 60, (2, 4, 7, 8, 128))],
    ids=["one lane", "lanes"],
)
def test_worlds_from_1_to_128_share_the_same_global_batches(lanes: int, window: int, worlds: tuple[int, ...]) -> None:
    """Primes, and worlds that divide neither the batch nor the lanes; test_schedule has more of them."""
    groups, settings = Fake(AWKWARD), {"batch_size": 131, "seed": 9, "lanes": lanes, "window": window}
    stream = Stream(groups, **settings)
    whole = [by_place([batch]) for batch in batches(stream, 3)]
    stream.close()
    assert [sorted(batch) for batch in whole] == [list(range(131 * n, 131 * n + 131)) for n in range(3)]
    for world in worlds:
        parts: list[list[Batch]] = [[], [], []]
        for rank in range(world):
            stream = Stream(groups, **settings, rank=rank, world=world, reading=Reading(prefetch_bytes=1000, threads=1))
            for mine, batch in zip(parts, batches(stream, 3), strict=True):
                mine.append(batch)
            stream.close()
        for mine, right in zip(parts, whole, strict=True):
            assert by_place(mine) == right, world
            counts = [len(part) for part in mine]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("lanes, window", [(1, 20), (4, 9)])
def test_nothing_of_how_it_is_read_changes_what_comes(monkeypatch: pytest.MonkeyPatch, lanes: int, window: int) -> None:
    dice = random.Random(1)
    settings = {"batch_size": 11, "seed": 2, "lanes": lanes, "window": window}
    right = [values(batch.rows) for batch in batches(Stream(Fake(AWKWARD), **settings), 30)]
    for threads, budget, ahead in itertools.product((1, 3, 8), (0, 40, 1 << 40), (0, 1, 9)):
        monkeypatch.setattr(batch_producer, "BATCHES_AHEAD", ahead)
        groups = Fake(AWKWARD, delay=lambda _: dice.choice([0, 0, 0.0003]))
        stream = Stream(groups, **settings, reading=Reading(prefetch_bytes=budget, threads=threads))
        assert [values(batch.rows) for batch in batches(stream, 30)] == right
        stream.close()


@pytest.mark.parametrize("ahead", [1, 5, 6, 7, 40])
def test_the_order_is_worked_out_ahead_without_changing_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    groups = CacheRows(cache)
    expected = ids(Stream(groups, batch_size=6, seed=2), 20)
    monkeypatch.setattr(batch_producer, "PLACES_AHEAD", ahead)
    assert ids(Stream(groups, batch_size=6, seed=2), 20) == expected


@pytest.mark.parametrize(
    "lanes, window, batch_size",
    [
        *((lanes, window, size) for lanes, window in ((1, 2), (4, 2)) for size in (1, 7, 23, 50)),
        *((1, N, size) for size in (4, 22, 24)),
        *((30, 1, size) for size in (7, 24)),
    ],
)
def test_every_row_comes_once_an_epoch_whether_or_not_batches_divide_it(
    cache: Cache, teacher: Make, lanes: int, window: int, batch_size: int
) -> None:
    stream = Stream(CacheRows(cache), batch_size=batch_size, seed=1, lanes=lanes, window=window)
    assert stream.order == Order(1, window, lanes)
    epochs = 4
    seen: list[int] = []
    for batch in stream.endless():
        check_rows(batch.rows, teacher)
        assert len(batch) == batch_size
        seen += batch.sample_id.tolist()
        if len(seen) >= epochs * N:
            break
    for number in range(epochs):
        assert sorted(seen[number * N : (number + 1) * N]) == list(range(N))
    assert set(Counter(seen[: epochs * N]).values()) == {epochs}
    assert lanes == 30 or seen[:N] != seen[N : 2 * N]


@pytest.mark.parametrize("batch_size", [1, 10, 106, 107, 108, 300])
@pytest.mark.parametrize("world", [1, 3])
def test_every_row_comes_as_often_as_there_were_epochs(batch_size: int, world: int) -> None:
    """Over all ranks, with lanes and windows, also where a batch holds several epochs."""
    groups, epochs = Fake(AWKWARD), 5
    total = groups.total
    if batch_size < world:
        return
    seen: dict[int, int] = {}
    for rank in range(world):
        stream = Stream(groups, batch_size=batch_size, rank=rank, world=world, lanes=8, window=6)
        for batch in batches(stream, -(-epochs * total // batch_size)):
            seen.update(zip(batch.places.tolist(), batch.sample_id.tolist(), strict=True))
        stream.close()
    assert set(Counter(seen[place] for place in range(epochs * total)).values()) == {epochs}


@pytest.mark.parametrize("lanes, window", [(1, N), (3, 5)])
def test_the_places_of_a_batch_are_those_of_the_order(cache: Cache, lanes: int, window: int) -> None:
    groups = CacheRows(cache)
    stream = Stream(groups, batch_size=5, seed=8, lanes=lanes, window=window)
    expected: list[int] = []
    for number in range(3):
        expected += stored_ids(groups, *ordering.epoch(stream.order, groups.rows, number).locate(np.arange(N)))
    told = batches(stream, 13)
    assert ids_of(told) == expected[: 13 * 5]
    assert [place for batch in told for place in batch.places.tolist()] == list(range(13 * 5))


def test_another_seed_is_another_order_and_the_same_seed_the_same(cache: Cache) -> None:
    orders = [tuple(ids(Stream(CacheRows(cache), batch_size=N, seed=seed), 1)) for seed in (0, 1, 2, 0)]
    assert len(set(orders)) == 3 and orders[0] == orders[3]


@pytest.mark.parametrize("rank, world, batch_size", [(0, 5, 4), (3, 3, 8), (-1, 2, 8), (0, 1, 0)])
def test_a_batch_that_does_not_reach_every_worker_is_refused(
    cache: Cache, rank: int, world: int, batch_size: int
) -> None:
    with pytest.raises(RecipeError, match=rf"batch_size is {batch_size} for {world} workers"):
        Stream(CacheRows(cache), batch_size=batch_size, seed=0, rank=rank, world=world)


@pytest.mark.parametrize("name", ["lanes", "window"])
@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("whole", [True, False])
def test_no_lanes_and_no_window_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int, whole: bool
) -> None:
    monkeypatch.setattr(default_orders, "WHOLE_BYTES", 1 << 30 if whole else 64)
    with pytest.raises(RecipeError, match=rf"^{name} is {value} for a stream of memory\. There is at least one\.$"):
        Stream(Fake([8, 8]), batch_size=4, **{name: value})


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_a_stream_of_no_rows_is_refused(sizes: list[int]) -> None:
    with pytest.raises(RecipeError, match=r"^memory has no rows\. A stream has at least one\.$"):
        Stream(Fake(sizes), batch_size=1)


# The order that a stream takes by itself


def test_a_cache_that_fits_is_shuffled_whole(cache: Cache) -> None:
    assert Stream(CacheRows(cache), batch_size=4, seed=5).order == Order(5, N, 1)


def test_some_rows_of_row_groups_that_fit_are_shuffled_whole() -> None:
    """Also where few rows of every row group are kept."""
    for kept in ([4] * 20, [1] * 20, [0] * 19 + [3]):
        groups = Fake([8] * 20, kept=kept)
        assert default_order(groups, 0) == Order(0, sum(kept), 1)


def test_what_does_not_fit_is_cut_into_lanes_whose_windows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes 16 bytes; the windows hold about what a whole shuffle may, with their row groups."""
    monkeypatch.setattr(default_orders, "WHOLE_BYTES", 16 * 6400)
    assert default_order(Fake([8] * 800), 0) == Order(0, 6400, 1)
    for kept in (None, [4] * 2000, [1, 7] * 1000):
        groups = Fake([8] * 2000, kept=kept)
        order = default_order(groups, 0)
        assert order.lanes == default_orders.LANES == 16
        share = streams.Share(64)
        most = streams.held_rows(ordering.epoch(order, groups.rows, 0), groups.sizes, share, 0)
        assert 6400 / 2 < most < 6400 * 1.2
        for world in (2, 16):
            one = streams.held_rows(ordering.epoch(order, groups.rows, 0), groups.sizes, streams.Share(64, 1, world), 0)
            assert one < most * 1.5 / world + 800


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"lanes": 4}, (4, 400)),
        ({"window": 50}, (16, 50)),
        ({"lanes": 2, "window": 30}, (2, 30)),
        ({"window": 10**9}, (16, 400)),
        ({"lanes": 1}, (1, 400)),
        ({"lanes": 1000}, (1000, 400)),
    ],
    ids=str,
)
def test_what_is_given_of_the_order_stays(given: dict[str, int], expected: tuple[int, int]) -> None:
    order = Stream(Fake([8] * 50), batch_size=4, seed=1, **given).order
    assert (order.lanes, order.window) == expected


def test_a_window_is_never_smaller_than_a_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else most of what is read would be thrown away."""
    monkeypatch.setattr(default_orders, "WHOLE_BYTES", 100)
    assert default_order(Fake([8, 3, 50, 8]), 0) == Order(0, 50, 16)


def test_a_window_is_bounded_by_what_its_rows_take_in_memory_not_on_disk(
    local: Folder, blank: str, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank images compress a thousandfold; a full shuffle would hold them all, decoded."""
    from storage.cache.commits import commit_shard
    from storage.sources import make_source

    source = make_source({"function": f"{blank}:rows"})
    batch = make_batch(source.read(source.files()[0], 0, 64))
    width = 8 + 4096 * 4 + 10
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 4 * width)
    staged = local.stage()
    commit = commit_shard(local, "ab" * 32, "a1", staged, shards.write_shard(staged, batch.schema, [batch]))
    groups = CacheRows(seal(local, "blank", [commit], {}))
    assert commit.bytes < 64 * width / 10 and len(groups.rows) == 16 and row_bytes(groups) == width
    monkeypatch.setattr(default_orders, "WHOLE_BYTES", 16 * width)
    stream = Stream(groups, batch_size=4, seed=0, lanes=1, reading=Reading(prefetch_bytes=0, threads=1))
    assert stream.order.window == 12
    assert stream.memory_bound < 48 * width
    assert sorted(ids(stream, 16)) == list(range(64))


@pytest.fixture
def blank(module: Make) -> str:
    return module(
        "import numpy as np, pyarrow as pa\n"
        "def rows():\n"
        "    x = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(64 * 4096, np.float32)), 4096)\n"
        "    return pa.table({'sample_id': range(64), 'x': x})\n"
    )


# Epochs


@pytest.mark.parametrize("batch_size", [1, 4, 23, 24, 30, 50])
def test_a_for_ends_with_the_epoch_and_the_next_one_goes_on(batch_size: int) -> None:
    groups = Fake([11, 3, 9])
    expected = ids(Stream(groups, batch_size=batch_size, seed=1), 300)
    stream = Stream(groups, batch_size=batch_size, seed=1)
    seen: list[int] = []
    for number in range(8):
        # Batches that began before the epoch did are over.
        length, place = len(stream), stream.place
        told = list(stream)
        assert len(told) == length == -(-((place // N + 1) * N - place) // batch_size)
        assert [batch.first for batch in told] == list(range(place, stream.place, batch_size))
        assert told[-1].first < (place // N + 1) * N <= stream.place
        if batch_size <= N:
            assert stream.place // N == number + 1
        seen += ids_of(told)
    assert seen == expected[: len(seen)]
    stream.close()


@pytest.mark.parametrize("batch_size", [3, 23, 40])
def test_the_length_is_that_of_the_next_for_at_every_place(batch_size: int) -> None:
    groups = Fake([11, 3, 9])
    for place in range(0, 60, 7):
        stream = Stream(groups, batch_size=batch_size, lanes=2, window=5)
        stream.load_state_dict({**stream.state_dict(), "place": place})
        lengths = []
        for _ in stream:
            lengths.append(len(stream))
        again = Stream(groups, batch_size=batch_size, lanes=2, window=5)
        again.load_state_dict({**again.state_dict(), "place": place})
        assert len(again) == len(lengths)
        # In a loop's body it is what is left, and after the last batch the next epoch's.
        assert lengths[:-1] == list(range(len(lengths) - 1, 0, -1))
        stream.close()


def test_who_breaks_goes_on_with_the_next_batch() -> None:
    groups = Fake([11, 3, 9])
    expected = ids(Stream(groups, batch_size=4, seed=1), 12)
    stream = Stream(groups, batch_size=4, seed=1)
    seen: list[int] = []
    for stop in (2, 1, 3, 6):
        for count, batch in enumerate(stream, 1):
            seen += batch.sample_id.tolist()
            if count == stop:
                break
    assert seen == expected[: len(seen)] and len(seen) == 4 * (2 + 1 + 3 + 6)
    stream.close()


def test_two_loops_at_a_time_take_turns() -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=4, seed=1)
    expected = ids(Stream(Fake([11, 3, 9]), batch_size=4, seed=1), 6)
    one, other = iter(stream), iter(stream)
    assert ids_of(next(which) for which in (one, other, other, one, one, other)) == expected
    stream.close()


def test_endless_goes_on_over_the_ends_of_epochs() -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=10)
    assert [batch.first for batch in itertools.islice(stream.endless(), 9)] == list(range(0, 90, 10))
    stream.close()


def test_a_batch_says_what_it_holds(cache: Cache) -> None:
    for lanes, places in ((1, [3, 4, 5]), (4, [1, 3, 5])):
        [batch] = batches(Stream(CacheRows(cache), batch_size=6, rank=1, world=2, lanes=lanes), 1)
        assert (batch.first, batch.global_size, batch.places.tolist(), len(batch)) == (0, 6, places, 3)
    assert batch.sample_id is batch.rows.sample_id and batch.inputs is batch.rows.inputs
    assert batch.label is batch.rows.label and batch.targets is batch.rows.targets
    assert list(batch.inputs) == ["x", "n"] and batch.label is not None and batch.targets is not None


# State


@pytest.mark.parametrize("lanes, window", [(1, 5), (1, N), (3, 4)])
@pytest.mark.parametrize("batch_size", [4, 9])
def test_a_state_resumes_exactly_after_every_batch(cache: Cache, batch_size: int, lanes: int, window: int) -> None:
    settings = {"batch_size": batch_size, "seed": 6, "lanes": lanes, "window": window}
    count = 2 * N // batch_size + 2
    stream = Stream(CacheRows(cache), **settings)
    states, expected = [json.dumps(stream.state_dict())], list[Any]()
    for batch in itertools.islice(stream.endless(), count):
        expected.append(values(batch.rows))
        states.append(json.dumps(stream.state_dict()))
    for k, state in enumerate(states[:-1]):
        again = Stream(CacheRows(cache), **settings)
        again.load_state_dict(json.loads(state))
        assert [values(batch.rows) for batch in batches(again, count - k)] == expected[k:]


@pytest.mark.parametrize("lanes, window", [(1, N), (4, 3)])
@pytest.mark.parametrize("before, after", [(1, 3), (4, 1), (3, 2), (2, 4)])
def test_a_state_resumes_in_another_world(cache: Cache, before: int, after: int, lanes: int, window: int) -> None:
    settings = {"batch_size": 5, "seed": 6, "lanes": lanes, "window": window}
    groups = CacheRows(cache)
    whole = [by_place([batch]) for batch in batches(Stream(groups, **settings), 10)]
    for k in (0, 3, 8):
        states: list[Any] = []
        for rank in range(before):
            stream = Stream(groups, **settings, rank=rank, world=before)
            batches(stream, k)
            states.append(stream.state_dict())
        assert all(state == states[0] for state in states)
        ranks: list[list[Batch]] = []
        for rank in range(after):
            stream = Stream(groups, **settings, rank=rank, world=after)
            stream.load_state_dict(states[0])
            ranks.append(batches(stream, 10 - k))
        assert [by_place(parts) for parts in zip(*ranks, strict=True)] == whole[k:]


@pytest.mark.parametrize("world", [1, 8, 12])
@pytest.mark.parametrize("place", [1, 6, 250])
def test_a_state_goes_on_at_any_place_in_any_world(world: int, place: int) -> None:
    """Also where no batch of this size ever began, as after one of another size."""
    groups, settings = Fake(AWKWARD), {"seed": 6, "lanes": 4, "window": 5}
    every = Stream(groups, batch_size=1, **settings)
    right = dict(enumerate(ids_of(batches(every, 400))))
    every.close()
    for batch_size in (24, 32):
        seen: dict[int, int] = {}
        for rank in range(world):
            stream = Stream(groups, batch_size=batch_size, rank=rank, world=world, **settings)
            stream.load_state_dict({**stream.state_dict(), "place": place})
            for batch in batches(stream, 4):
                seen.update(zip(batch.places.tolist(), batch.sample_id.tolist(), strict=True))
            stream.close()
        assert seen == {at: right[at] for at in range(place, place + 4 * batch_size)}


def test_a_state_taken_in_the_loops_body_belongs_to_the_next_batch(cache: Cache) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    for index, batch in enumerate(itertools.islice(stream.endless(), 6)):
        assert batch.first == 5 * index
        assert stream.state_dict()["place"] == 5 * (index + 1)


def test_a_state_after_any_batch_can_be_asked_for() -> None:
    """A loader may have taken batches that the trainer has not seen."""
    stream = Stream(Fake([11, 3, 9]), batch_size=5, seed=6)
    told = batches(stream, 7)
    assert stream.state_dict()["place"] == 35
    assert [stream.state_dict(batch)["place"] for batch in told] == [5, 10, 15, 20, 25, 30, 35]
    assert {**stream.state_dict(told[-1])} == stream.state_dict()
    stream.close()


@pytest.mark.parametrize("endless", [True, False])
def test_a_state_can_be_loaded_while_the_stream_runs(cache: Cache, endless: bool) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    running = stream.endless() if endless else iter(stream)
    start = stream.state_dict()
    first = [values(next(running).rows) for _ in range(4)]
    later = stream.state_dict()
    stream.load_state_dict(start)
    assert [values(next(running).rows) for _ in range(2)] == first[:2]
    stream.load_state_dict(later)
    fifth = values(next(running).rows)
    stream.load_state_dict(start)
    assert [values(batch.rows) for batch in batches(stream, 5)] == [*first, fifth]


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
        "order": {"version": "feistel6-v2", "seed": 6, "window": N, "lanes": 1},
    }


def test_a_state_is_no_part_of_the_stream() -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=5, seed=6)
    stream.state_dict()["order"]["seed"] = 7
    assert stream.state_dict()["order"]["seed"] == 6


@pytest.mark.parametrize("change", ["digest", "seed", "window", "lanes", "version"])
def test_a_state_of_other_content_or_another_order_is_refused(cache: Cache, change: str) -> None:
    stream = Stream(CacheRows(cache), batch_size=5, seed=6)
    state = json.loads(json.dumps(stream.state_dict()))
    state["place"] = 10
    if change == "digest":
        state["digest"] = "0" * 64
    else:
        state["order"][change] = "feistel7" if change == "version" else 5
    with pytest.raises(VerificationError) as caught:
        stream.load_state_dict(state)
    found, expected, remedy = caught.value.args
    part = "digest" if change == "digest" else "order"
    assert found == f"The stream's state has the {part} {state[part]}."
    assert expected == f"{cache.url} has {stream.state_dict()[part]}."
    assert remedy == "Continue with the data, seed, lanes and window of that state, or begin anew."
    assert stream.state_dict()["place"] == 0


def test_a_state_of_another_cache_is_refused(cache: Cache, put_shard: Make) -> None:
    other = seal(cache.store, "other", [put_shard(cache.store, N)], {})
    state = Stream(CacheRows(other), batch_size=5, seed=6).state_dict()
    with pytest.raises(VerificationError, match=cache.digest):
        Stream(CacheRows(cache), batch_size=5, seed=6).load_state_dict(state)


RUBBISH: list[Any] = [
    None,
    7,
    "a state",
    [],
    {},
    {"place": 3},
    {"place": None},
    {"place": -1},
    {"place": 3.5},
    {"place": "3"},
    {"place": float("nan")},
    {"place": float("inf")},
    {"place": 2**62},
    {"place": [3]},
    {"order": None},
    {"order": "feistel6-v2"},
    {"order": 7},
    {"order": {"version": "feistel6-v2"}},
    {"order": {"version": "feistel6-v2", "seed": None, "window": 3, "lanes": 1}},
    {"order": {"version": "feistel6-v2", "seed": float("inf"), "window": 3, "lanes": 1}},
    {"order": {"version": "feistel6-v2", "seed": 1, "window": 3}},
    {"order": {"version": "feistel6-v2", "seed": 1, "window": 0, "lanes": 1}},
    {"order": {"version": "feistel6-v2", "seed": 1, "window": 3, "lanes": "x"}},
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=repr)
def test_what_is_no_state_is_refused(rubbish: Any) -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=5, seed=6)
    state = rubbish
    if isinstance(rubbish, dict) and rubbish and rubbish != {"place": 3}:
        state = {**stream.state_dict(), **rubbish}
    with pytest.raises(
        VerificationError,
        match=r"^This is no state of a stream\. A state is what `state_dict` gave: place, digest and order\.$",
    ):
        stream.load_state_dict(state)
    assert stream.place == 0


@pytest.mark.parametrize("missing", ["place", "digest", "order"])
def test_a_state_without_a_part_is_refused(missing: str) -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=5, seed=6)
    state = stream.state_dict()
    del state[missing]
    with pytest.raises(VerificationError, match=r"^This is no state of a stream\."):
        stream.load_state_dict(state)


def test_places_of_any_number_can_be_streamed_from() -> None:
    groups = Fake([11, 3, 9])
    for place in (10**15, 2**61):
        stream = Stream(groups, batch_size=5, seed=6, lanes=2, window=4)
        stream.load_state_dict({**stream.state_dict(), "place": place})
        told = batches(stream, 12)
        assert [batch.first for batch in told] == list(range(place, place + 60, 5))
        laid = ordering.epoch(stream.order, groups.rows, place // N)
        assert ids_of(told)[: N - place % N] == stored_ids(groups, *laid.locate(np.arange(place % N, N)))
        stream.close()


# Parts of an epoch for several processes


@pytest.mark.parametrize("of", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("place", [0, 8, 20])
def test_the_parts_that_several_take_are_the_whole_in_turns(of: int, place: int) -> None:
    groups = Fake([11, 3, 9])

    def fresh() -> Stream:
        stream = Stream(groups, batch_size=4, seed=3, lanes=2, window=5)
        stream.load_state_dict({**stream.state_dict(), "place": place})
        return stream

    whole = fresh()
    right = [(batch.first, values(batch.rows)) for batch in whole]
    told: list[list[Any]] = []
    for number in range(of):
        stream = fresh()
        told.append([(batch.first, values(batch.rows)) for batch in stream.part(number, of)])
        assert stream.place == whole.place
        stream.close()
    together = [one for turn in itertools.zip_longest(*told) for one in turn if one is not None]
    assert together == right
    whole.close()


@pytest.mark.parametrize("world", [2, 3])
def test_parts_and_ranks_go_together(world: int) -> None:
    settings = {"batch_size": 7, "seed": 3, "lanes": 4, "window": 5}
    right = {batch.first: by_place([batch]) for batch in Stream(Fake(AWKWARD), **settings)}
    parts: dict[int, list[Batch]] = {}
    for rank, number in itertools.product(range(world), range(3)):
        stream = Stream(Fake(AWKWARD), **settings, rank=rank, world=world)
        for batch in stream.part(number, 3):
            parts.setdefault(batch.first, []).append(batch)
    assert {first: by_place(some) for first, some in parts.items()} == right


def test_a_part_that_is_left_leaves_the_stream_where_it_was(readers: list[Reader]) -> None:
    stream = Stream(Fake([11, 3, 9]), batch_size=4, seed=3)
    part = stream.part(0, 2)
    next(part)
    part.close()
    assert len(readers) == 1 and stream.place == 0 and stream_threads() == []
    assert len(list(stream)) == 6
    stream.close()


# Killed processes


def streamed(out: Path, world: int) -> list[dict[int, dict[str, Any]]]:
    """What each rank wrote down, by a batch's first place; a line that a kill has torn is none."""
    told: list[dict[int, dict[str, Any]]] = []
    for rank in range(world):
        lines = Path(f"{out}.{rank}").read_bytes().split(b"\n")[:-1]
        told.append({facts["first"]: facts for facts in map(json.loads, lines)})
    return told


@pytest.mark.parametrize(
    "lanes, window, batch_size, worlds", [(4, 13, 24, (3, 1, 4, 2)), (1, 60, 17, (2, 3))], ids=["lanes", "one lane"]
)
def test_ranks_killed_at_any_moment_go_on_in_another_world(
    tmp_path: Path,
    local: Folder,
    make_cache: Make,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    window: int,
    batch_size: int,
    worlds: tuple[int, ...],
) -> None:
    """What the generations streamed, one after another, is what one undisturbed process streams."""
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 8 * 52)
    cache = make_cache(local, (61, 17, 55))
    dice = random.Random(batch_size)
    settings = {"batch_size": batch_size, "seed": 5, "lanes": lanes, "window": window}
    state, whole = None, dict[int, int]()
    for generation, world in enumerate(worlds):
        if generation == 1:
            fatal: list[dict[str, Any]] = [{"seconds": dice.uniform(0.01, 0.1)} for _ in range(world)]
        else:
            hows = ["before", "torn", "after"]
            fatal = [{"step": dice.randrange(4, 12), "how": dice.choice(hows)} for _ in range(world)]
        out = tmp_path / str(generation)
        facts = {
            "url": cache.url,
            "out": str(out),
            "fatal": fatal,
            "state": state,
            "settings": settings,
            "prefetch_bytes": dice.choice([0, 500, 1 << 20]),
        }
        command = [sys.executable, "-m", "tests.storage.stream.child", "ranks", json.dumps(facts)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout) == [-signal.SIGKILL] * world, done.stderr.decode()
        told = streamed(out, world)
        # The last batch that all ranks wrote down, as a checkpoint of all of them would be.
        common = set.intersection(*(set(one) for one in told))
        for first in sorted(common):
            states = [one[first]["state"] for one in told]
            assert all(one == states[0] for one in states)
            state = states[0]
            for one in told:
                for place, sample in zip(one[first]["places"], one[first]["ids"], strict=True):
                    assert place not in whole
                    whole[place] = sample
        assert common or generation == 1
    undisturbed = Stream(CacheRows(cache), **settings)
    expected = ids(undisturbed, len(whole) // batch_size)
    assert [whole[place] for place in range(len(whole))] == expected and len(expected) > 60


# Memory


def test_resident_memory_stays_flat_and_under_the_bound() -> None:
    """10,000 batches, 16 epochs of rows that take twenty times the bound."""
    facts = {
        "groups": 625,
        "group": 8,
        "width": 4096,
        "count": 10_000,
        "prefetch_bytes": 1 << 19,
        "settings": {"batch_size": 8, "lanes": 4, "window": 24},
    }
    command = [sys.executable, "-m", "tests.storage.stream.child", "memory", json.dumps(facts)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    seen = told["seen"]
    assert told["bound"] * 20 < told["whole"] and len(seen) == 20
    # What an allocator keeps of places that were looked up takes some besides.
    assert max(seen) < told["before"] + told["bound"] + (4 << 20)
    assert max(seen[10:]) < max(seen[:10]) + (3 << 19)


@pytest.mark.parametrize("world", [1, 4])
def test_the_bound_counts_windows_budget_threads_and_batches(world: int) -> None:
    groups, width = Fake([8] * 400, shape=(30,)), 8 + 4 * 30
    stream = Stream(
        groups, batch_size=64, world=world, lanes=8, window=40, reading=Reading(prefetch_bytes=1000 * width, threads=2)
    )
    laid = ordering.epoch(stream.order, groups.rows, 0)
    rows = streams.held_rows(laid, groups.sizes, stream.share, 0)
    assert rows >= 8 // world * 40
    batch = 64 // world
    assert stream.memory_bound == (rows + 8 + 3 * batch + 2 * 8 + 1000) * width


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("budget", [0, 3000])
def test_no_more_memory_is_made_than_the_bound_tells(readers: list[Reader], world: int, budget: int) -> None:
    groups = Fake([8] * 100)
    stream = Stream(
        groups, batch_size=32, world=world, lanes=8, window=24, reading=Reading(prefetch_bytes=budget, threads=2)
    )
    assert stream.memory_bound < 800 * row_bytes(groups)
    batches(stream, 60)
    stream.close()
    [slab] = readers[0]._arena._slabs
    assert slab.rows * row_bytes(groups) <= stream.memory_bound


def test_a_row_group_of_many_small_windows_is_not_read_for_each() -> None:
    """Eight lanes of eight row groups each; batches so small that a window ends before the next one is due."""
    groups = Fake([8] * 64)
    stream = Stream(groups, batch_size=4, lanes=8, window=2, reading=Reading(prefetch_bytes=4 * 128, threads=2))
    assert len(list(stream)) == 128
    stream.close()
    # What was fetched of the next epoch is among them.
    assert set(groups.reads) == set(range(64)) and groups.reads.total() < 64 + 30


def test_what_fits_is_read_once_for_ever() -> None:
    groups = Fake([4] * 24)
    stream = Stream(groups, batch_size=6, reading=Reading(prefetch_bytes=0, threads=2))
    batches(stream, 64)
    stream.close()
    assert set(groups.reads.values()) == {1}


@pytest.mark.parametrize("batch_size", [1, 3, N, 40])
def test_a_batch_owns_its_memory(cache: Cache, batch_size: int) -> None:
    clean = Stream(CacheRows(cache), batch_size=batch_size, seed=1)
    expected = [values(batch.rows) for batch in batches(clean, 30)]
    spoilt = Stream(CacheRows(cache), batch_size=batch_size, seed=1)
    kept: list[np.ndarray[Any, Any]] = []
    for batch, right in zip(spoilt.endless(), expected, strict=False):
        assert values(batch.rows) == right
        assert batch.label is not None and batch.targets is not None
        for array in (
            batch.sample_id,
            *batch.inputs.values(),
            batch.label,
            batch.targets.logits_PV,
            batch.targets.temperature_P,
        ):
            assert not any(np.shares_memory(array, other) for other in kept[-12:])
            array[...] = 99
            kept.append(array)
    assert all((array == 99).all() for array in kept)


def test_a_batch_of_one_row_group_owns_its_memory(local: Folder, make_cache: Make) -> None:
    stream = Stream(CacheRows(make_cache(local, (6,))), batch_size=6, seed=1)
    for batch in batches(stream, 2):
        batch.inputs["x"][...] = -1
    assert all((batch.inputs["x"] >= 0).all() for batch in batches(stream, 2))


def test_text_rows_are_the_batchs_own_too() -> None:
    stream = Stream(Fake([4, 4], texts=True), batch_size=8, seed=1)
    for batch in batches(stream, 2):
        batch.label[...] = "spoilt"
    for batch in batches(stream, 2):
        assert batch.label.tolist() == [f"row {i}" for i in batch.sample_id]
    stream.close()


# Waiting


def waited(budget: int, batch_s: float) -> float:
    """How long a consumer waits after its first batch, who takes its time for each and reads from a slow store."""
    groups = Fake([16] * 60, delay=lambda _: 0.2)
    stream = Stream(groups, batch_size=8, lanes=2, window=32, reading=Reading(prefetch_bytes=budget, threads=8))
    some = stream.endless()
    next(some)
    first = stream.waited
    assert first >= 0.2
    for _ in range(40):
        time.sleep(batch_s)
        next(some)
    stream.close()
    return stream.waited - first


def test_a_slow_store_stalls_nobody_whom_the_budget_can_serve() -> None:
    """200 ms a request: a row group in 60 ms is needed, eight threads bring one in 25 ms."""
    assert waited(24 * 16 * 16, 0.03) < 0.2


def test_batches_are_put_together_while_the_consumer_works() -> None:
    """Two of them, each of a row group of its own, and a row group is fetched ahead whatever the budget."""
    groups = Fake([4] * 20)
    stream = Stream(groups, batch_size=4, lanes=1, window=4, reading=Reading(prefetch_bytes=0, threads=1))
    next(iter(stream))
    deadline = time.monotonic() + 5
    while len(groups.reads) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(0.02)
    assert len(groups.reads) == 2 + batch_producer.BATCHES_AHEAD == 4
    stream.close()


def test_without_a_budget_a_slow_store_is_waited_for() -> None:
    assert waited(0, 0.03) > 0.6


# Ends


def test_after_an_error_the_stream_goes_on_when_it_is_asked_again() -> None:
    groups = Fake([4] * 10)
    expected = ids(Stream(groups, batch_size=4, seed=2), 30)
    groups.faults = {3: [CorruptShard("It is damaged.")], 7: [OSError("gone"), OSError("gone")]}
    stream = Stream(groups, batch_size=4, seed=2)
    seen, errors = list[int](), list[str]()
    while len(seen) < 120:
        try:
            for batch in stream:
                seen += batch.sample_id.tolist()
        except (CorruptShard, OSError) as error:
            errors.append(str(error))
            assert stream.place == len(seen) and stream.state_dict()["place"] == len(seen)
    assert seen == expected
    # What failed beside the row group that was waited for may have been read again before it was.
    assert set(errors) == {"It is damaged.", "gone"} and not any(groups.faults.values())
    stream.close()


def test_what_was_ready_before_an_error_is_handed_out_before_it() -> None:
    groups = Fake([4] * 5)
    clean = Stream(groups, batch_size=2, window=4, lanes=1)
    order = list(dict.fromkeys(i // 4 for i in ids(clean, 10)))
    groups.faults = {order[2]: [CorruptShard("It is damaged.")]}
    stream = Stream(groups, batch_size=2, window=4, lanes=1, reading=Reading(prefetch_bytes=1 << 20, threads=4))
    some = iter(stream)
    assert [i // 4 for i in ids_of(itertools.islice(some, 4))] == [order[0]] * 4 + [order[1]] * 4
    with pytest.raises(CorruptShard):
        next(some)
    assert stream.place == 8
    stream.close()


def test_no_thread_is_left_when_a_stream_is_closed() -> None:
    for take in (0, 1, 5):
        stream = Stream(Fake([4] * 10, delay=lambda _: 0.002), batch_size=4, lanes=2, window=4)
        batches(stream, take)
        stream.close()
        stream.close()
        assert stream_threads() == []
        # It begins anew from the place.
        assert [batch.first for batch in batches(stream, 2)] == [4 * take, 4 * take + 4]
        stream.close()
    assert stream_threads() == []


def test_no_thread_is_left_of_a_stream_that_nobody_has() -> None:
    stream = Stream(Fake([4] * 10), batch_size=4)
    batches(stream, 3)
    del stream
    assert stream_threads() == []


def test_no_thread_is_left_after_an_error_or_a_part(readers: list[Reader]) -> None:
    groups = Fake([4] * 10)
    groups.faults = {group: [OSError("gone")] for group in range(10)}
    stream = Stream(groups, batch_size=4)
    with pytest.raises(OSError, match="gone"):
        next(iter(stream))
    assert stream_threads() == []
    assert len(list(Stream(Fake([4] * 10), batch_size=4).part(1, 3))) == 3
    assert len(readers) == 2 and stream_threads() == []


# Scans


@pytest.mark.parametrize(
    "batch_size, budget",
    [(1, 0), (1, 1 << 30), (3, 100), (4, 1 << 30), (5, 0), (23, 100), (100, 0), (100, 1 << 30)],
)
def test_a_scan_gives_every_row_once_in_stored_order(cache: Cache, teacher: Make, batch_size: int, budget: int) -> None:
    seen: list[int] = []
    for rows in scan(CacheRows(cache), batch_size, Reading(prefetch_bytes=budget, threads=2)):
        assert 1 <= len(rows) <= batch_size
        check_rows(rows, teacher)
        seen += rows.sample_id.tolist()
        rows.inputs["x"][...] = 0
    assert seen == list(range(N))
    assert stream_threads() == []


def test_a_scan_reads_every_row_group_once_and_holds_few(readers: list[Reader]) -> None:
    groups = Fake([4] * 30 + [0, 3])
    lengths = [len(rows) for rows in scan(groups, 10, Reading(prefetch_bytes=0, threads=2))]
    assert lengths == [10] * 12 + [3]
    assert [slab.rows for slab in readers[0]._arena._slabs] == [2 * 4 + 10 + 4]
    assert set(groups.reads.values()) == {1} and set(groups.reads) == {*range(30), 31}


def test_a_scan_of_no_rows_gives_nothing() -> None:
    assert list(scan(Fake([0, 0]), 4)) == []
    [rows] = scan(Fake([8, 8], kept=[0, 3]), 4, Reading(prefetch_bytes=0, threads=1))
    assert rows.sample_id.tolist() == [13, 14, 15]


def test_a_scan_that_ends_is_left_or_fails_leaves_no_thread(readers: list[Reader]) -> None:
    assert len(list(scan(Fake([4] * 3), 10))) == 2
    assert len(readers) == 1 and stream_threads() == []
    some = scan(Fake([4] * 30), 10)
    next(some)
    some.close()
    assert stream_threads() == []
    groups = Fake([4] * 5)
    groups.faults = {2: [OSError("gone")]}
    with pytest.raises(OSError, match="gone"):
        list(scan(groups, 3))
    assert stream_threads() == []
