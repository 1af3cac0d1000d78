"""A cache or a source as an endless stream of batches, in an order that one integer resumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import order as ordering
from storage.cache import Cache
from storage.digest import rows_digest, sha256_of
from storage.errors import ForeignState, RecipeError, SourceError
from storage.order import Epoch, Order
from storage.ranges import footer_metadata, read_checked, read_footer
from storage.samples import SAMPLE_ID, refuse_duplicates
from storage.shard import RangeFile, Rows, decode, read_header, row_bytes, sample_rows
from storage.sources import Source
from storage.targets import DenseTargets

# Below this a cache is shuffled whole; above it, inside windows of this size.
WINDOW_BYTES = 1 << 30
PLACES_AHEAD, EPOCHS_AHEAD = 1 << 15, 8

Ints = np.ndarray[Any, np.dtype[np.int64]]


class RowGroups(Protocol):
    """What a stream reads: groups of rows, each read and checked as one."""

    @property
    def rows(self) -> Ints:
        """[R] the rows of each group."""
        ...

    @property
    def bytes(self) -> int:
        """What all rows take in memory."""
        ...

    @property
    def digest(self) -> str:
        """Names the content, so that a state of other content is refused."""
        ...

    @property
    def where(self) -> str: ...

    def read(self, group: int) -> Rows: ...


class CacheRows:
    """The row groups of a cache's shards."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        places = [(shard, index) for shard in cache.shards for index in range(len(shard.row_groups))]
        self._places = places
        self._footers: dict[str, Any] = {}
        self.rows = np.array([shard.row_groups[index].rows for shard, index in places], np.int64)
        self.bytes = int(self.rows.sum()) * row_bytes(read_footer(cache.store, cache.shards[0])[1])
        self.digest = cache.digest
        self.where = cache.url

    def read(self, group: int) -> Rows:
        """Raises CorruptShard, which names the shard and the row group."""
        shard, index = self._places[group]
        if shard.shard_key not in self._footers:
            metadata = footer_metadata(self.cache.store, shard)
            header = read_header(metadata.schema.to_arrow_schema(), self.cache.store.url_of(shard.path))
            self._footers[shard.shard_key] = metadata, header
        metadata, header = self._footers[shard.shard_key]
        part = shard.row_groups[index]
        data = read_checked(self.cache.store, shard, part.start, part.stop, part.xxh3, f"row group {index}")
        file = pa.PythonFile(RangeFile(shard.bytes, {part.start: data}), mode="r")
        # The range's digest was checked, so Parquet's page checksums would check the same bytes twice.
        table = pq.ParquetFile(file, metadata=metadata, pre_buffer=False).read_row_group(index, use_threads=False)
        return decode(table, header)


