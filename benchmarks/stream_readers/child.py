"""A process that runs one reader: a line of JSON on stdin asks, a line on stdout answers."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Loader, Reader, make_reader
from stream_readers.data import BATCH, SHAPES, Array, load


class Served:
    """The loaders that stay open from pass to pass, and what `first` and `resume` open and close again."""

    def __init__(self, reader: Reader, arrays: Path, times: int, group_rows: int) -> None:
        self._reader, self._arrays, self._group_rows = reader, arrays, group_rows
        self._rows = len(np.load(arrays / "sample_id.npy"))
        self._total = times * self._rows
        self._loaders: dict[str, Loader] = {}
        self._passes = 0
        self._state: tuple[Any, list[int]] | None = None

    def prepare(self) -> dict[str, Any]:
        self._reader.write(load(self._arrays))
        return {}

    def start(self) -> dict[str, Any]:
        self._reader.start()
        return {"shuffles": self._reader.shuffles, "checks": self._reader.checks}

    def check(self, way: str) -> dict[str, Any]:
        """A batch against the arrays that it was written from."""
        loader = self._reader.open(way)
        batches = loader.epoch(0)
        batch = next(batches)
        ids = as_array(batch["sample_id"])
        for name, array in load(self._arrays).items():
            found = as_array(batch[name])
            there = ids if name == "sample_id" else array[ids % self._rows]
            assert np.array_equal(found, there), f"{name} is not what was written"
            assert found.dtype == array.dtype or self._reader.casts, f"{name} is {found.dtype}, not {array.dtype}"
            assert found.flags.writeable, f"{name} is a view of memory that is not the batch's own"
        _end(batches, loader)
        return {}

    def settle(self, way: str) -> dict[str, Any]:
        """An epoch that is not timed: what was read ahead while others had their turns is used up."""
        for _ in self._opened(way).epoch(0):
            pass
        return {}

    def passes(self, way: str) -> dict[str, Any]:
        """One timed epoch, each row of which is seen once."""
        loader = self._opened(way)
        self._passes += 1
        kept: list[Any] = []
        begun = time.perf_counter()
        for batch in loader.epoch(self._passes):
            kept.append(batch["sample_id"])
        seconds = time.perf_counter() - begun
        ids = [as_array(part) for part in kept]
        self._once(ids)
        return {"seconds": seconds, "rows": sum(map(len, ids)), "groups": mixed(ids, self._group_rows)}

    def first(self, way: str) -> dict[str, Any]:
        gc.collect()
        begun = time.perf_counter()
        loader = self._reader.open(way)
        batches = loader.epoch(0)
        next(batches)
        seconds = time.perf_counter() - begun
        _end(batches, loader)
        return {"seconds": seconds}

    def state(self, way: str) -> dict[str, Any]:
        """Take a state in the middle of an epoch, and note what would have come after it."""
        loader = self._reader.open(way)
        batches = loader.epoch(0)
        for _ in islice(batches, self._total // BATCH // 2):
            pass
        state = loader.state()
        if state is not None:
            self._state = state, as_array(next(batches)["sample_id"]).tolist()
        _end(batches, loader)
        return {"has": state is not None}

    def resume(self, way: str) -> dict[str, Any]:
        assert self._state is not None
        state, after = self._state
        gc.collect()
        begun = time.perf_counter()
        loader = self._reader.open(way)
        loader.load(state)
        batches = loader.epoch(0)
        batch = next(batches, None)
        seconds = time.perf_counter() - begun
        # A shuffle buffer whose rows are not in the state may leave nothing to go on with.
        same = batch is not None and as_array(batch["sample_id"]).tolist() == after
        _end(batches, loader)
        return {"seconds": None if batch is None else seconds, "exact": same}

    def _opened(self, way: str) -> Loader:
        if way not in self._loaders:
            self._loaders[way] = self._reader.open(way)
        return self._loaders[way]

    def _once(self, ids: list[Array]) -> None:
        assert np.array_equal(np.sort(np.concatenate(ids)), np.arange(self._total)), "not every row came once"
        if self._reader.batches:
            short = [len(part) for part in ids if len(part) != BATCH]
            assert len(short) <= 2, f"{len(short)} batches were not complete"


def mixed(ids: list[Array], group_rows: int) -> float:
    """How many stretches as long as a row group, in the order of storage, a batch draws from; the median."""
    return float(np.median([len(np.unique(part // group_rows)) for part in ids]))


def as_array(values: Any) -> Array:
    return values if isinstance(values, np.ndarray) else values.numpy()


def _end(batches: Any, loader: Loader) -> None:
    if hasattr(batches, "close"):
        batches.close()
    del batches
    loader.close()
    gc.collect()


def main() -> int:
    asked = json.loads(sys.argv[1])
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    reader = make_reader(asked["reader"], Path(asked["home"]), SHAPES[asked["shape"]], asked["options"])
    served = Served(reader, Path(asked["arrays"]), asked["times"], asked["group_rows"])
    for line in sys.stdin:
        do, *rest = json.loads(line)
        if do == "exit":
            break
        print(json.dumps(getattr(served, do)(*rest)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
