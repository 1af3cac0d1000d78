"""Hugging Face datasets: Arrow files mapped into memory, as a table with indices or as a stream with a buffer."""

# pyright: reportMissingImports=false
# The peers live in an environment of their own.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Batch
from stream_readers.data import BATCH, Array, Arrays, Shape

SHARDS = 4


class HuggingFace:
    """Tensors as lists of fixed length, `.shuffle()`, `with_format(...)` and `.iter(batch_size)`.

    form 'numpy' is what its guide tells a numpy user, and makes 64-bit integers and 32-bit floats of every
    column ('torch' does as well, and was slower). 'arrow' gives tables, whose memory is viewed as arrays and
    copied. `to_iterable_dataset` with its buffer of 1,000 rows was slower than either here.
    """

    shuffles, checks, batches = "all rows, by a permutation of indices", "none (it has none)", True

    def __init__(self, home: Path, shape: Shape, form: str) -> None:
        self.home, self.shape, self._form = home, shape, form
        self.casts = form == "numpy"

    def write(self, arrays: Arrays) -> None:
        import datasets
        import pyarrow as pa

        columns = {name: _stored(pa, array) for name, array in arrays.items()}
        datasets.Dataset(pa.table(columns)).save_to_disk(str(self.home), num_shards=SHARDS)

    def start(self) -> None:
        import datasets

        datasets.disable_progress_bars()

    def open(self, way: str) -> TableLoader:
        return TableLoader(self.home, self.shape, way == "shuffled", self._form)


def _stored(pa: Any, array: Array) -> Any:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))


class TableLoader:
    """A state is a count of rows: `skip` goes there."""

    def __init__(self, home: Path, shape: Shape, shuffle: bool, form: str) -> None:
        import datasets

        self._table = datasets.load_from_disk(str(home)).with_format(form)
        self._shuffle, self._skip, self._seen = shuffle, 0, 0
        self._shapes = {"sample_id": (), **{name: inner for name, (_, inner) in shape.columns.items()}}
        self._batch = self._from_arrow if form == "arrow" else self._from_numpy

    def epoch(self, number: int) -> Iterator[Batch]:
        table = self._table.shuffle(seed=number) if self._shuffle else self._table
        if self._skip:
            table = table.skip(self._skip)
        self._seen, self._skip = self._skip, 0
        for batch in table.iter(BATCH):
            self._seen += BATCH
            yield self._batch(batch)

    def _from_numpy(self, batch: Batch) -> Batch:
        return {name: _owned(batch[name]).reshape(-1, *inner) for name, inner in self._shapes.items()}

    def _from_arrow(self, table: Any) -> Batch:
        batch: Batch = {}
        for name, inner in self._shapes.items():
            column = table.column(name).combine_chunks()
            flat = column.flatten() if inner else column
            batch[name] = _owned(flat.to_numpy(zero_copy_only=False)).reshape(-1, *inner)
        return batch

    def state(self) -> int:
        return self._seen

    def load(self, state: int) -> None:
        self._skip = state

    def close(self) -> None:
        del self._table


def _owned(array: Array) -> Array:
    """A view, of the mapped file or of what Arrow gathered, is copied: training may keep a batch and write to it."""
    return array if array.flags.writeable else array.copy()
