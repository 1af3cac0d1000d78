"""Names made from content: canonical JSON, sha256 of values and files, xxh3 of byte ranges."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from storage import tensors


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_of(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(file: BinaryIO, chunk: int = 1 << 22) -> str:
    """sha256, in hex, of everything from the file's place to its end."""
    digest = hashlib.sha256()
    while data := file.read(chunk):
        digest.update(data)
    return digest.hexdigest()


def range_digest(data: bytes | memoryview) -> str:
    """xxh3-128, in hex, of one byte range: it finds damage, it is no defence against an attacker."""
    return xxhash.xxh3_128_hexdigest(data)


def pieces_digests(pieces: Iterable[memoryview], sizes: Iterable[int]) -> list[str]:
    """The `range_digest` of each of some ranges that follow one another, of bytes that lie in several pieces."""
    digests: list[str] = []
    left = deque(pieces)
    for size in sizes:
        digest = xxhash.xxh3_128()
        while size and left:
            piece = left.popleft()
            if len(piece) > size:
                left.appendleft(piece[size:])
                piece = piece[:size]
            digest.update(piece)
            size -= len(piece)
        digests.append(digest.hexdigest())
    return digests


def rows_digest(table: pa.Table) -> str:
    """sha256, in hex, of the values of some rows, whatever Parquet layout they came from.

    Each column counts with its name, type and values, in the table's column order: tensors and
    numbers as little-endian bytes, strings as UTF-8, each preceded by its length.
    """
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(column_head(field, len(column)))
        for data in column_bytes(field, column):
            digest.update(data)
    return digest.hexdigest()


def column_head(field: pa.Field, rows: int) -> bytes:
    """What counts in `rows_digest` before a column's values. Raises TypeError for a column that no samples have."""
    if tensors.is_text(field.type):
        return canonical_json([field.name, "string", rows])
    if tensors.is_tensor(field):
        dtype, shape = tensors.form(field)
        return canonical_json([field.name, dtype.name, [rows, *shape]])
    try:
        dtype = tensors.numpy_dtype(field.type)
    except TypeError:
        raise TypeError(f"the column '{field.name}' is {field.type}; only samples have a digest") from None
    return canonical_json([field.name, dtype.name, [rows]])


def column_bytes(field: pa.Field, column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """What counts in `rows_digest` of a column's values; the same bytes, whatever chunks they are in."""
    for chunk in column.chunks:
        if tensors.is_text(field.type):
            for text in chunk.to_pylist():
                data = text.encode()
                yield len(data).to_bytes(8, "little") + data
        elif len(chunk):
            yield np.ascontiguousarray(tensors.unpack(chunk, field)).reshape(-1).view(np.uint8).data
