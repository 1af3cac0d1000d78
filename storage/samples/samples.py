"""Samples as Arrow rows: an id, inputs as tensors, a label where there is one."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.base.errors import SourceError
from storage.base.names import nearest
from storage.samples import tensor_columns
from storage.samples.arrow_types import plain_table
from storage.samples.column_roles import Roles, described, pandas_index
from storage.samples.columns import LABEL, SAMPLE_ID, Columns

INPUTS_XXH3 = "inputs_xxh3"

# Whether a shard holds the inputs of its samples, or a digest of each sample's, by which to know them again.
Inputs = Literal["stored", "referenced"]


@dataclass(frozen=True)
class SourceFile:
    """skipped_documents: of packed documents, how many have no tokens and became no part of a row."""

    name: str
    rows: int
    skipped_documents: int = 0


def as_samples(
    table: pa.Table,
    columns: Columns,
    where: str,
    known: Sequence[str] | None = None,
    partitions: Container[str] = (),
) -> pa.Table:
    """Raw rows as samples: sample_id (int64 or string), the inputs as tensors, label if any.

    A label is int64; lists of them are a tensor of int32. known: the names of all columns, where the table
    holds only some of them. partitions: those that are said by folders. Raises SourceError when a column is not
    there or its values cannot be used.
    """
    table = plain_table(table)
    there = table.schema.names if known is None else list(known)
    roles = Roles.of(table.schema.names, columns, pandas_index(table.schema), partitions)

    def column(name: str, role: str) -> pa.ChunkedArray:
        if name not in table.schema.names:
            raise SourceError(
                f"{where} has no column '{name}' (asked for as source.columns.{role}).",
                f"Its columns are: {', '.join(there)}.{nearest(name, there)}",
            )
        return table.column(name)

    ids = _ids(column(roles.sample_id, "sample_id"), roles.sample_id, where)
    labels = None
    if roles.label is not None:
        found = column(roles.label, "label")
        labels = _labels(roles.label, found, table.schema.field(roles.label), where)
    _refuse_names(roles, columns, where, there, pandas_index(table.schema), partitions)
    fields = [pa.field(SAMPLE_ID, ids.type, nullable=False)]
    arrays: list[Any] = [ids]
    for name in roles.inputs:
        raw = column(name, "inputs")
        field, array = tensor_columns.as_tensor_column(name, raw, table.schema.field(name))
        fields.append(field)
        arrays.append(array)
    if labels is not None:
        fields.append(labels[0])
        arrays.append(labels[1])
    return pa.table(arrays, schema=pa.schema(fields))


def sample_ids(table: pa.Table, columns: Columns, where: str) -> pa.ChunkedArray:
    """The id column of raw rows, as `as_samples` gives it: int64 or string. Raises SourceError."""
    name = columns.sample_id
    if name not in table.column_names:
        raise SourceError(
            f"{where} has no column '{name}' (asked for as source.columns.sample_id).", "Every sample has an id."
        )
    return _ids(plain_table(table.select([name])).column(0), name, where)


def _ids(ids: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    if ids.null_count or not (tensor_columns.is_text(ids.type) or pa.types.is_integer(ids.type)):
        raise SourceError(
            f"{where}: the sample ids in '{name}' are of type {ids.type} with {ids.null_count} nulls.",
            "Ids are integers or text, without nulls.",
        )
    return _cast(ids, pa.string() if tensor_columns.is_text(ids.type) else pa.int64(), name, where)


def _labels(name: str, labels: pa.ChunkedArray, field: pa.Field, where: str) -> tuple[pa.Field, Any]:
    """The field and the values of the labels: int64, or tensors of int32. A boolean is 0 or 1."""
    if tensor_columns.is_tensor(field) or _is_list(labels.type):
        return _label_tensors(name, labels, field, where)
    if labels.null_count or not (pa.types.is_integer(labels.type) or pa.types.is_boolean(labels.type)):
        raise SourceError(
            f"{where}: the labels in '{name}' are of type {labels.type} with {labels.null_count} nulls.",
            "Labels are integers, without nulls.",
            "Leave labels out with source.columns.label=false, or drop the rows without one.",
        )
    return pa.field(LABEL, pa.int64(), nullable=False), _cast(labels, pa.int64(), name, where)


def _refuse_names(
    roles: Roles,
    columns: Columns,
    where: str,
    there: Sequence[str],
    index: Container[str],
    partitions: Container[str],
) -> None:
    """Raises SourceError for inputs that are none, twice the same, or named as the store's own columns."""
    if len(set(roles.inputs)) < len(roles.inputs):
        raise SourceError(
            f"source.columns.inputs names a column twice: {', '.join(roles.inputs)}.", "Each input is named once."
        )
    if not roles.inputs:
        left_out = Roles.of(there, columns, index, partitions).left_out
        raise SourceError(
            f"{where} has no input column.",
            "A sample has at least one input.",
            f"Left out are {described(left_out)}; name what is an input in source.columns.inputs." if left_out else "",
        )
    for name in filter(is_own, roles.inputs):
        raise SourceError(
            f"{where}: an input is named '{name}'.",
            f"'{SAMPLE_ID}', '{LABEL}', '{INPUTS_XXH3}' and names that begin with 'soft_' are the store's own.",
            "Rename the column.",
        )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _label_tensors(name: str, column: pa.ChunkedArray, field: pa.Field, where: str) -> tuple[pa.Field, pa.Array]:
    """Labels of a sequence's positions, as int32 tensors."""
    try:
        found, array = tensor_columns.as_tensor_column(name, column, field)
        dtype, shape = tensor_columns.form(found)
        if dtype.kind not in "iub":
            raise SourceError(f"They are {dtype.name}.")
    except SourceError as error:
        raise SourceError(
            f"{where}: the labels in '{name}' cannot be used. {error}",
            "Labels are integers without nulls: one a sample, or lists of one length.",
            "Leave labels out with source.columns.label=false, or mend the rows.",
        ) from None
    values = tensor_columns.unpack(array, found)
    limits = np.iinfo(np.int32)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise SourceError(
            f"{where}: the labels in '{name}' reach from {values.min()} to {values.max()}.",
            "Lists of labels fit int32.",
        )
    return tensor_columns.tensor_field(LABEL, np.dtype(np.int32), shape, "label"), tensor_columns.pack(
        values.astype(np.int32)
    )


def refuse_duplicates(ids: Sequence[pa.Array]) -> None:
    """Raises SourceError, with the ids, when some sample ids of a source appear more than once."""
    counted = pc.value_counts(pa.chunked_array(ids))
    often = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(often):
        names = ", ".join(f"'{row['values']}' ({row['counts']} times)" for row in often[:3].to_pylist())
        raise SourceError(
            f"{len(often)} sample ids appear more than once: {names}{' ...' if len(often) > 3 else ''}.",
            "A sample id is unique in its source.",
        )


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{where}: the column '{name}' does not fit {kind}: {error}.") from None


def input_names(schema: pa.Schema) -> list[str]:
    """The inputs of a table that `as_samples` made, or of a shard, in the model's argument order."""
    return [name for name in schema.names if not is_own(name)]


def is_own(name: str) -> bool:
    """Whether a column is the store's, and so no input."""
    return name in (SAMPLE_ID, LABEL, INPUTS_XXH3) or name.startswith("soft_")


def kept_columns(schema: pa.Schema, inputs: Inputs) -> pa.Schema:
    """The columns of samples that a shard holds: all of them, or all but the inputs."""
    left_out = input_names(schema) if inputs == "referenced" else []
    return pa.schema([field for field in schema if field.name not in left_out])
