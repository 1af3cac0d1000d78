"""What would mean another thing on the cluster, or be read there by others, is refused by key."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.portable import refuse_left_behind, refuse_secrets, tracker
from jobs.cluster.shipped import shipped
from jobs.recipe import read_recipe
from jobs.tracking.settings import TrackingSection
from storage.base.errors import RecipeError
from teacher_infer.planning.config import TeacherRecipe

PASSWORD = "hunter2"


@pytest.fixture
def read(work: Path) -> Callable[..., TeacherRecipe]:
    """A teacher's recipe with other values at some dotted keys; written to r.yaml in the working directory."""

    def make(**replaced: Any) -> TeacherRecipe:
        teacher = {"factory": "json:loads", "dtype": "float32", "batch_size": 8}
        recipe: dict[str, Any] = {"name": "toy", "store": "/mnt/store", "source": {"parquet": "s3://b/data"}}
        recipe |= {"teacher": teacher, "targets": {"encoding": "dense"}}
        (work / "r.yaml").write_text(yaml.safe_dump(recipe))
        overrides = [f"{key.replace('__', '.')}={yaml.safe_dump(value)}" for key, value in replaced.items()]
        return read_recipe("r.yaml", overrides, TeacherRecipe, on_cluster=True)

    return make


def left_behind(recipe: TeacherRecipe, work: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        refuse_left_behind("r.yaml", recipe, shipped(work))
    assert "is not shipped. Ray leaves behind what a .gitignore or a .rayignore names" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ignore", [".gitignore", ".rayignore"])
def test_files_of_the_working_directory_that_stay_here(read: Any, work: Path, ignore: str) -> None:
    (work / "runs" / "data").mkdir(parents=True)
    for file in ("runs/w.safetensors", "runs/data/a.parquet", "runs/words.txt"):
        (work / file).write_text("")
    (work / ignore).write_text("runs/\n")
    for key, value in (
        ("teacher__weights", f"{work}/runs/w.safetensors"),
        ("source__parquet", f"{work}/runs/data"),
        ("source__parquet", f"{work}/runs/data/*.parquet"),
        ("source__parquet", f"file://{work}/runs/data"),
        ("teacher__arguments", {"a": {"b": ["x", "runs/words.txt"]}}),
        ("teacher__arguments", {"a": f"{work}/runs/words.txt"}),
        ("teacher__arguments", {"folder": "runs/data"}),
    ):
        said = left_behind(read(**{key: value}), work)
        leaf = {"teacher__arguments": "teacher.arguments."}.get(key, key.replace("__", "."))
        assert said.startswith(f"r.yaml: {leaf}")
    folder = read(teacher={"path": f"{work}/runs/model", "dtype": "float32", "batch_size": 8})
    assert left_behind(folder, work).startswith(f"r.yaml: teacher.path is '{work}/runs/model', which lies in")


def test_what_is_shipped_or_lies_elsewhere_or_is_no_path_passes(read: Any, work: Path) -> None:
    (work / "words.txt").write_text("")
    (work / "runs").mkdir()
    (work / ".gitignore").write_text("runs/\n")
    recipe = read(
        teacher__weights="/mnt/w.safetensors",
        teacher__arguments={"words": "words.txt", "split": "runs", "url": "s3://b/runs/x", "none": "no/such/file"},
    )
    assert refuse_left_behind("r.yaml", recipe, shipped(work)) == []


def test_a_path_into_the_working_directory_is_noted(read: Any, work: Path) -> None:
    (work / "w.safetensors").write_text("")
    (work / ".gitignore").write_text("runs/\n")
    recipe = read(teacher__weights=f"{work}/*.safetensors", store=f"{work}/runs/store")
    notes = refuse_left_behind("r.yaml", recipe, shipped(work))
    assert [note.partition(":")[0] for note in notes] == ["store", "teacher.weights"]
    assert "only where this path leads to the same folder on every machine" in notes[0]


def test_own_code_that_stays_here(read: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "private").mkdir()
    (work / "private" / "hidden_nets.py").write_text("def build(): ...\n")
    (work / "open_nets.py").write_text("def build(): ...\n")
    (work / ".gitignore").write_text("private/\n")
    monkeypatch.syspath_prepend(str(work))
    importlib.invalidate_caches()
    said = left_behind(read(teacher__factory="private.hidden_nets:build"), work)
    assert "teacher.factory is 'private.hidden_nets:build', whose file private/hidden_nets.py lies in" in said
    function = read(source={"function": "private.hidden_nets:build"})
    assert "source.function is 'private.hidden_nets:build'" in left_behind(function, work)
    # What an argument is called is the function's affair, and what is not to be found is the job's.
    passing = {"teacher__arguments": {"factory": "private.hidden_nets:build"}, "source": {"function": "no_module.x:y"}}
    assert refuse_left_behind("r.yaml", read(teacher__factory="open_nets:build", **passing), shipped(work)) == []


def test_a_module_that_a_factory_imports_is_shipped_too(read: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "private").mkdir()
    (work / "private" / "hidden_layers.py").write_text("def head(): ...\n")
    (work / "shown_nets.py").write_text("def build():\n    from private.hidden_layers import head\n    return head()\n")
    monkeypatch.syspath_prepend(str(work))
    importlib.invalidate_caches()
    recipe = read(teacher__factory="shown_nets:build")
    assert refuse_left_behind("r.yaml", recipe, shipped(work)) == []
    (work / ".gitignore").write_text("private/\n")
    said = left_behind(recipe, work)
    assert "which imports private.hidden_layers, and its file private/hidden_layers.py lies in" in said


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("r.yaml: store", "store", f"s3://me:{PASSWORD}@host/b"),
        ("r.yaml: teacher.arguments.db", "teacher__arguments", {"db": f"postgresql://me:{PASSWORD}@host/b"}),
        ("r.yaml: tracking.uri", "tracking__uri", f"http://me:{PASSWORD}@host:5000"),
        ("r.yaml: source.parquet", "source__parquet", f"https://{PASSWORD}@host/data"),
        ("r.yaml: source.parquet", "source__parquet", f"https://host/data?sig={PASSWORD}"),
        ("r.yaml: teacher.arguments.api_key", "teacher__arguments", {"api_key": PASSWORD}),
    ],
)
def test_a_password_in_a_recipe_is_refused_and_not_told(read: Any, place: str, key: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        refuse_secrets("r.yaml", read(**{key: value}), [])
    assert str(caught.value).startswith(f"{place} holds a password, a token or a key (")
    assert PASSWORD not in str(caught.value) and "***" in str(caught.value)


def test_what_is_only_named_like_a_secret_travels(read: Any) -> None:
    source = {"parquet": "s3://bucket/rows?partition_key=2024&sort_key=a", "columns": {"sample_id": "primary_key"}}
    arguments = {"pad_token": "<pad>", "tokenizer": "/mnt/t", "root": "abfss://data@account.dfs.core.windows.net/rows"}
    refuse_secrets("r.yaml", read(source=source, teacher__arguments=arguments), [])


def test_a_password_that_an_override_or_a_comment_holds_travels_too(read: Any, work: Path) -> None:
    recipe = read()
    refuse_secrets("r.yaml", recipe, ["store=/mnt/x", "source.arguments={mail: me@host}"])
    with pytest.raises(RecipeError, match=r"^An override holds a password.*\(store=s3://\*\*\*@host/b\)"):
        refuse_secrets("r.yaml", recipe, [f"store=s3://me:{PASSWORD}@host/b", "store=/mnt/x"])
    with open(work / "r.yaml", "a") as file:
        file.write(f"# store: s3://me:{PASSWORD}@host/b\n")
    line = len((work / "r.yaml").read_text().splitlines())
    with pytest.raises(RecipeError, match=rf"^r.yaml, line {line} holds a password.*\(# store: s3://\*\*\*@host/b\)"):
        refuse_secrets("r.yaml", recipe, [])


def refused_tracker(uri: Any, environment: dict[str, str]) -> str:
    with pytest.raises(RecipeError) as caught:
        tracker("r.yaml", TrackingSection(uri=uri), environment)
    return str(caught.value)


def test_the_submitters_tracker_goes_along() -> None:
    here = {"MLFLOW_TRACKING_URI": "http://tracker:5000"}
    assert tracker("r.yaml", TrackingSection(), here) == ["tracking.uri=http://tracker:5000"]
    for uri in ("http://other:5000", "off", False, "sqlite:////mnt/mlflow.db", "file:///mnt/mlruns", "/mnt/mlruns"):
        assert tracker("r.yaml", TrackingSection(uri=uri), here) == []
    assert tracker("r.yaml", TrackingSection(), {"MLFLOW_TRACKING_URI": "databricks"}) == ["tracking.uri=databricks"]


def test_a_tracker_of_this_machine_is_refused() -> None:
    said = refused_tracker(None, {})
    assert "tracking.uri is not set, and neither is MLFLOW_TRACKING_URI" in said
    assert "tracking.uri=http://HOST:5000, or tracking.uri=off" in said
    for uri in ("sqlite:///runs/mlflow.db", "sqlite://", "file:mlruns", "file://mlruns", "./mlruns", "mlruns"):
        assert f"MLFLOW_TRACKING_URI is '{uri}', a path of this" in refused_tracker(None, {"MLFLOW_TRACKING_URI": uri})
        assert f"r.yaml: tracking.uri is '{uri}'" in refused_tracker(uri, {"MLFLOW_TRACKING_URI": "http://tracker"})
    said = refused_tracker(None, {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@host"})
    assert said.startswith("MLFLOW_TRACKING_URI holds a password, a token or a key (http://***@host)")
