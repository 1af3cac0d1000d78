"""A run's folder: whose it is, what is refused, and what beginning anew takes away."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from jobs.errors import FolderInUse
from jobs.models.model_spec import spec_from_folder
from jobs.models.weights import INDEX_FILE, WEIGHTS_FILE
from jobs.tracking.client import connect
from jobs.tracking.settings import TrackingSection
from storage.base.errors import JobError, StoreError, VerificationError
from storage.cache.open import open_cache
from storage.objectstore.folder import Folder
from student_train import job
from student_train.run.owner import refuse_lost
from student_train.run.run_folder import RESULT_FILE, RUN_FILE, Run, keep_model
from student_train.run.run_folder import begin as begin_and_own
from student_train.run.tracking import Tracker
from student_train.training.config import StudentRecipe
from student_train.training.journal import Journal
from student_train.training.loop import Place, Unobserved, parameters_digest, train
from teacher_infer.teachers import make_teacher
from tests.storage.helpers import make_old


def begin(recipe: StudentRecipe) -> list[Run]:
    """Runs of a job that ended."""
    runs = begin_and_own(recipe)
    for run in runs:
        run.release()
    return runs


def test_a_folder_is_its_recipes_until_begun_anew(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache()
    [run] = begin(make_recipe(cache=cache))
    assert run.left == {}
    run.note("a run")
    [again] = begin(make_recipe(cache=cache))
    assert again.left["run_id"] == "a run"
    assert not again.finished
    with pytest.raises(VerificationError, match="another recipe"):
        begin(make_recipe(cache=cache, steps=21))
    [anew] = begin(make_recipe(cache=cache, steps=21, resume="never"))
    assert anew.left == {}
    assert not (Path(anew.folder.url) / RUN_FILE).exists()


@pytest.mark.parametrize(
    ("change", "word"), [("cache", "data"), ("evaluate", "evaluation"), ("network", "model"), ("weights", "model")]
)
def test_what_a_run_stands_on_counts_by_content(
    change: str, word: str, make_cache: Any, make_recipe: Any, nets: str, tmp_path: Path
) -> None:
    cache, held_out = make_cache(), make_cache("held-out", seed=1)
    first = make_recipe(cache=cache, evaluate=held_out)
    outcome = train(make_recipe(cache=cache, steps=1), Place())
    folder = begin(make_recipe(cache=cache, name="start"))[0].folder
    keep_model(first, folder, outcome)
    start = {**first.student.model_dump(), "weights": folder.url_of("model.safetensors")}
    recipe = make_recipe(cache=cache, evaluate=held_out, student=start)
    begin(recipe)[0].note(None)
    changed: dict[str, Any] = {"cache": cache, "evaluate": held_out, "student": start}
    if change == "cache":
        changed["cache"] = make_cache("other", seed=2)
    if change == "evaluate":
        changed["evaluate"] = make_cache("other", seed=2)
    if change == "network":
        [source] = (tmp_path / "modules").glob("*.py")
        source.write_text(source.read_text() + "\n# another network\n")
        import importlib
        import linecache
        import sys

        linecache.clearcache()
        importlib.reload(sys.modules[nets])
    if change == "weights":
        keep_model(first, folder, train(make_recipe(cache=cache, steps=2), Place()))
    with pytest.raises(VerificationError, match=f"another {word}"):
        begin(make_recipe(**changed))


def test_other_rows_of_a_cache_are_other_data(make_cache: Any, make_recipe: Any) -> None:
    url = make_cache()
    section = {"url": url, "where": "label < 2"}
    begin(make_recipe(cache=section, evaluate=section))[0].note(None)
    assert begin(make_recipe(cache=section, evaluate=section))[0].left
    with pytest.raises(VerificationError, match="another data"):
        begin(make_recipe(cache=url, evaluate=section))
    with pytest.raises(VerificationError, match="another evaluation"):
        begin(make_recipe(cache=section, evaluate=url))


def test_tags_say_which_rows_of_which_cache(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    def tags(**keys: Any) -> dict[str, str]:
        [run] = begin(make_recipe(resume="never", **keys))
        return Tracker(run)._tags()

    url = make_cache(inputs="referenced")
    cache, source = open_cache(url), {"parquet": str(tmp_path / "toy.parquet")}
    section = {"url": url, "inputs": source}
    whole, some = tags(cache=section), tags(cache={**section, "where": "label<2"}, evaluate=section)
    assert whole["distill.cache.digest"] == some["distill.cache.digest"] == cache.digest == whole["distill.data.digest"]
    assert "distill.where" not in whole and "distill.eval.uri" not in whole
    assert (some["distill.where"], some["distill.eval.uri"]) == ("label < 2", cache.url)
    assert "distill.eval.where" not in some and some["distill.data.digest"] != cache.digest
    held_out = tags(source=source, evaluate={**section, "where": "label == 1"})
    assert (held_out["distill.eval.where"], held_out["distill.eval.uri"]) == ("label == 1", cache.url)
    assert "distill.where" not in held_out and "distill.cache.digest" not in held_out


def test_a_run_says_once_which_files_of_its_source_were_left_out(
    make_cache: Any, make_recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stillhouse.train")
    make_cache(inputs="referenced")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").symlink_to(tmp_path / "toy.parquet")
    (tmp_path / "data" / "_SUCCESS").touch()
    begin(make_recipe(source={"parquet": str(tmp_path / "data")}, seed=[1, 2]))
    said = "1 link followed (a.parquet); left out: 1 with a name that begins with '_' or '.' (_SUCCESS)."
    assert caplog.messages.count(f"Source {tmp_path}/data: {said}") == 1


def test_how_often_a_run_reports_may_change(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache()
    begin(make_recipe(cache=cache))[0].note(None)
    assert begin(make_recipe(cache=cache, log_every=3, checkpoint_every=7))[0].left


def test_a_run_is_finished_once_its_result_is_there(make_cache: Any, make_recipe: Any) -> None:
    [run] = begin(make_recipe(cache=make_cache()))
    run.finish({"eval": {"accuracy": 0.5}})
    assert run.finished
    assert run.result() == {"eval": {"accuracy": 0.5}}
    assert (Path(run.folder.url) / RESULT_FILE).exists()


def test_a_run_for_every_seed(make_cache: Any, make_recipe: Any) -> None:
    runs = begin(make_recipe(cache=make_cache(), seed=[3, 1]))
    assert [run.recipe.seed for run in runs] == [3, 1]
    assert len({run.folder.url for run in runs}) == 2


def test_a_model_folder_can_be_a_teacher(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe(cache=make_cache(), steps=2)
    [run] = begin(recipe)
    outcome = train(recipe, Place())
    answer = keep_model(recipe, run.folder, outcome)
    spec = spec_from_folder(answer["model"], recipe.student.factory)
    assert spec.weights_sha256() == answer["weights_sha256"]
    for name, value in spec.build().state_dict().items():
        assert value.equal(outcome.model.state_dict()[name])


def test_a_student_with_tied_weights_is_trained_resumed_kept_and_a_teacher(
    make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    class Keeper(Unobserved):
        def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
            save(tmp_path / f"step-{step}")

    recipe = make_recipe(cache=make_cache(), factory="tied", steps=6, checkpoint_every=3)
    # As safetensors writes them: one of the two names.
    first = recipe.student.spec().build(seed=7)
    save_model(first, str(tmp_path / "first.safetensors"))
    student = recipe.student.model_copy(update={"weights": str(tmp_path / "first.safetensors")})
    recipe = recipe.model_copy(update={"student": student})
    [run] = begin(recipe)
    outcome = train(recipe, Place(), observer=Keeper())
    assert outcome.init_digest == parameters_digest(first)
    resumed = train(recipe, Place(), restored=tmp_path / "step-3")
    assert resumed.resumed_from == 3
    torch.testing.assert_close(resumed.model.state_dict(), outcome.model.state_dict(), rtol=0, atol=0)

    answer = keep_model(recipe, run.folder, outcome)
    spec = spec_from_folder(answer["model"], recipe.student.factory)
    model = spec.build()
    assert model[2].weight is model[0].weight
    torch.testing.assert_close(model.state_dict(), outcome.model.state_dict(), rtol=0, atol=0)
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    logits = make_teacher(spec, dtype="float32", seed=0).logits({"x": x})
    torch.testing.assert_close(logits, outcome.model.eval()(torch.from_numpy(x)).detach())


def test_a_model_folder_may_have_its_weights_in_several_files(
    make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(cache=make_cache(), steps=1)
    [run] = begin(recipe)
    outcome = train(recipe, Place())
    folder = Path(keep_model(recipe, run.folder, outcome)["model"])
    state = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    files = {name: f"model-{number}.safetensors" for number, name in enumerate(state)}
    for name, file in files.items():
        save_file({name: state[name]}, folder / file)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": files}))
    spec = spec_from_folder(str(folder), recipe.student.factory)
    torch.testing.assert_close(spec.build().state_dict(), outcome.model.state_dict(), rtol=0, atol=0)
    before = spec.digest("float32")
    last = list(state)[-1]
    save_file({last: state[last] + 1}, folder / files[last])
    assert spec.digest("float32") != before


def test_models_are_not_written_to_an_object_store(make_cache: Any, make_recipe: Any) -> None:
    asked = make_recipe(cache=make_cache()).model_copy(update={"output": "s3://bucket/models"})
    with pytest.raises(StoreError, match=r"output is s3://bucket/models\. .*Name a local folder"):
        begin(asked)


# Whose folder it is


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_second_start_of_a_run_touches_nothing(
    make_cache: Any, make_recipe: Any, tmp_path: Path, resume: str
) -> None:
    """Not even the folder of another seed, which it would have had."""
    cache = make_cache()
    [other] = begin(make_recipe(cache=cache, seed=0))
    other.note("an earlier run")
    [mine] = begin_and_own(make_recipe(cache=cache, seed=1))
    mine.note("the first start")
    before = files(tmp_path / "models")
    for seeds in ([0, 1], [1, 0], [1]):
        with pytest.raises(FolderInUse, match=f"Process {os.getpid()} on .* is at work in {mine.folder.url}"):
            begin_and_own(make_recipe(cache=cache, seed=seeds, resume=resume))
        assert files(tmp_path / "models") == before
    mine.release()
    begin(make_recipe(cache=cache, seed=[0, 1], resume=resume))


def test_a_folder_of_another_recipe_is_given_back(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache()
    begin(make_recipe(cache=cache, seed=1))[0].note(None)
    with pytest.raises(VerificationError):
        begin_and_own(make_recipe(cache=cache, seed=[0, 1], steps=21))
    begin(make_recipe(cache=cache, seed=[0, 1]))


def test_seeds_of_one_job_are_given_back_one_by_one(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache()
    first, second = begin_and_own(make_recipe(cache=cache, seed=[0, 1]))
    first.release()
    begin(make_recipe(cache=cache, seed=0))
    with pytest.raises(FolderInUse):
        begin(make_recipe(cache=cache, seed=1))
    second.release()


def test_a_finished_run_is_reported_whoever_owns_its_folder(make_cache: Any, make_recipe: Any) -> None:
    cache, on = make_cache(), {"uri": "http://127.0.0.1:9"}
    [mine] = begin_and_own(make_recipe(cache=cache, tracking=on))
    for tracked in (False, True):
        mine.finish({"tracked": tracked, "eval": {}})
        [found] = begin_and_own(make_recipe(cache=cache, tracking=on))
        assert found.ownership is None
        assert job._run_one(found, threading.Event()) == {"tracked": tracked, "eval": {}, "trained": False}
    mine.release()


# What MLflow is told of it


@pytest.fixture
def tracked(make_cache: Any, make_recipe: Any, tmp_path: Path) -> Any:
    """tracked(**keys): a recipe whose runs MLflow is told of."""
    cache, uri = make_cache(), f"sqlite:///{tmp_path}/mlflow.db"
    return lambda **keys: make_recipe(cache=cache, tracking={"uri": uri, "experiment": "e"}, **keys)


def statuses(recipe: StudentRecipe) -> dict[str, str]:
    client, experiment = connect(recipe.tracking.resolved_uri() or "", "e")
    return {run.info.run_id: run.info.status for run in client.search_runs([experiment])}


def noted(run: Run) -> str | None:
    return json.loads(run.folder.read(RUN_FILE))["run_id"]


def test_a_run_of_a_driver_that_was_killed_goes_on_or_is_ended(tracked: Any) -> None:
    recipe = tracked()
    [killed] = begin(recipe)
    Tracker(killed).begin()
    first = noted(killed)
    assert statuses(recipe) == {first: "RUNNING"}
    [again] = begin(recipe)
    Tracker(again).begin()
    assert noted(again) == first and statuses(recipe) == {first: "RUNNING"}
    [anew] = begin(tracked(resume="never"))
    Tracker(anew).close_replaced()
    assert statuses(recipe) == {first: "KILLED"}
    Tracker(anew).begin()
    assert statuses(recipe) == {first: "KILLED", noted(anew): "RUNNING"}


def test_a_runs_id_outlives_a_start_without_mlflow(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tracked()
    [run] = begin(recipe)
    Tracker(run).begin()
    first = noted(run)
    with monkeypatch.context() as away:
        away.setattr("jobs.tracking.runs.connect", refuse)
        Tracker(begin(recipe)[0]).begin()
        assert noted(run) == first
    Tracker(begin(tracked().model_copy(update={"tracking": TrackingSection(uri=False)}))[0]).begin()
    assert noted(run) == first and statuses(recipe) == {first: "RUNNING"}


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("away")


RESULT = {"eval": {"accuracy": 0.5}, "parameters": 3, "weights_sha256": "w", "init_digest": "i", "model": "m"}


@pytest.mark.parametrize("method", ["log_batch", "log_inputs", "log_text"])
def test_a_run_that_mlflow_refused_a_part_of_is_ended(
    tracked: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tracked()
    statuses(recipe)
    monkeypatch.setattr(f"mlflow.MlflowClient.{method}", refuse)
    monkeypatch.setattr(job, "train_in_attempts", lambda *_: RESULT)
    [run] = begin_and_own(recipe)
    answer = job._run_one(run, threading.Event())
    assert statuses(recipe) == {answer["run_id"]: "FINISHED"}
    assert answer["tracked"] == (method != "log_batch")
    begin(recipe)


def test_a_run_that_fails_while_mlflow_is_told_of_its_begin_is_ended(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("student_train.run.tracking.log_recipe", full)
    recipe = tracked()
    [run] = begin_and_own(recipe)
    with pytest.raises(OSError, match="No space left"):
        job._run_one(run, threading.Event())
    assert statuses(recipe) == {noted(run): "FAILED"}


def test_a_driver_whose_folder_was_taken_over_writes_no_result_and_ends_nobodys_run(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tracked()
    [mine] = begin_and_own(recipe)
    theirs: list[Run] = []

    def suspended(*_: Any) -> dict[str, Any]:
        make_old(mine.folder)
        theirs.extend(begin_and_own(recipe))
        return RESULT

    monkeypatch.setattr(job, "train_in_attempts", suspended)
    with pytest.raises(JobError, match="has taken over"):
        job._run_one(mine, threading.Event())
    assert not mine.finished
    assert statuses(recipe) == {noted(mine): "RUNNING"}
    theirs[0].check()
    theirs[0].release()


def test_a_worker_whose_driver_lost_the_folder_writes_no_checkpoint(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    observer = job._Reporter(0, Journal(folder, None, None), partial(refuse_lost, folder, "the driver's"))
    observer.points([("train/loss", 1.0, 4, 0)])
    with pytest.raises(JobError, match="was removed"):
        observer.checkpoint(4, refuse)
    assert files(tmp_path) == {}
