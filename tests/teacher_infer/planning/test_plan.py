"""Spans, their keys and what is left to do, without a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError, VerificationError
from storage.encodings.dense import Dense
from storage.samples.samples import SourceFile
from storage.sources import decoding
from storage.sources.parquet import ParquetSource
from teacher_infer.planning import span_size
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import Plan, make_plan
from teacher_infer.planning.span_size import default_span_rows

KEY_PARTS = KeyParts.of("teacher", Dense(), seed=0)


def write(folder: Path, name: str, ids: list[int], **columns: Any) -> None:
    x = np.arange(len(ids), dtype=np.float32) + ids[0]
    pq.write_table(pa.table({"sample_id": ids, "x": columns.pop("x", x), **columns}), folder / name)


def plan_of(folder: Path, span_rows: int = 4, key_parts: KeyParts = KEY_PARTS) -> Plan:
    return make_plan(ParquetSource(str(folder)), span_rows, key_parts)


def test_another_file_moves_no_span(tmp_path: Path) -> None:
    write(tmp_path, "b.parquet", list(range(10)))
    before = {span.shard_key for span in plan_of(tmp_path).spans}
    write(tmp_path, "a.parquet", list(range(100, 107)))
    after = [span.shard_key for span in plan_of(tmp_path).spans]
    assert before < set(after)
    assert len(after) == len(before) + 2


def test_spans_by_default_stay_when_rows_are_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_size, "SPAN_BYTES", 1000)
    write(tmp_path, "a.parquet", list(range(20)))
    before = make_plan(ParquetSource(str(tmp_path)), None, KEY_PARTS)
    assert before.span_rows == default_span_rows(before.example.schema, 1) == 4
    write(tmp_path, "b.parquet", list(range(100, 500)))
    write(tmp_path, "a.parquet", list(range(45)))
    others = KeyParts.of("teacher", Dense(dtype="float32"), 0, inputs="referenced")
    after = make_plan(ParquetSource(str(tmp_path)), None, others)
    assert after.span_rows == 4
    assert [span.digest for span in after.spans[:5]] == [span.digest for span in before.spans]


def test_pieces_change_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.parquet", list(range(50)), label=list(range(50)))
    whole = plan_of(tmp_path, span_rows=30)
    monkeypatch.setattr(decoding, "WHOLE_BYTES", 0)
    monkeypatch.setattr(decoding, "PIECE_BYTES", 100)
    seen: list[int] = []
    plan = make_plan(ParquetSource(str(tmp_path)), 30, KEY_PARTS, lambda piece, where: seen.append(piece.num_rows))
    assert max(seen) < 10 and sum(seen) == 50
    assert plan.spans == whole.spans
    assert plan.example.equals(whole.example)


def test_a_file_that_lost_rows_since_they_were_counted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.parquet", list(range(5)))
    monkeypatch.setattr(ParquetSource, "files", lambda _: [SourceFile(f"{tmp_path}/a.parquet", 9)])
    with pytest.raises(VerificationError, match=r"a\.parquet\[4:8\] gave 1 rows\. It had 4 when"):
        plan_of(tmp_path)


def test_a_key_does_not_depend_on_where_the_rows_lie(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write(tmp_path / "one", "a.parquet", list(range(8)))
    table = pq.read_table(tmp_path / "one" / "a.parquet")
    pq.write_table(table, tmp_path / "two" / "z.parquet", row_group_size=3, compression="gzip")
    one, two = plan_of(tmp_path / "one"), plan_of(tmp_path / "two")
    assert [s.shard_key for s in one.spans] == [s.shard_key for s in two.spans]


def test_a_key_moves_with_every_part(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2])
    others = [
        KEY_PARTS,
        KeyParts.of("another teacher", Dense(), 0),
        KeyParts.of("teacher", Dense(dtype="float32"), 0),
        replace(KEY_PARTS, seed=0),
        replace(KEY_PARTS, seed=1),
        KeyParts.of("teacher", Dense(), 0, inputs="referenced"),
        replace(KEY_PARTS, preprocessing={"tokenizer": "one"}),
        replace(KEY_PARTS, preprocessing={"tokenizer": "another"}),
    ]
    keys = {plan_of(tmp_path, key_parts=other).spans[0].shard_key for other in others}
    assert len(keys) == len(others)


def test_keys_stay_what_they_are() -> None:
    """What was committed under a key is found by later versions."""
    span = "ab" * 32
    assert KEY_PARTS.shard_key(span) == "18e8f2927f19e0db582588d4e8016c119721d65e2ed2e9960d1b47a61180f04a"
    drawn = replace(KeyParts.of("teacher", Dense(dtype="float32"), 5, inputs="stored"), seed=5)
    assert drawn.shard_key(span) == "41ce5fc9c9f834ac20424312d52f36081da90deaf345c7c96f817b9a0263af59"
    referenced = KeyParts.of("teacher", Dense(), 0, inputs="referenced")
    assert referenced.shard_key(span) == "f39c62a6750f0eed1fb9c6c0bb9bdc8ec32e4d4ea51d34fc98d9fe58f545b026"


def test_what_is_not_stored_is_not_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2, 3], label=[0, 1, 2])
    referenced = KeyParts.of("teacher", Dense(), 0, inputs="referenced")
    inputs_bytes = plan_of(tmp_path).sample_bytes - plan_of(tmp_path, key_parts=referenced).sample_bytes
    assert inputs_bytes == 3 * 4


def test_temperature_and_a_seed_that_draws_nothing_cost_no_teacher_work() -> None:
    assert KeyParts.of("teacher", Dense(temperature=4.0), seed=5) == KEY_PARTS


def test_missing_is_the_plan_minus_what_is_committed(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", list(range(10)))
    plan = plan_of(tmp_path)
    assert [s.start for s in plan.spans] == [0, 4, 8]
    assert plan.missing(set()) == list(plan.spans)
    assert [s.start for s in plan.missing({plan.spans[1].shard_key})] == [0, 8]


def test_the_samples_of_every_span_are_shown_to_who_may_refuse_them(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2, 3])
    write(tmp_path, "b.parquet", [4])
    seen: list[Any] = []
    make_plan(
        ParquetSource(str(tmp_path)),
        2,
        KEY_PARTS,
        lambda table, where: seen.append((table["sample_id"].to_pylist(), where)),
    )
    assert seen == [([1, 2], f"{tmp_path}/a.parquet"), ([3], f"{tmp_path}/a.parquet"), ([4], f"{tmp_path}/b.parquet")]


def test_a_sequence_has_as_many_positions_as_labels(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2, 3], label=[[1, 2], [2, 3], [4, -100]])
    plan = plan_of(tmp_path)
    assert (plan.rows, plan.positions, plan.positions_a_row) == (3, 6, 2)


def test_an_id_that_appears_twice_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2, 3])
    write(tmp_path, "b.parquet", [9, 3])
    with pytest.raises(SourceError, match=r"1 sample ids appear more than once: '3' \(2 times\)"):
        plan_of(tmp_path)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"sample_id": pa.array([], pa.int64()), "x": pa.array([], pa.float32())}), tmp_path / "a.parquet"
    )
    with pytest.raises(SourceError, match="is empty"):
        plan_of(tmp_path)


def test_files_of_unlike_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", [1, 2])
    write(tmp_path, "b.parquet", [3, 4], x=np.array([1, 2], np.int32))
    with pytest.raises(SourceError, match=r"b\.parquet has the columns .*int32.*same columns, types and shapes"):
        plan_of(tmp_path)
