"""The digest of a row's inputs: exactly these bytes, however the rows are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from storage.samples import inputs_digest as module
from storage.samples import tensor_columns
from storage.samples.inputs_digest import INPUTS_XXH3_FIELD, inputs_digests
from tests.storage.samples.test_samples import made, raw


def hexes(samples: pa.Table) -> list[str]:
    digests = inputs_digests(samples)
    assert (digests.dtype, digests.shape) == (np.dtype("V16"), (samples.num_rows,))
    return [digest.tobytes().hex() for digest in digests]


def mixed(rows: int = 7) -> pa.Table:
    """Samples with inputs of several types: x [2, 3] float16, n int16, flag bool, seen [2] bool."""
    numbers = np.arange(rows)
    table = {
        "sample_id": numbers,
        "x": [np.arange(i, i + 6).reshape(2, 3).tolist() for i in range(rows)],
        "n": pa.array(numbers * 1000 - 3, pa.int16()),
        "flag": numbers % 2 == 0,
        "seen": [[i % 3 == 0, True] for i in range(rows)],
        "label": numbers,
    }
    kinds = pa.list_(pa.list_(pa.float16()))
    return made(pa.table({k: pa.array(v, kinds) if k == "x" else v for k, v in table.items()}))


def test_the_digest_is_of_exactly_these_bytes() -> None:
    for row, found in enumerate(hexes(mixed())):
        data = b'["x","float16",[2,3]]' + np.arange(row, row + 6).astype("<f2").tobytes()
        data += b'["n","int16",[]]' + (row * 1000 - 3).to_bytes(2, "little", signed=True)
        data += b'["flag","bool",[]]' + bytes([row % 2 == 0])
        data += b'["seen","bool",[2]]' + bytes([row % 3 == 0, True])
        assert found == xxhash.xxh3_128_hexdigest(data)


def test_the_digest_of_these_rows_stays_what_it_is() -> None:
    assert hexes(made(raw())) == [
        "3cff57d760a5e282b42d0bc72633d90e",
        "26ddeb1bcbc0784a9c72f5102dbd73d4",
        "e0ed54daae0704d6187a46e0bb7521c1",
    ]


@pytest.mark.parametrize("block", [1, 40, 100, 1 << 20])
def test_rows_have_one_digest_however_they_are_read(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole = hexes(mixed(23))
    assert len(set(whole)) == 23
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    assert hexes(mixed(23)) == whole
    assert hexes(mixed(23).slice(4, 9)) == whole[4:13]
    assert hexes(pa.concat_tables([mixed(23).slice(0, 5), mixed(23).slice(5, 11), mixed(23).slice(16)])) == whole
    assert hexes(mixed(23).take([6, 3])) == [whole[6], whole[3]]
    assert hexes(mixed(23).slice(3, 0)) == []


def test_ids_and_labels_have_no_part_in_the_digest() -> None:
    assert hexes(made(raw(sample_id=["a", "b", "c"], label=None))) == hexes(made(raw()))


@pytest.mark.parametrize(
    "change",
    [
        lambda: made(raw(), inputs=("n", "x")),
        lambda: made(raw(), inputs=("x",)),
        lambda: made(raw(n=pa.array([7, 8, 9], pa.int32()))),
        lambda: made(raw(x=[[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])),
        lambda: made(raw().rename_columns(["sample_id", "y", "n", "label"])),
        lambda: made(raw(n=[8, 9, 10])),
    ],
    ids=["order", "fewer", "type", "shape", "name", "value"],
)
def test_whatever_the_model_would_take_otherwise_changes_the_digest(change: Callable[[], pa.Table]) -> None:
    assert not set(hexes(change())) & set(hexes(made(raw())))


def test_a_row_larger_than_a_block_has_a_digest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = made(pa.table({"sample_id": [1, 2], "x": np.arange(2), "z": [[0.5] * 300_000, [1.5] * 300_000]}))
    data = b'["x","int64",[]]' + (1).to_bytes(8, "little")
    data += b'["z","float64",[300000]]' + np.full(300_000, 1.5).tobytes()
    assert hexes(wide)[1] == xxhash.xxh3_128_hexdigest(data)


def test_digests_lie_in_their_column_as_they_are() -> None:
    digests = inputs_digests(mixed())
    column = tensor_columns.pack(digests.view(np.uint8).reshape(-1, 16))
    assert (INPUTS_XXH3_FIELD.type, INPUTS_XXH3_FIELD.nullable) == (pa.binary(16), False)
    assert column.type == INPUTS_XXH3_FIELD.type
    back = tensor_columns.unpack(column, INPUTS_XXH3_FIELD).view("V16")[:, 0]
    assert (back == digests).all()
    assert [value.hex() for value in column.to_pylist()] == hexes(mixed())
