"""Samples in files of JSON lines behind any fsspec URL: an object a line, its keys the columns.

A compressed file is unpacked first, see `content`. Empty lines hold no row. A column has one type in all of a file,
whichever of its lines are read. Lines are read one by one with Python's own json. pyarrow.json 25 takes a quarter of
the CPU time, but it

* ends the process where the first line is `null`, or where lists are nested 20,000 deep;
* gives [null, 1], [2, null] for [null, null], [1, 2], takes texts that look like dates for dates, and rounds integers
  beyond 64 bits, or beyond 53 bits beside fractions;
* refuses a file for 1e400 in a column that is not wanted, and names no line of the file.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from storage.base.errors import SourceError
from storage.objectstore.filesystem import open_filesystem
from storage.samples.column_roles import Roles, is_writers_own
from storage.samples.columns import Columns
from storage.samples.pieces import concat_samples
from storage.samples.samples import SourceFile, as_samples, sample_ids
from storage.sources.files.compression import COMPRESSED_ENDINGS
from storage.sources.files.file_list import FileList, list_files, root_of
from storage.sources.files.located import Version, inside, reading
from storage.sources.files.partitions import NO_PARTITIONS, Partitions
from storage.sources.json_lines import Lines

KIND = "JSONL"
# Of the files in a folder.
ENDINGS = tuple(f"{plain}{packed}" for packed in ("", *COMPRESSED_ENDINGS) for plain in (".jsonl", ".ndjson"))

_ROWS = 4096  # whose types are looked at together
_REFUSED = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeEncodeError, OverflowError)


@dataclass(frozen=True)
class _File:
    """What is kept of one version of a file.

    keys: of its first line. roles: of its columns. wanted: the keys that are read. types: theirs, once they are known.
    """

    version: Version
    lines: Lines
    keys: list[str]
    roles: Roles
    wanted: list[str]
    types: dict[str, pa.DataType] = field(default_factory=dict[str, pa.DataType])


@dataclass(frozen=True)
class JsonlSource:
    jsonl: str
    columns: Columns = Columns()

    def files(self) -> Sequence[SourceFile]:
        listed = self.__dict__["_listed"] = list_files(self.jsonl, ENDINGS, KIND)
        self.__dict__["_all_partitions"] = Partitions.of(self._root, listed.names)
        return tuple(SourceFile(name, self._rows_of(name)) for name in listed.names)

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return concat_samples(self.pieces(file, start, stop), file.name)

    def pieces(self, file: SourceFile, start: int, stop: int) -> Iterator[pa.Table]:
        partitions = self._partitions(file.name)
        with self._file(file.name) as found:
            names = [*found.keys, *partitions.added(found.keys)]
            while True:
                # Python's objects take many times the bytes of their text, so few lines are objects at a time.
                end = found.lines.together(start, stop) if start < min(stop, len(found.lines)) else start
                yield as_samples(self._rows(found, start, end), self.columns, file.name, names, partitions)
                start = end
                if start >= min(stop, len(found.lines)):
                    return

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        with self._file(file.name) as found:
            return self._rows(found, start, stop)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        name = self.columns.sample_id
        with self._file(file.name) as found:
            table = _table(found, 0, file.rows, [key for key in found.keys if key == name])
            return sample_ids(self._partitions(file.name).add(table, file.name, [name]), self.columns, file.name)

    def left_out(self) -> dict[str, str]:
        left_out: dict[str, str] = {}
        for name in self._listed.names:
            with self._file(name) as found:
                left_out |= found.roles.left_out
        return left_out

    def notes(self) -> list[str]:
        return self._listed.notes

    def stamp(self, file: SourceFile) -> Version:
        fs, _ = open_filesystem(self.jsonl)
        with reading(fs, file.name, KIND) as version:
            return version

    def place_of(self, file: SourceFile) -> str:
        return inside(self._root, file.name)

    def column_names(self, file: SourceFile) -> list[str]:
        with self._file(file.name) as found:
            return [*found.keys, *self._partitions(file.name).added(found.keys)]

    def preprocessing(self) -> None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {"jsonl": self.jsonl, "columns": self.columns.model_dump()}

    @functools.cached_property
    def _listed(self) -> FileList:
        return list_files(self.jsonl, ENDINGS, KIND)

    @contextmanager
    def _file(self, name: str) -> Generator[_File]:
        """The file as it is now: what is kept of it, if it is still the same version."""
        fs, _ = open_filesystem(self.jsonl)
        with reading(fs, name, KIND) as version:
            found = self._known.get(name)
            if found is None or found.version != version:
                lines = Lines.of(fs, name, version)
                found = self._known[name] = self._new_file(version, lines)
            yield found

    def _new_file(self, version: Version, lines: Lines) -> _File:
        keys, partitions = _keys(lines), self._partitions(lines.name)
        roles = Roles.of([*keys, *partitions.added(keys)], self.columns, (), partitions)
        wanted = [key for key in keys if key in roles.used or key in partitions]
        return _File(version, lines, keys, roles, wanted)

    def _rows_of(self, name: str) -> int:
        with self._file(name) as found:
            return len(found.lines)

    def _rows(self, found: _File, start: int, stop: int) -> pa.Table:
        table = _table(found, start, stop, found.wanted, all_of_them=self.columns.inputs is None)
        return self._partitions(found.lines.name).add(table, found.lines.name, found.roles.used)

    def _partitions(self, name: str) -> Partitions:
        # The types of partitions follow from all files, which are listed only where a folder has such a name.
        return self._all_partitions if "=" in inside(self._root, name) else NO_PARTITIONS

    @functools.cached_property
    def _root(self) -> str:
        return root_of(self.jsonl)

    @functools.cached_property
    def _all_partitions(self) -> Partitions:
        return Partitions.of(self._root, self._listed.names)

    @functools.cached_property
    def _known(self) -> dict[str, _File]:
        return {}


def _keys(lines: Lines) -> list[str]:
    """The keys of the first line, which are a file's columns."""
    keys = list(next(lines.objects(0, 1), {}))
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{lines.line(0)} has a key that is no text: {error}.") from None
    return keys


