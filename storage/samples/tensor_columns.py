"""How a tensor lies in an Arrow column: one fixed-size binary value a row, its dtype and shape in the field.

A `list<float16>` column reads 4 to 17 times slower than the same bytes as `fixed_size_binary`
(benchmarks, FORMAT.md); so every tensor column is one. Numbers without a shape stay plain columns.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.errors import SourceError

DTYPE, SHAPE, MEANING = b"dtype", b"shape", b"meaning"

# What Arrow and numpy name differently.
_ARROW_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_tensor(field: pa.Field) -> bool:
    return pa.types.is_fixed_size_binary(field.type) and DTYPE in (field.metadata or {})


def form(field: pa.Field) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """dtype and shape of a tensor column's values."""
    return np.dtype(field.metadata[DTYPE].decode()), tuple(json.loads(field.metadata[SHAPE]))


def described(schema: pa.Schema) -> str:
    """Columns for people: a tensor's dtype and shape, which its storage's width does not tell."""
    told = []
    for field in schema:
        dtype, shape = form(field) if is_tensor(field) else (field.type, "")
        told.append(f"{field.name} {dtype}{list(shape) if shape else ''}")
    return ", ".join(told)


def dtype_and_shape(field: pa.Field) -> dict[str, Any]:
    """A column for JSON: {"dtype": "float32", "shape": [28, 28]}; of a number or a text the shape is []."""
    if is_tensor(field):
        dtype, shape = form(field)
        return {"dtype": dtype.name, "shape": list(shape)}
    return {"dtype": "string" if is_text(field.type) else numpy_dtype(field.type).name, "shape": []}


def numpy_dtype(kind: pa.DataType) -> np.dtype[Any]:
    """numpy's dtype of an Arrow number. Arrow's own way would import pandas, which a reader has no other use for."""
    return np.dtype(_ARROW_NAMES.get(str(kind), str(kind)))


def tensor_field(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], meaning: str) -> pa.Field:
    """The Arrow field of a column whose every row is a tensor [*shape] of `dtype`, little-endian."""
    width = dtype.itemsize * math.prod(shape)
    facts = {DTYPE: dtype.name, SHAPE: json.dumps(list(shape)), MEANING: meaning}
    return pa.field(name, pa.binary(width), nullable=False, metadata=facts)


def pack(values: np.ndarray[Any, Any]) -> pa.Array:
    """[P, ...] as an Arrow column of P rows, without a copy when the array is contiguous."""
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    if data.ndim == 1:
        return pa.array(data)
    width = data.dtype.itemsize * math.prod(data.shape[1:])
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(data), [None, pa.py_buffer(data)])


def unpack(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> np.ndarray[Any, Any]:
    """A column as [P, ...]; a view of Arrow's own memory when it lies in one chunk, so read-only."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if is_tensor(field):
        dtype, shape = form(field)
    elif column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_numpy(zero_copy_only=False)
    else:
        dtype, shape = numpy_dtype(column.type), ()
    if not len(column):
        return np.empty((0, *shape), dtype)
    # Arrow's own `to_numpy` imports pandas, which takes 40 MB.
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    values = data.view(dtype).reshape(len(column), *shape)
    values.flags.writeable = False  # the memory is Arrow's, and every other view's
    return values


def as_tensor_column(name: str, column: pa.ChunkedArray, field: pa.Field) -> tuple[pa.Field, pa.Array]:
    """Any numeric column, plain or nested in lists of equal length, as this module stores it.

    Raises SourceError for nulls, for lists of unequal length and for what is not numeric.
    """
    if column.null_count:
        raise SourceError(
            f"Column '{name}' holds {column.null_count} nulls.", "Inputs have no nulls.", "Drop those rows."
        )
    if is_tensor(field):
        _check_width(name, field)
        return field, column.combine_chunks()
    shape: list[int] = []
    flat, kind = column.combine_chunks(), field.type
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = len(flat)
        values = flat.flatten()
        if flat.null_count:
            raise SourceError(
                f"Column '{name}' holds nulls inside its lists.", "Inputs have no nulls.", "Drop those rows."
            )
        fixed = pa.types.is_fixed_size_list(kind)
        length = kind.list_size if fixed else len(values) // rows if rows else 0
        if not fixed and any(n != length for n in flat.value_lengths().unique().to_pylist()):
            raise SourceError(
                f"Column '{name}' holds lists of unequal length.",
                "Every row of an input has one shape.",
                "Pad or cut the rows to one length.",
            )
        shape.append(length)
        flat, kind = values, kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise SourceError(
            f"Column '{name}' has the type {field.type}.",
            "An input is a number, nested lists of numbers, or fixed-size binary with dtype and shape in its metadata.",
            "Leave the column out with source.columns.inputs, or convert it.",
        )
    if flat.null_count:
        raise SourceError(f"Column '{name}' holds nulls inside its lists.", "Inputs have no nulls.", "Drop those rows.")
    array = flat.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    if not shape:
        return pa.field(name, pa.from_numpy_dtype(array.dtype), nullable=False), pa.array(array)
    return tensor_field(name, array.dtype, tuple(shape), "input"), pack(array)


def _check_width(name: str, field: pa.Field) -> None:
    facts = field.metadata
    try:
        dtype, shape = np.dtype(facts[DTYPE].decode()), json.loads(facts[SHAPE])
        width = dtype.itemsize * math.prod(shape)
    except (KeyError, TypeError, ValueError):
        raise SourceError(
            f"Column '{name}' is binary whose metadata gives no dtype and shape.",
            "A tensor's field says both, as in dtype 'float32' and shape '[3, 4]'.",
        ) from None
    if width != field.type.byte_width:
        raise SourceError(
            f"Column '{name}' has values of {field.type.byte_width} bytes.",
            f"{dtype.name} of shape {shape} takes {width}.",
        )
