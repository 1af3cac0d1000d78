"""The digest of rows in pieces is that of the rows, however they are cut and wherever they wait."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.errors import StoreFull, VerificationError
from storage.samples import rows_digest as module
from storage.samples import tensor_columns
from storage.samples.rows_digest import RowsDigest, rows_digest

ROWS = 50


def table() -> pa.Table:
    x = np.arange(ROWS * 4, dtype=np.float16).reshape(ROWS, 2, 2)
    label = np.arange(ROWS * 3, dtype=np.int32).reshape(ROWS, 3)
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string()),
            tensor_columns.tensor_field("x", x.dtype, (2, 2), "input"),
            pa.field("flag", pa.bool_()),
            pa.field("text", pa.string()),
            tensor_columns.tensor_field("label", label.dtype, (3,), "label"),
        ]
    )
    ids = [f"é{n}" for n in range(ROWS)]
    flags = [n % 3 == 0 for n in range(ROWS)]
    return pa.table([ids, tensor_columns.pack(x), flags, ids[::-1], tensor_columns.pack(label)], schema=schema)


def in_pieces(cuts: list[int], rows: int = ROWS) -> str:
    with RowsDigest(rows, "a source") as digest:
        for start, stop in pairwise([0, *cuts, ROWS]):
            digest.update(table().slice(start, stop - start))
        return digest.hexdigest()


@pytest.mark.parametrize("memory", [0, 700, 1 << 20])
@pytest.mark.parametrize("cuts", [[], [1], [25], [7, 7, 30, 49], [*range(1, ROWS)]])
def test_the_digest_of_pieces_is_that_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, cuts: list[int], memory: int
) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", memory)
    assert in_pieces(cuts) == rows_digest(table())


def test_another_number_of_rows_than_expected_is_refused() -> None:
    for rows in (ROWS - 1, ROWS + 1):
        with pytest.raises(VerificationError, match=f"a source gave {ROWS} rows. It had {rows} when"):
            in_pieces([10], rows)


def test_pieces_wait_on_the_disk_only_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", full)
    assert in_pieces([10]) == rows_digest(table())
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    with pytest.raises(StoreFull, match=r"on the machine .* is full"):
        in_pieces([10])
