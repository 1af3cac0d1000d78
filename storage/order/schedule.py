"""Which row groups a rank needs, from which place to which, in the order of their first use: pure, and without end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from storage.order import sample_order as ordering
from storage.order.rank_share import SORTED_ROWS, Share, WindowPart
from storage.order.sample_order import Epoch, Order, Windows

Ints = np.ndarray[Any, np.dtype[np.int64]]

# So many of a window's places are looked at to tell which of its row groups come first.
_LOOKED_AT = 4096


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
    windows = share.windows(laid, base + place)
    sorts = share.sorts(laid.order, laid.rows)
    for at in np.flatnonzero(windows.closes >= place).tolist():
        first, last = max(place, int(windows.opens[at])), int(windows.closes[at])
        groups = _taken(laid, share, windows, at, place) if sorts else None
        for group in _in_order(laid, windows, at, place) if groups is None else groups:
            yield Need(group, base + first, base + last)


def _taken(laid: Epoch, share: Share, windows: Windows, at: int, place: int) -> list[int] | None:
    """A window's row groups that a rank takes rows of from `place` on, in the order of first use; None: all of them."""
    begin, end = _begin(laid, windows, at, place), int(windows.end[at])
    first = laid.number * laid.rows + place
    part = WindowPart.of(laid, int(windows.lane[at]), begin, end, share.batch_size, first)
    low, high = part.slices(*share.bounds)
    if (low >= high).all():
        return []
    if end - begin > SORTED_ROWS or (high - low == part.counts).all():
        return None
    start, stop = share.bounds
    rows, position, index = part.sort()
    taken = np.flatnonzero((position >= start) & (position < stop))
    taken = taken[np.argsort(index[taken])]
    slots = laid.slots(rows[taken])
    _, firsts = np.unique(slots, return_index=True)
    return laid.groups[slots[np.sort(firsts)]].tolist()


def _begin(laid: Epoch, windows: Windows, at: int, place: int) -> int:
    """The first row of a window, of its lane, whose place is not before `place`."""
    return max(int(windows.begin[at]), -(-(place - int(windows.lane[at])) // laid.order.lanes))


def _in_order(laid: Epoch, windows: Windows, at: int, place: int) -> list[int]:
    """A window's row groups that are needed from `place` on: in the order of first use, as far as that is looked at."""
    lanes, lane = laid.order.lanes, int(windows.lane[at])
    begin = _begin(laid, windows, at, place)
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
        windows = share.windows(one, first)
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
    """A lookup for each batch that begins at one of `firsts`, which ascend.

    Worked out for ever more places at once, up to `ahead` of them, since one costs as much; but the first
    batch does not wait for thousands.
    """
    total, laid = int(rows.sum()), dict[int, Epoch]()

    def rows_at(places: Ints) -> Ints:
        at = np.empty_like(places)
        for number, mine in _by_epoch(places, total):
            if number not in laid:
                laid[number] = ordering.epoch(order, rows, number)
            at[mine] = laid[number].rows_at(places[mine] - number * total)
        return at

    sorts = share.sorts(order, total)
    at_once, most = 1, ahead * share.world // share.batch_size
    if sorts:
        # Lanes are counted for each batch.
        most = min(most, ahead // max(share.located(order), order.lanes))
    while block := list(islice(firsts, at_once)):
        at_once = max(1, min(most, 2 * at_once))
        for number in [number for number in laid if number < block[0] // total]:
            del laid[number]
        if sorts:
            places, at = share.sorted_places(order, total, np.array(block), rows_at)
            ends = [len(places) // len(block) * count for count in range(1, len(block) + 1)]
        else:
            parts = [share.places(order, total, first) for first in block]
            places = np.concatenate(parts)
            at, ends = rows_at(places), np.cumsum([len(part) for part in parts]).tolist()
        group, row = np.empty_like(places), np.empty_like(places)
        for number, mine in _by_epoch(places, total):
            group[mine], row[mine] = laid[number].split(at[mine])
        for first, start, stop in zip(block, [0, *ends[:-1]], ends, strict=True):
            yield Lookup(first, places[start:stop], group[start:stop], row[start:stop])


def _by_epoch(places: Ints, total: int) -> Iterator[tuple[int, Any]]:
    """Each epoch that places [B] lie in, and which of them do."""
    epochs = places // total
    numbers = np.unique(epochs).tolist()
    for number in numbers:
        yield number, slice(None) if len(numbers) == 1 else np.flatnonzero(epochs == number)
