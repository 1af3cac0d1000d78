"""LitData: chunks written by `optimize`, `StreamingDataset` and `StreamingDataLoader`."""

# pyright: reportMissingImports=false
# The peers live in an environment of their own.

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape


class Lit:
    """Chunks of 64 MB as its guide has them, read in place as it does with any local folder.

    batch_decode 'all' keeps a chunk's rows once they are decoded; left at 'auto', rows that straddle its windows
    were decoded again and again (tokens: 14 times slower). item_shuffle_window stays at its default.
    """

    checks, batches, casts = "none (it has none)", True, False
    shuffles = "chunks of 64 MB, blocks of 256 rows in a chunk, rows in a block"

    def __init__(self, home: Path, shape: Shape, workers: int) -> None:
        self.home, self.workers = home, workers

    def write(self, arrays: Arrays) -> None:
        import litdata

        litdata.optimize(
            fn=partial(_row, arrays),
            inputs=list(range(len(arrays["sample_id"]))),
            output_dir=str(self.home),
            chunk_bytes="64MB",
            num_workers=2,
            keep_data_ordered=True,
            verbose=False,
        )

    def start(self) -> None:
        import litdata  # noqa: F401

    def open(self, way: str) -> LitLoader:
        return LitLoader(self.home, way == "shuffled", self.workers)


def _row(arrays: Arrays, row: int) -> dict[str, Any]:
    return {name: array[row].item() if array.ndim == 1 else array[row] for name, array in arrays.items()}


class LitLoader:
    def __init__(self, home: Path, shuffle: bool, workers: int) -> None:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(home), shuffle=shuffle, drop_last=False, batch_decode="all")
        self._loader = StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        return iter(self._loader)  # the loader counts its epochs itself

    def state(self) -> Any:
        return self._loader.state_dict()

    def load(self, state: Any) -> None:
        self._loader.load_state_dict(state)

    def close(self) -> None:
        del self._loader
