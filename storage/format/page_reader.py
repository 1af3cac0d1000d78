"""The values of a Parquet column chunk straight out of its only page, put where they are wanted.

pyarrow decompresses a page, copies it into a builder and gives a new array: of a row group of 16 MiB
that takes twice as long as decompressing it into memory that is there already. What follows knows
one layout, which is the one that `storage.format.shard` writes: a chunk of one version 1 data page of PLAIN
values of fixed width, without nulls. Of any other it says so, and pyarrow reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard

# Of parquet.thrift: PageType, Encoding, and the fields of PageHeader and DataPageHeader that are read here.
_DATA_PAGE, _PLAIN = 0, 0
_TYPE, _UNCOMPRESSED, _COMPRESSED, _DATA_PAGE_HEADER = 1, 2, 3, 5
_NUM_VALUES, _ENCODING = 1, 2

# Of Thrift's compact protocol: the kinds of a field.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64 = range(1, 7)
_BINARY, _STRUCT = 8, 12


def read_only_page(chunk: memoryview, codec: str, out: np.ndarray[Any, Any]) -> bool:
    """Put the values of a column chunk into `out` [rows, ...], contiguous; False where it is laid out otherwise.

    codec: what Parquet calls the chunk's compression. The chunk's bytes were checked before, and its column
    has no nulls by its schema: no header tells. `out` may have been written to when False is returned.
    """
    told = _only_page(chunk, out)
    if told is None or sum(told) != len(chunk):
        return False
    values = chunk[told[0] :]
    if not out.nbytes:
        return True
    into = out.reshape(-1).view(np.uint8)
    if codec == "UNCOMPRESSED" and len(values) == len(into):
        into[:] = np.frombuffer(values, np.uint8)
        return True
    return codec == "ZSTD" and _decompress(values, into)


def is_only_page(header: memoryview, values: np.ndarray[Any, Any]) -> bool:
    """Whether some bytes are all of the header of such a page whose values, not compressed, are as many as these."""
    return _only_page(header, values) == (len(header), values.nbytes)


def _only_page(chunk: memoryview, out: np.ndarray[Any, Any]) -> tuple[int, int] | None:
    """The bytes of the header of a page that holds the values of `out`, and those of its values; None for others."""
    try:
        header, size = _struct(chunk, 0)
        page = header[_DATA_PAGE_HEADER]
        plain = header[_TYPE] == _DATA_PAGE and page[_ENCODING] == _PLAIN and page[_NUM_VALUES] == len(out)
        stop = size + header[_COMPRESSED]
    except (IndexError, KeyError, TypeError, RecursionError):
        return None
    return (size, stop - size) if plain and header[_UNCOMPRESSED] == out.nbytes else None


def _decompress(values: memoryview, into: np.ndarray[Any, Any]) -> bool:
    place, filled = into.data, 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(values) as reader:
            while filled < len(place):
                count = reader.readinto(place[filled:])
                if not count:
                    return False
                filled += count
            return not reader.read(1)
    except zstandard.ZstdError:
        return False


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol as {field id: value}, and where it ends."""
    fields: dict[int, Any] = {}
    last = 0
    while True:
        mark = data[at]
        at += 1
        if not mark:
            return fields, at
        kind, step = mark & 15, mark >> 4
        if step:
            last += step
        else:
            last, at = _zigzag(data, at)
        fields[last], at = _value(data, at, kind)


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _BYTE:
        return data[at], at + 1
    if kind in (_I16, _I32, _I64):
        return _zigzag(data, at)
    if kind == _BINARY:
        size, at = _varint(data, at)
        return bytes(data[at : at + size]), at + size
    if kind == _STRUCT:
        return _struct(data, at)
    # A page's header holds no other kind; whatever does is nothing that is read here.
    raise TypeError(f"kind {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
