"""Row groups that are decoded in batches: the same rows, in any order, in bounded memory."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.samples import tensor_columns
from storage.samples.column_roles import Columns
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import SourceFile
from storage.sources import decoding
from storage.sources.parquet import ParquetSource

ROWS = 100


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row group is too large to be decoded whole."""
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 0)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 300)


def images() -> np.ndarray[Any, Any]:
    return np.arange(ROWS * 6, dtype=np.int32).reshape(ROWS, 2, 3)


def column(kind: str) -> tuple[pa.Field, pa.Array]:
    flat = pa.array(images().ravel())
    if kind == "fixed_size_binary":
        return tensor_columns.tensor_field("x", np.dtype("int32"), (2, 3), "input"), tensor_columns.pack(images())
    if kind == "fixed_shape_tensor":
        array: Any = pa.FixedShapeTensorArray.from_numpy_ndarray(images())
    elif kind == "dictionary":
        array = pa.array(images()[:, 0, 0] % 7).dictionary_encode()
    elif kind == "fixed_size_list":
        array = pa.FixedSizeListArray.from_arrays(flat, 6)
    elif kind == "lists of lists":
        array = pa.array(images().tolist(), pa.list_(pa.list_(pa.int32())))
    else:
        array = pa.array(images().reshape(ROWS, 6).tolist(), pa.large_list(pa.int32()))
    return pa.field("x", array.type), array


KINDS = ["fixed_size_binary", "fixed_shape_tensor", "dictionary", "fixed_size_list", "lists of lists", "large_list"]


def write(path: Path, kind: str = "large_list", group: int = 40, first: int = 0) -> ParquetSource:
    field, array = column(kind)
    ids = pa.array([f"row {first + n}" for n in range(ROWS)])
    table = pa.table([ids, array], schema=pa.schema([pa.field("sample_id", pa.string()), field]))
    pq.write_table(table, path, row_group_size=group)
    return ParquetSource(str(path))


def ids_of(source: ParquetSource, start: int, stop: int) -> list[str]:
    [file] = source.files()
    return source.read(file, start, stop).column("sample_id").to_pylist()


def expected(start: int, stop: int, first: int = 0) -> list[str]:
    return [f"row {first + n}" for n in range(start, min(stop, ROWS))]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = write(tmp_path / "a.parquet", kind)
    [file] = source.files()
    whole = source.read(file, 3, 95)
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 0)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 300)
    again = write(tmp_path / "a.parquet", kind)
    pieces = list(again.pieces(file, 3, 95))
    assert len(pieces) > 3
    assert all(piece.schema.equals(whole.schema, check_metadata=True) for piece in pieces)
    assert pa.concat_tables(pieces).equals(whole)
    assert rows_digest(pa.concat_tables(pieces)) == rows_digest(whole)


def test_the_index_of_a_data_frame_goes_on_from_batch_to_batch(tmp_path: Path, in_batches: None) -> None:
    frame = pd.DataFrame({"x": np.arange(ROWS, dtype=np.float32)}, index=pd.RangeIndex(5, 5 + ROWS, name="key"))
    frame.to_parquet(tmp_path / "a.parquet")
    source = ParquetSource(str(tmp_path / "a.parquet"), columns=Columns(sample_id="key"))
    [file] = source.files()
    assert len(list(source.pieces(file, 0, ROWS))) > 1
    assert source.read(file, 0, ROWS).column("sample_id").to_pylist() == list(range(5, 5 + ROWS))
    assert source.read(file, 50, 60).column("sample_id").to_pylist() == list(range(55, 65))


def test_small_row_groups_are_read_together_up_to_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.parquet", group=5)
    [file] = source.files()
    assert len(list(source.pieces(file, 0, ROWS))) == 1
    monkeypatch.setattr(decoding, "PIECE_BYTES", 2000)
    again = write(tmp_path / "a.parquet", group=5)
    sizes = [piece.num_rows for piece in again.pieces(file, 0, ROWS)]
    assert len(sizes) > 3 and sum(sizes) == ROWS
    assert all(size % 5 == 0 for size in sizes)
    assert ids_of(again, 0, ROWS) == expected(0, ROWS)


@pytest.mark.parametrize("group", [7, 40, 1000])
def test_rows_come_in_any_order(tmp_path: Path, in_batches: None, group: int) -> None:
    source = write(tmp_path / "a.parquet", group=group)
    spans = [(0, 10), (10, 20), (25, 31), (90, 100), (0, 1), (1, 2), (60, 61), (59, 62), (39, 41), (95, 200), (50, 50)]
    for start, stop in spans:
        assert ids_of(source, start, stop) == expected(start, stop), (start, stop)


