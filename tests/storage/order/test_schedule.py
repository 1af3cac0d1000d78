"""What a rank needs is what it draws from, from the place where it does; and no more is held than is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from storage.order import schedule
from storage.order.rank_share import Share
from storage.order.sample_order import Order, epoch
from storage.order.schedule import Need, held_rows, lookups, needs
from tests.storage.stream.fakes import grid

Ints = np.ndarray[Any, Any]
WORLDS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 32, 64, 100, 127, 128)


def order_and_rows(setting: dict[str, Any]) -> tuple[Order, Ints]:
    return Order(setting["seed"], setting["window"], setting["lanes"]), setting["sizes"]


def located(order: Order, rows: Ints, places: Ints) -> list[tuple[int, int]]:
    """(row group, row) of places of any epochs, one after another."""
    total = int(rows.sum())
    told: list[tuple[int, int]] = [(-1, -1)] * len(places)
    for number in np.unique(places // total).tolist():
        at = np.flatnonzero(places // total == number)
        group, row = epoch(order, rows, number).locate(places[at] % total)
        for one, pair in zip(at.tolist(), zip(group.tolist(), row.tolist(), strict=True), strict=True):
            told[one] = pair
    return told


def taken(share: Share, order: Order, rows: Ints, first: int) -> Ints:
    """The places that a rank takes of a batch."""
    return next(lookups(order, rows, share, iter([first]), 1)).places


def until(some: Iterator[Need], place: int) -> list[Need]:
    return list(itertools.takewhile(lambda need: need.first < place, some))


# Needs


@pytest.mark.parametrize("seed", range(4))
def test_what_a_rank_draws_from_is_needed_at_that_place(seed: int) -> None:
    for setting in grid(seed, 8):
        order, rows = order_and_rows(setting)
        total, size, world = int(rows.sum()), setting["batch_size"], setting["world"]
        for start in (0, total // 3, 2 * total + 1):
            stop = start + max(total + size, 2 * size)
            for rank in {0, world // 2, world - 1}:
                share = Share(size, rank, world)
                told = until(needs(order, rows, share, start), stop)
                assert [need.first for need in told] == sorted(need.first for need in told)
                assert all(start <= need.first <= need.last and rows[need.group] for need in told)
                places = np.concatenate([taken(share, order, rows, f) for f in range(start, stop - size, size)])
                spans: dict[int, list[Need]] = {}
                for need in told:
                    spans.setdefault(need.group, []).append(need)
                for place, (group, _) in zip(places.tolist(), located(order, rows, places), strict=True):
                    assert any(need.first <= place <= need.last for need in spans[group]), (setting, place)


@pytest.mark.parametrize("seed", range(4))
def test_only_what_is_drawn_from_is_needed(seed: int) -> None:
    """By all ranks together: one that takes a slice of a batch shares its windows with others."""
    for setting in grid(seed + 10, 8):
        order, rows = order_and_rows(setting)
        total = int(rows.sum())
        for start in (0, total // 2, total + total // 3):
            for laid, base in ((epoch(order, rows, number), number * total) for number in (0, 1, 2)):
                told = [
                    need
                    for need in until(needs(order, rows, Share(setting["batch_size"]), start), 3 * total)
                    if base <= need.first < base + total
                ]
                drawn: list[tuple[int, int, int]] = []
                windows = laid.windows(np.arange(order.lanes))
                for at in range(len(windows.lane)):
                    index = np.arange(windows.begin[at], windows.end[at])
                    places = base + index * order.lanes + windows.lane[at]
                    group, _ = laid.locate(places[places >= start] - base)
                    first, last = max(start, int(places[0])), int(places[-1])
                    drawn += [(one, first, last) for one in dict.fromkeys(group.tolist())]
                assert [(need.group, need.first, need.last) for need in told] == drawn


def test_a_windows_row_groups_come_in_the_order_of_their_first_use() -> None:
    order, rows = Order(3, 60, 2), np.full(40, 5)
    laid = epoch(order, rows, 0)
    told = until(needs(order, rows, Share(8), 0), 1)
    assert [need.first for need in told] == [0] * len(told)
    drawn, _ = laid.locate(np.arange(0, 120, 2))
    assert [need.group for need in told] == list(dict.fromkeys(drawn.tolist()))


@pytest.mark.parametrize("looked_at", [1, 7, 50])
def test_a_window_too_long_to_be_looked_at_is_needed_whole(monkeypatch: pytest.MonkeyPatch, looked_at: int) -> None:
    for setting in grid(7, 10):
        order, rows = order_and_rows(setting)
        total = int(rows.sum())
        for start in (0, total // 2):
            monkeypatch.undo()
            exact = until(needs(order, rows, Share(16), start), 2 * total)
            monkeypatch.setattr(schedule, "_LOOKED_AT", looked_at)
            told = until(needs(order, rows, Share(16), start), 2 * total)
            assert {(n.group, n.first, n.last) for n in exact} <= {(n.group, n.first, n.last) for n in told}
            assert all(rows[need.group] for need in told)
            if not start:  # in the middle of a window some of its groups may be done with
                assert len(told) == len(exact)
                assert {(n.group, n.first, n.last) for n in exact} == {(n.group, n.first, n.last) for n in told}
            firsts = [list(part) for _, part in itertools.groupby(told, lambda need: (need.first, need.last))]
            rights = [list(part) for _, part in itertools.groupby(exact, lambda need: (need.first, need.last))]
            if order.lanes == 1 and looked_at == 50:
                assert [part[0] for part in firsts] == [part[0] for part in rights]


def test_ranks_that_divide_the_lanes_need_row_groups_of_their_own() -> None:
    """Each row group is one rank's, but for those in which lanes meet."""
    order, rows = Order(1, 64, 16), np.full(160, 8)
    for world in (2, 4, 8, 16):
        groups = [
            {need.group for need in until(needs(order, rows, Share(64, rank, world), 0), 1280)} for rank in range(world)
        ]
        assert set.union(*groups) == set(range(160))
        assert sum(map(len, groups)) <= 160 + 16
        # A sixteenth of the rows are exactly ten row groups: lanes meet between two.
        assert sum(map(len, groups)) == 160


