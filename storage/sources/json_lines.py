"""Where the lines of a file of JSON lines begin, and the objects in them."""

from __future__ import annotations

import codecs
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.base.errors import SourceError
from storage.sources.files.compression import COMPRESSED_ENDINGS, HEAD_BYTES, compression_of
from storage.sources.files.content import Content, PlainContent, UnpackedContent
from storage.sources.files.located import Version

CHUNK = 1 << 23

_NEWLINE, _SPACE = b"\n "


@dataclass(frozen=True)
class Lines:
    """The lines of one version of a file. starts: where each that is not empty begins, and last where the file ends."""

    content: Content
    starts: np.ndarray[Any, Any]

    @staticmethod
    def of(fs: Any, name: str, version: Version) -> Lines:
        with fs.open(name, "rb") as handle:
            kind = compression_of(name, handle.read(HEAD_BYTES))
            if kind is None:
                handle.seek(0)
                chunks = iter(lambda: handle.read(CHUNK), b"")
                return Lines(PlainContent(fs, name), _starts(_refuse_array(name, chunks)))
        content = UnpackedContent(fs, name, version, kind)
        return Lines(content, _starts(_refuse_array(name, _chunks(content))))

    @property
    def name(self) -> str:
        return self.content.name

    def __len__(self) -> int:
        return len(self.starts) - 1

    def objects(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The objects of lines [start, stop). Raises SourceError with the line of one that is broken."""
        stop = min(stop, len(self))
        data, first, last = b"", start, start  # the lines [first, last) that are in memory
        for row in range(start, stop):
            if row == last:
                first, last = row, self.together(row, stop)
                data = self.content.read(int(self.starts[first]), int(self.starts[last] - self.starts[first]))
            line = data[self.starts[row] - self.starts[first] : self.starts[row + 1] - self.starts[first]]
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(
                    f"{self.line(row)} is no JSON: {error}.",
                    "Every line of a JSONL file is a JSON object.",
                    _one_document(self.name, "['KEY']") if row == 0 and line.lstrip().startswith(b"{") else "",
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
        stop = int(self.starts[row])
        before = sum(self.content.read(at, min(CHUNK, stop - at)).count(b"\n") for at in range(0, stop, CHUNK))
        return f"{self.name}, line {before + 1},"


def _chunks(content: Content) -> Iterator[bytes]:
    at = 0
    while data := content.read(at, CHUNK):
        yield data
        at += len(data)


def _refuse_array(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks. Raises SourceError where they begin as a JSON array, before all of it is read as one line."""
    for number, data in enumerate(chunks):
        if number == 0 and data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            raise SourceError(
                f"{name}, line 1, is no JSON object, but begins an array.",
                "Every line of a JSONL file is a JSON object.",
                _one_document(name, ""),
            )
        yield data


def _one_document(name: str, samples: str) -> str:
    """How the list of samples in one JSON document becomes lines. samples: where in the document it is."""
    plain, ending = os.path.splitext(name)
    kind = COMPRESSED_ENDINGS.get(ending)
    lines = f"{os.path.basename(plain if kind is None else os.path.splitext(plain)[0])}-lines.jsonl"
    unpack = "" if kind is None else f"{kind} -dc {shlex.quote(name)} | "
    return (
        f"If it is one JSON document{', with its samples at a key KEY' if samples else ''}, write them as lines: "
        f'{unpack}python -c "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin){samples}]"'
        f"{'' if unpack else f' < {shlex.quote(name)}'} > {shlex.quote(lines)}"
    )


def _starts(chunks: Iterable[bytes]) -> np.ndarray[Any, Any]:
    """
    >>> _starts([b'{}\\n\\n  \\n', b'{', b'}']).tolist()
    [0, 7, 9]
    """
    found, rest, at = list[np.ndarray[Any, Any]](), list[bytes](), 0
    for data in chunks:
        cut = data.rfind(b"\n") + 1
        rest.append(data[:cut] if cut else data)
        if cut:  # joined only here, since a line may be as long as the file
            lines = b"".join(rest)
            found.append(_lines_in(lines) + at)
            at, rest = at + len(lines), [data[cut:]]
    last = b"".join(rest)
    return np.concatenate([*found, _lines_in(last) + at, [at + len(last)]])


def _lines_in(data: bytes) -> np.ndarray[Any, Any]:
    """Where lines begin that are not blank."""
    piece = np.frombuffer(data, np.uint8)
    starts = np.append(0, np.flatnonzero(piece == _NEWLINE) + 1)
    starts = starts[starts < len(piece)]
    # Few lines begin with a blank, and only those are looked at.
    doubtful = np.flatnonzero(piece[starts] <= _SPACE).tolist()
    stops = np.append(starts[1:], len(piece))
    return np.delete(starts, [at for at in doubtful if not data[starts[at] : stops[at]].strip()])
