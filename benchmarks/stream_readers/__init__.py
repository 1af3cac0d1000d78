"""Readers of the same rows, one library a file, each in a process of its own: the room that benchmarks/stream.py times.

A reader is made of its folder, the shape of its rows and its options. `write` lays the rows down in the
library's own format; `open` gives a loader, from nothing; a loader's `epoch` gives one pass of complete
batches in memory of their own, as a dict of columns with 'sample_id' among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from stream_readers.data import Arrays, Shape

Batch = dict[str, Any]


class Loader(Protocol):
    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass; another number gives another shuffle."""
        ...

    def state(self) -> Any:
        """Where the epoch that was begun last stands; None from a library that has no such thing."""
        ...

    def load(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Reader(Protocol):
    """A library, with its settings.

    shuffles, checks: what is mixed and which bytes are checked, in words. batches: False for what only reads.
    casts: its arrays have other types than what was written.
    """

    shuffles: str
    checks: str
    batches: bool
    casts: bool

    def __init__(self, home: Path, shape: Shape, **options: Any) -> None: ...

    def write(self, arrays: Arrays) -> None:
        """Write the rows to the reader's home, which is new."""
        ...

    def start(self) -> None:
        """What a process does once: import, and start a cluster."""
        ...

    def open(self, way: str) -> Loader: ...


# The module and the class of each reader; imported in the process that runs it, which may be another environment's.
READERS = {
    "scan": "stream_readers.raw:Scan",
    "memmap": "stream_readers.raw:Memmap",
    "ours": "stream_readers.ours:Ours",
    "mosaic": "stream_readers.mosaic:Mosaic",
    "litdata": "stream_readers.lit:Lit",
    "webdataset": "stream_readers.web:Web",
    "datasets": "stream_readers.hugging_face:HuggingFace",
    "grain": "stream_readers.grains:Grain",
    "ray": "stream_readers.ray_data:RayData",
}


def make_reader(name: str, home: Path, shape: Shape, options: dict[str, Any]) -> Reader:
    module, _, member = READERS[name].partition(":")
    return getattr(importlib.import_module(module), member)(home, shape, **options)
