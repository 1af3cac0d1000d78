"""Ray Data: `read_parquet` of our own shards, `iter_torch_batches` with a local shuffle buffer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape

BUFFER = 1000


class RayData:
    """An embedded Ray of two CPUs; rows stay Arrow's until a batch is made, whose bytes are then viewed as tensors.

    The system around it, which a Ray job has anyway, is started before anything is counted.
    """

    checks, batches, casts = "none (its default)", True, False
    shuffles = f"files, and a buffer of {BUFFER} rows"

    def __init__(self, home: Path, shape: Shape) -> None:
        self.home, self.shape = home, shape

    def write(self, arrays: Arrays) -> None:
        raise NotImplementedError("it reads what ours wrote")

    def start(self) -> None:
        import atexit
        import logging

        import ray
        import ray.data

        atexit.register(ray.shutdown)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False

    def open(self, way: str) -> RayLoader:
        return RayLoader(self.home, self.shape, way == "shuffled")


class RayLoader:
    def __init__(self, home: Path, shape: Shape, shuffle: bool) -> None:
        import ray.data

        from stream_readers.ours import shard_files

        files = [str(path) for path in shard_files(home)]
        self._data = ray.data.read_parquet(files, shuffle="files" if shuffle else None)
        self._buffer = BUFFER if shuffle else None
        self._collate = _collate(shape)

    def epoch(self, number: int) -> Iterator[Batch]:
        return iter(
            self._data.iter_torch_batches(
                batch_size=BATCH,
                collate_fn=self._collate,
                local_shuffle_buffer_size=self._buffer,
                local_shuffle_seed=number if self._buffer else None,
            )
        )

    def state(self) -> None:
        return None

    def load(self, state: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        del self._data


def _collate(shape: Shape) -> Any:
    import torch
    from ray.data.collate_fn import ArrowBatchCollateFn

    from storage.samples import tensor_columns

    class Tensors(ArrowBatchCollateFn):
        def __call__(self, batch: Any) -> Batch:
            columns = {field.name: tensor_columns.unpack(batch.column(field.name), field) for field in batch.schema}
            return {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}

    return Tensors()
