"""A row as one string of bytes, its columns one after another: for formats that keep bytes and leave the rest to us."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_readers.data import Array, Arrays, Shape


class Packed:
    """`pack` a row, `unpack` it as views of its bytes; collating a batch copies them."""

    def __init__(self, shape: Shape) -> None:
        self._parts: list[tuple[str, np.dtype[Any], tuple[int, ...], int, int]] = []
        at = 0
        for name, (kind, inner) in {"sample_id": ("int64", ()), **shape.columns}.items():
            count = int(np.prod(inner))
            self._parts.append((name, np.dtype(kind), inner, count, at))
            at += count * np.dtype(kind).itemsize

    def pack(self, arrays: Arrays, row: int) -> bytes:
        return b"".join(arrays[name][row].tobytes() for name, *_ in self._parts)

    def unpack(self, row: bytes) -> dict[str, Array]:
        return {
            name: np.frombuffer(row, kind, count, at).reshape(inner) for name, kind, inner, count, at in self._parts
        }
