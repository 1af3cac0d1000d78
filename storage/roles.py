"""Which columns of a source are the id, the inputs and the label, and which are left out, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SAMPLE_ID, LABEL = "sample_id", "label"

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
class Columns:
    """Which columns of a source are what.

    sample_id: integers or text, unique in the whole source.
    inputs: the columns that the model takes, in its argument order; None takes all that are left, but for what
    programs write for themselves, as an index of pandas, and for partitions.
    label: integer classes, one a sample or a list of equal length, as of a sequence's positions; None takes
    'label' when there is one; False leaves labels out.
    """

    sample_id: str = SAMPLE_ID
    inputs: tuple[str, ...] | None = None
    label: str | bool | None = None


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
    """The columns that hold the index of a data frame, by what pandas writes into a schema."""
    try:
        facts: Any = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        # A range is no column but a mapping.
        return [name for name in facts.get("index_columns", []) if isinstance(name, str)]
    except (ValueError, AttributeError, TypeError):
        return []


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
