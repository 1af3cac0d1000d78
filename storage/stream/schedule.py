"""Which row groups a rank needs, from which place to which, in the order of their first use: pure, and without end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from storage import order as ordering
from storage.order import Epoch, Order, Windows

Ints = np.ndarray[Any, np.dtype[np.int64]]

# So many of a window's places are looked at to tell which of its row groups come first.
_LOOKED_AT = 4096


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank takes."""

    batch_size: int
    rank: int = 0
    world: int = 1

    def places(self, first: int, lanes: int) -> Ints:
        """The rank's places of the batch that begins at `first`."""
        return ordering.rank_places(first, self.batch_size, self.rank, self.world, lanes)

    def lanes(self, laid: Epoch, first: int) -> Ints:
        """The lanes that the rank draws from in an epoch, when some batch begins at `first`."""
        return ordering.rank_lanes(laid, first, self.batch_size, self.rank, self.world)


@dataclass(frozen=True, slots=True)
class Need:
    """A row group that a window draws from: while places [first, last] are handed out."""

    group: int
    first: int
    last: int


def needs(order: Order, rows: Ints, share: Share, place: int, laid: Epoch | None = None) -> Iterator[Need]:
    """What a rank needs from `place` on; a row group appears once for each window that draws from it.

    rows: [R] of each row group; those without rows are never needed. laid: the place's epoch, if there is
    one. Windows come as they open, and within one first those row groups that its next places take rows from.
    """
    total = int(rows.sum())
    number = place // total
    while True:
        if laid is None or laid.number != number:
            laid = ordering.epoch(order, rows, number)
        yield from _epoch_needs(laid, share, number * total, place - number * total)
        number += 1


def _epoch_needs(laid: Epoch, share: Share, base: int, place: int) -> Iterator[Need]:
    windows = laid.windows(share.lanes(laid, base + place))
    for at in np.flatnonzero(windows.closes >= place).tolist():
        first, last = max(place, int(windows.opens[at])), int(windows.closes[at])
        for group in _in_order(laid, windows, at, place):
            yield Need(group, base + first, base + last)


def _in_order(laid: Epoch, windows: Windows, at: int, place: int) -> list[int]:
    """A window's row groups that are needed from `place` on: in the order of first use, as far as that is looked at."""
    lanes, lane = laid.order.lanes, int(windows.lane[at])
    # The first row of the lane whose place is not before `place`.
    begin = max(int(windows.begin[at]), -(-(place - lane) // lanes))
    end = int(windows.end[at])
    seen, _ = laid.locate(np.arange(begin, min(end, begin + _LOOKED_AT)) * lanes + lane)
    _, firsts = np.unique(seen, return_index=True)
    groups = seen[np.sort(firsts)].tolist()
    if end - begin > _LOOKED_AT:
        told = set(groups)
        first, stop = int(windows.first[at]), int(windows.last[at]) + 1
        sized = np.diff(laid.starts[first : stop + 1]) > 0
        groups += [group for group in laid.groups[first:stop][sized].tolist() if group not in told]
    return groups


def held_rows(laid: Epoch, sizes: Ints, share: Share, first: int) -> int:
    """The most rows that the order makes a rank hold at a time, from an epoch's beginning to that of the next one.

    That is without what is fetched ahead. sizes: [R] the rows that a row group takes when it is held.
    first: where some batch begins. The rank holds the whole of the row groups that a window draws from, from
    the batch in which it opens to the one in which it closes. Where the epoch ends in a batch that is the
    last window of each of its lanes and the first of the next epoch's.
    """
    total, near = laid.rows, max(0, laid.order.lanes - share.batch_size)
    everything = int(sizes[laid.groups[np.diff(laid.starts) > 0]].sum())
    if share.batch_size > total:
        return everything
    begins, ends, rows = list[Ints](), list[Ints](), list[Ints]()
    for one, base in ((laid, 0), (laid.following(), total)):
        windows = one.windows(share.lanes(one, first))
        held = np.concatenate([[0], np.cumsum(sizes[one.groups])])
        rows.append(held[windows.last + 1] - held[windows.first])
        begins.append(base + windows.opens - share.batch_size + 1)
        # A row group that the next window of a lane draws from too is kept until it opens.
        ends.append(base + windows.closes + near + 1)
    places, changes = np.concatenate([*begins, *ends]), np.concatenate([*rows, *(-some for some in rows)])
    most = np.cumsum(changes[np.lexsort((changes, places))]).max(initial=0)
    return min(int(most), everything)


@dataclass(frozen=True)
class Lookup:
    """Where a rank's rows of one global batch lie: place, row group and row in it, each [B].

    first: the batch's first place.
    """

    first: int
    places: Ints
    group: Ints
    row: Ints


def lookups(order: Order, rows: Ints, share: Share, firsts: Iterator[int], ahead: int) -> Iterator[Lookup]:
    """A lookup for each batch that begins at one of `firsts`.

    Worked out for ever more places at once, up to `ahead` of them, since one costs as much; but the first
    batch does not wait for thousands.
    """
    total = int(rows.sum())
    laid: dict[int, Epoch] = {}
    at_once, most = 1, max(1, ahead * share.world // share.batch_size)
    while block := list(islice(firsts, at_once)):
        at_once = min(most, 2 * at_once)
        parts = [share.places(first, order.lanes) for first in block]
        places = np.concatenate(parts)
        epochs, group, row = places // total, np.empty_like(places), np.empty_like(places)
        told = np.unique(epochs).tolist()
        laid = {number: laid.get(number) or ordering.epoch(order, rows, number) for number in told}
        for number in told:
            mine = slice(None) if len(told) == 1 else np.flatnonzero(epochs == number)
            group[mine], row[mine] = laid[number].locate(places[mine] - number * total)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        for first, start, stop in zip(block, [0, *ends[:-1]], ends, strict=True):
            yield Lookup(first, places[start:stop], group[start:stop], row[start:stop])
