"""One plain page put where it is wanted; of anything else it is said that it is none, and never a wrong value."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from storage.format.page_reader import is_only_page, read_only_page
from storage.samples import tensor_columns

ROWS = 50
# As the store writes a column.
OURS: dict[str, Any] = {"use_dictionary": False, "write_statistics": False, "data_page_size": 1 << 30}

DICE = np.random.default_rng(3)
ARRAYS = {
    "int64": DICE.integers(-(2**62), 2**62, ROWS),
    "int32": DICE.integers(-(2**31), 2**31, ROWS).astype(np.int32),
    "float32": DICE.normal(size=ROWS).astype(np.float32),
    "float64": DICE.normal(size=ROWS),
    "float16 [3]": DICE.normal(size=(ROWS, 3)).astype(np.float16),
    "uint8 [2, 2]": DICE.integers(0, 256, (ROWS, 2, 2)).astype(np.uint8),
    "float32 [1, 4]": DICE.normal(size=(ROWS, 1, 4)).astype(np.float32),
    "alike": np.zeros((ROWS, 8), np.int64),
}


def field_of(array: np.ndarray[Any, Any]) -> pa.Field:
    if array.ndim == 1:
        return pa.field("a", pa.from_numpy_dtype(array.dtype), nullable=False)
    return tensor_columns.tensor_field("a", array.dtype, array.shape[1:], "a test")


def chunk_of(column: Any, field: pa.Field, **options: Any) -> tuple[bytes, str]:
    """The bytes of the only column chunk of a table, and its compression."""
    file = io.BytesIO()
    pq.write_table(pa.table([column], schema=pa.schema([field])), file, **{**OURS, **options})
    chunk = pq.read_metadata(file).row_group(0).column(0)
    start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    return file.getvalue()[start : start + chunk.total_compressed_size], chunk.compression


def ours(array: np.ndarray[Any, Any], compression: str = "zstd", **options: Any) -> tuple[bytes, str]:
    return chunk_of(tensor_columns.pack(array), field_of(array), compression=compression, **options)


def read(data: bytes, codec: str, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    out = np.full_like(like, 77)
    told = read_only_page(memoryview(data), codec, out)
    assert told in (True, False)
    return out if told else None


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("checksum", [True, False])
def test_the_pages_that_the_store_writes_are_read_to_the_bit(name: str, compression: str, checksum: bool) -> None:
    array = ARRAYS[name]
    found = read(*ours(array, compression, write_page_checksum=checksum), array)
    assert found is not None and found.tobytes() == array.tobytes()


def test_statistics_in_a_header_are_passed_over() -> None:
    array = ARRAYS["int64"]
    found = read(*ours(array, write_statistics=True), array)
    assert found is not None and found.tobytes() == array.tobytes()


@pytest.mark.parametrize("rows", [0, 1, 2, 300_000])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_any_number_of_rows_is_read(rows: int, compression: str) -> None:
    array = np.arange(rows) * 3
    found = read(*ours(array, compression, **_one_page(rows)), array)
    # pyarrow writes no page for no rows.
    assert found is None if not rows else found is not None and found.tobytes() == array.tobytes()


def _one_page(rows: int) -> dict[str, Any]:
    """A newer pyarrow ends pages at 20,000 rows."""
    told = pq.ParquetWriter.__init__.__code__.co_varnames
    return {"max_rows_per_page": rows + 1} if "max_rows_per_page" in told else {}


def test_values_are_put_into_the_middle_of_a_larger_array() -> None:
    array = ARRAYS["float16 [3]"]
    for compression in ("zstd", "none"):
        whole = np.full((ROWS + 20, 3), 7, np.float16)
        data, codec = ours(array, compression)
        assert read_only_page(memoryview(data), codec, whole[10 : 10 + ROWS])
        assert whole[10 : 10 + ROWS].tobytes() == array.tobytes()
        assert (whole[:10] == 7).all() and (whole[10 + ROWS :] == 7).all()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy"},
        {"compression": "gzip"},
        {"compression": "lz4"},
        {"compression": "brotli"},
        {"data_page_version": "2.0"},
        {"use_dictionary": True},
        {"column_encoding": "DELTA_BINARY_PACKED"},
        {"column_encoding": "BYTE_STREAM_SPLIT"},
        {"data_page_size": 64, "write_batch_size": 8},
    ],
    ids=str,
)
def test_other_layouts_are_none_of_these(options: dict[str, Any]) -> None:
    for name in ("int64", "alike"):
        if not (name == "alike" and "column_encoding" in options):
            assert read(*ours(ARRAYS[name], **{"compression": "zstd", **options}), ARRAYS[name]) is None


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_columns_that_may_be_null_and_have_no_nulls_are_none_of_these(compression: str) -> None:
    field = pa.field("a", pa.int64())
    for rows in (1, 8, 16, 50):
        array = np.arange(rows)
        assert read(*chunk_of(pa.array(array), field, compression=compression), array) is None


@pytest.mark.parametrize(
    "array",
    [np.zeros(ROWS - 1, np.int64), np.zeros(ROWS + 1, np.int64), np.zeros(ROWS, np.int32), np.zeros((ROWS, 2), int)],
    ids=str,
)
def test_a_page_of_other_rows_or_widths_is_none_of_these(array: np.ndarray[Any, Any]) -> None:
    assert read(*ours(ARRAYS["int64"]), array) is None
    assert read(*ours(ARRAYS["int64"], "none"), array) is None


def test_flags_that_are_packed_into_bits_are_none_of_these() -> None:
    flags = ARRAYS["int64"] > 0
    assert read(*chunk_of(pa.array(flags), pa.field("a", pa.bool_(), nullable=False)), flags) is None


def test_small_integers_that_are_stored_wider_are_none_of_these() -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.uint16):
        array = np.arange(ROWS).astype(dtype)
        assert read(*ours(array), array) is None


# Bytes that are no page


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_chunk_that_is_cut_or_goes_on_is_none_of_these(compression: str) -> None:
    array = ARRAYS["float32"]
    data, codec = ours(array, compression)
    for stop in range(len(data)):
        assert read(data[:stop], codec, array) is None
    assert read(data + b"\0", codec, array) is None
    assert read(data + data, codec, array) is None


@pytest.mark.parametrize("seed", range(4))
def test_bytes_drawn_by_chance_are_none_of_these(seed: int) -> None:
    dice = np.random.default_rng(seed)
    for codec in ("ZSTD", "UNCOMPRESSED", "SNAPPY"):
        for _ in range(500):
            data = dice.integers(0, 256, int(dice.integers(0, 60))).astype(np.uint8).tobytes()
            # Headers begin with 0x15; and what comes out should have some chance to be taken for a page.
            assert read(b"\x15" * int(dice.integers(2)) + data, codec, np.zeros(1, np.int8)) is None


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("name", ["float32", "float16 [3]"])
def test_a_changed_header_gives_the_right_values_or_none(compression: str, name: str) -> None:
    """Of a header every byte takes every value: what it says of the values is held against them."""
    array = ARRAYS[name]
    data, codec = ours(array, compression)
    size = len(data) - (array.nbytes if compression == "none" else data[::-1].index(b"\x28\xb5\x2f\xfd"[::-1]) + 4)
    assert 10 < size < 60
    right = 0
    for at in range(size):
        changed = bytearray(data)
        for value in range(256):
            changed[at] = value
            found = read(bytes(changed), codec, array)
            right += found is not None
            assert found is None or found.tobytes() == array.tobytes()
    assert right >= size  # those that were not changed


def test_a_changed_frame_gives_the_right_length_or_none() -> None:
    """What the values are the digest of the range has told; here nothing is raised and no memory overrun."""
    array, dice = ARRAYS["float32"], np.random.default_rng(9)
    data, codec = ours(array)
    start = data.index(b"\x28\xb5\x2f\xfd")
    whole = np.zeros(ROWS + 40, np.float32)
    for _ in range(3000):
        changed = bytearray(data)
        for at in dice.integers(start, len(data), int(dice.integers(1, 4))).tolist():
            changed[at] = int(dice.integers(256))
        assert read_only_page(memoryview(bytes(changed)), codec, whole[20 : 20 + ROWS]) in (True, False)
    assert not whole[:20].any() and not whole[20 + ROWS :].any()


def test_structs_inside_structs_without_end_are_none_of_these() -> None:
    for byte in range(256):
        assert read(bytes([byte]) * 5000, "ZSTD", np.zeros(3)) is None


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def header_of(kind: int, uncompressed: int, compressed: bytes, values: int, encoding: int = 0) -> bytes:
    """A page's header in Thrift's compact protocol; `compressed` is field 3 with its mark."""
    told = [b"\x15", varint(2 * kind), b"\x15", varint(2 * uncompressed), compressed]
    return b"".join([*told, b"\x2c\x15", varint(2 * values), b"\x15", varint(2 * encoding), b"\x15\6\x15\6\0\0"])


def test_a_header_made_by_hand_is_read() -> None:
    head = header_of(0, 40, b"\x15" + varint(80), 5)
    found = read(head + np.arange(5).tobytes(), "UNCOMPRESSED", np.zeros(5, int))
    assert found is not None and found.tolist() == [0, 1, 2, 3, 4]
    assert is_only_page(memoryview(head), np.zeros(5, int))


@pytest.mark.parametrize("size", [0, 1, 39, 41])
def test_a_size_that_is_not_that_of_the_values_is_none_of_these(size: int) -> None:
    """One byte would fill them all."""
    head = header_of(0, 40, b"\x15" + varint(2 * size), 5)
    assert read(head + b"\1" * size, "UNCOMPRESSED", np.zeros(5, int)) is None
    assert read(head + b"\1" * size, "ZSTD", np.zeros(5, int)) is None
    assert not is_only_page(memoryview(head), np.zeros(5, int))


@pytest.mark.parametrize(
    "uncompressed, size, values",
    [(40, 2 * 40 + 1, 5), (40, 2 * 40, 4), (40, 2 * 40, 6), (39, 2 * 40, 5), (41, 2 * 40, 5), (0, 2 * 40, 5)],
    ids=["below zero", "fewer values", "more values", "fewer bytes", "more bytes", "no bytes"],
)
def test_a_header_that_tells_of_other_values_than_follow_is_none_of_these(
    uncompressed: int, size: int, values: int
) -> None:
    numbers = np.arange(5)
    head = header_of(0, uncompressed, b"\x15" + varint(size), values)
    assert read(head + numbers.tobytes(), "UNCOMPRESSED", numbers) is None
    assert not is_only_page(memoryview(head), numbers)
    frame = zstandard.compress(numbers.tobytes())
    head = header_of(0, uncompressed, b"\x15" + varint(size - 80 + 2 * len(frame)), values)
    assert read(head + frame, "ZSTD", numbers) is None


@pytest.mark.parametrize("codec", ["", "SNAPPY", "GZIP", "zstd", "LZ4_RAW"])
def test_a_page_of_another_codec_is_none_of_these(codec: str) -> None:
    """Whatever its bytes look like."""
    for compression in ("zstd", "none"):
        data, _ = ours(ARRAYS["int64"], compression)
        assert read(data, codec, ARRAYS["int64"]) is None


@pytest.mark.parametrize(
    "compressed",
    [b"\x18\x01a", b"\x1c\0", b"\x11", b"\x12", b"\x19\0", b"\x17" + b"\0" * 8, b"\x15" + b"\xff" * 40 + b"\1"],
    ids=["text", "struct", "true", "false", "list", "double", "a large number"],
)
def test_a_size_that_is_no_number_or_no_size_is_none_of_these(compressed: bytes) -> None:
    for values in (b"", b"\1" * 40):
        data = header_of(0, 40, compressed, 5) + values
        assert read(data, "UNCOMPRESSED", np.zeros(5, int)) is None
        assert not is_only_page(memoryview(data), np.zeros(5, int))


def test_a_frame_that_holds_more_or_less_than_its_header_says_is_none_of_these() -> None:
    for count in (0, 1, 39, 41, 1000):
        frame = zstandard.compress(b"\1" * count)
        head = header_of(0, 40, b"\x15" + varint(2 * len(frame)), 5)
        assert read(head + frame, "ZSTD", np.zeros(5, int)) is None


# Headers alone, of values that are not compressed


@pytest.mark.parametrize("name", ARRAYS)
def test_the_header_of_values_that_are_in_place_is_known(name: str) -> None:
    array = ARRAYS[name]
    data, _ = ours(array, "none")
    head = memoryview(data)[: len(data) - array.nbytes]
    assert is_only_page(head, array)
    for wrong in (head[:-1], memoryview(bytes(head) + b"\0"), memoryview(b""), memoryview(data)):
        assert not is_only_page(wrong, array)
    assert not is_only_page(head, array[1:])
    assert not is_only_page(head, np.concatenate([array, array[:1]]))


def test_headers_of_other_pages_are_none_of_these() -> None:
    five = np.zeros(5, int)
    for kind, encoding in ((1, 0), (2, 0), (3, 0), (0, 2), (0, 8), (0, 9)):
        assert not is_only_page(memoryview(header_of(kind, 40, b"\x15" + varint(80), 5, encoding)), five)
    for made in ({"data_page_version": "2.0"}, {"use_dictionary": True}):
        data, _ = ours(ARRAYS["int64"], "none", **made)
        for stop in range(len(data)):
            assert not is_only_page(memoryview(data)[:stop], ARRAYS["int64"])
