"""Columns that folders say: `year=2024/label=3/part.parquet` has a year and a label."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from storage.base.errors import SourceError
from storage.sources.files.located import inside

# What Hive, Spark and Arrow write for a null.
_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Partitions:
    """values: of each file, what its folders say. types: of each key, int64 if all files' values are integers."""

    values: dict[str, dict[str, str | None]]
    types: dict[str, pa.DataType]

    @staticmethod
    def of(root: str, names: Sequence[str]) -> Partitions:
        """The partitions of all files of a source, which lie below `root`.

        Raises SourceError when the files have not the same keys.
        """
        values = {name: _values(inside(root, name)) for name in names}
        keys = list(values[names[0]]) if names else []
        for name, found in values.items():
            if found.keys() != set(keys):
                raise SourceError(
                    f"'{name}' lies below {_shown(found)}, and '{names[0]}' below {_shown(keys)}.",
                    "Folders named key=value are columns, which all files of a source have.",
                    "Name the files that belong together by a pattern, or rename the folders.",
                )
        return Partitions(values, {key: _type([found[key] for found in values.values()]) for key in keys})

    def __contains__(self, key: object) -> bool:
        return key in self.types

    def added(self, names: Collection[str]) -> list[str]:
        """The keys that are no columns of a file with these names."""
        return [key for key in self.types if key not in names]

    def add(self, table: pa.Table, name: str, wanted: Collection[str] | None = None) -> pa.Table:
        """The rows of a file with those of its partitions that are wanted.

        Raises SourceError when a column of the file with a partition's name has another value.
        """
        for key, text in self.values[name].items() if self.types else ():
            if key in table.column_names:
                _compare(table.column(key), key, text, name)
            elif wanted is None or key in wanted:
                kind = self.types[key]
                value = pa.scalar(None if text is None else int(text) if kind == pa.int64() else text, kind)
                # A table without columns would forget how many rows it has.
                table = table.append_column(key, pa.repeat(value, table.num_rows))
        return table


NO_PARTITIONS = Partitions({}, {})


def _values(path: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        key, sign, text = folder.partition("=")
        if not sign or not key:
            continue
        key = unquote(key)
        if key in found:
            raise SourceError(f"'{path}' lies below two folders of the key '{key}'.", "A column has one value a row.")
        found[key] = None if text == _NULL else unquote(text)
    return found


def _type(texts: Sequence[str | None]) -> pa.DataType:
    return pa.int64() if all(text is None or _is_integer(text) for text in texts) else pa.string()


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 30 and -(2**63) <= int(text) < 2**63


def _compare(column: pa.ChunkedArray, key: str, text: str | None, name: str) -> None:
    try:
        value = pa.scalar(text, pa.string()).cast(column.type).as_py()
        others = [found for found in column.unique().to_pylist() if found != value]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        others = column.slice(0, 1).to_pylist()
    if others:
        raise SourceError(
            f"'{name}' has the column '{key}' with the value {others[0]!r}, and lies in the folder {key}={text}.",
            "A column that is also a partition has the folder's value.",
            "Rename the column or the folder.",
        )


def _shown(keys: Collection[str]) -> str:
    return ", ".join(f"{key}=..." for key in keys) or "no folder named key=value"
