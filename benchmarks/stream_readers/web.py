"""WebDataset: tar files, a shuffle buffer, `WebLoader`."""

# pyright: reportMissingImports=false
# The peers live in an environment of their own.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_readers import Batch
from stream_readers.data import BATCH, Arrays, Shape
from stream_readers.packed import Packed

SHARDS, BUFFER = 8, 1000


class Web:
    """Shards in random order and a buffer of 1,000 rows, as its guide has them; batched in the worker.

    A row is one member of the tar file, unpacked by `map`: a member a column, decoded as .npy, was half as fast.
    """

    shuffles, checks, batches, casts = f"files, and a buffer of {BUFFER} rows", "none (it has none)", True, False

    def __init__(self, home: Path, shape: Shape, workers: int) -> None:
        self.home, self.shape, self.workers = home, shape, workers

    def write(self, arrays: Arrays) -> None:
        import webdataset

        packed, rows = Packed(self.shape), len(arrays["sample_id"])
        with webdataset.ShardWriter(f"{self.home}/%03d.tar", maxcount=-(-rows // SHARDS), verbose=0) as writer:
            for row in range(rows):
                writer.write({"__key__": f"{row:08}", "row": packed.pack(arrays, row)})

    def start(self) -> None:
        import webdataset  # noqa: F401

    def open(self, way: str) -> WebLoader:
        return WebLoader(self.home, self.shape, way == "shuffled", self.workers)


class WebLoader:
    def __init__(self, home: Path, shape: Shape, shuffle: bool, workers: int) -> None:
        import webdataset

        urls = sorted(str(path) for path in home.glob("*.tar"))
        dataset = webdataset.WebDataset(urls, shardshuffle=SHARDS if shuffle else False)
        if shuffle:
            dataset = dataset.shuffle(BUFFER)
        self._names = ["sample_id", *shape.columns]
        # Each worker ends with a batch that may be short, as the guide has it.
        batches = dataset.map(Columns(shape, self._names)).batched(BATCH)
        self._loader = webdataset.WebLoader(
            batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        for columns in self._loader:
            yield dict(zip(self._names, columns, strict=True))

    def state(self) -> None:
        return None

    def load(self, state: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        del self._loader


class Columns:
    """A sample of the tar file as the tuple of its columns, which `batched` collates."""

    def __init__(self, shape: Shape, names: list[str]) -> None:
        self._unpack, self._names = Packed(shape).unpack, names

    def __call__(self, sample: dict[str, bytes]) -> tuple[Any, ...]:
        row = self._unpack(sample["row"])
        return tuple(row[name] for name in self._names)
