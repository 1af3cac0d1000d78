"""Tensors as Arrow columns: exact there and back, without copies, and refused in sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.errors import SourceError
from storage.samples.tensor_columns import as_tensor_column, is_tensor, pack, tensor_field, unpack

DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]
SHAPES = [(), (1,), (5,), (2, 3), (3, 1, 2)]


def some(dtype: str, shape: tuple[int, ...], rows: int = 7) -> np.ndarray[Any, Any]:
    return (np.arange(rows * int(np.prod(shape, dtype=int))).reshape(rows, *shape) % 11).astype(dtype)


def field_of(values: np.ndarray[Any, Any]) -> pa.Field:
    if values.ndim == 1:
        return pa.field("x", pa.from_numpy_dtype(values.dtype), nullable=False)
    return tensor_field("x", values.dtype, values.shape[1:], "a test")


# Numbers, half floats and booleans are packed in three ways, and a shape of () is a plain column.
@pytest.mark.parametrize(
    "dtype, shape",
    [
        *((dtype, shape) for dtype in ("float16", "int64", "bool") for shape in SHAPES),
        *((dtype, shape) for dtype in DTYPES if dtype not in ("float16", "int64", "bool") for shape in ((), (2, 3))),
    ],
)
def test_what_was_packed_is_unpacked(dtype: str, shape: tuple[int, ...]) -> None:
    values = some(dtype, shape)
    column, field = pack(values), field_of(values)
    assert column.type == field.type
    back = unpack(column, field)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool"])
@pytest.mark.parametrize(
    "shape, start, count",
    [
        *((shape, 2, 3) for shape in SHAPES),
        *((shape, *cut) for shape in ((), (2, 3)) for cut in ((0, 3), (6, 1), (7, 0))),
    ],
)
def test_a_slice_of_a_column_is_that_slice_of_the_rows(
    dtype: str, shape: tuple[int, ...], start: int, count: int
) -> None:
    values = some(dtype, shape)
    back = unpack(pack(values).slice(start, count), field_of(values))
    assert back.shape == (count, *shape)
    np.testing.assert_array_equal(back, values[start : start + count])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 5]])
def test_chunks_are_joined_also_when_they_are_slices(shape: tuple[int, ...], cuts: list[int]) -> None:
    values = some("float32", shape)
    whole = pack(values)
    chunks = [whole.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, 7], strict=True)]
    np.testing.assert_array_equal(unpack(pa.chunked_array(chunks), field_of(values)), values)


def test_a_column_of_no_rows_keeps_the_shape() -> None:
    field = tensor_field("x", np.dtype("float16"), (2, 3), "a test")
    back = unpack(pa.chunked_array([], field.type), field)
    assert (back.shape, back.dtype) == ((0, 2, 3), np.float16)


@pytest.mark.parametrize("offset", [0, 2])
def test_packing_and_unpacking_copy_nothing(offset: int) -> None:
    values = some("float16", (2, 3))
    back = unpack(pa.chunked_array([pack(values).slice(offset)]), field_of(values))
    assert np.shares_memory(back, values)


def test_what_was_unpacked_cannot_be_written_to() -> None:
    """Its memory belongs to Arrow, and to every other view of the same column."""
    for shape in ((), (3,)):
        values = some("float32", shape)
        assert not unpack(pack(values), field_of(values)).flags.writeable


def test_numbers_with_nulls_become_nan() -> None:
    back = unpack(pa.array([1.5, None, 3.0], pa.float32()), pa.field("x", pa.float32()))
    assert back.tolist()[::2] == [1.5, 3.0] and np.isnan(back[1])


def test_unpacking_does_not_import_pandas() -> None:
    """It would take a reader 40 MB."""
    code = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from storage.samples.tensor_columns import unpack\n"
        "for name, kind in (('int64', pa.int64()), ('uint8', pa.uint8()), ('float16', pa.float16())):\n"
        "    data = pa.py_buffer(np.array([1, 2, 3], name))\n"
        "    column = pa.Array.from_buffers(kind, 3, [None, data]).slice(1)\n"
        "    assert unpack(column, pa.field('x', kind)).tolist() == [2, 3]\n"
        "assert 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8"])
def test_big_endian_values_are_stored_little_endian(dtype: str, shape: tuple[int, ...]) -> None:
    values = some("int64", shape).astype(dtype)
    column = pack(values)
    little = values.astype(np.dtype(dtype).newbyteorder("<"))
    assert column.buffers()[1].to_pybytes()[: little.nbytes] == little.tobytes()
    back = unpack(column, field_of(little))
    np.testing.assert_array_equal(back, values)


def test_strides_do_not_matter() -> None:
    values = some("int32", (4, 6))
    for view in (values[::2], values[:, :, ::-1], values.transpose(0, 2, 1), np.asfortranarray(values)):
        np.testing.assert_array_equal(unpack(pack(view), field_of(np.ascontiguousarray(view))), view)


def test_a_tensor_field_says_all_that_a_reader_needs() -> None:
    field = tensor_field("soft_logits", np.dtype("float16"), (3, 2), "what it means")
    assert field.type == pa.binary(12) and not field.nullable
    assert field.metadata == {b"dtype": b"float16", b"shape": b"[3, 2]", b"meaning": b"what it means"}
    assert is_tensor(field)
    assert not is_tensor(pa.field("x", pa.binary(12)))
    assert not is_tensor(pa.field("x", pa.binary(), metadata=field.metadata))


def nested(values: np.ndarray[Any, Any], kinds: list[str]) -> pa.Array:
    """Lists of the given kinds, outermost first."""
    array: pa.Array = pa.array(values.ravel())
    lengths = values.shape[1:]
    for kind, length in zip(reversed(kinds), reversed(lengths), strict=True):
        if kind == "fixed":
            array = pa.FixedSizeListArray.from_arrays(array, length)
        else:
            offsets = np.arange(0, len(array) + 1, length)
            array = (
                pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array)
                if kind == "list"
                else pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), array)
            )
    return array


@pytest.mark.parametrize(
    "dtype, kinds",
    [
        *(("float32", kinds) for kinds in (["list"], ["fixed"], ["large"], ["fixed", "list", "large"])),
        *((dtype, ["list", "fixed"]) for dtype in ("float16", "float32", "uint8", "int64", "bool")),
        ("bool", ["fixed", "list", "large"]),
    ],
)
@pytest.mark.parametrize("cut", [(0, 7), (2, 4)])
def test_nested_lists_become_tensors(dtype: str, kinds: list[str], cut: tuple[int, int]) -> None:
    values = some(dtype, (2, 3, 4)[: len(kinds)])
    array = nested(values, kinds)
    column = pa.chunked_array([array.slice(0, 3), array.slice(3)]).slice(cut[0], cut[1] - cut[0])
    field, packed = as_tensor_column("x", column, pa.field("x", array.type))
    assert field.metadata[b"dtype"].decode() == dtype
    assert json.loads(field.metadata[b"shape"]) == list(values.shape[1:])
    np.testing.assert_array_equal(unpack(packed, field), values[cut[0] : cut[1]])


def test_no_rows_of_fixed_lists_have_the_shape_that_their_type_says() -> None:
    kind = pa.list_(pa.list_(pa.float32(), 3), 2)
    field, packed = as_tensor_column("x", pa.chunked_array([], kind), pa.field("x", kind))
    assert unpack(packed, field).shape == (0, 2, 3)


def test_plain_numbers_stay_plain() -> None:
    field, array = as_tensor_column("n", pa.chunked_array([[1, 2], [3]]), pa.field("n", pa.int64()))
    assert (field, array.to_pylist()) == (pa.field("n", pa.int64(), nullable=False), [1, 2, 3])


def test_a_tensor_column_stays_what_it_is() -> None:
    values = some("float32", (2, 2))
    field, packed = as_tensor_column("x", pa.chunked_array([pack(values[:3]), pack(values[3:])]), field_of(values))
    np.testing.assert_array_equal(unpack(packed, field), values)


two = pa.list_(pa.float32(), 2)
REFUSED = {
    "unequal lists": (pa.array([[1.0, 2.0], [3.0]]), "unequal length"),
    "unequal lists with the right total": (pa.array([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]), "unequal length"),
    "unequal inner lists": (pa.array([[[1.0], [2.0, 3.0]], [[4.0], [5.0, 6.0]]]), "unequal length"),
    "a null number": (pa.array([1.0, None]), "1 nulls"),
    "a null list": (pa.array([[1.0], None]), "1 nulls"),
    "a null in a list": (pa.array([[1.0, None], [2.0, 3.0]]), "nulls inside"),
    "a null in a fixed list": (pa.array([[1.0, None]], two), "nulls inside"),
    "a null list in a list": (pa.array([[[1.0], None], [[2.0], [3.0]]]), "unequal length|null"),
    "a null fixed list in a fixed list": (
        pa.array([[[1.0, 2.0], None], [[1.0, 2.0], [3.0, 4.0]]], pa.list_(two, 2)),
        "null",
    ),
    "one null fixed list in every row": (pa.array([[[1.0, 2.0], None], [[1.0, 2.0], None]], pa.list_(two, 2)), "null"),
    "text": (pa.array(["a"]), "the type string"),
    "lists of text": (pa.array([["a"], ["b"]]), r"the type list<"),
    "bytes without a dtype": (pa.array([b"ab"], pa.binary(2)), "the type fixed_size_binary"),
    "structs": (pa.array([{"a": 1}]), "the type struct"),
    "timestamps": (pa.array([1], pa.timestamp("s")), "the type timestamp"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_tensor_is_refused_with_the_columns_name(what: str) -> None:
    array, found = REFUSED[what]
    with pytest.raises(SourceError, match=rf"^Column 'pixels' .*({found})"):
        as_tensor_column("pixels", pa.chunked_array([array]), pa.field("pixels", array.type))


def test_binary_with_a_dtype_but_without_a_shape_is_refused() -> None:
    field = pa.field("pixels", pa.binary(8), metadata={"dtype": "float32"})
    with pytest.raises(SourceError, match="'pixels'"):
        as_tensor_column("pixels", pa.chunked_array([pa.array([b"12345678"], pa.binary(8))]), field)


def test_binary_whose_width_is_not_its_shape_is_refused() -> None:
    field = pa.field("pixels", pa.binary(8), metadata={"dtype": "float32", "shape": "[3]"})
    with pytest.raises(SourceError, match="'pixels'"):
        as_tensor_column("pixels", pa.chunked_array([pa.array([b"12345678"], pa.binary(8))]), field)
