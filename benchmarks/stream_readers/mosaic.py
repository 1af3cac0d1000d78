"""MosaicML Streaming: MDS shards, `StreamingDataset` and `StreamingDataLoader`."""

# pyright: reportMissingImports=false
# The peers live in an environment of their own.

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape


class Mosaic:
    """MDS as its guide writes it: ndarray columns of fixed dtype and shape, no compression, 64 MB a shard.

    Local only, batch_size told, its default shuffle (py1e).
    """

    shuffles, checks, batches, casts = "all rows (py1e)", "none (its default)", True, False

    def __init__(self, home: Path, shape: Shape, workers: int) -> None:
        self.home, self.shape, self.workers = home, shape, workers

    def write(self, arrays: Arrays) -> None:
        _leave_pictures_out()
        from streaming import MDSWriter

        columns = {"sample_id": "int64"} | {name: _encoding(*kind) for name, kind in self.shape.columns.items()}
        with MDSWriter(out=str(self.home), columns=columns) as writer:
            for row in range(len(arrays["sample_id"])):
                writer.write({name: array[row] for name, array in arrays.items()})

    def start(self) -> None:
        _leave_pictures_out()
        import streaming

        # A run that was killed leaves names in shared memory, which would stop this one.
        streaming.base.util.clean_stale_shared_memory()

    def open(self, way: str) -> MosaicLoader:
        return MosaicLoader(self.home, way == "shuffled", self.workers)


def _leave_pictures_out() -> None:
    """Its picture sets want a torchvision of the very build that torch has; they are not read here."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))


def _encoding(kind: str, shape: tuple[int, ...]) -> str:
    return f"ndarray:{kind}:{','.join(map(str, shape))}" if shape else kind


class MosaicLoader:
    def __init__(self, home: Path, shuffle: bool, workers: int) -> None:
        from streaming import StreamingDataLoader, StreamingDataset

        self._dataset = StreamingDataset(local=str(home), shuffle=shuffle, batch_size=BATCH)
        self._loader = StreamingDataLoader(
            self._dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        return iter(self._loader)  # the dataset counts its epochs itself

    def state(self) -> Any:
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        self._loader.load_state_dict(state)

    def close(self) -> None:
        del self._loader, self._dataset
