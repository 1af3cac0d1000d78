"""Row groups fetched by threads before they are needed, and held for as long as they are: within a budget of bytes."""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage.format.rows import DecodedRows
from storage.objectstore.filesystem import in_words
from storage.order.schedule import Need
from storage.rows.arena import Arena, Room
from storage.rows.reading import Reading
from storage.rows.row_groups import Arrays, Ints, RowGroups, empty, row_bytes

log = logging.getLogger("stillhouse.stream")


@dataclass
class _Held:
    """A row group that was asked for, and the places that it is held for."""

    room: Room
    last: int
    loaded: Future[Arrays]


class Reader:
    """`advance` tells where the consumer is, `rows` gives rows of what is needed there. For one thread to use.

    needs: in the order of their first use (see `schedule.needs`). room: rows that are held besides what is
    fetched ahead. near: a row group that is needed again within so many places stays without counting
    as fetched ahead; the order's bound counts it already.
    """

    def __init__(self, groups: RowGroups, needs: Iterator[Need], reading: Reading, *, room: int, near: int) -> None:
        self._groups, self._needs, self._reading, self._near = groups, needs, reading, near
        self._width = max(1, row_bytes(groups))
        self._total = int(groups.rows.sum())
        most = int(groups.sizes.max())
        ahead = min(reading.prefetch_bytes // self._width, int(groups.sizes.sum()))
        self._arena = Arena(groups.columns, min(room + ahead, int(groups.sizes.sum())) + most)
        self._texts = [column.name for column in groups.columns if column.dtype is None]
        self._pool = ThreadPoolExecutor(reading.threads, thread_name_prefix="stream")
        self._held: dict[int, _Held] = {}
        self._ends: list[tuple[int, int]] = []
        self._leaving: list[_Held] = []
        self._next: Need | None = None
        # What was asked for before a place needs it: the place, and its bytes.
        self._ahead: deque[tuple[int, int]] = deque()
        self._ahead_bytes = 0
        # Where each row group's rows begin, and whether they are there.
        self._slab = np.zeros(len(groups.rows), np.int64)
        self._start = np.zeros(len(groups.rows), np.int64)
        self._ready = np.zeros(len(groups.rows), np.bool_)

    def close(self) -> None:
        """Stop fetching; what is under way is finished and forgotten."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def advance(self, place: int, stop: int) -> None:
        """Ask for what places [place, stop) need, let go of what only earlier ones needed, and fetch ahead."""
        while self._ahead and self._ahead[0][0] < stop:
            self._ahead_bytes -= self._ahead.popleft()[1]
        wanted: list[Need] = []
        while (need := self._peek()) is not None and need.first < stop:
            held = self._held.get(need.group)
            if held is None:
                wanted.append(need)
            else:
                self._keep(need, held)
            self._next = None
        self._release(place)
        for need in wanted:
            held = self._held.get(need.group)
            if held is None:
                self._ask(need)
            else:  # two windows wanted it
                self._keep(need, held)
        while (need := self._peek()) is not None and need.first < stop + self._total and self._fetch_ahead(need):
            self._next = None

    def _peek(self) -> Need | None:
        if self._next is None:
            self._next = next(self._needs, None)
        return self._next

    def _fetch_ahead(self, need: Need) -> bool:
        held = self._held.get(need.group)
        if held is not None and need.first <= held.last + self._near:
            self._keep(need, held)
            return True
        size = int(self._groups.sizes[need.group]) * self._width
        if self._ahead and self._ahead_bytes + size > self._reading.prefetch_bytes:
            return False
        self._ahead.append((need.first, size))
        self._ahead_bytes += size
        if held is None:
            self._ask(need)
        else:
            self._keep(need, held)
        return True

    def _keep(self, need: Need, held: _Held) -> None:
        if need.last > held.last:
            held.last = need.last
            heapq.heappush(self._ends, (need.last, need.group))

    def _ask(self, need: Need) -> None:
        group = need.group
        room = self._arena.take(int(self._groups.sizes[group]))
        loaded = self._pool.submit(self._load, group, self._arena.arrays(room))
        self._held[group] = _Held(room, need.last, loaded)
        self._slab[group], self._start[group] = room.slab, room.start
        heapq.heappush(self._ends, (need.last, group))

    def _load(self, group: int, out: Arrays) -> Arrays:
        with in_words(self._groups.name_of(group)):
            return self._groups.load(group, out)

    def _release(self, place: int) -> None:
        while self._ends and self._ends[0][0] < place:
            _, group = heapq.heappop(self._ends)
            held = self._held.get(group)
            if held is not None and held.last < place:
                del self._held[group]
                self._ready[group] = False
                self._leaving.append(held)
        # A thread may still be writing there.
        for held in [held for held in self._leaving if held.loaded.done() or held.loaded.cancel()]:
            self._leaving.remove(held)
            self._arena.give_back(held.room)

    def rows(self, group_B: Ints, row_B: Ints) -> DecodedRows:
        """Rows [B] of row groups that were asked for, in memory of their own. Raises what reading them raised."""
        there_B = self._ready[group_B]
        if not there_B.all():
            for group in np.unique(group_B[~there_B]).tolist():
                self._wait(group)
        loaded_B = self._groups.loaded_rows(group_B, row_B)
        columns = empty(self._groups.columns, len(group_B))
        self._arena.gather(self._slab[group_B], self._start[group_B] + loaded_B, columns)
        for name in self._texts:
            texts = np.empty(len(group_B), object)
            for at, (group, row) in enumerate(zip(group_B.tolist(), loaded_B.tolist(), strict=True)):
                texts[at] = self._held[group].loaded.result()[name][row]
            columns[name] = texts
        return self._groups.rows_of(group_B, columns)

    def _wait(self, group: int) -> None:
        begun, loaded = time.monotonic(), self._held[group].loaded
        while not _ends(loaded, self._reading.stall_s):
            waited = time.monotonic() - begun
            log.warning("The stream has waited %.0f s for %s.", waited, self._groups.name_of(group))
        loaded.result()
        self._ready[group] = True


def _ends(loaded: Future[Arrays], seconds: float) -> bool:
    """Whether a load ends, with rows or an error, in so many seconds. Raises CancelledError for a cancelled one."""
    # `wait` of concurrent.futures does not return when the load is cancelled, and a TimeoutError of `result` may be
    # the load's own. `exception` raises none but that of waiting, and the load may end just after it.
    try:
        loaded.exception(seconds)
    except TimeoutError:
        return loaded.done()
    return True
