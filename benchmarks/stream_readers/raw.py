"""What there is to compare with: the shards' row groups read and dropped, and numpy's rows at random."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape, load


class Scan:
    """`read_row_group` over the shards of our store in the order they are stored in; no checks, no batches."""

    shuffles, checks, batches, casts = "nothing", "none", False, False

    def __init__(self, home: Path, shape: Shape, threads: int) -> None:
        self.home, self.threads = home, threads

    def write(self, arrays: Arrays) -> None:
        raise NotImplementedError("it reads what ours wrote")

    def start(self) -> None:
        import pyarrow.parquet  # noqa: F401

    def open(self, way: str) -> ScanLoader:
        return ScanLoader(self.home, self.threads)


class ScanLoader:
    def __init__(self, home: Path, threads: int) -> None:
        import pyarrow.parquet as pq

        from stream_readers.ours import shard_files

        self._files = [(path, pq.read_metadata(path)) for path in shard_files(home)]
        self._threads = threads

    def epoch(self, number: int) -> Iterator[Batch]:
        places = [(path, told, index) for path, told in self._files for index in range(told.num_row_groups)]
        if self._threads == 1:
            yield from (_row_group(place) for place in places)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            yield from pool.map(_row_group, places)

    def state(self) -> None:
        return None

    def load(self, state: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def _row_group(place: tuple[Path, Any, int]) -> Batch:
    import pyarrow.parquet as pq

    path, metadata, index = place
    with pq.ParquetFile(path, metadata=metadata) as file:
        table = file.read_row_group(index, use_threads=False)
    return {"sample_id": table.column("sample_id").to_numpy()}


class Memmap:
    """One .npy file a column, rows taken at random: what is left when a format and its checks cost nothing."""

    shuffles, checks, batches, casts = "all rows", "none", True, False

    def __init__(self, home: Path, shape: Shape) -> None:
        self.home = home

    def write(self, arrays: Arrays) -> None:
        raise NotImplementedError("it reads the arrays that the others were written from")

    def start(self) -> None:
        pass

    def open(self, way: str) -> MemmapLoader:
        return MemmapLoader(self.home)


class MemmapLoader:
    def __init__(self, home: Path) -> None:
        self._arrays, self._from, self._place = load(home), 0, 0

    def epoch(self, number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(self._arrays["sample_id"]))
        start, self._from = self._from, 0
        for first in range(start, len(order), BATCH):
            self._place = first + BATCH
            yield {name: np.take(array, order[first : first + BATCH], axis=0) for name, array in self._arrays.items()}

    def state(self) -> int:
        return self._place

    def load(self, state: int) -> None:
        self._from = state

    def close(self) -> None:
        pass
