"""The columns of a source by what they are: the id, the inputs, the label, and those that are left out, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.samples.columns import LABEL, Columns

PARTITION = "a partition: folders named key=value"
_INDEX = "the index of a pandas data frame"
_WRITERS = "a column that programs write for themselves"

# What pandas, dask and Arrow add begins with two underscores. The others are of Spark, Databricks, Delta Lake and Hudi,
# and of an index that went through CSV.
_WRITERS_OWN = re.compile(
    r"__.*|_corrupt_record|_rescued_data|_metadata|_change_type|_commit_(version|timestamp)|_hoodie_.*|Unnamed: \d.*",
    re.DOTALL,
)


@dataclass(frozen=True)
class Roles:
    """left_out: the reason for each column that is no input unless it is named as one."""

    sample_id: str
    inputs: tuple[str, ...]
    label: str | None
    left_out: dict[str, str]

    @property
    def used(self) -> set[str]:
        return {self.sample_id, *self.inputs, *([] if self.label is None else [self.label])}

    @staticmethod
    def of(
        names: Sequence[str], columns: Columns, index: Container[str] = (), partitions: Container[str] = ()
    ) -> Roles:
        """The roles of columns with these names. index: those that pandas keeps its index in."""
        label = columns.label if isinstance(columns.label, str) else None
        if columns.label is None and LABEL in names:
            label = LABEL
        if columns.inputs is not None:
            return Roles(columns.sample_id, columns.inputs, label, {})
        taken = {columns.sample_id, LABEL if columns.label is False else label}
        rest = [name for name in names if name not in taken]
        left_out = {name: why for name in rest if (why := _reason(name, index, partitions)) is not None}
        return Roles(columns.sample_id, tuple(name for name in rest if name not in left_out), label, left_out)


def is_writers_own(name: str) -> bool:
    """Whether programs write a column of this name for themselves."""
    return _WRITERS_OWN.fullmatch(name) is not None


def pandas_index(schema: pa.Schema) -> list[str]:
    """The names of a data frame's index, by what pandas writes into a schema; a range among them is no column."""
    entries = [entry.get("name") if isinstance(entry, dict) else entry for entry in _index_columns(schema)]
    return [name for name in entries if isinstance(name, str)]


def pandas_ranges(schema: pa.Schema, rows: int) -> dict[str, range]:
    """The values of an index that is a range: pandas writes none of so many rows, but start, stop and step."""
    ranges: dict[str, range] = {}
    for entry in _index_columns(schema):
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"] not in schema.names:
            try:
                values = range(entry["start"], entry["stop"], entry["step"])
            except (KeyError, TypeError, ValueError):
                continue
            # Rows that were taken from a table afterwards keep its metadata.
            if len(values) == rows:
                ranges[entry["name"]] = values
    return ranges


def add_ranges(table: pa.Table, ranges: Mapping[str, range], wanted: Container[str], first: int = 0) -> pa.Table:
    """The table with those ranges that are wanted as columns. first: where in the ranges its rows begin."""
    for name, values in ranges.items():
        if name in wanted:
            part = values[first : first + table.num_rows]
            table = table.append_column(name, pa.array(np.arange(part.start, part.stop, part.step, dtype=np.int64)))
    return table


def _index_columns(schema: pa.Schema) -> list[Any]:
    try:
        entries: Any = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns")
    except (ValueError, AttributeError):
        return []
    return entries if isinstance(entries, list) else []


def _reason(name: str, index: Container[str], partitions: Container[str]) -> str | None:
    if name in partitions:
        return PARTITION
    if name in index or re.fullmatch(r"__index_level_\d+__", name):
        return _INDEX
    return _WRITERS if is_writers_own(name) else None


def described(left_out: dict[str, str]) -> str:
    """
    >>> described({"__index_level_0__": "the index of a pandas data frame"})
    "'__index_level_0__' (the index of a pandas data frame)"
    """
    return ", ".join(f"'{name}' ({why})" for name, why in left_out.items())