def _table(found: _File, start: int, stop: int, wanted: Sequence[str], all_of_them: bool = False) -> pa.Table:
    """Rows [start, stop) in the wanted columns. all_of_them: a key that the first line has not is an error."""
    values: dict[str, list[Any]] = {key: [] for key in wanted}
    known = set(found.keys)
    rows = 0
    for row, line in enumerate(found.lines.objects(start, stop), start):
        rows += 1
        if all_of_them and (odd := [key for key in line.keys() - known if not is_writers_own(key)]):
            raise SourceError(
                f"{found.lines.line(row)} has the key {min(odd)!r}, which the first line has not.",
                f"The columns of a file are its first line's keys: {', '.join(found.keys)}.",
                "Name those that you want in source.columns.inputs.",
            )
        for key, column in values.items():
            column.append(line.get(key))
    types = _types(found)
    arrays = {
        key: _made(found.lines, key, column, start, functools.partial(pa.array, type=types[key]))
        for key, column in values.items()
    }
    # A table without columns would not know how many rows it has.
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(rows)}).select([])


def _types(found: _File) -> dict[str, pa.DataType]:
    """The type of each wanted column that holds all its values: 1 is a fraction where another line has 0.5.

    All columns are looked at together, since a file is read once for it.
    """
    if not found.types:
        types: dict[str, pa.DataType] = dict.fromkeys(found.wanted, pa.null())
        start, rows = 0, len(found.lines)
        objects = found.lines.objects(0, rows)
        while start < rows:
            some = list(itertools.islice(objects, min(_ROWS, found.lines.together(start, rows) - start)))
            for key, kind in types.items():
                column = [one.get(key) for one in some]
                types[key] = _made(found.lines, key, column, start, functools.partial(_widened, kind))
            start += len(some)
        found.types.update(types)
    return found.types


def _made(lines: Lines, key: str, column: list[Any], start: int, make: Callable[[list[Any]], Any]) -> Any:
    """What `make` makes of a column. Raises SourceError with the first line at which it cannot."""

    def refusal(count: int) -> Exception | None:
        try:
            make(column[:count])
        except _REFUSED as error:
            return error
        return None

    try:
        return make(column)
    except _REFUSED:
        count = bisect.bisect_left(range(len(column)), True, key=lambda count: refusal(count) is not None)
        raise SourceError(
            f"{lines.line(start + count - 1)} has a value of '{key}' that cannot be used: {refusal(count)}.",
            "A column's values are all of one type, as Arrow has it.",
        ) from None


def _widened(known: pa.DataType, column: list[Any]) -> pa.DataType:
    """
    >>> _widened(pa.int64(), [1.5, None]), _widened(pa.null(), [[1], [0.5]])
    (DataType(double), ListType(list<item: double>))
    """
    schemas = [pa.schema({"": kind}) for kind in (known, pa.array(column).type)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
