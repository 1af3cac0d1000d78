"""The bytes of a source's file, read from any place in it: of a compressed file those that it unpacks to.

A compressed file cannot be read from the middle. So each process unpacks one from its start to its end, once, into a
temporary file without a name, which the system removes when the process ends, however it ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from storage.base.errors import SourceError
from storage.objectstore.staging import this_machine
from storage.sources.files.compression import decompress
from storage.sources.files.located import Version

log = logging.getLogger("stillhouse.sources")


class Content(Protocol):
    @property
    def name(self) -> str: ...

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer where the content ends."""
        ...


@dataclass(frozen=True)
class PlainContent:
    fs: Any
    name: str

    def read(self, start: int, size: int) -> bytes:
        with self.fs.open(self.name, "rb") as handle:
            handle.seek(start)
            return handle.read(size)


@dataclass(frozen=True)
class UnpackedContent:
    """What one version of a compressed file unpacks to. Another process that it goes to unpacks it anew."""

    fs: Any
    name: str
    version: Version
    kind: str

    def read(self, start: int, size: int) -> bytes:
        return _unpacked.read(self, start, size)

    def unpack(self) -> Iterator[bytes]:
        with self.fs.open(self.name, "rb") as handle:
            yield from decompress(self.name, handle, self.kind)


@dataclass(frozen=True)
class _Place:
    """Where a file's content lies in a temporary file."""

    descriptor: int
    start: int
    size: int


class _NoSpace(Exception):
    pass


class _Unpacked:
    """The files that this process has unpacked, behind each other in temporary files.

    All are dropped, and unpacked again when they are read, where the next one would have less space than they take.
    """

    def __init__(self) -> None:
        self._places: dict[UnpackedContent, _Place] = {}
        self._descriptors: list[int] = []
        self.after_fork()

    def after_fork(self) -> None:
        """A child reads what its parent has unpacked, and writes to a file of its own."""
        self._lock = threading.Lock()
        # The temporary file that is written to, and its size.
        self._current: int | None = None
        self._end = 0

    def read(self, content: UnpackedContent, start: int, size: int) -> bytes:
        with self._lock:
            place = self._places.get(content) or self._add(content)
            pieces, at = list[bytes](), place.start + start
            stop = min(at + size, place.start + place.size)
            while at < stop and (piece := os.pread(place.descriptor, stop - at, at)):
                pieces.append(piece)
                at += len(piece)
            return b"".join(pieces)

    def _add(self, content: UnpackedContent) -> _Place:
        if sum(place.size for place in self._places.values()) > shutil.disk_usage(tempfile.gettempdir()).free:
            log.warning(
                "Unpacked files take more space than is left in %s. They are dropped, and unpacked again when they are "
                "read. Name a folder with more space in TMPDIR.",
                this_machine(),
            )
            self._drop_all()
        if any((known.fs, known.name) == (content.fs, content.name) for known in self._places):
            self._drop_all()  # of an earlier version, which nobody reads any more
        try:
            return self._write(content)
        except _NoSpace:
            self._drop_all()
        try:
            return self._write(content)
        except _NoSpace as error:
            raise SourceError(
                f"'{content.name}' cannot be unpacked into {this_machine()}: {error}.",
                "A process unpacks a compressed file of a source once, and needs the space for that.",
                "Name a folder with more space in TMPDIR, or unpack the file where it lies.",
            ) from None

    def _write(self, content: UnpackedContent) -> _Place:
        at = self._end
        try:
            for piece in content.unpack():
                at += self._write_piece(piece, at)
        except BaseException:
            if self._current is not None:
                os.truncate(self._current, self._end)
            raise
        place = _Place(-1 if self._current is None else self._current, self._end, at - self._end)
        self._places[content], self._end = place, at
        return place

    def _write_piece(self, piece: bytes, at: int) -> int:
        try:
            if self._current is None:
                self._current, name = tempfile.mkstemp(prefix="stillhouse-unpacked-")
                self._descriptors.append(self._current)
                os.unlink(name)
            done = 0
            while done < len(piece):
                done += os.pwrite(self._current, piece[done:], at + done)
            return done
        except OSError as error:
            raise _NoSpace(f"{error.strerror or error} after {at - self._end:,} bytes") from None

    def _drop_all(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._places.clear()
        self._current, self._end = None, 0


_unpacked = _Unpacked()
os.register_at_fork(after_in_child=_unpacked.after_fork)
