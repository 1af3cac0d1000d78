"""Where the bytes of a row group land: values that are not compressed in their own place, the rest to be decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from storage.format.page_reader import is_only_page, read_only_page
from storage.rows.row_groups import Arrays

# The header of a page takes no more; a chunk with more besides its values has several pages, or another layout.
_HEADER_BYTES = 256


@dataclass(frozen=True)
class Chunk:
    """A column's bytes [start, stop) in a row group, and what Parquet calls their compression."""

    name: str
    start: int
    stop: int
    codec: str


class Landing:
    """Memory for bytes [start, stop) of a shard, in `pieces` one after another; `decode` when they are there.

    out: where columns are wanted. scratch: memory for what has to be decoded, stop - start bytes.
    """

    def __init__(self, chunks: Iterable[Chunk], start: int, stop: int, out: Arrays, scratch: memoryview) -> None:
        self.pieces: list[memoryview] = []
        self._chunks = {chunk.name: chunk for chunk in chunks if start <= chunk.start and chunk.stop <= stop}
        self._whole: dict[str, memoryview] = {}
        self._parted: dict[str, tuple[memoryview, memoryview]] = {}
        self._scratch, self._used, at = scratch, 0, start
        for chunk in sorted(self._chunks.values(), key=lambda chunk: chunk.start):
            if chunk.start > at:
                self._piece(chunk.start - at)
            self._land(chunk, out.get(chunk.name))
            at = chunk.stop
        if at < stop:
            self._piece(stop - at)

    def _land(self, chunk: Chunk, wanted: np.ndarray | None) -> None:
        size = chunk.stop - chunk.start
        header = size - wanted.nbytes if wanted is not None and wanted.nbytes else 0
        if wanted is not None and chunk.codec == "UNCOMPRESSED" and 0 < header <= _HEADER_BYTES:
            self._parted[chunk.name] = self._piece(header), wanted.reshape(-1).view(np.uint8).data
            self.pieces.append(self._parted[chunk.name][1])
        else:
            self._whole[chunk.name] = self._piece(size)

    def _piece(self, size: int) -> memoryview:
        piece = self._scratch[self._used : self._used + size]
        self._used += size
        self.pieces.append(piece)
        return piece

    def decode(self, name: str, into: np.ndarray) -> bool:
        """Put a column's values where they are wanted; False for a layout that this does not know."""
        if name in self._parted:
            return is_only_page(self._parted[name][0], into)
        return read_only_page(self._whole[name], self._chunks[name].codec, into)

    def parts(self, names: Sequence[str]) -> dict[int, bytes]:
        """The bytes of some columns, by where they begin in the shard."""
        return {
            self._chunks[name].start: b"".join(self._parted[name] if name in self._parted else [self._whole[name]])
            for name in names
        }