class SourceRows:
    """The rows of a source, for learning from labels; its values are digested once, at the start."""

    GROUP_ROWS = 4096

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spans = [
            (file, start, min(start + self.GROUP_ROWS, file.rows))
            for file in source.files()
            for start in range(0, file.rows, self.GROUP_ROWS)
        ]
        self.where = str(source.to_dict().get("function") or source.to_dict().get("parquet"))
        if not self._spans:
            raise SourceError(f"The source {self.where} is empty.", "There is at least one sample.")
        digests: list[str] = []
        ids: list[pa.Array] = []
        width = 0
        for span in self._spans:
            table = source.read(*span)
            width = row_bytes(table.schema)
            digests.append(rows_digest(table))
            ids.extend(table.column(SAMPLE_ID).chunks)
        refuse_duplicates(ids)
        self.rows = np.array([stop - start for _, start, stop in self._spans], np.int64)
        self.bytes = int(self.rows.sum()) * width
        self.digest = sha256_of(digests)

    def read(self, group: int) -> Rows:
        return sample_rows(self._source.read(*self._spans[group]))


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, in memory of its own.

    place: the first place of the global batch; global_size: the positions of all ranks together.
    """

    place: int
    global_size: int
    rows: Rows


class Stream:
    """Batches for ever: `for batch in stream`; `state_dict` before or between batches resumes there.

    Every world size and rank sees its part of the same global batches.
    """

    def __init__(self, groups: RowGroups, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world <= batch_size:
            raise RecipeError(
                f"batch_size is {batch_size} for {world} workers.", "Every worker takes at least one row of a batch."
            )
        self._groups, self._batch_size, self._rank, self._world = groups, batch_size, rank, world
        total = int(groups.rows.sum())
        self._total = total
        fits = max(1, int(total * WINDOW_BYTES / max(1, groups.bytes)))
        self.order = Order(seed, min(total, fits))
        self._place = 0
        self._held: dict[int, Rows] = {}
        self._epochs: dict[int, Epoch] = {}
        nothing = np.empty(0, np.int64)
        self._ahead: tuple[int, int, tuple[Ints, Ints, Ints]] = (0, 0, (nothing, nothing, nothing))

    def state_dict(self) -> dict[str, Any]:
        """The next place, and what it is a place in. The same on every rank."""
        return {"place": self._place, "digest": self._groups.digest, "order": self.order.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken. Raises ForeignState for a state of other content or another order."""
        mine = self.state_dict()
        for part in ("digest", "order"):
            if state[part] != mine[part]:
                raise ForeignState(
                    f"The stream's state has the {part} {state[part]}.",
                    f"{self._groups.where} has {mine[part]}.",
                    "Continue with the data and seed of that state, or begin anew.",
                )
        self._place = int(state["place"])

    def __iter__(self) -> Iterator[Batch]:
        start, stop = ordering.rank_slice(self._batch_size, self._rank, self._world)
        while True:
            first = self._place
            rows = self._gather(np.arange(first + start, first + stop, dtype=np.int64))
            # Counted when it is handed out: a state taken in the loop's body belongs to the next batch.
            self._place = first + self._batch_size
            yield Batch(first, self._batch_size, rows)

    def _gather(self, places: Ints) -> Rows:
        epochs, group, row = self._locate(places)
        held: set[int] = set()
        for number in np.unique(epochs).tolist():
            laid = self._epoch(number)
            for window in np.unique(places[epochs == number] % self._total // self.order.window).tolist():
                held.update(laid.window_groups(self.order, window).tolist())
        # A row group is let go of when the last window that draws from it has passed.
        self._held = {index: rows for index, rows in self._held.items() if index in held}
        pieces: list[Piece] = []
        for index in np.unique(group).tolist():
            if index not in self._held:
                self._held[index] = self._groups.read(index)
            at = np.flatnonzero(group == index)
            pieces.append((at, self._held[index], row[at]))
        return _take(pieces, len(places))

    def _epoch(self, number: int) -> Epoch:
        """An epoch's row groups in order; kept while batches come from it, since each asks."""
        if number not in self._epochs:
            self._epochs = {n: laid for n, laid in self._epochs.items() if n == number - 1}
            self._epochs[number] = ordering.epoch(self.order, self._groups.rows, number)
        return self._epochs[number]

    def _locate(self, places: Ints) -> tuple[Ints, Ints, Ints]:
        """(epoch, row group, row), each [B]; worked out for many batches at once, since one costs as much."""
        first, stop = int(places[0]), int(places[-1]) + 1
        if not self._ahead[0] <= first < stop <= self._ahead[1]:
            ahead = min(PLACES_AHEAD, EPOCHS_AHEAD * self._total)
            block = np.arange(first, max(stop, first + ahead), dtype=np.int64)
            epochs = block // self._total
            group, row = np.empty_like(block), np.empty_like(block)
            for number in np.unique(epochs).tolist():
                mine = epochs == number
                group[mine], row[mine] = ordering.locate(
                    self.order, self._groups.rows, number, block[mine] % self._total
                )
            self._ahead = (first, int(block[-1]) + 1, (epochs, group, row))
        at = slice(first - self._ahead[0], stop - self._ahead[0])
        epochs, group, row = self._ahead[2]
        return epochs[at], group[at], row[at]


def scan(groups: RowGroups, batch_size: int) -> Iterator[Rows]:
    """Every row once, in the order it is stored in, for evaluation."""
    for index in range(len(groups.rows)):
        rows = groups.read(index)
        for start in range(0, len(rows), batch_size):
            at = np.arange(min(batch_size, len(rows) - start))
            yield _take([(at, rows, at + start)], len(at))


# Places in a batch, the row group that fills them, and which of its rows do.
Piece = tuple[Ints, Rows, Ints]


def _take(pieces: Sequence[Piece], count: int) -> Rows:
    """Rows `row` of several row groups, each put at its places `at` of new arrays of `count` rows."""

    def gather(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        if len(arrays) == 1 and len(pieces[0][0]) == count:
            return np.take(arrays[0], pieces[0][2], axis=0)
        out = np.empty((count, *arrays[0].shape[1:]), arrays[0].dtype)
        for (at, _, row), array in zip(pieces, arrays, strict=True):
            out[at] = array[row]
        return out

    rows = [piece[1] for piece in pieces]
    first = rows[0]
    targets = [r.targets for r in rows if r.targets is not None]
    labels = [r.label for r in rows if r.label is not None]
    return Rows(
        gather([r.sample_id for r in rows]),
        {name: gather([r.inputs[name] for r in rows]) for name in first.inputs},
        gather(labels) if labels else None,
        DenseTargets(gather([t.logits_PV for t in targets]), gather([t.temperature_P for t in targets]))
        if targets
        else None,
    )
