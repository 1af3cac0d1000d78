"""The whole way on one Ray: a teacher learns, is cached, students learn from it, MLflow knows, compare shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from jobs.tracking.client import connect
from jobs.tracking.sqlite_uri import sqlite_uri
from storage.__main__ import main as storage
from storage.cache.open import open_cache
from student_train.__main__ import main as student_train
from teacher_infer.__main__ import main as teacher_infer


@dataclass(frozen=True)
class Spine:
    """A finished spine: its folder, and what each command answered.

    missed: the baseline's first answer, when MLflow was there at its beginning and away at its end.
    second: what a second start of a run answered, the first one's process, and whether all its files stayed.
    """

    folder: Path
    tracking: str
    teacher: dict[str, Any]
    cache: dict[str, Any]
    students: dict[str, Any]
    missed: dict[str, Any]
    baseline: dict[str, Any]
    second: list[Any]


ROWS = {"function": "stillhouse_toys:rows"}
MODEL = {"factory": "stillhouse_toys:linear"}

# The same model, which learns no further than to its first checkpoint while there is a file `halt`.
HALTING = """
    import time
    from pathlib import Path

    from stillhouse_toys import Linear


    class Halting(Linear):
        def __init__(self, halt, checkpoints):
            super().__init__(4, 3)
            self.halt, self.checkpoints = Path(halt), Path(checkpoints)

        def forward(self, x):
            while self.halt.exists() and list(self.checkpoints.glob("*/checkpoint_*/state.json")):
                time.sleep(0.05)
            return super().forward(x)
