"""Where bytes land: values that are not compressed in their own place, everything else where it can be decoded."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.rows.landing import Chunk, Landing
from storage.samples import tensor_columns

A, B = np.arange(6, dtype=np.int64) * 7, np.arange(24, dtype=np.float32).reshape(6, 4) / 8


def file_of(compression: str) -> tuple[bytes, list[Chunk]]:
    """A file of two columns, and where they lie."""
    fields = [pa.field("a", pa.int64(), nullable=False), tensor_columns.tensor_field("b", B.dtype, (4,), "a test")]
    file = io.BytesIO()
    table = pa.table([tensor_columns.pack(A), tensor_columns.pack(B)], schema=pa.schema(fields))
    pq.write_table(table, file, use_dictionary=False, write_statistics=False, compression=compression)
    group = pq.read_metadata(file).row_group(0)
    columns = [(name, group.column(at)) for at, name in enumerate("ab")]
    return file.getvalue(), [
        Chunk(name, c.data_page_offset, c.data_page_offset + c.total_compressed_size, c.compression)
        for name, c in columns
    ]


def landed(data: bytes, chunks: list[Chunk], start: int, stop: int, out: dict[str, Any]) -> Landing:
    landing = Landing(chunks, start, stop, out, memoryview(bytearray(stop - start)))
    assert sum(map(len, landing.pieces)) == stop - start
    at = start
    for piece in landing.pieces:
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    return landing


def wanted() -> dict[str, Any]:
    return {"a": np.full_like(A, -1), "b": np.full_like(B, -1)}


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("before, after", [(0, 0), (3, 0), (0, 40), (4, 9)])
@pytest.mark.parametrize("turned", [False, True])
def test_every_column_is_there_whatever_lies_around_it(compression: str, before: int, after: int, turned: bool) -> None:
    """Bytes of no column come along, before, after and in between; columns are told of in any order."""
    data, chunks = file_of(compression)
    a, b = chunks
    apart = 11
    data = data[: a.stop] + b"?" * apart + data[a.stop :]
    chunks = [a, Chunk("b", b.start + apart, b.stop + apart, b.codec)]
    out = wanted()
    told = chunks[::-1] if turned else chunks
    landing = landed(data, told, a.start - before, chunks[1].stop + after, out)
    assert landing.decode("a", out["a"]) and landing.decode("b", out["b"])
    assert (out["a"] == A).all() and (out["b"] == B).all()
    assert landing.parts(["b", "a"]) == {chunk.start: data[chunk.start : chunk.stop] for chunk in chunks}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_columns_outside_the_bytes_are_left_out(compression: str) -> None:
    data, [a, b] = file_of(compression)
    out = wanted()
    landing = landed(data, [a, b], b.start, b.stop, out)
    assert landing.decode("b", out["b"]) and (out["b"] == B).all() and (out["a"] == -1).all()
    with pytest.raises(KeyError):
        landing.parts(["a"])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_columns_that_nobody_wants_change_nothing(compression: str) -> None:
    data, [a, b] = file_of(compression)
    out = {"b": np.full_like(B, -1)}
    landing = landed(data, [a, b], a.start, b.stop, out)
    assert landing.decode("b", out["b"]) and (out["b"] == B).all()
    assert landing.parts(["a"]) == {a.start: data[a.start : a.stop]}


@pytest.mark.parametrize("compression, in_place", [("none", True), ("zstd", False)])
def test_values_that_are_not_compressed_are_not_copied(compression: str, in_place: bool) -> None:
    _, [a, b] = file_of(compression)
    out = wanted()
    landing = Landing([a, b], a.start, b.stop, out, memoryview(bytearray(b.stop - a.start)))
    assert sum(map(len, landing.pieces)) == b.stop - a.start
    for array in out.values():
        shared = [np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in landing.pieces]
        assert any(shared) == in_place


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_column_of_other_values_than_are_wanted_is_said_to_be_none(compression: str) -> None:
    """And its bytes are all there, for whoever can read them."""
    data, [a, b] = file_of(compression)
    for other in (np.zeros(5, np.int64), np.zeros(7, np.int64), np.zeros((6, 2), np.int64), np.zeros((6, 0), np.int64)):
        out = {"a": other, "b": np.full_like(B, -1)}
        landing = landed(data, [a, b], a.start, b.stop, out)
        assert not landing.decode("a", other)
        assert landing.decode("b", out["b"]) and (out["b"] == B).all()
        assert landing.parts(["a"]) == {a.start: data[a.start : a.stop]}


def test_many_rows_need_no_larger_header() -> None:
    """Whatever a header tells besides, of a chunk with far more bytes than its values it is known at once."""
    chunk = Chunk("a", 0, 6 * 8 + 300, "UNCOMPRESSED")
    out = {"a": np.full(6, -1)}
    landing = Landing([chunk], 0, chunk.stop, out, memoryview(bytearray(chunk.stop)))
    assert [len(piece) for piece in landing.pieces] == [chunk.stop]
    assert (out["a"] == -1).all() and not landing.decode("a", out["a"])
