"""Samples as Arrow rows: an id, inputs as tensors, a label where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from storage import tensors
from storage.digest import canonical_json
from storage.errors import SourceError
from storage.names import nearest

SAMPLE_ID, LABEL, INPUTS_XXH3 = "sample_id", "label", "inputs_xxh3"

# Whether a shard holds the inputs of its samples, or a digest of each sample's, by which to know them again.
Inputs = Literal["stored", "referenced"]

INPUTS_XXH3_FIELD = tensors.tensor_field(INPUTS_XXH3, np.dtype(np.uint8), (16,), "xxh3-128 of the row's inputs")

# Rows are hashed out of a block of this size: large enough to fill at once, small enough for a core's own cache.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Columns:
    """Which columns of a source are what.

    sample_id: integers or text, unique in the whole source.
    inputs: the columns that the model takes, in its argument order; None takes all that are left.
    label: integer classes, one a sample or a list of equal length, as of a sequence's positions; None takes
    'label' when there is one; False leaves labels out.
    """

    sample_id: str = SAMPLE_ID
    inputs: tuple[str, ...] | None = None
    label: str | bool | None = None


@dataclass(frozen=True)
class SourceFile:
    name: str
    rows: int


def as_samples(table: pa.Table, columns: Columns, where: str, known: Sequence[str] | None = None) -> pa.Table:
    """Raw rows as samples: sample_id (int64 or string), the inputs as tensors, label if any.

    A label is int64; lists of them are a tensor of int32. known: the names of all columns, where the table
    holds only some of them. Raises SourceError when a column is not there or its values cannot be used.
    """

    there = table.schema.names if known is None else list(known)

    def column(name: str, role: str) -> pa.ChunkedArray:
        if name not in table.schema.names:
            raise SourceError(
                f"{where} has no column '{name}' (asked for as source.columns.{role}).",
                f"Its columns are: {', '.join(there)}.{nearest(name, there)}",
            )
        return table.column(name)

    ids = column(columns.sample_id, "sample_id")
    if ids.null_count or not (tensors.is_text(ids.type) or pa.types.is_integer(ids.type)):
        raise SourceError(
            f"{where}: the sample ids in '{columns.sample_id}' are of type {ids.type} with {ids.null_count} nulls.",
            "Ids are integers or text, without nulls.",
        )
    label_name = LABEL if columns.label is None and LABEL in table.schema.names else columns.label
    labels = None
    if isinstance(label_name, str):
        labels = column(label_name, "label")
        if tensors.is_tensor(table.schema.field(label_name)) or _is_list(labels.type):
            labels = _label_tensors(label_name, labels, table.schema.field(label_name), where)
        elif labels.null_count or not pa.types.is_integer(labels.type):
            raise SourceError(
                f"{where}: the labels in '{label_name}' are of type {labels.type} with {labels.null_count} nulls.",
                "Labels are integers, without nulls.",
                "Leave labels out with source.columns.label=false, or drop the rows without one.",
            )
    taken = {columns.sample_id, LABEL if columns.label is False else label_name}
    inputs = columns.inputs if columns.inputs is not None else [n for n in table.schema.names if n not in taken]
    if len(set(inputs)) < len(inputs):
        raise SourceError(
            f"source.columns.inputs names a column twice: {', '.join(inputs)}.", "Each input is named once."
        )
    if not inputs:
        raise SourceError(f"{where} has no input column.", "A sample has at least one input.")
    id_type = pa.string() if tensors.is_text(ids.type) else pa.int64()
    fields = [pa.field(SAMPLE_ID, id_type, nullable=False)]
    arrays: list[Any] = [_cast(ids, id_type, columns.sample_id, where)]
    for name in inputs:
        if is_own(name):
            raise SourceError(
                f"{where}: an input is named '{name}'.",
                f"'{SAMPLE_ID}', '{LABEL}', '{INPUTS_XXH3}' and names that begin with 'soft_' are the store's own.",
                "Rename the column.",
            )
        raw = column(name, "inputs")
        field, array = tensors.as_tensor_column(name, raw, table.schema.field(name))
        fields.append(field)
        arrays.append(array)
    if isinstance(labels, tuple):
        fields.append(labels[0])
        arrays.append(labels[1])
    elif labels is not None:
        fields.append(pa.field(LABEL, pa.int64(), nullable=False))
        arrays.append(_cast(labels, pa.int64(), str(label_name), where))
    return pa.table(arrays, schema=pa.schema(fields))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _label_tensors(name: str, column: pa.ChunkedArray, field: pa.Field, where: str) -> tuple[pa.Field, pa.Array]:
    """Labels of a sequence's positions, as int32 tensors."""
    try:
        found, array = tensors.as_tensor_column(name, column, field)
        dtype, shape = tensors.form(found)
        if dtype.kind not in "iu":
            raise SourceError(f"They are {dtype.name}.")
    except SourceError as error:
        raise SourceError(
            f"{where}: the labels in '{name}' cannot be used. {error}",
            "Labels are integers without nulls: one a sample, or lists of one length.",
            "Leave labels out with source.columns.label=false, or mend the rows.",
        ) from None
    values = tensors.unpack(array, found)
    limits = np.iinfo(np.int32)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise SourceError(
            f"{where}: the labels in '{name}' reach from {values.min()} to {values.max()}.",
            "Lists of labels fit int32.",
        )
    return tensors.tensor_field(LABEL, np.dtype(np.int32), shape, "label"), tensors.pack(values.astype(np.int32))


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


def inputs_digests(samples: pa.Table) -> np.ndarray[Any, Any]:
    """[P] of dtype V16: the xxh3-128 of each row's inputs, as its canonical (big-endian) bytes.

    The bytes that are hashed are, for each input in the model's argument order, the canonical JSON of
    [name, dtype, shape of a row], and the row's values: little-endian, in C order, a bool as one byte.
    Of a number the shape is []. The id and the label have no part in it.
    """
    rows, pieces = samples.num_rows, list[np.ndarray[Any, Any]]()
    for name in input_names(samples.schema):
        values = tensors.unpack(samples.column(name), samples.schema.field(name))
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        head = canonical_json([name, values.dtype.name, list(values.shape[1:])])
        pieces.append(np.broadcast_to(np.frombuffer(head, np.uint8), (rows, len(head))))
        pieces.append(values.reshape(rows, math.prod(values.shape[1:])).view(np.uint8))
    width = sum(piece.shape[1] for piece in pieces)
    block = np.empty((max(1, min(rows, _BLOCK_BYTES // width)), width), np.uint8)
    data, digests = block.data.cast("B"), bytearray()
    for start in range(0, rows, len(block)):
        count = min(len(block), rows - start)
        np.concatenate([piece[start : start + count] for piece in pieces], axis=1, out=block[:count])
        for at in range(0, count * width, width):
            digests += xxhash.xxh3_128_digest(data[at : at + width])
    return np.frombuffer(digests, "V16")
