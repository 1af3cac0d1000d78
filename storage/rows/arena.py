"""Memory for the rows that a stream holds: taken by row groups, given back, and used again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.rows.row_groups import Arrays, Column, Ints


@dataclass(frozen=True)
class Room:
    """Rows [start, start + rows) of one slab."""

    slab: int
    start: int
    rows: int


class _Slab:
    """Rows that lie in one array a column. `free` are its gaps as [start, stop), in order, no two touching."""

    def __init__(self, columns: Sequence[Column], rows: int) -> None:
        # Nothing is touched before rows are put there, so that a slab costs what is used of it.
        self.arrays: Arrays = {c.name: np.empty((rows, *c.shape), c.dtype) for c in columns}
        self.rows = rows
        self.free: list[tuple[int, int]] = [(0, rows)]

    def take(self, rows: int) -> int | None:
        for at, (start, stop) in enumerate(self.free):
            if stop - start >= rows:
                self.free[at : at + 1] = [(start + rows, stop)] if stop - start > rows else []
                return start
        return None

    def give_back(self, start: int, stop: int) -> None:
        at = bisect_left(self.free, (start, stop))
        before = at > 0 and self.free[at - 1][1] == start
        after = at < len(self.free) and self.free[at][0] == stop
        merged = (self.free[at - 1][0] if before else start, self.free[at][1] if after else stop)
        self.free[at - before : at + after] = [merged]


class Arena:
    """Room for some rows of a stream's columns; more than were foreseen get another slab.

    Memory that is used again needs no new pages from the system, which cost as much as filling them.
    """

    def __init__(self, columns: Sequence[Column], rows: int) -> None:
        self._columns = [column for column in columns if column.dtype is not None]
        self._slabs = [_Slab(self._columns, max(1, rows))]

    def take(self, rows: int) -> Room:
        for number, slab in enumerate(self._slabs):
            start = slab.take(rows)
            if start is not None:
                return Room(number, start, rows)
        self._slabs.append(_Slab(self._columns, max(rows, self._slabs[0].rows // 4)))
        return self.take(rows)

    def give_back(self, room: Room) -> None:
        self._slabs[room.slab].give_back(room.start, room.start + room.rows)

    def arrays(self, room: Room) -> Arrays:
        """The rows of a room, to be written to: [rows, ...] for each column."""
        return {name: a[room.start : room.start + room.rows] for name, a in self._slabs[room.slab].arrays.items()}

    def gather(self, slab_B: Ints, row_B: Ints, out: Arrays) -> None:
        """Copy rows [B] of slabs [B] into `out`, [B, ...] for each column."""
        for number, slab in enumerate(self._slabs):
            mine = None
            if len(self._slabs) > 1:
                mine = np.flatnonzero(slab_B == number)
                if not len(mine):
                    continue
            for name, array in slab.arrays.items():
                if mine is None:
                    # With mode "raise" numpy would copy into a buffer first. No row lies outside.
                    np.take(array, row_B, axis=0, out=out[name], mode="clip")
                else:
                    out[name][mine] = array[row_B[mine]]