def test_reading_on_decodes_no_row_group_again(
    tmp_path: Path, in_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.parquet", group=1000)
    opened: list[int] = []
    decode = decoding.decode
    monkeypatch.setattr("storage.sources.parquet.decode", lambda *given: opened.append(1) or decode(*given))
    for start in range(0, ROWS, 9):
        assert ids_of(source, start, start + 9) == expected(start, start + 9)
    assert len(opened) == 1


def test_rows_in_any_order_of_a_group_that_fits_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists take more memory while they are decoded than they do afterwards."""
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 8000)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 500)
    source = write(tmp_path / "a.parquet", group=1000)
    opened: list[bool] = []
    decode = decoding.decode

    def counted(*given: Any) -> Any:
        decoded = decode(*given)
        opened.append(decoded.more is not None)
        return decoded

    monkeypatch.setattr("storage.sources.parquet.decode", counted)
    for start in (60, 10, 90, 0, 35, 70, 5):
        assert ids_of(source, start, start + 9) == expected(start, start + 9)
    assert opened == [True]


def test_a_piece_that_was_not_used_up_leaves_the_rows_where_they_are(tmp_path: Path, in_batches: None) -> None:
    source = write(tmp_path / "a.parquet", group=1000)
    [file] = source.files()
    assert next(iter(source.pieces(file, 0, ROWS))).num_rows < ROWS
    assert ids_of(source, 0, ROWS) == expected(0, ROWS)


def test_a_file_that_was_written_again_is_not_gone_on_with(tmp_path: Path, in_batches: None) -> None:
    source = write(tmp_path / "a.parquet", group=1000)
    assert ids_of(source, 0, 30) == expected(0, 30)
    write(tmp_path / "a.parquet", group=1000, first=500)
    assert ids_of(source, 30, 60) == expected(30, 60, first=500)


def test_threads_and_other_processes_do_not_share_a_position(tmp_path: Path, in_batches: None) -> None:
    source = write(tmp_path / "a.parquet", group=1000)
    assert ids_of(source, 0, 10) == expected(0, 10)
    starts = [(20 * n) % ROWS for n in range(30)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: ids_of(source, start, start + 20), starts))
    assert found == [expected(start, start + 20) for start in starts]
    assert ids_of(source, 0, 10) == expected(0, 10)
    assert ids_of(pickle.loads(pickle.dumps(source)), 10, 20) == expected(10, 20)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(ids_of, (source, 10, 20)) == expected(10, 20)
    assert ids_of(source, 10, 20) == expected(10, 20)


def test_a_forked_process_does_not_move_its_parents_file(tmp_path: Path, in_batches: None) -> None:
    last = decoding.LastDecoded()
    last.put("a", decoding.Decoded(0, pa.table({"x": [1, 2]}), 2))
    assert last.take("a", 1) is not None
    with multiprocessing.get_context("fork").Pool(1, initializer=_keep, initargs=(last,)) as pool:
        assert pool.apply(_taken) is False


_kept: list[decoding.LastDecoded] = []


def _keep(last: decoding.LastDecoded) -> None:
    _kept.append(last)


def _taken() -> bool:
    return _kept[0].take("a", 1) is not None


# ru_maxrss of a child begins with its parent's, so the peak is read from /proc.
MEASURE = """
import re, sys
from pathlib import Path
from storage.sources import make_source
peak = lambda: int(re.search(r"VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1])
source = make_source({"parquet": sys.argv[1]})
before = peak()
table = source.read(source.files()[0], 0, 200)
print((peak() - before) / (table.nbytes / 1024))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
@pytest.mark.parametrize("group", [10, 1000])
def test_lists_of_pixels_take_a_few_times_their_bytes(tmp_path: Path, group: int) -> None:
    """Decoded all at once, they take 17 times as much."""
    rows, size = 200, 3 * 224 * 224
    offsets = pa.array(np.arange(0, (rows + 1) * size, size, dtype=np.int32))
    pixels = pa.ListArray.from_arrays(offsets, pa.array(np.arange(rows * size, dtype=np.uint8)))
    table = pa.table({"sample_id": np.arange(rows), "image": pixels})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group, use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "a.parquet")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 9


def test_where_rows_lie_is_independent_of_a_pieces_size(tmp_path: Path, in_batches: None) -> None:
    source = write(tmp_path / "a.parquet", group=33)
    file = SourceFile(str(tmp_path / "a.parquet"), ROWS)
    digests = {rows_digest(source.read(file, 10, 90))}
    decoding.PIECE_BYTES = 5000  # restored by the fixture
    digests.add(rows_digest(source.read(file, 10, 90)))
    assert len(digests) == 1
