"""Arrow's types that say the same in another form, as the plain type: of columns, and of what their lists hold.

Dictionaries, run ends and views are their values. An extension type is its storage, whether this process has
registered it or not; `arrow.fixed_shape_tensor` keeps its shape, and `arrow.bool8` is a boolean.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.base.errors import SourceError

# What a field's metadata says of an extension type that this process has not registered.
_NAME, _FACTS = b"ARROW:extension:name", b"ARROW:extension:metadata"

# What offsets of 32 bits can count.
_SMALL_BYTES = 1 << 31


def plain_table(table: pa.Table) -> pa.Table:
    """The table with plain types; itself, where it has no others. The schema's metadata stay. Raises SourceError."""
    fields: list[pa.Field] = []
    columns: list[Any] = []
    if all(_is_plain(field) for field in table.schema):
        return table
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if not _is_plain(field):
            kept = {k: v for k, v in (field.metadata or {}).items() if k not in (_NAME, _FACTS)}
            made = [_plain(chunk, field) for chunk in column.chunks]
            column = pa.chunked_array(made) if made else pa.chunked_array([_plain(_empty(field.type), field)])
            field = pa.field(field.name, column.type, field.nullable, kept or None)
        fields.append(field)
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields, table.schema.metadata))


def _empty(kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _empty(kind.storage_type))
    return pa.array([], kind)


def _is_plain(field: pa.Field) -> bool:
    kind = field.type
    if _is_any_list(kind):
        return not _is_view(kind) and _is_plain(kind.value_field) and _extension(field) is None
    return _extension(field) is None and not (
        pa.types.is_dictionary(kind)
        or pa.types.is_run_end_encoded(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary_view(kind)
    )


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)


def _is_any_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists or _is_view(kind)


def _extension(field: pa.Field) -> str | None:
    """The name of a field's extension type, registered or not."""
    if isinstance(field.type, pa.BaseExtensionType):
        return field.type.extension_name
    name = (field.metadata or {}).get(_NAME)
    return None if name is None else name.decode()


def _plain(array: pa.Array, field: pa.Field) -> pa.Array:
    """An array of a field's type, without its extension and with plain types inside."""
    name, kind = _extension(field), field.type
    if name is not None:
        storage: Any = array.storage if isinstance(array, pa.ExtensionArray) else array
        if name == "arrow.fixed_shape_tensor" and pa.types.is_fixed_size_list(storage.type):
            return _tensors(storage, *_tensor_facts(field))
        values = _plain(storage, pa.field("", storage.type))
        return values.cast(pa.bool_()) if name == "arrow.bool8" and pa.types.is_int8(values.type) else values
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode(), pa.field("", kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array), pa.field("", kind.value_type))
    if pa.types.is_string_view(kind):
        return array.cast(pa.string() if array.nbytes < _SMALL_BYTES else pa.large_string())
    if pa.types.is_binary_view(kind):
        return array.cast(pa.binary() if array.nbytes < _SMALL_BYTES else pa.large_binary())
    if _is_any_list(kind) and not _is_plain(field):
        return _lists(array, kind)
    return array


def _lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    mask = array.is_null() if array.null_count else None
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(_plain(values, kind.value_field), kind.list_size, mask=mask)
    # `flatten` gives the values of a slice, of views in any order and without what lies below nulls.
    values = _plain(array.flatten(), kind.value_field)
    lengths = np.asarray(array.value_lengths().fill_null(0))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if starts[-1] < _SMALL_BYTES:
        return pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), values, mask=mask)
    return pa.LargeListArray.from_arrays(pa.array(starts), values, mask=mask)


def _tensor_facts(field: pa.Field) -> tuple[list[int], list[int]]:
    """The shape of a tensor's values as they lie, and the permutation of its dimensions (see Arrow's format)."""
    if isinstance(field.type, pa.FixedShapeTensorType):
        shape, permutation = list(field.type.shape), field.type.permutation
    else:
        facts = json.loads((field.metadata or {}).get(_FACTS, b"{}") or b"{}")
        shape, permutation = facts.get("shape", [field.type.list_size]), facts.get("permutation")
    order = list(permutation or range(len(shape)))
    if [order[at] for at in order] != list(range(len(shape))):
        raise SourceError(
            f"Column '{field.name}' holds tensors of shape {shape} with the permutation {order}.",
            "pyarrow writes such a permutation the other way round than Arrow's format says: it has two meanings.",
            "Write the tensors as they lie in memory (numpy.ascontiguousarray), without a permutation.",
        )
    return shape, order


def _tensors(storage: pa.Array, shape: list[int], permutation: list[int]) -> pa.Array:
    """Tensors of one shape as nested lists, their dimensions permuted."""
    mask = storage.is_null() if storage.null_count else None
    size = math.prod(shape)
    values = storage.values.slice(storage.offset * size, len(storage) * size)
    if permutation != list(range(len(shape))):
        order = np.arange(size).reshape(shape).transpose(permutation).ravel()
        rows = np.arange(len(storage))[:, None] * size
        values = values.take(pa.array((rows + order[None]).ravel()))
    lengths = [shape[at] for at in permutation] or [1]
    for length in reversed(lengths[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return pa.FixedSizeListArray.from_arrays(values, lengths[0], mask=mask)
