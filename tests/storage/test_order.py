"""The order of samples: a bijection an epoch, the same for ever, and well mixed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from storage.order import VERSION, Epoch, Order, epoch, locate, permute, rank_slice

GROUPS = {
    "one row": [1],
    "one group": [10],
    "groups of one": [1] * 7,
    "uneven": [5, 1, 9, 2],
    "one large": [100, 3, 1, 50],
    "prime": [7, 11, 13],
    "last is short": [16, 16, 16, 3],
}
SEEDS = [0, 2**63, -5]


def windows_of(total: int) -> list[int]:
    return sorted({w for w in (1, 2, 3, 7, total // 2, total - 1, total) if 1 <= w <= total})


GRID = [(name, window) for name, sizes in GROUPS.items() for window in windows_of(sum(sizes))]
grid = pytest.mark.parametrize("name, window", GRID)


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
    assert VERSION == "feistel6-v1"
    assert permute(np.arange(10), 10, 0).tolist() == [9, 1, 2, 5, 6, 0, 4, 8, 7, 3]
    assert permute(np.arange(13), 13, 1, 2, 3).tolist() == [0, 6, 11, 8, 7, 10, 4, 2, 12, 1, 5, 9, 3]
    assert permute(np.array([0, 1, 999_999_999_999]), 10**12, 42).tolist() == [902951853778, 605497821032, 271081819442]
    assert permute(np.arange(5), 5, -1).tolist() == permute(np.arange(5), 5, 2**64 - 1).tolist() == [3, 1, 0, 2, 4]


def test_every_part_of_the_key_counts_and_its_place_too() -> None:
    keys = [(1,), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (1, 2, 0), (-1,), (2**32,), (2**63,)]
    assert len({tuple(permute(np.arange(40), 40, *key).tolist()) for key in keys}) == len(keys)


# locate


@grid
def test_every_row_has_one_place_in_every_epoch(name: str, window: int) -> None:
    rows = np.array(GROUPS[name])
    for number in (0, 1, 1000):
        group, row = locate(Order(9, window), rows, number, np.arange(rows.sum()))
        assert (row >= 0).all() and (row < rows[group]).all()
        places = sorted(zip(group.tolist(), row.tolist(), strict=True))
        assert places == [(g, r) for g, size in enumerate(rows) for r in range(size)]


@grid
def test_places_are_found_alone_as_together_and_in_any_sequence(name: str, window: int) -> None:
    rows, order = np.array(GROUPS[name]), Order(3, window)
    total = int(rows.sum())
    whole = np.stack(locate(order, rows, 5, np.arange(total)))
    back = np.stack(locate(order, rows, 5, np.arange(total)[::-1]))
    np.testing.assert_array_equal(back[:, ::-1], whole)
    for place in range(0, total, 17):
        assert np.stack(locate(order, rows, 5, np.array([place])))[:, 0].tolist() == whole[:, place].tolist()


@grid
def test_a_window_draws_from_exactly_its_row_groups(name: str, window: int) -> None:
    rows, order = np.array(GROUPS[name]), Order(3, window)
    total = int(rows.sum())
    for number in (0, 2):
        laid = epoch(order, rows, number)
        for index in range(-(-total // window)):
            places = np.arange(index * window, min((index + 1) * window, total))
            drawn, _ = locate(order, rows, number, places)
            told = laid.window_groups(order, index).tolist()
            assert len(told) == len(set(told))
            assert set(told) == set(drawn.tolist())


@grid
def test_rows_are_mixed_inside_their_window_only(name: str, window: int) -> None:
    rows, order = np.array(GROUPS[name]), Order(3, window)
    laid = epoch(order, rows, 1)
    group, row = locate(order, rows, 1, np.arange(rows.sum()))
    first_of = dict(zip(laid.groups.tolist(), laid.starts.tolist(), strict=False))
    slot = np.array([first_of[g] for g in group.tolist()]) + row
    np.testing.assert_array_equal(slot // window, np.arange(rows.sum()) // window)


def test_an_epoch_lays_every_row_group_end_to_end() -> None:
    rows = np.array([5, 1, 9, 2])
    laid = epoch(Order(1, 4), rows, 2)
    assert isinstance(laid, Epoch)
    assert sorted(laid.groups.tolist()) == [0, 1, 2, 3]
    assert laid.starts.tolist() == [0, *np.cumsum(rows[laid.groups]).tolist()]


def test_locate_never_changes() -> None:
    rows = np.array([5, 1, 9, 2])
    assert order_of(Order(0, 17), rows).tolist() == [15, 3, 16, 14, 9, 8, 13, 7, 12, 5, 6, 11, 0, 1, 2, 10, 4]
    assert order_of(Order(0, 17), rows, 1).tolist() == [3, 4, 12, 7, 6, 1, 16, 9, 13, 14, 15, 2, 10, 8, 5, 11, 0]
    assert order_of(Order(7, 4), rows, 3).tolist() == [6, 16, 5, 15, 10, 9, 8, 7, 13, 11, 12, 14, 3, 1, 2, 0, 4]
    assert epoch(Order(7, 4), rows, 3).groups.tolist() == [1, 3, 2, 0]


def test_other_seeds_epochs_and_windows_are_other_orders() -> None:
    rows = np.array([20, 20, 24])
    orders = {
        (seed, window, number): tuple(order_of(Order(seed, window), rows, number).tolist())
        for seed, window, number in itertools.product([0, 1, 2, 2**40], [3, 32, 64], [0, 1, 2, 500])
    }
    assert len(set(orders.values())) == len(orders)


def test_the_windows_of_an_epoch_are_not_mixed_alike() -> None:
    order, size = Order(5, 32), 32
    rows = np.array([64 * size])
    inside = order_of(order, rows).reshape(64, size) - np.arange(64)[:, None] * size
    assert len({tuple(window) for window in inside.tolist()}) == 64


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


def test_two_epochs_have_nothing_in_common() -> None:
    orders = [order_of(Order(3, N), np.array([N]), number).astype(float) for number in range(4)]
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / N**0.5


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


# Ranks and settings


@pytest.mark.parametrize("world", range(1, 10))
def test_ranks_share_a_batch_out_without_gap_or_overlap(world: int) -> None:
    for batch_size in range(world, 40):
        slices = [rank_slice(batch_size, rank, world) for rank in range(world)]
        assert slices[0][0] == 0 and slices[-1][1] == batch_size
        assert all(a[1] == b[0] for a, b in itertools.pairwise(slices))
        sizes = [stop - start for start, stop in slices]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_an_order_says_what_a_state_must_agree_on() -> None:
    assert Order(3, 4).to_dict() == {"version": "feistel6-v1", "seed": 3, "window": 4}


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_no_rows_is_refused_when_it_is_made(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Order(1, window)
