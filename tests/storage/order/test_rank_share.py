"""Every sample of a batch is one rank's, in every world, and few ranks take samples of the same row groups."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from storage.order import schedule
from storage.order.rank_share import Share, WindowPart
from storage.order.sample_order import Order, epoch
from storage.order.schedule import held_rows, lookups, needs
from tests.storage.stream.fakes import grid

Ints = np.ndarray[Any, Any]
# Twelve row groups, one of them empty; neither the lanes nor the batches divide the rows.
ROWS = np.array([31, 40, 0, 23, 40, 40, 17, 40, 40, 5, 40, 40])
TOTAL = int(ROWS.sum())
# One rank; worlds that divide the lanes or not; and more ranks than lanes, whether or not they divide.
WORLDS = (1, 3, 16, 24, 64)


def parts_of(order: Order, rows: Ints, batch_size: int, world: int, firsts: list[int], ahead: int = 1000) -> list[Any]:
    """[world][batch] the places that each rank takes of each batch."""
    return [
        [found.places.tolist() for found in lookups(order, rows, Share(batch_size, rank, world), iter(firsts), ahead)]
        for rank in range(world)
    ]


def sorted_batch(order: Order, rows: Ints, first: int, batch_size: int) -> list[int]:
    """The places of a batch by lane, epoch and row of the epoch's layout, one at a time."""
    total = int(rows.sum())
    keys = []
    for place in range(first, first + batch_size):
        number, within = divmod(place, total)
        row = int(epoch(order, rows, number).rows_at(np.array([within]))[0])
        keys.append((within % order.lanes, number, row, place))
    return [place for *_, place in sorted(keys)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("lanes, window", [(1, TOTAL), (1, 50), (4, 20), (16, 9), (64, 3)])
def test_every_sample_of_a_batch_is_one_ranks(lanes: int, window: int, world: int) -> None:
    order = Order(1, window, lanes)
    for batch_size, first in ((world, 0), (world + 5, 7), (131, 131), (257, 3 * 257), (500, 10**12 + 5)):
        if batch_size < world:
            continue
        firsts = [first + count * batch_size for count in range(3)]
        for one, *parts in zip(firsts, *parts_of(order, ROWS, batch_size, world, firsts), strict=True):
            counts = [len(part) for part in parts]
            assert min(counts) >= 1 and max(counts) - min(counts) <= 1
            assert all(part == sorted(part) for part in parts)
            assert sorted(itertools.chain(*parts)) == list(range(one, one + batch_size))


@pytest.mark.parametrize("lanes, window", [(1, 50), (4, 20), (16, 9), (64, 3)])
def test_ranks_take_slices_of_the_batch_sorted_by_lane_and_row_group(lanes: int, window: int) -> None:
    order = Order(1, window, lanes)
    for batch_size, first in ((24, 0), (48, 331), (131, 3 * 131), (800, 11)):
        firsts = [first, first + batch_size]
        sorted_batches = [sorted_batch(order, ROWS, one, batch_size) for one in firsts]
        for world in (3, 7, 24):
            bounds = [rank * batch_size // world for rank in range(world + 1)]
            for whole, *parts in zip(sorted_batches, *parts_of(order, ROWS, batch_size, world, firsts), strict=True):
                assert parts == [sorted(whole[start:stop]) for start, stop in itertools.pairwise(bounds)]


def test_a_rank_takes_the_same_however_many_batches_are_looked_up_at_once() -> None:
    for setting in grid(3, 12):
        order, rows = Order(setting["seed"], setting["window"], setting["lanes"]), setting["sizes"]
        firsts = [5 + count * setting["batch_size"] for count in range(9)]
        for_each = [parts_of(order, rows, setting["batch_size"], setting["world"], firsts, n) for n in (1, 60, 10_000)]
        assert for_each[0] == for_each[1] == for_each[2]


def test_one_process_and_a_full_shuffle_are_not_sorted() -> None:
    """A full shuffle is held by every rank, so sorting it would only cost time."""
    for share, order, sorts in (
        (Share(64), Order(1, 50, 16), False),
        (Share(64, 1, 8), Order(1, 50, 16), False),
        (Share(64, 1, 3), Order(1, 50, 16), True),
        (Share(64, 1, 32), Order(1, 50, 16), True),
        (Share(64, 1, 8), Order(1, TOTAL, 1), False),
        (Share(64, 1, 8), Order(1, TOTAL - 1, 1), True),
        (Share(64, 1, 8), Order(1, TOTAL, 4), True),
    ):
        assert share.sorts(order, TOTAL) is sorts
    assert parts_of(Order(1, TOTAL, 1), ROWS, 6, 2, [12]) == [[[12, 13, 14]], [[15, 16, 17]]]
    assert parts_of(Order(1, 50, 16), ROWS, 32, 16, [0])[3] == [[3, 19]]


@pytest.mark.parametrize("lanes", [1, 4, 12, 16])
def test_a_rank_takes_samples_of_its_windows_only(lanes: int) -> None:
    """Whatever the world and the batch, wherever the batches and the epoch begin."""
    order, rows = Order(1, 10, lanes), np.array([97, 40, 61])
    for world, batch_size, first in itertools.product((1, 3, 8, 24), (24, 53, 198, 300), (0, 198 * 5 + 11)):
        firsts = list(range(first, first + 2 * 198, batch_size))
        for rank in {0, world // 2, world - 1}:
            share = Share(batch_size, rank, world)
            places = np.concatenate([found.places for found in lookups(order, rows, share, iter(firsts), 1000)])
            for number in np.unique(places // 198).tolist():
                within = places[places // 198 == number] - 198 * number
                mine = share.windows(epoch(order, rows, number), first)
                begins, ends = mine.begin * lanes + mine.lane, mine.end * lanes + mine.lane
                covered = [np.arange(*one, lanes) for one in zip(begins, ends, strict=True)]
                assert np.isin(within, np.concatenate(covered)).all()


def test_ranks_that_divide_the_lanes_never_share_one() -> None:
    laid = epoch(Order(1, 10, 16), np.array([100, 101]), 3)
    for world in (1, 2, 4, 8, 16):
        lanes = [np.unique(Share(64, rank, world).windows(laid, 5).lane).tolist() for rank in range(world)]
        assert sorted(itertools.chain(*lanes)) == list(range(16))


def test_ranks_have_windows_of_few_lanes() -> None:
    """The lanes divide the batch: a rank has those of its slice, others only where an epoch begins or ends."""
    laid = epoch(Order(1, 16, 16), np.full(100, 64), 1)
    for world, most in ((3, 7), (7, 4), (24, 2), (32, 1), (64, 1)):
        for rank in range(world):
            windows = Share(192, rank, world).windows(laid, 0)
            inside = (windows.opens > 192) & (windows.closes < laid.rows - 192)
            assert 1 <= len(np.unique(windows.lane[inside])) <= most


def test_rows_of_a_window_have_positions_in_the_sorted_batch() -> None:
    for setting in grid(5, 4):
        order, rows, size = Order(setting["seed"], setting["window"], setting["lanes"]), setting["sizes"], 7
        total, first = int(rows.sum()), 3
        laid = epoch(order, rows, 1)
        windows = laid.windows(np.arange(order.lanes))
        for at in range(len(windows.lane)):
            lane, begin, end = int(windows.lane[at]), int(windows.begin[at]), int(windows.end[at])
            if total + begin * order.lanes + lane < first:
                continue
            found, positions, index = WindowPart.of(laid, lane, begin, end, size, first).sort()
            assert sorted(index.tolist()) == list(range(begin, end))
            np.testing.assert_array_equal(found, laid.rows_at(index * order.lanes + lane))
            for one, position in zip(index.tolist(), positions.tolist(), strict=True):
                place = total + one * order.lanes + lane
                start = first + (place - first) // size * size
                assert sorted_batch(order, rows, start, size)[position] == place


def peak(order: Order, rows: Ints, share: Share, start: int, stop: int) -> int:
    """The most rows of row groups that batches in [start, stop) need at a time."""
    changes: dict[int, int] = {}
    spans: dict[int, int] = {}
    for need in itertools.takewhile(lambda need: need.first < stop, needs(order, rows, share, start)):
        begin = (need.first - start) // share.batch_size
        end = (need.last - start) // share.batch_size + 1
        begin = max(begin, spans.get(need.group, begin))
        if begin < end:
            spans[need.group] = end
            changes[begin] = changes.get(begin, 0) + int(rows[need.group])
            changes[end] = changes.get(end, 0) - int(rows[need.group])
    return max(itertools.accumulate(changes[at] for at in sorted(changes)))


@pytest.mark.parametrize("batch_size", [192, 200])
@pytest.mark.parametrize("world, loose", [(3, 1.3), (7, 1.5), (24, 1.5), (64, 1.7)])
def test_the_bound_is_no_less_than_the_peak_and_not_much_more(world: int, loose: float, batch_size: int) -> None:
    order, rows = Order(1, 48, 16), np.full(256, 16)
    laid = epoch(order, rows, 0)
    bounds, peaks = [], []
    for rank in range(world):
        share = Share(batch_size, rank, world)
        bounds.append(held_rows(laid, rows, share, 0))
        peaks.append(peak(order, rows, share, 0, laid.rows))
        assert peaks[-1] <= bounds[-1]
    assert sum(bounds) <= loose * sum(peaks)


def test_a_window_too_long_to_be_sorted_is_needed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    order, rows = Order(1, 48, 4), np.full(64, 8)
    for rank in range(8):
        share = Share(32, rank, 8)
        exact = {n.group for n in itertools.takewhile(lambda need: need.first < 512, needs(order, rows, share, 0))}
        monkeypatch.setattr(schedule, "SORTED_ROWS", 0)
        whole = {n.group for n in itertools.takewhile(lambda need: need.first < 512, needs(order, rows, share, 0))}
        monkeypatch.undo()
        assert exact < whole and len(whole) == 16
