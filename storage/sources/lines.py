"""Where the lines of a file of JSON lines begin, and the objects in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import SourceError

CHUNK = 1 << 23

_NEWLINE, _SPACE = b"\n "


@dataclass(frozen=True)
class Lines:
    """The lines of one version of a file. starts: where each that is not empty begins, and last where the file ends."""

    fs: Any
    name: str
    starts: np.ndarray[Any, Any]

    @staticmethod
    def of(fs: Any, name: str) -> Lines:
        with fs.open(name, "rb") as handle:
            return Lines(fs, name, _starts(handle))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def objects(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The objects of lines [start, stop). Raises SourceError with the line of one that is broken."""
        stop = min(stop, len(self))
        data, first, last = b"", start, start  # the lines [first, last) that are in memory
        for row in range(start, stop):
            if row == last:
                first, last = row, self.together(row, stop)
                with self.fs.open(self.name, "rb") as handle:
                    handle.seek(int(self.starts[first]))
                    data = handle.read(int(self.starts[last] - self.starts[first]))
            line = data[self.starts[row] - self.starts[first] : self.starts[row + 1] - self.starts[first]]
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{self.line(row)} is no JSON: {error}.", "Every line of a JSONL file is a JSON object."
                ) from None
            if not isinstance(found, dict):
                raise SourceError(
                    f"{self.line(row)} is a JSON {type(found).__name__}.",
                    "Every line of a JSONL file is a JSON object.",
                )
            yield found

    def together(self, row: int, stop: int) -> int:
        """Where the lines from `row` on end that are in memory together."""
        return min(stop, max(row + 1, int(np.searchsorted(self.starts, self.starts[row] + CHUNK))))

    def line(self, row: int) -> str:
        """A row for people: its file, and the number of its line there, empty ones counted."""
        stop, before = int(self.starts[row]), 0
        with self.fs.open(self.name, "rb") as handle:
            while stop > 0 and (data := handle.read(min(CHUNK, stop))):
                before, stop = before + data.count(b"\n"), stop - len(data)
        return f"{self.name}, line {before + 1},"


def _starts(handle: Any) -> np.ndarray[Any, Any]:
    """
    >>> import io
    >>> _starts(io.BytesIO(b'{}\\n\\n  \\n{}')).tolist()
    [0, 7, 9]
    """
    found, rest, at = list[np.ndarray[Any, Any]](), b"", 0
    while data := handle.read(CHUNK):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        found.append(_lines_in(data[:cut]) + at)
        at, rest = at + cut, data[cut:]
    return np.concatenate([*found, _lines_in(rest) + at, [at + len(rest)]])


def _lines_in(data: bytes) -> np.ndarray[Any, Any]:
    """Where lines begin that are not blank."""
    piece = np.frombuffer(data, np.uint8)
    starts = np.append(0, np.flatnonzero(piece == _NEWLINE) + 1)
    starts = starts[starts < len(piece)]
    # Few lines begin with a blank, and only those are looked at.
    doubtful = np.flatnonzero(piece[starts] <= _SPACE).tolist()
    stops = np.append(starts[1:], len(piece))
    return np.delete(starts, [at for at in doubtful if not data[starts[at] : stops[at]].strip()])
