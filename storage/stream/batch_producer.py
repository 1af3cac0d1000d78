"""Batches put together by a thread, a few ahead of whoever takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

from storage.order import sample_order as ordering
from storage.order.rank_share import Share
from storage.order.sample_order import Order
from storage.order.schedule import held_rows, lookups, needs
from storage.rows.prefetch import Reader
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups
from storage.stream.batch import Batch

# Places are looked up for many batches at once, since one costs as much.
PLACES_AHEAD, EPOCHS_AHEAD = 1 << 15, 8
# Batches that are put together while the consumer works on one.
BATCHES_AHEAD = 2


class BatchProducer:
    """Batches from a place on, put together by a thread while the consumer works on the last one."""

    def __init__(
        self, groups: RowGroups, order: Order, share: Share, reading: Reading, firsts: Iterator[int], place: int
    ) -> None:
        """firsts: the first place of each batch. place: where the producer is if there are none."""
        self.next = next(firsts, place)
        total = int(groups.rows.sum())
        laid = ordering.epoch(order, groups.rows, self.next // total)
        self._size = share.batch_size
        self._reader = Reader(
            groups,
            needs(order, groups.rows, share, self.next, laid),
            reading,
            room=held_rows(laid, groups.sizes, share, self.next),
            near=order.lanes,
        )
        ahead = min(PLACES_AHEAD, EPOCHS_AHEAD * total)
        self._lookups = lookups(order, groups.rows, share, chain([self.next], firsts), ahead)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[Future[Batch | None]] = deque()

    def take(self) -> Batch:
        while len(self._ready) <= BATCHES_AHEAD:
            self._ready.append(self._thread.submit(self._batch))
        batch = self._ready.popleft().result()
        assert batch is not None, "no more batches were asked for"
        self.next = batch.first + batch.global_size
        return batch

    def _batch(self) -> Batch | None:
        at = next(self._lookups, None)
        if at is None:
            return None
        self._reader.advance(at.first, at.first + self._size)
        return Batch(at.first, self._size, at.places, self._reader.rows(at.group, at.row))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._reader.close()
