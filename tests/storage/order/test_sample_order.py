"""The order of samples: a bijection an epoch, the same for ever, well mixed, and shared out among any ranks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from storage.order.sample_order import VERSION, Epoch, Order, epoch, permute

GROUPS = {
    "one row": [1],
    "one group": [10],
    "groups of one": [1] * 7,
    "uneven": [5, 1, 9, 2],
    "one large": [41, 3, 1, 16],
    "prime": [7, 11, 13],
    "last is short": [16, 16, 16, 3],
    "without rows": [0, 4, 0, 0, 5, 1, 0],
}
SEEDS = [0, 2**63, -5]


def windows_of(total: int) -> list[int]:
    return sorted({w for w in (1, 2, 3, 7, total // 2, total - 1, total) if 1 <= w <= total})


grid = pytest.mark.parametrize("name", GROUPS)


def settings_of(name: str) -> Iterator[tuple[int, int]]:
    """Lanes and windows, also more of them than there are rows."""
    total = sum(GROUPS[name])
    for lanes in sorted({1, 2, 3, total + 5}):
        for window in windows_of(total):
            yield lanes, window


def locate(order: Order, rows: np.ndarray[Any, Any], number: int, within: np.ndarray[Any, Any]) -> Any:
    return epoch(order, rows, number).locate(within)


def order_of(order: Order, rows: np.ndarray[Any, Any], number: int = 0) -> np.ndarray[Any, Any]:
    """[N] the row of the whole cache that each place of an epoch takes."""
    total = int(rows.sum())
    group, row = locate(order, rows, number, np.arange(total))
    return np.concatenate([[0], np.cumsum(rows)])[group] + row


# permute


@pytest.mark.parametrize("seed", SEEDS)
def test_permute_is_a_bijection_of_every_small_size(seed: int) -> None:
    for size in range(1, 301):
        assert sorted(permute(np.arange(size), size, seed, 3).tolist()) == list(range(size)), size


@pytest.mark.parametrize("size", [2**16, 2**17 + 1, 99_991, 250_000])
def test_permute_is_a_bijection_of_large_sizes(size: int) -> None:
    assert len(np.unique(permute(np.arange(size), size, 1))) == size
    assert (permute(np.arange(size), size, 1) < size).all()


@pytest.mark.parametrize("size", [10**9 + 7, 2**31, 2**40 + 1, 2**53 - 1, 2**61])
def test_permute_keeps_values_apart_and_in_range_where_not_all_can_be_tried(size: int) -> None:
    for first in (0, size // 2, size - 20_000):
        taken = permute(np.arange(first, first + 20_000), size, 7)
        assert len(np.unique(taken)) == 20_000
        assert taken.min() >= 0 and taken.max() < size
        assert taken.std() > size / 5


def test_permute_of_nothing_is_nothing() -> None:
    assert permute(np.arange(0), 0, 1).tolist() == []
    assert permute(np.arange(0), 5, 1).tolist() == []


def test_permute_takes_values_one_at_a_time_as_together() -> None:
    together = permute(np.arange(57), 57, 4, 5)
    assert [int(permute(np.array([value]), 57, 4, 5)[0]) for value in range(57)] == together.tolist()


def test_permute_leaves_its_argument_alone() -> None:
    values = np.arange(9)
    permute(values, 9, 1)
    assert values.tolist() == list(range(9))


def test_permute_never_changes() -> None:
    """A checkpoint relies on these numbers; another permutation needs another VERSION."""
    assert VERSION == "feistel6-v2"
    assert permute(np.arange(10), 10, 0).tolist() == [9, 1, 2, 5, 6, 0, 4, 8, 7, 3]
    assert permute(np.arange(13), 13, 1, 2, 3).tolist() == [0, 6, 11, 8, 7, 10, 4, 2, 12, 1, 5, 9, 3]
    assert permute(np.array([0, 1, 999_999_999_999]), 10**12, 42).tolist() == [902951853778, 605497821032, 271081819442]
    assert permute(np.arange(5), 5, -1).tolist() == permute(np.arange(5), 5, 2**64 - 1).tolist() == [3, 1, 0, 2, 4]


def test_every_part_of_the_key_counts_and_its_place_too() -> None:
    keys = [(1,), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (1, 2, 0), (-1,), (2**32,), (2**63,)]
    assert len({tuple(permute(np.arange(40), 40, *key).tolist()) for key in keys}) == len(keys)


# locate


@grid
def test_every_row_has_one_place_in_every_epoch(name: str) -> None:
    for lanes, window in settings_of(name):
        rows = np.array(GROUPS[name])
        for number in (0, 1000):
            group, row = locate(Order(9, window, lanes), rows, number, np.arange(rows.sum()))
            assert (row >= 0).all() and (row < rows[group]).all()
            places = sorted(zip(group.tolist(), row.tolist(), strict=True))
            assert places == [(g, r) for g, size in enumerate(rows) for r in range(size)]


@grid
def test_places_are_found_alone_as_together_and_in_any_sequence(name: str) -> None:
    for lanes, window in settings_of(name):
        rows, order = np.array(GROUPS[name]), Order(3, window, lanes)
        total = int(rows.sum())
        whole = np.stack(locate(order, rows, 5, np.arange(total)))
        back = np.stack(locate(order, rows, 5, np.arange(total)[::-1]))
        np.testing.assert_array_equal(back[:, ::-1], whole)
        for place in range(0, total, 17):
            assert np.stack(locate(order, rows, 5, np.array([place])))[:, 0].tolist() == whole[:, place].tolist()


@grid
def test_windows_cover_the_places_of_an_epoch_once_and_come_as_they_open(name: str) -> None:
    for lanes, window in settings_of(name):
        rows = np.array(GROUPS[name])
        for number in (0, 2):
            laid = epoch(Order(3, window, lanes), rows, number)
            told = laid.windows(np.arange(lanes))
            assert (np.diff(told.opens) > 0).all()
            covered: list[int] = []
            for at in range(len(told.lane)):
                places = np.arange(told.begin[at], told.end[at]) * lanes + told.lane[at]
                assert 1 <= len(places) <= window
                assert (places[0], places[-1]) == (told.opens[at], told.closes[at])
                covered += places.tolist()
            assert sorted(covered) == list(range(rows.sum()))
            for lane in range(lanes):
                mine = told.lane == lane
                assert told.index[mine].tolist() == list(range(mine.sum()))


@grid
def test_a_window_draws_from_exactly_its_row_groups(name: str) -> None:
    for lanes, window in settings_of(name):
        rows = np.array(GROUPS[name])
        for number in (0, 2):
            laid = epoch(Order(3, window, lanes), rows, number)
            told = laid.windows(np.arange(lanes))
            for at in range(len(told.lane)):
                drawn, _ = laid.locate(np.arange(told.begin[at], told.end[at]) * lanes + told.lane[at])
                groups = laid.groups[told.first[at] : told.last[at] + 1]
                assert rows[groups[0]] and rows[groups[-1]]
                assert set(groups[rows[groups] > 0].tolist()) == set(drawn.tolist())


@grid
def test_rows_are_mixed_inside_their_window_only(name: str) -> None:
    """A window takes the rows of its own part of its lane, and lanes lie end to end."""
    for lanes, window in settings_of(name):
        rows = np.array(GROUPS[name])
        laid = epoch(Order(3, window, lanes), rows, 1)
        first_of = dict(zip(laid.groups.tolist(), laid.starts.tolist(), strict=False))
        told = laid.windows(np.arange(lanes))
        for at in range(len(told.lane)):
            group, row = laid.locate(np.arange(told.begin[at], told.end[at]) * lanes + told.lane[at])
            taken = np.array([first_of[g] for g in group.tolist()]) + row
            start = laid.lane_start(told.lane[at])
            assert sorted(taken.tolist()) == list(range(start + told.begin[at], start + told.end[at]))
        sizes = np.diff(laid.lane_start(np.arange(lanes + 1)))
        assert laid.lane_start(0) == 0 and sizes.sum() == laid.rows and sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("lanes, window", [(4, 40), (16, 64), (7, 35), (8, 8), (5, 100)])
def test_the_windows_of_the_lanes_open_one_after_another(lanes: int, window: int) -> None:
    """In every M places one lane opens a window, so that row groups are needed at an even pace."""
    laid = epoch(Order(1, window, lanes), np.full(100, window * lanes // 10), 0)
    told = laid.windows(np.arange(lanes))
    opens = np.sort(told.opens[told.index > 0])
    assert len(opens) > 8 * lanes
    gaps = np.diff(opens)
    assert gaps.min() >= window - lanes and gaps.max() <= window + lanes
    # The first ones open together, of different lengths.
    firsts = told.index == 0
    lengths = (told.end - told.begin)[firsts]
    assert told.opens[firsts].tolist() == list(range(lanes))
    assert len(set(lengths.tolist())) == lanes


def test_no_places_and_no_lanes_are_none() -> None:
    laid = epoch(Order(3, 4, 2), np.array([3, 8]), 0)
    group, row = laid.locate(np.arange(0))
    assert (group.tolist(), row.tolist()) == ([], [])
    assert laid.windows(np.arange(0)).lane.tolist() == []


def test_the_windows_of_some_lanes_are_those_among_all() -> None:
    laid = epoch(Order(1, 6, 5), np.array([9, 0, 14, 30]), 3)
    every = laid.windows(np.arange(5))
    for lanes in ([2], [0, 3], [1, 2, 4], []):
        some = laid.windows(np.array(lanes, np.int64))
        for field in dataclasses.fields(every):
            kept = getattr(every, field.name)[np.isin(every.lane, lanes)]
            assert getattr(some, field.name).tolist() == kept.tolist()


def test_an_epoch_lays_every_row_group_end_to_end() -> None:
    rows = np.array([5, 1, 9, 2])
    laid = epoch(Order(1, 4), rows, 2)
    assert isinstance(laid, Epoch)
    assert sorted(laid.groups.tolist()) == [0, 1, 2, 3]
    assert laid.starts.tolist() == [0, *np.cumsum(rows[laid.groups]).tolist()]
    assert laid.rows == 17


def test_an_epoch_knows_the_following_one() -> None:
    rows = np.array([5, 0, 1, 9, 2])
    told, expected = epoch(Order(1, 4, 3), rows, 2).following(), epoch(Order(1, 4, 3), rows, 3)
    assert (told.order, told.number) == (expected.order, 3)
    assert told.groups.tolist() == expected.groups.tolist() and told.starts.tolist() == expected.starts.tolist()


def test_one_lane_never_changes() -> None:
    """The orders of the first version, which had no lanes."""
    rows = np.array([5, 1, 9, 2])
    assert order_of(Order(0, 17), rows).tolist() == [15, 3, 16, 14, 9, 8, 13, 7, 12, 5, 6, 11, 0, 1, 2, 10, 4]
    assert order_of(Order(0, 17), rows, 1).tolist() == [3, 4, 12, 7, 6, 1, 16, 9, 13, 14, 15, 2, 10, 8, 5, 11, 0]
    assert order_of(Order(7, 4), rows, 3).tolist() == [6, 16, 5, 15, 10, 9, 8, 7, 13, 11, 12, 14, 3, 1, 2, 0, 4]
    assert epoch(Order(7, 4), rows, 3).groups.tolist() == [1, 3, 2, 0]


def test_lanes_never_change() -> None:
    rows = np.array([5, 1, 9, 2])
    assert order_of(Order(0, 17, 2), rows).tolist() == [16, 3, 5, 12, 7, 4, 10, 13, 9, 0, 8, 2, 15, 1, 11, 14, 6]
    assert order_of(Order(0, 3, 4), rows).tolist() == [5, 10, 13, 1, 15, 8, 12, 3, 16, 9, 14, 4, 6, 11, 0, 2, 7]
    assert order_of(Order(7, 4, 3), rows, 3).tolist() == [6, 9, 0, 16, 10, 1, 5, 11, 3, 15, 13, 4, 8, 14, 2, 7, 12]
    large = epoch(Order(2**40, 2**33, 16), np.full(1000, 2**30), 12)
    group, row = large.locate(np.array([0, 1, 10**11, large.rows - 1]))
    assert group.tolist() == [772, 428, 482, 315]
    assert row.tolist() == [775492164, 740279131, 71256273, 19769984]


def test_windows_never_change() -> None:
    """A resumed rank would fetch other row groups than it needs."""
    told = epoch(Order(7, 4, 3), np.array([5, 1, 9, 2]), 3).windows(np.arange(3))
    assert {field.name: getattr(told, field.name).tolist() for field in dataclasses.fields(told)} == {
        "lane": [0, 1, 2, 2, 1, 0],
        "index": [0, 0, 0, 1, 1, 1],
        "begin": [0, 0, 0, 2, 3, 4],
        "end": [4, 3, 2, 5, 6, 6],
        "opens": [0, 1, 2, 8, 10, 12],
        "closes": [9, 7, 5, 14, 16, 15],
        "first": [0, 2, 3, 3, 2, 2],
        "last": [2, 2, 3, 3, 2, 2],
    }


def plainly_mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def plainly_permuted(value: int, size: int, *key: int) -> int:
    a = 1
    while a * a < size:
        a += 1
    b = math.ceil(size / a)
    while True:
        left, right = divmod(value, b)
        for step in range(6):
            state = 0
            for part in (*key, step):
                state = plainly_mixed((state + 0x9E3779B97F4A7C15 + part) % 2**64)
            if step % 2:
                right = (right + plainly_mixed((left + state) % 2**64) % b) % b
            else:
                left = (left + plainly_mixed((right + state) % 2**64) % a) % a
        value = left * b + right
        if value < size:
            return value


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_the_order_is_what_the_words_say_of_it(name: str, lanes: int) -> None:
    """Place by place, in plain integers and lists."""
    rows, seed, number = GROUPS[name], 11, 4
    groups = [plainly_permuted(g, len(rows), seed, number, 0) for g in range(len(rows))]
    laid = [(group, row) for group in groups for row in range(rows[group])]
    total = len(laid)
    each, more = divmod(total, lanes)
    parts = list(itertools.accumulate([each + (lane < more) for lane in range(lanes)], initial=0))
    for window in (1, 3, total):
        most = math.ceil(total / lanes) // window + 2
        expected: list[tuple[int, int]] = []
        for place in range(total):
            lane, index = place % lanes, place // lanes
            phase = lane * window // lanes
            number_of = (index + phase) // window
            begin = max(0, number_of * window - phase)
            end = min(parts[lane + 1] - parts[lane], (number_of + 1) * window - phase)
            mixed = plainly_permuted(index - begin, end - begin, seed, number, 1, lane * most + number_of)
            expected.append(laid[parts[lane] + begin + mixed])
        group, row = locate(Order(seed, window, lanes), np.array(rows), number, np.arange(total))
        assert list(zip(group.tolist(), row.tolist(), strict=True)) == expected


def test_other_seeds_epochs_windows_and_lanes_are_other_orders() -> None:
    rows = np.array([20, 20, 24])
    orders = {
        (seed, window, lanes, number): tuple(order_of(Order(seed, window, lanes), rows, number).tolist())
        for seed, window, lanes, number in itertools.product([0, 1, 2, 2**40], [3, 16, 64], [1, 2, 5], [0, 1, 500])
    }
    # A window as long as the lane is a window as long as the rows, but for its phase.
    assert len(set(orders.values())) == len(orders)


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_windows_of_an_epoch_are_not_mixed_alike(lanes: int) -> None:
    order, size = Order(5, 32, lanes), 32
    laid = epoch(order, np.array([64 * size]), 0)
    told = laid.windows(np.arange(lanes))
    inside: set[tuple[int, ...]] = set()
    full = np.flatnonzero(told.end - told.begin == size)
    for at in full:
        places = np.arange(told.begin[at], told.end[at]) * lanes + told.lane[at]
        _, row = laid.locate(places)
        inside.add(tuple((row - row.min()).tolist()))
    assert len(inside) == len(full) >= 60


# How well it mixes

N = 5000


@pytest.mark.parametrize("rows", [[N], [500] * 10, [1] * N], ids=["one group", "ten groups", "groups of one"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_full_window_is_a_shuffle(rows: list[int], seed: int) -> None:
    """Bounds are five standard deviations of a true shuffle."""
    taken = order_of(Order(seed, N), np.array(rows))
    assert abs(np.corrcoef(np.arange(N), taken)[0, 1]) < 5 / N**0.5
    assert abs(np.corrcoef(taken[:-1], taken[1:])[0, 1]) < 5 / N**0.5
    # Fixed points and neighbours that stayed together: Poisson with means 1 and 2.
    assert (taken == np.arange(N)).sum() <= 7
    assert (np.abs(np.diff(taken)) == 1).sum() <= 10
    # Every tenth of the order takes about as much from every tenth of the rows.
    table = np.histogram2d(np.arange(N), taken, bins=10)[0]
    chi = ((table - N / 100) ** 2 / (N / 100)).sum()
    assert 81 - 5 * (2 * 81) ** 0.5 < chi < 81 + 5 * (2 * 81) ** 0.5


@pytest.mark.parametrize("lanes", [1, 5])
def test_two_epochs_have_nothing_in_common(lanes: int) -> None:
    orders = [order_of(Order(3, N, lanes), np.array([50] * 100), number).astype(float) for number in range(4)]
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / N**0.5


def test_a_batch_of_many_lanes_draws_from_all_over_the_rows() -> None:
    """For the rows that four windows hold, sixteen small ones are far better mixed."""
    rows, batch = np.full(N // 50, 50), 200

    def spread(order: Order) -> float:
        """How many tenths of the rows of the epoch a batch draws from."""
        laid = epoch(order, rows, 0)
        first_of = np.empty(len(rows), np.int64)
        first_of[laid.groups] = laid.starts[:-1]
        group, row = laid.locate(np.arange(N))
        tenths = (first_of[group] + row).reshape(-1, batch) * 10 // N
        return float(np.mean([len(set(of_batch.tolist())) for of_batch in tenths]))

    assert spread(Order(1, 400, 1)) < 3
    assert spread(Order(1, 100, 16)) == 10


@pytest.mark.parametrize("size", [2, 3, 4, 10])
def test_over_many_epochs_a_row_comes_in_every_place_alike(size: int) -> None:
    epochs = 800
    counts = np.zeros((size, size))
    for number in range(epochs):
        counts[np.arange(size), permute(np.arange(size), size, 1, number)] += 1
    expected = epochs / size
    assert np.abs(counts - expected).max() < 5 * (expected * (1 - 1 / size)) ** 0.5


def test_the_groups_of_a_small_window_come_in_another_sequence_every_epoch() -> None:
    rows = np.array([10] * 30)
    firsts = {int(epoch(Order(1, 10), rows, number).groups[0]) for number in range(200)}
    assert len(firsts) > 25


# Settings


def test_rows_of_a_lane_and_its_windows_ascend_in_the_layout() -> None:
    """Sorting by them sorts by lane, window and row group."""
    laid = epoch(Order(1, 6, 5), np.array([9, 0, 14, 30]), 3)
    at = laid.rows_at(np.arange(53))
    told = laid.windows(np.arange(5))
    ranked = np.lexsort((told.index, told.lane))
    parts = [at[np.arange(told.begin[w], told.end[w]) * 5 + told.lane[w]] for w in ranked.tolist()]
    assert all(one.max() < other.min() for one, other in itertools.pairwise(parts))
    np.testing.assert_array_equal(np.sort(at), np.arange(53))
    np.testing.assert_array_equal(laid.split(at), laid.locate(np.arange(53)))
    assert (np.diff(laid.slots(np.arange(53))) >= 0).all()


def test_some_windows_can_be_kept() -> None:
    told = epoch(Order(7, 4, 3), np.array([5, 1, 9, 2]), 3).windows(np.arange(3))
    kept = told.where(told.lane == 1)
    assert (kept.lane.tolist(), kept.opens.tolist(), kept.last.tolist()) == ([1, 1], [1, 10], [2, 2])


def test_an_order_says_what_a_state_must_agree_on() -> None:
    assert Order(3, 4).to_dict() == {"version": "feistel6-v2", "seed": 3, "window": 4, "lanes": 1}
    assert Order(3, 4, 16).to_dict() == {"version": "feistel6-v2", "seed": 3, "window": 4, "lanes": 16}


def test_an_order_is_made_of_what_it_said() -> None:
    for order in (Order(3, 4), Order(-1, 10**12, 16), Order(2**64, 1, 7)):
        assert Order.from_dict(order.to_dict()) == order


@pytest.mark.parametrize("version", ["feistel6-v1", "feistel6-v3", "feistel7-v1", "", None, 1])
def test_an_order_of_another_version_is_none(version: Any) -> None:
    assert Order.from_dict({"version": version, "seed": 3, "window": 4, "lanes": 1}) is None
    assert Order.from_dict({"seed": 3, "window": 4, "lanes": 1}) is None


@pytest.mark.parametrize("window, lanes", [(0, 1), (-1, 1), (1, 0), (4, -2)])
def test_a_window_of_no_rows_and_no_lanes_are_refused_when_they_are_made(window: int, lanes: int) -> None:
    with pytest.raises(ValueError, match=f"a window of {window} rows in {lanes} lanes"):
        Order(1, window, lanes)
    with pytest.raises(ValueError):
        Order.from_dict({"version": VERSION, "seed": 3, "window": window, "lanes": lanes})