def test_needs_far_away_cost_no_more_than_near_ones() -> None:
    order, rows = Order(1, 64, 16), np.full(1000, 100)
    place = 10**13 + 12345
    told = list(itertools.islice(needs(order, rows, Share(64, 3, 16), place), 50))
    assert min(need.first for need in told) == place and all(need.last >= place for need in told)


# Bounds


def most_held(order: Order, rows: Ints, sizes: Ints, share: Share, start: int, number: int) -> int:
    """The most rows of row groups that are needed at a time by the batches that begin in an epoch.

    One that is needed again within as many places as there are lanes is held in between.
    """
    total, size = int(rows.sum()), share.batch_size
    spans: dict[int, list[list[int]]] = {}
    for need in until(needs(order, rows, share, start), (number + 2) * total + size):
        mine = spans.setdefault(need.group, [])
        if mine and need.first <= mine[-1][1] + order.lanes:
            mine[-1][1] = max(mine[-1][1], need.last)
        else:
            mine.append([need.first, need.last])
    most = 0
    for at in range(start, (number + 1) * total, size):
        if at >= number * total:
            now = [group for group, mine in spans.items() if any(a < at + size and b >= at for a, b in mine)]
            most = max(most, int(sizes[now].sum()))
    return most


@pytest.mark.parametrize("seed", range(4))
def test_no_more_is_held_than_is_told(seed: int) -> None:
    """Also where an epoch ends in a batch, which holds the last windows and the next ones at a time."""
    for setting in grid(seed + 20, 25):
        order, rows = order_and_rows(setting)
        share = Share(setting["batch_size"], setting["world"] // 2, setting["world"])
        sizes = rows + (rows > 0) * 2
        for start, number in ((0, 0), (5, 1)):
            told = held_rows(epoch(order, rows, number), sizes, share, start)
            assert most_held(order, rows, sizes, share, start, number) <= told <= sizes.sum(), setting


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_a_row_group_is_held_between_two_windows_of_its_lane(batch_size: int) -> None:
    """Windows of one row, so that one is open of eight lanes; each lane's row group stays for its next."""
    order, rows = Order(1, 1, 8), np.full(40, 8)
    told = held_rows(epoch(order, rows, 0), rows, Share(batch_size), 0)
    assert 64 <= most_held(order, rows, rows, Share(batch_size), 0, 0) <= told


def test_what_is_told_is_no_more_than_is_held_by_much() -> None:
    """Where lanes and windows are many: the windows of the rank's lanes, and of each the row groups at its ends."""
    group, window, lanes = 8, 64, 16
    order, rows = Order(1, window, lanes), np.full(1600, group)
    laid = epoch(order, rows, 0)
    for world in (1, 2, 4, 8, 16):
        share = Share(64, 0, world)
        told = held_rows(laid, rows, share, 0)
        assert told <= (lanes // world + 2) * (window + 2 * group)
        assert told <= most_held(order, rows, rows, share, 0, 0) + 2 * (window + group)
    assert held_rows(laid, rows, Share(64, 1, 16), 0) < held_rows(laid, rows, Share(64), 0) / 5
    assert held_rows(epoch(Order(1, 12800), rows, 0), rows, Share(64), 0) == 12800


def test_a_window_is_held_from_the_batch_in_which_it_opens_to_that_in_which_it_closes() -> None:
    """Windows of just one row group; a batch of one place is in one of them, larger ones may be in several."""
    rows = np.full(10, 8)
    for batch_size, held in ((1, 8), (2, 16), (8, 16), (9, 16), (10, 24), (80, 80)):
        assert held_rows(epoch(Order(1, 8), rows, 0), rows, Share(batch_size), 0) == held


def test_row_groups_without_rows_take_no_memory() -> None:
    rows = np.array([0, 5, 0])
    assert held_rows(epoch(Order(1, 5), rows, 0), np.array([7, 5, 9]), Share(2), 0) == 5


# Lookups


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ahead", [1, 37, 10_000])
def test_lookups_say_where_each_row_of_a_batch_lies(seed: int, ahead: int) -> None:
    for setting in grid(seed + 30, 6):
        order, rows = order_and_rows(setting)
        share = Share(setting["batch_size"], setting["world"] - 1, setting["world"])
        for start in (0, int(rows.sum()) + 3):
            firsts = itertools.count(start, share.batch_size)
            for number, told in zip(range(12), lookups(order, rows, share, firsts, ahead), strict=False):
                assert told.first == start + number * share.batch_size
                np.testing.assert_array_equal(told.places, taken(share, order, rows, told.first))
                pairs = list(zip(told.group.tolist(), told.row.tolist(), strict=True))
                assert pairs == located(order, rows, told.places)


def test_lookups_end_with_the_batches() -> None:
    rows = np.array([10])
    for count in (0, 1, 2, 9):
        told = list(lookups(Order(1, 10), rows, Share(4), iter(range(0, 4 * count, 4)), 1000))
        assert [one.first for one in told] == list(range(0, 4 * count, 4))


def test_more_and_more_batches_are_looked_up_at_once() -> None:
    """So that the first one does not wait for thousands."""
    taken: list[int] = []

    def firsts() -> Iterator[int]:
        for first in itertools.count(0, 10):
            taken.append(first)
            yield first

    some = lookups(Order(1, 50), np.array([50]), Share(10), firsts(), 40)
    counts = []
    for _ in range(12):
        next(some)
        counts.append(len(taken))
    assert counts == [1, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15]


@pytest.mark.parametrize("lanes, window", [(1, 500), (16, 9), (128, 3)])
def test_the_ranks_of_every_world_take_the_same_batches(lanes: int, window: int) -> None:
    """Worlds 1 to 128: together they take what one takes, and each needs what it takes."""
    order, rows, size = Order(5, window, lanes), np.array([7, 0, 31, 8, 100, 1, 60, 93] * 2), 150
    start, count = 450, 3
    firsts = list(range(start, start + count * size, size))
    whole = list(lookups(order, rows, Share(size), iter(firsts), 1000))
    right = [
        dict(zip(b.places.tolist(), zip(b.group.tolist(), b.row.tolist(), strict=True), strict=True)) for b in whole
    ]
    for world in WORLDS:
        together: list[dict[int, tuple[int, int]]] = [{} for _ in firsts]
        for rank in range(world):
            share = Share(size, rank, world)
            for number, told in enumerate(lookups(order, rows, share, iter(firsts), 1000)):
                pairs = zip(told.group.tolist(), told.row.tolist(), strict=True)
                before = len(together[number])
                together[number].update(zip(told.places.tolist(), pairs, strict=True))
                assert len(together[number]) == before + len(told.places)
                assert size // world <= len(told.places) <= -(-size // world)
        assert together == right, world
