"""Grain: ArrayRecord files, `MapDataset` with a global shuffle, read by threads."""

# pyright: reportMissingImports=false
# The peers live in an environment of their own.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape
from stream_readers.packed import Packed

SHARDS = 4


class Grain:
    """`source(...).shuffle().map().batch().to_iter_dataset()`, a row's columns one after another in a record.

    group_size:1, which its guide asks for where records are read at random.
    """

    shuffles, checks, batches, casts = "all rows", "a checksum of each chunk (its default)", True, False

    def __init__(self, home: Path, shape: Shape, threads: int, uncompressed: bool = True) -> None:
        self.home, self.shape, self._threads = home, shape, threads
        self._options = "group_size:1" + (",uncompressed" if uncompressed else "")

    def write(self, arrays: Arrays) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        packed = Packed(self.shape)
        rows = len(arrays["sample_id"])
        cuts = np.linspace(0, rows, SHARDS + 1).astype(int)
        for number in range(SHARDS):
            writer = ArrayRecordWriter(f"{self.home}/{number}.array_record", self._options)
            for row in range(cuts[number], cuts[number + 1]):
                writer.write(packed.pack(arrays, row))
            writer.close()

    def start(self) -> None:
        import grain  # noqa: F401

    def open(self, way: str) -> GrainLoader:
        return GrainLoader(self.home, self.shape, way == "shuffled", self._threads)


class GrainLoader:
    def __init__(self, home: Path, shape: Shape, shuffle: bool, threads: int) -> None:
        import grain

        unpack = Packed(shape).unpack
        self._options = grain.ReadOptions(num_threads=threads)
        files = sorted(str(path) for path in home.glob("*.array_record"))
        self._source = grain.sources.ArrayRecordDataSource(files)
        self._made = lambda seed: (
            (
                grain.MapDataset.source(self._source).shuffle(seed=seed)
                if shuffle
                else grain.MapDataset.source(self._source)
            )
            .map(unpack)
            .batch(BATCH)
            .to_iter_dataset(self._options)
        )
        self._iterator: Any = None
        self._from: Any = None

    def epoch(self, number: int) -> Iterator[Batch]:
        self._iterator = iter(self._made(0 if self._from else number))
        if self._from:
            self._iterator.set_state(self._from)
            self._from = None
        return self._iterator

    def state(self) -> Any:
        return self._iterator and self._iterator.get_state()

    def load(self, state: Any) -> None:
        self._from = state

    def close(self) -> None:
        self._iterator = self._source = None
