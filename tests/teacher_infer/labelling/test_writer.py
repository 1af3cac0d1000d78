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
import torch

import teacher_infer.labelling.writer
from storage.base.errors import StoreFull
from storage.encodings.dense import Dense
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.samples.columns import Columns
from storage.samples.inputs_digest import inputs_digests
from storage.samples.samples import Inputs, as_samples, kept_columns
from storage.samples.tensor_columns import pack
from teacher_infer.labelling.writer import WAITING, Writer, record_batch
from teacher_infer.planning.plan import added_fields
from teacher_infer.soften import Softened, soften


def labelled(first: int, rows: int = 4) -> tuple[pa.Table, Softened]:
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(first, first + rows, dtype=np.float32)), 1)
    samples = as_samples(pa.table({"sample_id": np.arange(first, first + rows), "x": x}), Columns(), "made")
    return samples, soften(torch.arange(rows * 3).reshape(rows, 3) / -7 + first, Dense(1.0))


def schema(inputs: Inputs = "stored") -> pa.Schema:
    header = ShardHeader(FORMAT_VERSION, "k", Dense(1.0), 3, "teacher", "span")
    return shard_schema(kept_columns(labelled(0)[0].schema, inputs), header, added_fields(inputs))


def writer(path: Path) -> Writer:
    return Writer(path, "the store", Dense(1.0))


def test_what_is_put_is_written_in_its_order(tmp_path: Path) -> None:
    with writer(tmp_path / "x") as one:
        assert not one.begun
        one.begin(schema())
        for first in range(0, 40, 4):
            one.put(*labelled(first))
        assert one.finish() == 40
    assert pq.read_table(tmp_path / "x").column("sample_id").to_pylist() == list(range(40))
    assert one.seconds > 0


@pytest.mark.parametrize("inputs", ["stored", "referenced"])
def test_a_batchs_columns_are_those_that_the_schema_names_in_its_order(inputs: Inputs) -> None:
    (samples, softened), kept = labelled(3), schema(inputs)
    for wanted in (kept, pa.schema(list(reversed(list(kept))), kept.metadata)):
        batch = record_batch(samples, softened, Dense(1.0), wanted)
        batch.validate(full=True)
        assert batch.schema.equals(wanted, check_metadata=True)
        assert batch.column("soft_entropy").to_pylist() == softened.entropy_R.tolist()
        assert batch.column("soft_top1").to_pylist() == softened.top1_R.tolist()
        assert batch.column("soft_logits").equals(Dense(1.0).encode(softened.targets)[0])
        assert batch.column("sample_id").to_pylist() == [3, 4, 5, 6]
        assert ("x" in batch.schema.names, "inputs_xxh3" in batch.schema.names) == (
            inputs == "stored",
            inputs == "referenced",
        )
        if inputs == "referenced":
            digests = pack(inputs_digests(samples).view(np.uint8).reshape(-1, 16))
            assert batch.column("inputs_xxh3").equals(digests)


def test_how_to_write_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def note(path: Path, schema: pa.Schema, batches: Any, **settings: Any) -> int:
        told.update(settings)
        return sum(batch.num_rows for batch in batches)

    monkeypatch.setattr(teacher_infer.labelling.writer, "write_shard", note)
    with Writer(tmp_path / "x", "the store", Dense(1.0), compression="none") as one:
        one.begin(schema(), 1234)
        one.finish()
    assert told == {"compression": "none", "group_row_bytes": 1234}


def test_a_span_without_rows_is_a_shard_too(tmp_path: Path) -> None:
    with writer(tmp_path / "x") as one:
        one.begin(schema())
        assert one.finish() == 0
    assert pq.read_table(tmp_path / "x").num_rows == 0


def test_a_slow_disk_stops_the_teacher_and_not_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, taken = threading.Event(), list[int]()

    def slow(path: Path, schema: pa.Schema, batches: Any, **_: Any) -> int:
        for batch in batches:
            gate.wait()
            taken.append(batch.num_rows)
        return sum(taken)

    monkeypatch.setattr(teacher_infer.labelling.writer, "write_shard", slow)
    put: list[int] = []

    def teach() -> None:
        for index in range(12):
            one.put(*labelled(index))
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

    def full(path: Path, schema: pa.Schema, batches: Any, **_: Any) -> int:
        for index, _ in enumerate(batches):
            if index == after:
                break
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_infer.labelling.writer, "write_shard", full)
    threads = threading.active_count()
    with pytest.raises(StoreFull, match=r"the store is full: No space left on device\. What was committed stays"):
        with writer(tmp_path / "x") as one:
            one.begin(schema())
            for index in range(50):
                one.put(*labelled(index))
            one.finish()
    assert threading.active_count() == threads


def test_a_teacher_that_fails_leaves_no_thread_behind(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "x") as one:
        one.begin(schema())
        one.put(*labelled(0))
        raise ZeroDivisionError
    assert threading.active_count() == threads
