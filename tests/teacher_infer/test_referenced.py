"""Shards without inputs: what they hold instead, what they are called, and what a job says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.format.shard
from jobs.models.model_spec import ModelSpec
from storage.base.errors import VerificationError
from storage.cache.commits import Commit
from storage.encodings.dense import Dense, DenseTargets
from storage.objectstore.folder import Folder
from storage.samples.inputs_digest import inputs_digests
from storage.samples.samples import Inputs
from storage.sources.function import FunctionSource
from teacher_infer.__main__ import main
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import Span, make_plan
from teacher_infer.planning.prepare import lineage_of, prepare, show_plan
from teacher_infer.teachers.module import ModuleTeacher

Recipe = Callable[..., dict[str, Any]]


def work_of(folder: Path, inputs: Inputs = "referenced", compression: str = "zstd", **arguments: Any) -> Work:
    source = FunctionSource("stillhouse_toys:rows", arguments)
    encoding = Dense(temperature=2.0, dtype="float32")
    return Work(Folder(str(folder)), source, encoding, "teacher digest", 8, 0, True, inputs, compression)


def spans_of(work: Work) -> tuple[Span, ...]:
    key_parts = KeyParts.of(work.teacher_digest, work.encoding, 0, inputs=work.inputs)
    return make_plan(work.source, 10, key_parts).spans


def label(work: Work, **arguments: Any) -> list[Commit]:
    spec = ModelSpec("stillhouse_toys:linear", arguments)
    teacher = ModuleTeacher(spec, dtype="float32", seed=3, device="cpu")
    return [label_span(work, teacher, span).commit for span in spans_of(work)]


def read(work: Work, commits: list[Commit]) -> pa.Table:
    return pa.concat_tables([pq.read_table(f"{work.store.url}/{commit.path}") for commit in commits])


def digests_in(work: Work) -> list[bytes]:
    """The digests of all rows of the source, in its order."""
    [file] = work.source.files()
    return [digest.tobytes() for digest in inputs_digests(work.source.read(file, 0, file.rows))]


def test_a_referenced_shard_holds_digests_in_the_inputs_place(toys: Path, tmp_path: Path) -> None:
    stored, referenced = work_of(tmp_path, "stored"), work_of(tmp_path)
    with_inputs, without = read(stored, label(stored)), read(referenced, label(referenced))
    assert set(with_inputs.schema.names) - set(without.schema.names) == {"x"}
    assert set(without.schema.names) - set(with_inputs.schema.names) == {"inputs_xxh3"}
    field = without.schema.field("inputs_xxh3")
    assert (field.type, field.nullable) == (pa.binary(16), False)
    digests = without.column("inputs_xxh3").to_pylist()
    assert digests == digests_in(referenced)
    assert len(set(digests)) == 40
    kept = ["sample_id", "label", "soft_entropy", "soft_top1", "soft_logits"]
    assert without.select(kept).equals(with_inputs.select(kept))


@pytest.mark.parametrize("inputs", ["stored", "referenced"])
def test_the_summary_of_each_row_is_that_of_its_own_targets(toys: Path, tmp_path: Path, inputs: Inputs) -> None:
    work = work_of(tmp_path, inputs)
    table = read(work, label(work))
    logits_PV = np.stack([np.frombuffer(value, "<f4") for value in table.column("soft_logits").to_pylist()])
    targets = DenseTargets(logits_PV, np.full(40, 2.0, np.float32))
    assert table.schema.field("soft_entropy").nullable is False
    np.testing.assert_allclose(table.column("soft_entropy").to_numpy(), targets.entropy(), rtol=1e-5)
    np.testing.assert_array_equal(table.column("soft_top1").to_numpy(), targets.top(1)[0][:, 0])
    assert len(set(targets.entropy().tolist())) == 40


def test_quarantined_rows_have_neither_row_nor_digest(toys: Path, tmp_path: Path) -> None:
    work = replace(work_of(tmp_path), max_bad_samples=1)
    commits = label(work, bad=float(np.float32(0.3)))
    assert [one.sample_id for one in commits[0].quarantined] == ["s3"]
    table = read(work, commits)
    assert table.column("sample_id").to_pylist() == [f"s{i}" for i in range(40) if i != 3]
    expected = digests_in(work)
    assert table.column("inputs_xxh3").to_pylist() == expected[:3] + expected[4:]


def test_a_span_of_which_nothing_could_be_labelled_is_a_referenced_shard_too(toys: Path, tmp_path: Path) -> None:
    work = replace(work_of(tmp_path, count=11), max_bad_samples=1)
    commits = label(work, bad=float(np.float32(1.0)))
    assert [commit.rows for commit in commits] == [10, 0]
    assert read(work, commits[1:]).schema.equals(read(work, commits[:1]).schema)


def test_without_inputs_a_row_group_holds_as_many_rows_as_with_them(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student reads them from elsewhere, and holds them with the row group."""
    monkeypatch.setattr(storage.format.shard, "ROW_GROUP_BYTES", 4000)
    rows: dict[str, list[int]] = {}
    for inputs in ("stored", "referenced"):
        work = work_of(tmp_path, inputs, features=200)
        rows[inputs] = [group.rows for group in label(work, features=200)[0].row_groups]
    assert rows["referenced"] == rows["stored"] == [4, 4, 2]


