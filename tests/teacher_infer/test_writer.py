"""The thread that writes a shard: what waits for it is bounded, and what it raises is heard."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import teacher_infer.writer
from storage.encodings.dense import Dense
from storage.errors import StoreFull
from storage.samples import Columns, as_samples
from storage.shard import FORMAT_VERSION, ShardHeader, shard_schema
from teacher_infer.answers import Answers
from teacher_infer.writer import WAITING, Writer


def answers(first: int, rows: int = 4) -> Answers:
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(first, first + rows, dtype=np.float32)), 1)
    samples = as_samples(pa.table({"sample_id": np.arange(first, first + rows), "x": x}), Columns(), "made")
    return Answers(samples, -np.arange(rows * 3, dtype=np.float32).reshape(rows, 3))


def schema() -> pa.Schema:
    header = ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 3, "teacher", "span")
    return shard_schema(answers(0).samples.schema, header)


def writer(path: Path) -> Writer:
    return Writer(path, "the store", Dense(1.0))


def test_what_is_put_is_written_in_its_order(tmp_path: Path) -> None:
    with writer(tmp_path / "x") as one:
        assert not one.begun
        one.begin(schema())
        for first in range(0, 40, 4):
            one.put(answers(first))
        assert one.finish() == 40
    assert pq.read_table(tmp_path / "x").column("sample_id").to_pylist() == list(range(40))
    assert one.seconds > 0


def test_a_span_without_rows_is_a_shard_too(tmp_path: Path) -> None:
    with writer(tmp_path / "x") as one:
        one.begin(schema())
        assert one.finish() == 0
    assert pq.read_table(tmp_path / "x").num_rows == 0


def test_a_slow_disk_stops_the_teacher_and_not_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, taken = threading.Event(), list[int]()

    def slow(path: Path, schema: pa.Schema, batches: Any) -> int:
        for batch in batches:
            gate.wait()
            taken.append(batch.num_rows)
        return sum(taken)

    monkeypatch.setattr(teacher_infer.writer, "write_shard", slow)
    put: list[int] = []

    def teach() -> None:
        for index in range(12):
            one.put(answers(index))
            put.append(index)

    with writer(tmp_path / "x") as one:
        one.begin(schema())
        thread = threading.Thread(target=teach)
        thread.start()
        deadline = time.monotonic() + 10
        while len(put) < WAITING + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # One is being written, the others wait; the teacher holds the next one.
        assert len(put) == WAITING + 1
        gate.set()
        thread.join()
        assert one.finish() == 48
    assert one.waited > 0.05


@pytest.mark.parametrize("after", [0, 1, 5, 50])
def test_a_full_disk_is_told_to_whoever_puts_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After 50: at the very end, when all batches were taken, as most shards are written."""

    def full(path: Path, schema: pa.Schema, batches: Any) -> int:
        for index, _ in enumerate(batches):
            if index == after:
                break
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_infer.writer, "write_shard", full)
    threads = threading.active_count()
    with pytest.raises(StoreFull, match=r"the store is full: No space left on device\. What was committed stays"):
        with writer(tmp_path / "x") as one:
            one.begin(schema())
            for index in range(50):
                one.put(answers(index))
            one.finish()
    assert threading.active_count() == threads


def test_a_teacher_that_fails_leaves_no_thread_behind(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "x") as one:
        one.begin(schema())
        one.put(answers(0))
        raise ZeroDivisionError
    assert threading.active_count() == threads
