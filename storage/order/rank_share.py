"""Which samples of every global batch a rank takes: chosen so that few row groups are read by more than one rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.order.sample_order import Epoch, Order, Windows

Ints = np.ndarray[Any, np.dtype[np.int64]]

# Rows of a window that are sorted to know which row groups a rank needs of it. Every rank that takes
# samples of a longer window needs all of its row groups.
SORTED_ROWS = 1 << 20


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank takes. The parts of two ranks differ by at most one sample.

    * The world divides the lanes: every world-th place. No two ranks share a lane.
    * One lane, whose window is the whole epoch: a contiguous slice of the batch. Every rank reads all row groups
      once and holds them.
    * Otherwise the batch is sorted by (lane, row group), and ranks take contiguous slices of the sorted batch.

    The batches themselves do not depend on the share, and a rank's samples come in the order of their places.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    @property
    def bounds(self) -> tuple[int, int]:
        """The rank's slice [start, stop) of a batch, sorted or not."""
        return self.rank * self.batch_size // self.world, (self.rank + 1) * self.batch_size // self.world

    def sorts(self, order: Order, total: int) -> bool:
        """Whether batches of `total` rows an epoch are sorted before they are divided."""
        return bool(order.lanes % self.world) and (order.lanes > 1 or order.window < total)

    def places(self, order: Order, total: int, first: int) -> Ints:
        """The rank's places of the batch that begins at `first`, where batches are not sorted."""
        if order.lanes % self.world == 0:
            return np.arange(first + (self.rank - first) % self.world, first + self.batch_size, self.world)
        start, stop = self.bounds
        return np.arange(first + start, first + stop)

    def sorted_places(
        self, order: Order, total: int, firsts: Ints, rows_at: Callable[[Ints], Ints]
    ) -> tuple[Ints, Ints]:
        """The rank's places of several batches and the rows there, where batches are sorted: both [K * share].

        firsts: [K] where the batches begin, ascending. rows_at: the row in its epoch's layout (`Epoch.rows_at`)
        of each place. Only the lanes that the rank takes samples of are located: its share and at most the
        rest of the lanes at both ends.
        """
        start, stop = self.bounds
        ends = firsts + self.batch_size
        edges = lane_edges(firsts, ends, order.lanes, total)
        batch, lane = _ranges(*_lanes_cut(edges, start, stop))
        before, after = edges[batch, lane], edges[batch, lane + 1]
        # A segment: the places of one batch, lane and epoch, in the order in which the batch is sorted.
        pair, number = _ranges(firsts[batch] // total, (ends[batch] - 1) // total + 1)
        base, lane = number * total, lane[pair]
        begin = np.maximum(firsts[batch[pair]] - base, 0)
        end = np.minimum(ends[batch[pair]] - base, total)
        segment, index = _ranges(_ceil(begin - lane, order.lanes), _ceil(end - lane, order.lanes))
        places = base[segment] + index * order.lanes + lane[segment]
        rows = rows_at(places)
        # Only lanes that the rank shares with another one have to be sorted.
        shared = np.flatnonzero(((before < start) | (after > stop))[pair[segment]])
        ranked = shared[np.lexsort((rows[shared], segment[shared]))]
        pairs = pair[segment[ranked]]
        position = before[pairs] + np.arange(len(ranked)) - np.searchsorted(pairs, pairs)
        kept = np.ones(len(places), np.bool_)
        kept[ranked] = (position >= start) & (position < stop)
        places, rows = places[kept], rows[kept]
        by_place = np.argsort(places)
        return places[by_place], rows[by_place]

    def located(self, order: Order) -> int:
        """Places that are located to know the rank's part of one batch, at most."""
        part = -(-self.batch_size // self.world)
        return min(self.batch_size, part + 2 * -(-self.batch_size // order.lanes))

    def windows(self, laid: Epoch, first: int) -> Windows:
        """Windows of an epoch that the rank may take samples of; `first`: where any batch begins.

        Where batches are sorted some of them may turn out not to be needed (see `WindowPart`).
        """
        order, total = laid.order, laid.rows
        base = laid.number * total
        if order.lanes % self.world == 0:
            lanes = (self.rank - base + self.world * np.arange(order.lanes // self.world)) % order.lanes
            return laid.windows(np.sort(lanes))
        if not self.sorts(order, total):
            return laid.windows(np.arange(order.lanes))
        # Batches inside the epoch differ in the lane of their first place only.
        step = math.gcd(self.batch_size, order.lanes)
        phases = np.arange((first - base) % step, order.lanes, step)
        inside = self._lanes(lane_edges(phases, phases + self.batch_size, order.lanes, None))
        # The batches in which the epoch begins and ends.
        head, tail = (at - (at - first) % self.batch_size for at in (base, base + total))
        seams = np.array([head, tail])
        at_head, at_tail = (
            self._lanes(edges[None]) for edges in lane_edges(seams, seams + self.batch_size, order.lanes, total)
        )
        windows = laid.windows(np.flatnonzero(inside | at_head | at_tail))
        lane = windows.lane
        opens_at_head = at_head[lane] & (base + windows.opens < head + self.batch_size)
        return windows.where(inside[lane] | opens_at_head | (at_tail[lane] & (base + windows.closes >= tail)))

    def _lanes(self, edges: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[L] whether the rank takes samples of each lane in any of the batches with these edges [K, L + 1]."""
        start, stop = self.bounds
        taken = (edges[:, 1:] > start) & (edges[:, :-1] < stop) & (np.diff(edges, axis=1) > 0)
        return np.any(taken, axis=0)


@dataclass(frozen=True)
class WindowPart:
    """Rows [begin, end) of a window of a lane, as the sorted batches divide them.

    counts: [K] how many of the rows each batch has that the rows lie in. positions: [K] the position, in that
    batch when it is sorted, of the first of them; the others follow.
    """

    laid: Epoch
    lane: int
    begin: int
    counts: Ints
    positions: Ints

    @staticmethod
    def of(laid: Epoch, lane: int, begin: int, end: int, batch_size: int, first: int) -> WindowPart:
        """first: where some batch begins that is not behind any of the rows."""
        lanes, total = laid.order.lanes, laid.rows
        shift = laid.number * total + lane
        ends = [shift + begin * lanes, shift + (end - 1) * lanes]
        low, high = ((at - first) // batch_size for at in ends)
        firsts = first + batch_size * np.arange(low, high + 1)
        starts = np.clip(_ceil(firsts - shift, lanes), begin, end)
        stops = np.clip(_ceil(firsts + batch_size - shift, lanes), begin, end)
        edge = places_before(firsts + batch_size, lane, lanes, total) - places_before(firsts, lane, lanes, total)
        earlier = _places_of(shift + starts * lanes, lane, lanes, total) - _places_of(firsts, lane, lanes, total)
        return WindowPart(laid, lane, begin, stops - starts, edge + earlier)

    def slices(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """[K] which of a batch's rows of the window [low, high) lie in the slice [start, stop) of the sorted batch."""
        return np.clip(start - self.positions, 0, self.counts), np.clip(stop - self.positions, 0, self.counts)

    def sort(self) -> tuple[Ints, Ints, Ints]:
        """(row in the epoch's layout, position in the sorted batch, index in the lane) of each row, sorted: [M]."""
        count = int(self.counts.sum())
        index = np.arange(self.begin, self.begin + count)
        rows = self.laid.rows_at(index * self.laid.order.lanes + self.lane)
        batch = np.repeat(np.arange(len(self.counts)), self.counts)
        ranked = np.lexsort((rows, batch))
        within = np.arange(count) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        return rows[ranked], np.repeat(self.positions, self.counts) + within, index[ranked]


def places_before(places: Any, lane: Any, lanes: int, total: int | None) -> Any:
    """How many of the places before each place lie in lanes before `lane`; None: an epoch without end."""
    if total is not None:
        number, within = places // total, places % total
        return number * places_before(total, lane, lanes, None) + places_before(within, lane, lanes, None)
    return places // lanes * lane + np.minimum(places % lanes, lane)


def _places_of(places: Ints, lane: int, lanes: int, total: int) -> Ints:
    """How many of the places before each place lie in the lane."""
    return places_before(places, lane + 1, lanes, total) - places_before(places, lane, lanes, total)


def lane_edges(begins: Ints, ends: Ints, lanes: int, total: int | None) -> Ints:
    """[K, L + 1] where each lane begins, and the last one ends, in batches [begin, end) that are sorted by lane."""
    every = np.arange(lanes + 1)
    return places_before(ends[:, None], every, lanes, total) - places_before(begins[:, None], every, lanes, total)


def _lanes_cut(edges: Ints, start: int, stop: int) -> tuple[Ints, Ints]:
    """[K] the lanes [low, high) that [start, stop) of each sorted batch lies in."""
    return (edges[:, 1:] <= start).sum(axis=1), (edges[:, :-1] < stop).sum(axis=1)


def _ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """The integers of several ranges one after another, and which range each one is of."""
    counts = np.maximum(stops - starts, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[owner]


def _ceil(value: Any, divisor: int) -> Any:
    return -(-value // divisor)