"""


def student_recipe(folder: Path, **replaced: Any) -> dict[str, Any]:
    return {
        "name": "toy-student",
        "cache": f"{folder}/store/toy",
        "student": MODEL,
        "losses": {"forward_kl": {"temperature": 2.0}},
        "optimizer": {"lr": 0.05},
        "steps": 12,
        "batch_size": 8,
        "log_every": 4,
        "evaluate": f"{folder}/store/toy-test",
        "output": f"{folder}/models",
        "tracking": {"uri": sqlite_uri(folder / "mlflow.db"), "experiment": "toys"},
        **replaced,
    }


def killed_recipe(folder: Path) -> dict[str, Any]:
    """What trains the weights of student_recipe(folder), in a run that is killed after its first checkpoint."""
    arguments = {"halt": f"{folder}/halt", "checkpoints": f"{folder}/models/killed/seed-0/checkpoints"}
    return student_recipe(
        folder,
        name="killed",
        student={"factory": "stillhouse_halting:Halting", "arguments": arguments},
        checkpoint_every=4,
        # Tracking that nobody answers at.
        tracking={"uri": "http://127.0.0.1:9", "experiment": "toys"},
    )


@contextmanager
def killed_half_way(folder: Path, address: str) -> Iterator[list[Any]]:
    """A run in a process of its own beside the block; at the block's end it is killed where it halts.

    Gives a list that then holds what a second start of the run answered while it was going on.

    `halt` stays: a worker that Ray has not ended yet must not go on without its driver.
    """
    path, said = folder / "killed.yaml", folder / "killed.log"
    path.write_text(yaml.safe_dump(killed_recipe(folder)))
    (folder / "halt").touch()
    with open(said, "wb") as log:
        command = [sys.executable, "-m", "student_train", str(path)]
        job = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, stdout=log, stderr=log)
    second: list[Any] = []
    try:
        yield second
        deadline = time.monotonic() + 90
        # Ray Train must have noted the checkpoint before it can be found again.
        noted = "models/killed/seed-0/checkpoints/*/checkpoint_manager_snapshot.json"
        while not any(file.stat().st_size for file in folder.glob(noted)):
            assert job.poll() is None, said.read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = {path for path in folder.glob("models/killed/seed-0/**/*") if path.is_file()}
        second += call(student_train, {**killed_recipe(folder), "resume": "never"})
        second += [job.pid, before <= set(folder.glob("models/killed/seed-0/**/*"))]
    finally:
        job.kill()
        job.wait()


def call(command: Callable[[list[str]], int], recipe: dict[str, Any] | None, *arguments: str) -> tuple[int, Any, str]:
    """(exit code, the JSON answer, what was said) of a command in this process."""
    import contextlib
    import io
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([*([] if recipe is None else [str(path)]), *arguments])
    assert "Traceback" not in err.getvalue()
    # A stand-in for stdout also has what Ray says of its workers meanwhile (see test_console for the real one).
    text = re.sub(r"^.*\(raylet\).*\n", "", out.getvalue(), flags=re.MULTILINE)
    return code, json.loads(text) if "--json" in arguments and text else text, err.getvalue()


def answer(command: Callable[[list[str]], int], recipe: dict[str, Any] | None, *arguments: str) -> Any:
    code, said, err = call(command, recipe, *arguments)
    assert code == 0, err
    return said


@pytest.fixture(scope="module")
def spine(one_ray: str, toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Spine:
    # With what means something to a URI, to SQLAlchemy, to a glob, to fsspec or to a shell.
    folder = tmp_path_factory.mktemp("spine") / "my data #1 100% ä?&+ %41 [x] *{y} a::b @c=d; :e'\"$HOME\\|~^`"
    folder.mkdir()
    (toys / "stillhouse_halting.py").write_text(textwrap.dedent(HALTING))
    labels = {
        "cache": None,
        "source": {**ROWS, "arguments": {"count": 60}},
        "losses": {"cross_entropy": {}},
        "evaluate": {**ROWS, "arguments": {"count": 30, "first": 60}},
    }
    tracking = {"uri": sqlite_uri(folder / "mlflow.db"), "experiment": "toys", "register_as": "toy-teacher"}
    teacher = answer(
        student_train,
        student_recipe(folder, name="toy-teacher", role="teacher", steps=20, tracking=tracking, **labels),
        "--json",
    )
    recipe = {
        "name": "toy",
        "store": f"{folder}/store",
        "source": {**ROWS, "arguments": {"count": 100, "label": False}},
        "held_out": {"name": "toy-test", "source": {**ROWS, "arguments": {"count": 30, "first": 60}}},
        "teacher": {
            "path": teacher["model"],
            "factory": "stillhouse_toys:linear",
            "dtype": "float32",
            "batch_size": 16,
        },
        "targets": {"encoding": "dense", "temperature": 2.0},
        "span_rows": 40,
        "tracking": {"uri": tracking["uri"], "experiment": "toys"},
    }
    cache = answer(teacher_infer, recipe, "--json")
    recipe = student_recipe(folder, name="toy-baseline", **{**labels, "evaluate": f"{folder}/store/toy-test"})
    with killed_half_way(folder, one_ray) as second, pytest.MonkeyPatch.context() as away:
        away.setattr("student_train.run.tracking.log_points", lambda *_: False)
        away.setattr("student_train.training.journal.log_points", lambda *_: False)
        away.setattr("student_train.run.tracking.finish_run", lambda *_: False)
        missed = answer(student_train, recipe, "--json")
    students = answer(student_train, student_recipe(folder, seed=[0, 1], ray={"concurrent_runs": 2}), "--json")
    baseline = answer(student_train, recipe, "--json")
    return Spine(folder, tracking["uri"], teacher, cache, students, missed, baseline, second)


@pytest.fixture(scope="module")
def resumed(spine: Spine) -> dict[str, Any]:
    """What the run that was killed half-way answered when it was asked for again."""
    assert not (spine.folder / "models" / "killed" / "seed-0" / "result.json").exists()
    # The killed job's workers are ended by Ray a moment later.
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (spine.folder / "halt").unlink()
    return answer(student_train, killed_recipe(spine.folder), "--json")


def test_every_command_answers_as_promised(spine: Spine) -> None:
    assert spine.teacher["eval"].keys() == {"accuracy", "cross_entropy", "ece"}
    assert spine.cache["spans"] == {"total": 3, "reused": 0, "computed": 3}
    assert spine.cache["held_out"]["forward_positions"] == 30
    first, second = spine.students["runs"]
    assert (first["seed"], second["seed"]) == (0, 1)
    for run in (first, second, spine.baseline):
        assert {"accuracy", "ece", "kl_to_teacher", "agreement_top1", "teacher_accuracy"} <= run["eval"].keys()
        assert (Path(run["model"]) / "model.safetensors").exists()
        assert run["run_id"]
    # The teacher is scored from the cache as it was scored when it was trained.
    assert first["eval"]["teacher_accuracy"] == pytest.approx(spine.teacher["eval"]["accuracy"])
    assert first["init_digest"] == spine.baseline["init_digest"] != second["init_digest"]
    listed = answer(storage, None, "ls", f"{spine.folder}/store", "--json")["caches"]
    assert [(row["name"], row["samples"]) for row in listed] == [("toy", 100), ("toy-test", 30)]
    assert {"url", "cache_key", "cache_digest", "encoding", "positions", "bytes"} <= listed[0].keys()
    shown = answer(storage, None, "show", f"{spine.folder}/store/toy-test@{listed[1]['cache_key'][:8]}", "--json")
    assert shown["lineage"]["teacher"]["weights_sha256"] == spine.teacher["weights_sha256"]
    assert sum(c["probability"] for c in shown["rows"][0]["top"]) == pytest.approx(1)


def teacher_inputs(client: Any, run: Any) -> list[str]:
    # A search leaves model inputs out; reading the one run does not.
    return [model.model_id for model in client.get_run(run.info.run_id).inputs.model_inputs]


def test_mlflow_leads_from_the_registered_teacher_to_its_students(spine: Spine) -> None:
    client, experiment = connect(spine.tracking, "toys")
    cache = open_cache(f"{spine.folder}/store/toy")

    [version] = client.search_model_versions("name = 'toy-teacher'")
    assert version.tags["distill.weights.sha256"] == spine.teacher["weights_sha256"]
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    teacher_model = version.source.removeprefix("models:/")

    found = client.search_runs([experiment], "dataset.name = 'logit-cache:toy' AND dataset.context = 'cache_output'")
    assert [run.info.run_id for run in found] == [spine.cache["tracking"]["run_ids"][0]]
    assert found[0].data.tags["distill.cache.digest"] == cache.digest
    assert teacher_inputs(client, found[0]) == [teacher_model]
    assert found[0].data.tags["distill.teacher.uri"] == "models:/toy-teacher/1"

    students = client.search_runs(
        [experiment], f"dataset.digest = '{cache.digest[:32]}' AND dataset.context = 'distillation'"
    )
    assert {run.info.run_id for run in students} == {run["run_id"] for run in spine.students["runs"]}
    for run in students:
        assert run.info.status == "FINISHED"
        assert run.data.tags["distill.role"] == "student"
        assert teacher_inputs(client, run) == [teacher_model]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == [4, 8, 12]
    [baseline] = client.search_runs([experiment], "tags.`distill.role` = 'baseline'")
    assert "distill.cache.digest" not in baseline.data.tags
    # It was evaluated on a cache, and learned from no teacher.
    assert [i.dataset.name for i in baseline.inputs.dataset_inputs] == ["logit-cache:toy-test"]
    assert teacher_inputs(client, baseline) == []
    assert "distill.teacher.uri" not in baseline.data.tags


def test_sealing_again_makes_no_second_cache_run(spine: Spine) -> None:
    from jobs.tracking.caches import track_cache

    cache = open_cache(f"{spine.folder}/store/toy")
    assert track_cache(spine.tracking, "toys", cache, {}) == spine.cache["tracking"]["run_ids"][0]


def test_compare_puts_teacher_students_and_baseline_side_by_side(spine: Spine) -> None:
    picture = spine.folder / "compare.png"
    arguments = ["compare", f"{spine.folder}/store/toy", "--tracking", spine.tracking, "--picture", str(picture)]
    shown = answer(student_train, None, *arguments, "--json")
    assert [(row["name"], row["role"], row["seeds"]) for row in shown["rows"]] == [
        ("toy-teacher", "teacher", 1),
        ("toy-student", "student", 2),
        ("toy-baseline", "baseline", 1),
    ]
    accuracies = [run["eval"]["accuracy"] for run in spine.students["runs"]]
    assert shown["rows"][1]["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert shown["rows"][0]["accuracy"]["mean"] == pytest.approx(spine.teacher["eval"]["accuracy"])
    assert picture.stat().st_size > 5000
    assert picture.with_suffix(".csv").exists()


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(spine: Spine) -> None:
    again = answer(student_train, student_recipe(spine.folder), "--json")
    assert not again["trained"]
    assert again["run_id"] == spine.students["runs"][0]["run_id"]
    code, _, said = call(student_train, student_recipe(spine.folder, optimizer={"lr": 0.01}))
    assert code == 3
    assert "belongs to a run of another recipe" in said
    assert "resume=never" in said
    code, _, said = call(student_train, student_recipe(spine.folder, cache=f"{spine.folder}/store/toy-test"))
    assert code == 3
    assert "belongs to a run of another data" in said


def test_a_run_that_is_going_on_is_not_started_again(spine: Spine) -> None:
    code, _, said, process, all_there = spine.second
    assert (code, all_there) == (2, True)
    assert f"FolderInUse: Process {process} on " in said and "is at work in" in said


def test_a_run_killed_half_way_goes_on_and_ends_as_if_it_had_not_been(spine: Spine, resumed: dict[str, Any]) -> None:
    unbroken = spine.students["runs"][0]
    assert (resumed["trained"], resumed["resumed_from"], unbroken["resumed_from"]) == (True, 4, 0)
    for what in ("init_digest", "weights_sha256", "eval"):
        assert resumed[what] == unbroken[what]


def test_a_run_that_mlflow_missed_is_told_of_later(spine: Spine, resumed: dict[str, Any]) -> None:
    """Neither of its two attempts could reach MLflow; it is told what an unbroken run told it."""
    assert (resumed["run_id"], resumed["tracked"]) == (None, False)
    client, _ = connect(spine.tracking)
    recipe = {**killed_recipe(spine.folder), "tracking": {"uri": spine.tracking, "experiment": "toys"}}
    found = answer(student_train, recipe, "--json")
    assert (found["trained"], found["tracked"]) == (False, True)
    run = client.get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/accuracy"] == pytest.approx(resumed["eval"]["accuracy"])
    for name in ("train/loss", "train/loss_forward_kl", "train/lr"):
        mine, unbroken = (
            [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
            for run_id in (found["run_id"], spine.students["runs"][0]["run_id"])
        )
        assert mine == unbroken
        assert [step for step, _ in mine] == [4, 8, 12]
    assert answer(student_train, recipe, "--json")["run_id"] == found["run_id"]


def test_a_run_whose_end_mlflow_missed_is_told_of_later(spine: Spine) -> None:
    """MLflow was there when the run began, and away when it ended."""
    missed, found = spine.missed, spine.baseline
    assert missed["trained"]
    assert missed["run_id"] is not None
    assert not missed["tracked"]
    assert (found["trained"], found["tracked"], found["run_id"]) == (False, True, missed["run_id"])
    client, _ = connect(spine.tracking)
    run = client.get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/accuracy"] == pytest.approx(missed["eval"]["accuracy"])
    assert [p.step for p in client.get_metric_history(found["run_id"], "train/loss")] == [4, 8, 12]


def test_a_folder_that_cannot_be_written_and_a_file_that_is_no_store(spine: Spine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, _, said = call(student_train, student_recipe(spine.folder, output=f"{tmp_path}/file/models"))
    assert code == 2
    assert f"{tmp_path}/file/models cannot be written" in said
    code, _, said = call(storage, None, "ls", str(tmp_path))
    assert code == 2
    assert "is no store: it has neither commits nor caches" in said


def test_a_password_in_the_tracking_uri_is_not_printed(spine: Spine) -> None:
    code, _, said = call(student_train, None, "compare", "--tracking", "http://bob:hunter2@127.0.0.1:9")
    assert code == 1
    assert "MLflow at http://***@127.0.0.1:9 did not answer" in said
    assert "hunter2" not in said


def test_labels_with_an_id_twice(spine: Spine) -> None:
    twice = {"source": {**ROWS, "arguments": {"same_id": True}}, "cache": None, "losses": {}, "evaluate": None}
    code, _, said = call(student_train, student_recipe(spine.folder, name="twice", **twice))
    assert code == 2
    assert "1 sample ids appear more than once: 's0' (40 times)" in said


@pytest.fixture
def damaged(spine: Spine) -> Iterator[Path]:
    """A shard of the cache with one byte changed in its first row group; whole again after the test."""
    shard = open_cache(f"{spine.folder}/store/toy").shards[1]
    path = spine.folder / "store" / shard.path
    whole = path.read_bytes()
    at = (shard.row_groups[0].start + shard.row_groups[0].stop) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    yield path
    path.write_bytes(whole)


def test_a_whole_cache_is_verified(spine: Spine) -> None:
    assert answer(storage, None, "verify", f"{spine.folder}/store/toy", "--json")["ok"]


def test_a_changed_byte_is_found_by_verify(spine: Spine, damaged: Path) -> None:
    code, verified, _ = call(storage, None, "verify", f"{spine.folder}/store/toy", "--json")
    assert code == 3
    assert not verified["ok"]
    assert [str(damaged) in problem for problem in verified["problems"]] == [True]


@pytest.mark.slow
def test_a_changed_byte_stops_training(spine: Spine, damaged: Path) -> None:
    code, _, said = call(student_train, student_recipe(spine.folder, name="damaged"))
    assert code == 3
    assert f"The shard {damaged} is damaged: row group 0" in said
    assert not (spine.folder / "models" / "damaged" / "seed-0" / "model.safetensors").exists()


def test_what_is_no_sealed_cache_is_refused(spine: Spine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a cache")
    (tmp_path / "store" / "caches" / "ab12").mkdir(parents=True)
    for cache, sentence in (
        (f"{tmp_path}/file", "is no cache, and no store"),
        (f"{tmp_path}/store/caches/ab12", "is not sealed"),
        (f"{spine.folder}/store/toyy", "has no cache named 'toyy'. Did you mean 'toy'?"),
        (f"{tmp_path}/nowhere/toy", "There is no store at"),
    ):
        code, _, said = call(student_train, student_recipe(spine.folder, name="refused", cache=cache))
        assert code == 2
        assert sentence in said
        code, _, said = call(storage, None, "show", cache)
        assert code == 2
        assert sentence in said
    assert not (spine.folder / "models" / "refused").exists()
