"""Runs in MLflow on SQLite: one that was made is kept and ended, whatever MLflow refuses afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.tracking.caches import track_cache
from jobs.tracking.client import CUT, connect
from jobs.tracking.runs import close_run, finish_run, reopen_run, start_run, tag_run
from jobs.tracking.sqlite_uri import sqlite_uri
from storage.cache.cache import Cache
from storage.objectstore.folder import Folder
from tests.storage.helpers import label

# Every character that means something to a URI, to SQLAlchemy, to a glob, to fsspec or to a shell.
ODD = "my data #1 100% ä?&+ %41 [x] *{y} a::b @c=d; :e'\"$HOME\\|~^`"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that is made while the current folder has such a name."""
    folder = tmp_path_factory.mktemp("mlflow") / ODD
    folder.mkdir()
    uri = sqlite_uri(folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        connect(uri)
    return uri


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return request.node.name


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    _, cache = label(Folder(str(tmp_path / ODD / "store")))
    teacher = {"digest": "d" * 64, "factory": "toys:linear", "weights_sha256": None}
    return replace(cache, lineage={"teacher": teacher, "recipe_digest": "r" * 64})


@pytest.fixture
def mlflow_away(uri: str) -> Iterator[pytest.MonkeyPatch]:
    """`setattr(f"mlflow.MlflowClient.{method}", ...)` until the test takes it back or ends."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the server refuses")


def runs(uri: str, experiment: str) -> list[Any]:
    client, id = connect(uri, experiment)
    return [client.get_run(run.info.run_id) for run in client.search_runs([id])]


def statuses(uri: str, experiment: str) -> list[str]:
    return [run.info.status for run in runs(uri, experiment)]


def test_a_database_and_its_artifacts_lie_in_a_folder_of_any_name(uri: str, experiment: str, cache: Cache) -> None:
    """Nothing lies anywhere else: MLflow makes the folders of some URIs itself, undecoded."""
    run_id = track_cache(uri, experiment, cache, {"name": "digits"})
    [run] = runs(uri, experiment)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    [folder] = Path(uri.removeprefix("sqlite+pysqlite:///").partition("/my data")[0]).iterdir()
    assert folder.name == ODD
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert sorted(path.name for path in folder.glob("mlartifacts/*/artifacts/*")) == ["cache.json", "recipe.yaml"]


@pytest.mark.parametrize("method", ["log_batch", "log_param"])
def test_a_run_whose_parameters_are_refused_is_kept_and_ended(
    uri: str, experiment: str, method: str, mlflow_away: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect(uri)
    mlflow_away.setattr(f"mlflow.MlflowClient.{method}", refuse)
    kept: list[str] = []
    run_id = start_run(uri, experiment, "r", {}, {"student": "x"}, kept.append)
    assert kept == [run_id]
    assert ("MLflow was not told the parameters of the run r" in caplog.text) == (method == "log_batch")
    assert finish_run(uri, kept[0], "FAILED")
    assert statuses(uri, experiment) == ["FAILED"]


def test_a_runs_id_is_kept_before_anything_else_is_told(
    uri: str, experiment: str, mlflow_away: pytest.MonkeyPatch
) -> None:
    def killed(_: str) -> None:
        raise KeyboardInterrupt

    connect(uri)
    mlflow_away.setattr("mlflow.MlflowClient.log_batch", refuse)
    with pytest.raises(KeyboardInterrupt):
        start_run(uri, experiment, "r", {}, {"student": "x"}, killed)
    assert len(runs(uri, experiment)) == 1


def test_what_is_longer_than_mlflow_takes_is_cut_with_a_mark(
    uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    run_id = start_run(uri, experiment, "r", {"long": "t" * 9000}, {"student": "x" * 7000, "losses": {"a": 1}})
    assert run_id is not None and tag_run(uri, run_id, {"later": "t" * 9000, "short": "t"})
    [run] = runs(uri, experiment)
    assert run.data.params == {"student": "x" * (6000 - len(CUT)) + CUT, "losses": "{'a': 1}"}
    for name in ("long", "later"):
        assert run.data.tags[name] == "t" * (8000 - len(CUT)) + CUT
    assert run.data.tags["short"] == "t"


@pytest.mark.parametrize("method", ["log_batch", "log_inputs", "log_dict", "log_text", "set_terminated"])
def test_a_cache_run_that_could_not_be_told_all_is_completed_by_the_next_telling(
    uri: str, experiment: str, method: str, cache: Cache, mlflow_away: pytest.MonkeyPatch
) -> None:
    connect(uri)
    mlflow_away.setattr(f"mlflow.MlflowClient.{method}", refuse)
    first = track_cache(uri, experiment, cache, {})
    assert statuses(uri, experiment) == ["RUNNING" if method == "set_terminated" else "FAILED"]
    mlflow_away.undo()
    again = track_cache(uri, experiment, cache, {})
    assert first in (again, None)
    [run] = runs(uri, experiment)
    assert (run.info.run_id, run.info.status) == (again, "FINISHED")
    assert run.data.metrics["samples"] == cache.samples and "targets" in run.data.params
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == [f"logit-cache:{cache.name}"]
    assert track_cache(uri, experiment, cache, {}) == again


def test_of_two_jobs_that_tell_the_same_cache_one_run_is_finished(
    uri: str, experiment: str, cache: Cache, mlflow_away: pytest.MonkeyPatch
) -> None:
    """The other one begins between the look for a run and the making of it."""
    from mlflow import MlflowClient

    connect(uri)
    really, other = MlflowClient.create_run, list[str | None]()

    def create(self: Any, *arguments: Any, **settings: Any) -> Any:
        mlflow_away.undo()
        other.append(track_cache(uri, experiment, cache, {}))
        return really(self, *arguments, **settings)

    mlflow_away.setattr(MlflowClient, "create_run", create)
    mine = track_cache(uri, experiment, cache, {})
    assert [mine] == other
    assert sorted(statuses(uri, experiment)) == ["FINISHED", "KILLED"]


def test_a_run_goes_on_unless_mlflow_has_it_no_more(
    uri: str, experiment: str, mlflow_away: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start_run(uri, experiment, "r", {}, {})
    assert run_id is not None and finish_run(uri, run_id, "FAILED")
    assert reopen_run(uri, run_id)
    assert statuses(uri, experiment) == ["RUNNING"]
    client, _ = connect(uri)
    client.delete_run(run_id)
    for gone in (run_id, "0" * 32):
        assert not reopen_run(uri, gone)
        assert f"has no run {gone} any more" in caplog.text
    mlflow_away.setattr("mlflow.MlflowClient.get_run", refuse)
    assert reopen_run(uri, run_id), "a server that does not answer has not lost the run"


@pytest.mark.parametrize(("left", "closed"), [("RUNNING", "KILLED"), ("FINISHED", "FINISHED"), ("FAILED", "FAILED")])
def test_a_run_that_is_begun_anew_is_ended_if_its_driver_was_killed(
    uri: str, experiment: str, left: str, closed: str
) -> None:
    run_id = start_run(uri, experiment, "r", {}, {})
    assert run_id is not None
    if left != "RUNNING":
        finish_run(uri, run_id, left)
    close_run(uri, run_id)
    assert statuses(uri, experiment) == [closed]
