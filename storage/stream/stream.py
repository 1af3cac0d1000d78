"""A cache or a source as an endless sequence of batches, in an order that one integer resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from operator import index
from typing import Any

from storage.base.errors import RecipeError, VerificationError
from storage.order import sample_order as ordering
from storage.order.rank_share import Share
from storage.order.read_amplification import warn_of_reads
from storage.order.sample_order import Order
from storage.order.schedule import held_rows
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups, row_bytes
from storage.stream.batch import Batch
from storage.stream.batch_producer import BATCHES_AHEAD, BatchProducer
from storage.stream.default_order import default_order

# No stream comes so far; arithmetic on the places beyond would overflow.
_PLACES = 1 << 62


class Stream:
    """Batches of a shuffled, endless sequence of rows.

    `for batch in stream` gives the batches to the end of the epoch, and the next `for` goes on with the
    next epoch: no epoch needs to be set. A batch in which an epoch ends is filled from the next one, so
    none is short and no row is left out. `endless()` goes on for ever. Every rank of every world sees its
    part of the same global batches.
    """

    def __init__(
        self,
        groups: RowGroups,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        lanes: int | None = None,
        window: int | None = None,
        reading: Reading | None = None,
    ) -> None:
        """batch_size: rows a global batch, of all ranks together. lanes, window: see `default_order`.

        Raises RecipeError.
        """
        if not 0 <= rank < world <= batch_size:
            raise RecipeError(
                f"batch_size is {batch_size} for {world} workers, of which this is number {rank}.",
                "Every worker takes at least one row of a batch, and they are counted from 0.",
            )
        if not int(groups.rows.sum()):
            raise RecipeError(f"{groups.where} has no rows.", "A stream has at least one.")
        for name, value in (("lanes", lanes), ("window", window)):
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value} for a stream of {groups.where}.", "There is at least one.")
        self.groups, self.share = groups, Share(batch_size, rank, world)
        self.order = default_order(groups, seed, lanes, window)
        if not rank:
            self._warn_of_reads(window)
        self.reading = reading or Reading()
        self.place = 0
        self._run: BatchProducer | None = None
        self._total = int(groups.rows.sum())
        # How long the consumer waited for batches, in seconds.
        self.waited = 0.0

    def __len__(self) -> int:
        """The batches that the next `for` gives: those to the end of the epoch."""
        return -(-(self._epoch_end() - self.place) // self.share.batch_size)

    def _warn_of_reads(self, window: int | None) -> None:
        groups, share, seed = self.groups, self.share, self.order.seed
        warn_of_reads(
            *(groups.where, groups.rows, self.order, share.batch_size, share.world),
            lambda lanes: default_order(groups, seed, lanes, window),
        )

    def _epoch_end(self) -> int:
        return (self.place // self._total + 1) * self._total

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """Where to go on, and in what; the same on every rank. Taken in a loop's body it is the next batch's.

        after: the state after that batch, wherever it was put together.
        """
        place = self.place if after is None else after.first + after.global_size
        return {"place": place, "digest": self.groups.digest, "order": self.order.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken. Raises VerificationError for a state of other content or another order."""
        try:
            digest, place, order = state["digest"], index(state["place"]), dict(state["order"])
            same = Order.from_dict(order) == self.order
            if not 0 <= place < _PLACES:
                raise ValueError(place)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise VerificationError(
                "This is no state of a stream.", "A state is what `state_dict` gave: place, digest and order."
            ) from None
        mine = self.state_dict()
        for part, told, agrees in (("digest", digest, digest == mine["digest"]), ("order", order, same)):
            if not agrees:
                raise VerificationError(
                    f"The stream's state has the {part} {told}.",
                    f"{self.groups.where} has {mine[part]}.",
                    "Continue with the data, seed, lanes and window of that state, or begin anew.",
                )
        self.place = place

    def __iter__(self) -> Iterator[Batch]:
        end = self._epoch_end()
        while self.place < end:
            yield self._take()

    def endless(self) -> Iterator[Batch]:
        """Batches for ever."""
        while True:
            yield self._take()

    def part(self, number: int, of: int) -> Iterator[Batch]:
        """Every `of`-th of the batches that the next `for` would give, from `number` on; then the epoch is over.

        Several processes that take a part each give the whole, in turns. Each of them reads all row groups.
        """
        size, stop = self.share.batch_size, self.place + len(self) * self.share.batch_size
        firsts = range(self.place + number * size, stop, of * size)
        run = self._producer(iter(firsts))
        try:
            for _ in firsts:
                yield run.take()
        finally:
            run.close()
        self.place = stop

    def _take(self) -> Batch:
        if self._run is None or self._run.next != self.place:
            self.close()
            self._run = self._producer(count(self.place, self.share.batch_size))
        begun = time.perf_counter()
        try:
            batch = self._run.take()
        except BaseException:
            # What failed may succeed when it is asked for again.
            self.close()
            raise
        self.waited += time.perf_counter() - begun
        # Counted when it is handed out: a state taken in the loop's body belongs to the next batch.
        self.place = batch.first + batch.global_size
        return batch

    def _producer(self, firsts: Iterator[int]) -> BatchProducer:
        return BatchProducer(self.groups, self.order, self.share, self.reading, firsts, self.place)

    def close(self) -> None:
        """Let go of all that is held; the next batch begins anew from the place."""
        if self._run is not None:
            self._run.close()
            self._run = None

    @property
    def memory_bound(self) -> int:
        """The most bytes of rows that are in memory at a time on this rank, in this epoch.

        What the order holds, what is fetched ahead, what threads decode from, and the batches that are ready.
        """
        groups, width = self.groups, row_bytes(self.groups)
        largest, reading = int(groups.sizes.max()), self.reading
        laid = ordering.epoch(self.order, groups.rows, self.place // self._total)
        held = held_rows(laid, groups.sizes, self.share, self.place) + largest
        batches = (BATCHES_AHEAD + 1) * -(-self.share.batch_size // self.share.world)
        return (held + batches + reading.threads * largest) * width + reading.prefetch_bytes
