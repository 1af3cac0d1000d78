"""Samples in files of JSON lines behind any fsspec URL: an object a line, its keys the columns.

Lines are read one by one with Python's own json: pyarrow's reader guesses types block by block (a text that looks
like a date becomes one) and names no line. Empty lines hold no row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.errors import SourceError
from storage.filesystems import open_filesystem
from storage.samples import LABEL, Columns, SourceFile, as_samples
from storage.sources.ids import sample_ids
from storage.sources.located import find, inside, opened, told

KIND, ENDINGS = "JSONL", (".jsonl", ".ndjson")

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_CHUNK = 1 << 23
_NEWLINE, _SPACE = b"\n "


@dataclass(frozen=True)
class JsonlSource:
    jsonl: str
    columns: Columns = Columns()

    def files(self) -> Sequence[SourceFile]:
        opened(self.jsonl)
        endings = (*ENDINGS, *(f"{end}{packed}" for end in ENDINGS for packed in _COMPRESSED))
        names = find(self.jsonl, endings, KIND)
        for name in names:
            if name.endswith(_COMPRESSED):
                raise SourceError(
                    f"'{name}' is compressed.",
                    "Rows are read from the middle of files.",
                    "Unpack it, or make it Parquet.",
                )
        return tuple(SourceFile(name, len(self._lines(name)) - 1) for name in names)

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return as_samples(self.raw(file, start, stop), self.columns, file.name, self._keys(file.name))

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        keys, columns = self._keys(file.name), self.columns
        if columns.inputs is None:
            return self._table(file.name, start, stop, keys, all_of_them=True)
        label = columns.label if isinstance(columns.label, str) else LABEL
        # Columns that are not there are reported by who knows what each was wanted for.
        wanted = [key for key in keys if key in {columns.sample_id, *columns.inputs, label}]
        return self._table(file.name, start, stop, wanted)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        wanted = [name for name in self._keys(file.name) if name == self.columns.sample_id]
        return sample_ids(self._table(file.name, 0, file.rows, wanted), self.columns, file.name)

    def stamp(self, file: SourceFile) -> int:
        fs, _ = open_filesystem(self.jsonl)
        with told(file.name, KIND):
            return fs.size(file.name)

    def place_of(self, file: SourceFile) -> str:
        return inside(self.jsonl, file.name)

    def preprocessing(self) -> None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {"jsonl": self.jsonl, "columns": asdict(self.columns)}

    def _keys(self, name: str) -> list[str]:
        """The keys of the first line, which are a file's columns."""
        return list(next(self._objects(name, 0, 1), {}))

    def _table(self, name: str, start: int, stop: int, wanted: Sequence[str], all_of_them: bool = False) -> pa.Table:
        values: dict[str, list[Any]] = {key: [] for key in wanted}
        for row, found in enumerate(self._objects(name, start, stop), start):
            if all_of_them and (odd := found.keys() - values.keys()):
                raise SourceError(
                    f"{self._line(name, row)} has the key '{min(odd)}', which the first line has not.",
                    f"The columns of a file are its first line's keys: {', '.join(wanted)}.",
                    "Name those that you want in source.columns.inputs.",
                )
            for key, column in values.items():
                column.append(found.get(key))
        return pa.table({key: self._column(name, key, column, start) for key, column in values.items()})

    def _column(self, name: str, key: str, column: list[Any], start: int) -> pa.Array:
        try:
            return pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError):
            for at in range(len(column)):
                try:
                    pa.array([column[0], column[at]])
                except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError, OverflowError) as error:
                    raise SourceError(
                        f"{self._line(name, start + at)}: the value of '{key}' cannot be used: {error}.",
                        "A column's values are all of one type, as Arrow has it.",
                    ) from None
            raise

    def _objects(self, name: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The objects of rows [start, stop). Raises SourceError with the line of one that is broken."""
        lines = self._lines(name)
        stop = min(stop, len(lines) - 1)
        fs, _ = open_filesystem(self.jsonl)
        data, first, last = b"", start, start  # the lines [first, last) that are held
        for row in range(start, stop):
            if row == last:
                first, last = row, min(stop, max(row + 1, int(np.searchsorted(lines, lines[row] + _CHUNK))))
                with told(name, KIND), fs.open(name, "rb") as handle:
                    handle.seek(int(lines[first]))
                    data = handle.read(int(lines[last] - lines[first]))
            line = data[lines[row] - lines[first] : lines[row + 1] - lines[first]]
            try:
                found = json.loads(line)
            except ValueError as error:
                raise SourceError(
                    f"{self._line(name, row)} is no JSON: {error}.", "Every line of a JSONL file is a JSON object."
                ) from None
            if not isinstance(found, dict):
                raise SourceError(
                    f"{self._line(name, row)} is a JSON {type(found).__name__}.",
                    "Every line of a JSONL file is a JSON object.",
                )
            yield found

    def _line(self, name: str, row: int) -> str:
        """A row for people: its file, and the number of its line there, empty ones counted."""
        stop, before = int(self._lines(name)[row]), 0
        fs, _ = open_filesystem(self.jsonl)
        with told(name, KIND), fs.open(name, "rb") as handle:
            while stop > 0 and (data := handle.read(min(_CHUNK, stop))):
                before, stop = before + data.count(b"\n"), stop - len(data)
        return f"{name}, line {before + 1},"

    def _lines(self, name: str) -> np.ndarray[Any, Any]:
        """Where each line that is not empty begins, and last where the file ends."""
        fs, _ = open_filesystem(self.jsonl)
        with told(name, KIND):
            # Another size means another file under the same name; its rows are digested where that matters.
            size = fs.size(name)
            found = self._found.get((name, size))
            if found is None:
                with fs.open(name, "rb") as handle:
                    found = self._found[(name, size)] = _starts(handle, size)
        return found

    @functools.cached_property
    def _found(self) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
        return {}


def _starts(handle: Any, size: int) -> np.ndarray[Any, Any]:
    """
    >>> import io
    >>> _starts(io.BytesIO(b'{}\\n\\n  \\n{}'), 9).tolist()
    [0, 7, 9]
    """
    found, rest, at = list[np.ndarray[Any, Any]](), b"", 0
    while data := handle.read(_CHUNK):
        data = rest + data
        cut = data.rfind(b"\n") + 1
        found.append(_lines_in(data[:cut]) + at)
        at, rest = at + cut, data[cut:]
    return np.concatenate([*found, _lines_in(rest) + at, [size]])


def _lines_in(data: bytes) -> np.ndarray[Any, Any]:
    """Where lines begin that are not blank."""
    piece = np.frombuffer(data, np.uint8)
    starts = np.append(0, np.flatnonzero(piece == _NEWLINE) + 1)
    starts = starts[starts < len(piece)]
    # Few lines begin with a blank, and only those are looked at.
    doubtful = np.flatnonzero(piece[starts] <= _SPACE).tolist()
    stops = np.append(starts[1:], len(piece))
    return np.delete(starts, [at for at in doubtful if not data[starts[at] : stops[at]].strip()])
