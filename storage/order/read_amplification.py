"""How often the ranks of a world together read a cache in an epoch, and which number of lanes lowers that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from storage.order import sample_order as ordering
from storage.order.rank_share import SORTED_ROWS, Share, WindowPart
from storage.order.sample_order import Epoch, Order, Windows

log = logging.getLogger("stillhouse.stream")

Ints = np.ndarray[Any, np.dtype[np.int64]]

# A larger factor is logged. It is estimated from about so many rows, and from so many windows at most.
HIGH_FACTOR = 2.05
ESTIMATE_ROWS, ESTIMATE_WINDOWS = 1 << 19, 512


def read_factor(rows: Ints, order: Order, batch_size: int, world: int, limit: int | None = None) -> float:
    """Rows that all ranks read in an epoch, whole row groups counted, over the rows of the cache.

    rows: [R] of each row group. batch_size: rows a global batch. A row group that a rank takes samples of in two
    windows of a lane, one after the other, is read once. limit: about how many rows are looked at; then some of the
    windows stand for all, and the factor is an estimate.

    In a full shuffle (one lane whose window is the epoch) each rank reads everything once and holds it, so the
    factor is the world's size, of the first epoch only.

    >>> read_factor(np.full(64, 32), Order(seed=0, window=96, lanes=4), batch_size=64, world=4)
    1.0
    """
    share, total = Share(batch_size, 0, world), int(rows.sum())
    if order.lanes == 1 and order.window >= total:
        return float(world)
    laid = ordering.epoch(order, rows, 0)
    windows = laid.windows(np.arange(order.lanes))
    by_lane = np.lexsort((windows.index, windows.lane)).tolist()
    count = len(by_lane)
    if limit is not None:
        # Each one is looked at beside the one before it.
        count = max(1, min(count, ESTIMATE_WINDOWS, limit * count // (2 * total)))
    sizes, read, seen = np.diff(laid.starts), 0, 0
    before, pairs = -1, np.empty(0, np.int64)
    for number in np.linspace(0, len(by_lane) - 1, count).round().astype(int).tolist():
        at = by_lane[number]
        if not windows.index[at]:
            earlier = np.empty(0, np.int64)
        else:
            earlier = pairs if before == number - 1 else _readers(laid, share, windows, by_lane[number - 1])
        before, pairs = number, _readers(laid, share, windows, at)
        read += int(sizes[np.setdiff1d(pairs, earlier, assume_unique=True) % len(rows)].sum())
        seen += int(windows.end[at] - windows.begin[at])
    return read / seen


def warn_of_reads(
    where: str, rows: Ints, order: Order, batch_size: int, world: int, with_lanes: Callable[[int], Order]
) -> None:
    """Log a factor over HIGH_FACTOR and the lanes that lower it. A full shuffle is read once, and not logged.

    where: names what is read. with_lanes: the order with another number of lanes.
    """
    if not Share(batch_size, 0, world).sorts(order, int(rows.sum())):
        return
    factor = read_factor(rows, order, batch_size, world, ESTIMATE_ROWS)
    if factor <= HIGH_FACTOR:
        return
    lanes = -(-order.lanes // world) * world
    other = read_factor(rows, with_lanes(lanes), batch_size, world, ESTIMATE_ROWS)
    advice = (
        f"With lanes={lanes} (order.lanes in a recipe) they read it about {other:.1f} times. Lanes are part of the "
        "order, so change them for a new run only."
        if other < factor
        else f"It has {np.count_nonzero(rows):,} row groups; other lanes would not lower that."
    )
    log.warning(
        "%d workers together read %s about %.1f times an epoch: they do not divide the order's %d lanes. %s",
        *(world, where, factor, order.lanes, advice),
    )


def _readers(laid: Epoch, share: Share, windows: Windows, at: int) -> Ints:
    """Each rank that reads a row group for a window: rank * R + the row group's slot, ascending."""
    slots = np.arange(windows.first[at], windows.last[at] + 1)
    if not share.sorts(laid.order, laid.rows):
        return slots
    begin, end = int(windows.begin[at]), int(windows.end[at])
    part = WindowPart.of(laid, int(windows.lane[at]), begin, end, share.batch_size, 0)
    bounds = np.arange(share.world + 1) * share.batch_size // share.world
    if end - begin > SORTED_ROWS:
        some = part.counts > 0
        first, last = (
            np.searchsorted(bounds, position[some], side="right") - 1
            for position in (part.positions, part.positions + part.counts - 1)
        )
        # Where slices begin (+1) and end (-1) to be read by ranks, over all batches.
        changes = np.zeros(share.world + 1, np.int64)
        np.add.at(changes, first, 1)
        np.add.at(changes, last + 1, -1)
        ranks = np.flatnonzero(np.cumsum(changes)[:-1])
        return (ranks[:, None] * len(laid.groups) + slots).ravel()
    rows, position, _ = part.sort()
    ranks = np.searchsorted(bounds, position, side="right") - 1
    return np.unique(ranks * len(laid.groups) + laid.slots(rows))
