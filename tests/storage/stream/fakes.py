"""Row groups in memory, which tests slow down, break and count, and what tests ask of batches."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from storage.format.rows import DecodedRows
from storage.rows.row_groups import Arrays, Column, Ints, RowGroups, plain_rows
from storage.stream.stream import Batch, Stream

Make = Callable[..., Any]


class Fake:
    """Row groups of some sizes. A row's id is its number in the whole; x [*shape] and its name follow from it.

    kept: [R] how many of each group's rows a stream gives: its last ones.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        shape: tuple[int, ...] = (2,),
        texts: bool = False,
        kept: Sequence[int] | None = None,
        digest: str = "d" * 64,
        delay: Callable[[int], float] | None = None,
    ) -> None:
        self.sizes = np.array(sizes, np.int64)
        self.rows = self.sizes if kept is None else np.array(kept, np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        columns = [Column("sample_id", np.dtype(np.int64)), Column("x", np.dtype(np.float32), shape)]
        self.columns: Sequence[Column] = (*columns, Column("label", None)) if texts else tuple(columns)
        self.digest, self.where = digest, "memory"
        self.delay = delay
        self.reads: Counter[int] = Counter()
        # What to raise for a group, and how often.
        self.faults: dict[int, list[BaseException]] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return int(self.rows.sum())

    def load(self, group: int, out: Arrays) -> Arrays:
        if self.delay is not None:
            time.sleep(self.delay(group))
        with self._lock:
            self.reads[group] += 1
            if self.faults.get(group):
                raise self.faults[group].pop()
        ids = self.starts[group] + np.arange(self.sizes[group])
        out["sample_id"][:] = ids
        out["x"][:] = ids.reshape(-1, *[1] * (out["x"].ndim - 1))
        if len(self.columns) == 3:
            return {"label": np.array([f"row {i}" for i in ids], object)}
        return {}

    def name_of(self, group: int) -> str:
        return f"group {group}"

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return row_B + (self.sizes - self.rows)[group_B]

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        rows = plain_rows(columns, ["x"])
        x, ids = columns["x"], columns["sample_id"]
        assert not len(rows) or (x.reshape(len(rows), -1) == ids[:, None]).all(), "torn rows"
        return rows


def batches(stream: Stream, count: int) -> list[Batch]:
    """The next batches, across the ends of epochs."""
    return list(itertools.islice(stream.endless(), count))


def ids_of(parts: Iterable[Batch]) -> list[int]:
    return [int(i) for batch in parts for i in batch.sample_id]


def ids(stream: Stream, count: int) -> list[int]:
    """The ids of the next batches; the stream is closed."""
    told = ids_of(batches(stream, count))
    stream.close()
    return told


def values(rows: DecodedRows) -> list[Any]:
    """All that some rows hold, to be compared."""
    held = [rows.sample_id, *rows.inputs.values(), rows.label]
    if rows.targets is not None:
        held += [rows.targets.logits_PV, rows.targets.temperature_P]
    return [(array.dtype.name, array.tolist()) for array in held if array is not None]


def by_place(parts: Iterable[Batch]) -> dict[int, list[Any]]:
    """What the rank's parts of global batches hold, by place."""
    told: dict[int, list[Any]] = {}
    for part in parts:
        columns = [column for _, column in values(part.rows)]
        assert len(part.places) == len(part)
        for place, *row in zip(part.places.tolist(), *columns, strict=True):
            assert place not in told, "two ranks took the same place"
            told[place] = row
    return told


def stored_ids(groups: RowGroups, group: Ints, row: Ints) -> list[int]:
    """The ids of rows where ids are given from 0 on in stored order."""
    return (np.concatenate([[0], np.cumsum(groups.rows)])[group] + row).tolist()


def stream_threads() -> list[str]:
    """The names of the threads that streams have started and that have not ended, once they had time to."""
    gc.collect()  # what other tests left open
    deadline = time.monotonic() + 5
    while (names := _thread_names()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return names


def _thread_names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("stream", "batches"))]


def check_rows(rows: DecodedRows, teacher: Make) -> None:
    """Every row is whole: what it holds follows from its id."""
    at = np.asarray(rows.sample_id)
    if rows.inputs:
        np.testing.assert_array_equal(rows.inputs["x"].reshape(len(at), 6), at[:, None] + np.arange(6) / 8)
        np.testing.assert_array_equal(rows.inputs["n"], at * 3)
    assert rows.label is not None
    np.testing.assert_array_equal(rows.label, at % 5)
    if rows.targets is not None:
        soft_PV = teacher(at)
        np.testing.assert_array_equal(rows.targets.logits_PV, soft_PV - soft_PV.max(axis=1, keepdims=True))


def grid(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Orders and shares over awkward row groups, drawn by chance."""
    dice = np.random.default_rng(seed)
    for _ in range(count):
        size = int(dice.choice([1, 3, 8]))
        sizes = np.full(dice.integers(1, 40), size)
        if dice.random() < 0.5:
            sizes = dice.integers(0, 9, len(sizes))
            sizes[dice.integers(len(sizes))] = 5
        total, world = int(sizes.sum()), int(dice.choice([1, 2, 3, 4, 5, 8, 16]))
        yield {
            "sizes": sizes,
            "lanes": int(dice.choice([1, 2, 3, 4, 8, 16])),
            "window": int(dice.integers(1, total + 1)),
            "world": world,
            "batch_size": world * int(dice.choice([1, 2, 4])) + int(dice.choice([0, 1, 7])),
            "seed": int(dice.integers(1000)),
        }
