"""Samples in files of JSON lines behind any fsspec URL: an object a line, its keys the columns.

Lines are read one by one with Python's own json: pyarrow's reader guesses types block by block (a text that looks
like a date becomes one) and names no line. Empty lines hold no row. A column has one type in all of a file, whichever
of its lines are read.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
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
_ROWS = 4096  # whose types are looked at together
_REFUSED = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeEncodeError, OverflowError)
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
        return self._table(file.name, start, stop, self._wanted(file.name), all_of_them=self.columns.inputs is None)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        wanted = [name for name in self._keys(file.name) if name == self.columns.sample_id]
        return sample_ids(self._table(file.name, 0, file.rows, wanted), self.columns, file.name)

    def stamp(self, file: SourceFile) -> int:
        return self._size(file.name)

    def place_of(self, file: SourceFile) -> str:
        return inside(self.jsonl, file.name)

    def preprocessing(self) -> None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {"jsonl": self.jsonl, "columns": asdict(self.columns)}

    def _wanted(self, name: str) -> list[str]:
        keys, columns = self._keys(name), self.columns
        if columns.inputs is None:
            return keys
        label = columns.label if isinstance(columns.label, str) else LABEL
        # Columns that are not there are reported by who knows what each was wanted for.
        return [key for key in keys if key in {columns.sample_id, *columns.inputs, label}]

    def _keys(self, name: str) -> list[str]:
        """The keys of the first line, which are a file's columns."""
        keys = list(next(self._objects(name, 0, 1), {}))
        for key in keys:
            try:
                key.encode()
            except UnicodeEncodeError as error:
                raise SourceError(f"{self._line(name, 0)} has a key that is no text: {error}.") from None
        return keys

    def _table(self, name: str, start: int, stop: int, wanted: Sequence[str], all_of_them: bool = False) -> pa.Table:
        values: dict[str, list[Any]] = {key: [] for key in wanted}
        for row, found in enumerate(self._objects(name, start, stop), start):
            if all_of_them and (odd := found.keys() - values.keys()):
                raise SourceError(
                    f"{self._line(name, row)} has the key {min(odd)!r}, which the first line has not.",
                    f"The columns of a file are its first line's keys: {', '.join(wanted)}.",
                    "Name those that you want in source.columns.inputs.",
                )
            for key, column in values.items():
                column.append(found.get(key))
        types = self._types(name)
        return pa.table(
            {
                key: self._made(name, key, column, start, functools.partial(pa.array, type=types[key]))
                for key, column in values.items()
            }
        )

    def _types(self, name: str) -> dict[str, pa.DataType]:
        """The type of each wanted column that holds all its values: 1 is a fraction where another line has 0.5.

        All columns are looked at together, since a file is read once for it.
        """
        lines, size = self._lines(name), self._size(name)
        found = self._typed.get((name, size))
        if found is None:
            types = dict.fromkeys(self._wanted(name), pa.null())
            start, rows = 0, len(lines) - 1
            objects = self._objects(name, 0, rows)
            while start < rows:
                some = list(itertools.islice(objects, min(_ROWS, _held(lines, start, rows) - start)))
                for key, kind in types.items():
                    column = [one.get(key) for one in some]
                    types[key] = self._made(name, key, column, start, functools.partial(_widened, kind))
                start += len(some)
            found = self._typed[(name, size)] = types
        return found

    def _made(self, name: str, key: str, column: list[Any], start: int, make: Callable[[list[Any]], Any]) -> Any:
        """What `make` makes of a column. Raises SourceError with the first line at which it cannot."""
        try:
            return make(column)
        except _REFUSED:
            good, bad = 0, len(column)  # so many values can be used, and so many cannot
            while bad - good > 1:
                middle = (good + bad) // 2
                try:
                    make(column[:middle])
                    good = middle
                except _REFUSED:
                    bad = middle
            try:
                return make(column[:bad])
            except _REFUSED as error:
                raise SourceError(
                    f"{self._line(name, start + good)} has a value of '{key}' that cannot be used: {error}.",
                    "A column's values are all of one type, as Arrow has it.",
                ) from None

    def _objects(self, name: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The objects of rows [start, stop). Raises SourceError with the line of one that is broken."""
        lines = self._lines(name)
        stop = min(stop, len(lines) - 1)
        fs, _ = open_filesystem(self.jsonl)
        data, first, last = b"", start, start  # the lines [first, last) that are held
        for row in range(start, stop):
            if row == last:
                first, last = row, _held(lines, row, stop)
                with told(name, KIND), fs.open(name, "rb") as handle:
                    handle.seek(int(lines[first]))
                    data = handle.read(int(lines[last] - lines[first]))
            line = data[lines[row] - lines[first] : lines[row + 1] - lines[first]]
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
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
        # Another size means another file under the same name; its rows are digested where that matters.
        size = self._size(name)
        found = self._found.get((name, size))
        if found is None:
            fs, _ = open_filesystem(self.jsonl)
            with told(name, KIND), fs.open(name, "rb") as handle:
                found = self._found[(name, size)] = _starts(handle, size)
        return found

    def _size(self, name: str) -> int:
        fs, _ = open_filesystem(self.jsonl)
        with told(name, KIND):
            return fs.size(name)

    @functools.cached_property
    def _typed(self) -> dict[tuple[str, int], dict[str, pa.DataType]]:
        return {}

    @functools.cached_property
    def _found(self) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
        return {}


def _widened(known: pa.DataType, column: list[Any]) -> pa.DataType:
    """
    >>> _widened(pa.int64(), [1.5, None]), _widened(pa.null(), [[1], [0.5]])
    (DataType(double), ListType(list<item: double>))
    """
    schemas = [pa.schema({"": kind}) for kind in (known, pa.array(column).type)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _held(lines: np.ndarray[Any, Any], row: int, stop: int) -> int:
    """Where the lines from `row` on end that are held in memory together."""
    return min(stop, max(row + 1, int(np.searchsorted(lines, lines[row] + _CHUNK))))


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