def test_the_rows_that_the_plan_saw_are_looked_for_in_full(toys: Path, tmp_path: Path) -> None:
    """Of a referenced span too, though no input is stored."""
    planned = spans_of(work_of(tmp_path))[0]
    teacher = ModuleTeacher(ModelSpec("stillhouse_toys:linear", {}), dtype="float32", seed=3, device="cpu")
    with pytest.raises(VerificationError):
        label_span(work_of(tmp_path, features=5), teacher, planned)


def test_stored_and_referenced_are_two_questions(toys: Path, tmp_path: Path) -> None:
    stored, referenced = (spans_of(work_of(tmp_path, inputs)) for inputs in ("stored", "referenced"))
    assert [span.digest for span in stored] == [span.digest for span in referenced]
    assert not {span.shard_key for span in stored} & {span.shard_key for span in referenced}


@pytest.mark.parametrize("inputs", ["stored", "referenced"])
def test_without_compression_it_is_the_same_question_and_the_same_rows(
    toys: Path, tmp_path: Path, inputs: Inputs
) -> None:
    zstd, none = work_of(tmp_path / "zstd", inputs), work_of(tmp_path / "none", inputs, "none")
    assert spans_of(zstd) == spans_of(none)
    compressed, plain = label(zstd), label(none)
    assert read(none, plain).equals(read(zstd, compressed))
    for work, commits, codec in ((zstd, compressed, "ZSTD"), (none, plain, "UNCOMPRESSED")):
        group = pq.read_metadata(f"{work.store.url}/{commits[0].path}").row_group(0)
        assert {group.column(c).compression for c in range(group.num_columns)} == {codec}
    # Whichever was committed first stays.
    again = label(replace(none, store=zstd.store))
    assert again == compressed


# The recipe


def prepared_of(recipe: dict[str, Any]) -> Any:
    asked = TeacherRecipe.model_validate(recipe)
    return prepare(asked, Folder(asked.store))


def test_the_plan_says_what_will_be_stored(toys: Path, recipe: Recipe) -> None:
    def expected(**keys: Any) -> int:
        return show_plan(prepared_of(recipe(**keys)))["expected_bytes"]

    ids = sum(len(f"s{i}") + 4 for i in range(40))  # text has an offset of four bytes
    assert expected() == ids + 40 * (4 * 4 + 8 + 4 + 4 + 3 * 2)
    assert expected(inputs="referenced") == ids + 40 * (16 + 8 + 4 + 4 + 3 * 2)
    factory = {"factory": "stillhouse_toys:linear", "arguments": {"features": 100}, "dtype": "float32", "batch_size": 8}
    wide = {"teacher": factory, "source_arguments": {"features": 100}}
    assert expected(**wide) == ids + 40 * (100 * 4 + 8 + 4 + 4 + 3 * 2)
    assert expected(**wide, inputs="referenced") == ids + 40 * (16 + 8 + 4 + 4 + 3 * 2)


def test_lineage_says_so_only_where_inputs_are_referenced(toys: Path, recipe: Recipe) -> None:
    stored, referenced = prepared_of(recipe()), prepared_of(recipe(inputs="referenced"))
    assert "inputs" not in lineage_of(stored, stored.parts[0])
    assert lineage_of(referenced, referenced.parts[0])["inputs"] == "referenced"


def test_the_usual_recipe_asks_what_it_asked_before_there_was_a_choice(toys: Path, recipe: Recipe) -> None:
    usual = prepared_of(recipe())
    for same in (recipe(inputs="stored"), recipe(compression="none"), recipe(compression="zstd")):
        assert prepared_of(same).parts == usual.parts
    assert prepared_of(recipe(inputs="referenced")).parts != usual.parts


def test_a_referenced_job_run_again_does_nothing(
    one_ray: str, tmp_path: Path, recipe: Recipe, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    def run(**keys: Any) -> dict[str, Any]:
        code = main([write_yaml(**recipe({"calls": str(calls)}, held_out=held_out, **keys)), "--json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    calls = tmp_path / "calls"
    test = {"function": "stillhouse_toys:rows", "arguments": {"count": 15, "first": 1000}}
    held_out = {"name": "toy-test", "source": test}
    first = run(inputs="referenced")
    assert (first["forward_positions"], first["held_out"]["forward_positions"]) == (40, 15)
    for cache, rows in ((first["cache"], 40), (first["held_out"]["cache"], 15)):
        facts = json.loads((Path(cache) / "cache.json").read_text())
        assert (facts["inputs"], facts["samples"], facts["lineage"]["inputs"]) == ([], rows, "referenced")
    for path in (tmp_path / "store" / "shards").glob("*/*.parquet"):
        assert pq.read_schema(path).names == [
            *("sample_id", "label", "soft_entropy", "soft_top1", "inputs_xxh3", "soft_logits")
        ]

    for again in (run(inputs="referenced"), run(inputs="referenced", compression="none")):
        assert again["spans"] == {"total": 4, "reused": 4, "computed": 0}
        assert (again["forward_positions"], again["held_out"]["forward_positions"]) == (0, 0)
        assert (again["cache_key"], again["cache_digest"]) == (first["cache_key"], first["cache_digest"])

    stored = run(compression="none")
    assert stored["forward_positions"] == 40
    assert stored["cache_key"] != first["cache_key"]
    codecs = {
        pq.read_metadata(path).row_group(0).column(0).compression
        for path in (tmp_path / "store" / "shards").glob("*/*.parquet")
    }
    assert codecs == {"ZSTD", "UNCOMPRESSED"}
    # In each of two runs the teacher of an actor is checked once, with 4 rows of its first batch.
    rows = sum(int(line) for line in calls.read_text().split())
    assert 2 * (55 + 4) <= rows <= 2 * (55 + 8)
