"""The rows of a span by default, and what a plan says of the size of spans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.objectstore.folder import Folder
from storage.samples import tensor_columns
from teacher_infer.__main__ import main
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.prepare import lineage_of, prepare, show_plan
from teacher_infer.planning.span_size import POSITION_BYTES, SPAN_BYTES, default_span_rows, idle_warning, size_warnings
from tests.teacher_infer.without_ray import labelled

Make = Callable[..., dict[str, Any]]


def samples(dtype: str, shape: tuple[int, ...], columns: int = 1, label: tuple[int, ...] = ()) -> pa.Schema:
    inputs = [tensor_columns.tensor_field(f"x{n}", np.dtype(dtype), shape, "input") for n in range(columns)]
    labels = tensor_columns.tensor_field("label", np.dtype("int32"), label, "label") if label else ("label", pa.int64())
    return pa.schema([("sample_id", pa.int64()), *inputs, labels])


def tokens(length: int) -> pa.Schema:
    """Packed rows: input_ids, position_ids and labels."""
    return samples("int32", (length,), columns=2, label=(length,))


# As the README has them.
SIZES = [
    (samples("float32", (1, 8, 8)), 1, 65536, 26),
    (samples("uint8", (28, 28)), 1, 65536, 61),
    (samples("uint8", (224, 224, 3)), 1, 2048, 309),
    (tokens(512), 512, 4096, 294),
    (tokens(4096), 4096, 512, 294),
    (tokens(32768), 32768, 64, 294),
]


@pytest.mark.parametrize(("schema", "positions", "rows", "megabytes"), SIZES)
def test_spans_of_usual_rows(schema: pa.Schema, positions: int, rows: int, megabytes: int) -> None:
    assert default_span_rows(schema, positions) == rows
    row = sum(field.type.byte_width for field in schema) + positions * POSITION_BYTES
    assert round(rows * row / 1e6) == megabytes


def test_text_ids_count_and_rows_of_any_size_have_spans() -> None:
    text = pa.schema(
        [("sample_id", pa.string()), *samples("uint8", (1000, 1000))][:1] + [*samples("uint8", (10**6,))][1:]
    )
    assert default_span_rows(text, 1) == 512
    for size in (1, 100, 10**4, 10**6, SPAN_BYTES // 2, SPAN_BYTES, 2**31 - 1):
        schema = samples("uint8", (size,))
        rows = default_span_rows(schema, 1)
        assert 1 <= rows <= 65536 and rows & (rows - 1) == 0
        assert rows == 1 or rows * size <= SPAN_BYTES


def test_a_large_span_is_warned_of_with_a_size_that_fits() -> None:
    span: dict[str, Any] = {"rows": 65536, "bytes": 65536 * 800_000}
    [warning] = size_warnings(span, 65536, 10, 655360, 50_000)
    assert warning.startswith("A span takes about 52.4 GB.") and warning.endswith("Set span_rows to about 512.")
    # Inputs are in memory though a shard has only their digest, and where its size is not known.
    for size in (65536 * 100, None):
        [warning] = size_warnings({"rows": 65536, "bytes": size}, 65536, 10, 655360, 150_544)
        assert warning.startswith("A span takes about 9.9 GB.") and warning.endswith("Set span_rows to about 2,048.")
    assert size_warnings({"rows": 2048, "bytes": 2048 * 160_000}, 2048, 10, 20480, 150_544) == []
    assert size_warnings({"rows": 1, "bytes": 3 << 30}, 1, 10, 10, 1 << 30) == []  # nothing smaller than a row


def test_many_small_spans_are_warned_of_and_why_they_are_small() -> None:
    by_setting: dict[str, Any] = {"rows": 10, "bytes": 1000}
    [warning] = size_warnings(by_setting, 10, 5000, 50_000, 100)
    assert warning.startswith("There are 5,000 spans, of 10.0 rows and 0.00 MB") and warning.endswith(
        "Raise span_rows."
    )
    [warning] = size_warnings(by_setting, 65536, 5000, 50_000, 100)
    assert warning.endswith("Write the source in fewer, larger files.")
    assert size_warnings(by_setting, 10, 50, 500, 100) == []
    assert size_warnings({"rows": 10, "bytes": 10_000_000}, 10, 5000, 50_000, 100) == []


def test_fewer_spans_than_actors_are_warned_of_where_there_could_be_more() -> None:
    assert idle_warning(1, 60_000, 8, 64) == (
        "There is 1 span for up to 8 actors, and one actor computes a span. "
        "Set span_rows to about 3,750, so that every actor has work."
    )
    assert (idle_warning(8, 60_000, 8, 64), idle_warning(1, 8 * 64 - 1, 8, 64)) == (None, None)


def planned(recipe: dict[str, Any]) -> dict[str, Any]:
    read = TeacherRecipe.model_validate(recipe)
    return show_plan(prepare(read, Folder(read.store)))


def test_a_plan_says_rows_positions_and_bytes_of_a_span(
    recipe: Make, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    told = planned(recipe(span_rows=10))
    assert told["span"]["rows"] == told["span"]["positions"] == 10
    assert told["span"]["bytes"] == round(told["expected_bytes"] * 10 / told["positions"])
    assert told["warnings"] == []
    assert main([write_yaml(**recipe(ray={"actors": 4})), "--plan"]) == 0
    said = capfd.readouterr().out
    assert "\n  a span: up to 10 rows, 10 positions, about 0.00 MB before compression\n" in said
    assert "warning" not in said
    assert main([write_yaml(**recipe(ray={"actors": 4}, span_rows=40)), "--plan"]) == 0
    assert "\n  warning: There is 1 span for up to 4 actors" in capfd.readouterr().out


def test_without_span_rows_the_columns_say_them_and_the_lineage_keeps_them(recipe: Make) -> None:
    asked = {key: value for key, value in recipe().items() if key != "span_rows"}
    read = TeacherRecipe.model_validate(asked)
    assert read.span_rows is None
    prepared = prepare(read, Folder(read.store))
    assert prepared.parts[0].plan.span_rows == lineage_of(prepared, prepared.parts[0])["span_rows"] == 65536
    assert json.dumps(planned(asked))
    labelled(asked)
    part = prepare(read, Folder(read.store)).parts[0]
    assert part.counts["computed"] == 0
    read = TeacherRecipe.model_validate({**asked, "span_rows": 7})
    miss = prepare(read, Folder(read.store)).parts[0].miss
    assert miss is not None and miss.differs == ["span_rows: 65536 -> 7"]


def test_images_have_smaller_spans_than_numbers(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_infer.planning.span_size.SPAN_BYTES", 2000)
    asked = {key: value for key, value in recipe().items() if key != "span_rows"}
    assert planned(asked)["span"]["rows"] == 8
