"""A job's id is its recipe's, its command line survives a shell, and its recipe goes with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.submission import Job, Submission, entrypoint, next_id, prepare
from storage.base.errors import RecipeError, UsageError
from teacher_infer.planning.config import TeacherRecipe

JOB = Job("teacher-infer", "teacher", TeacherRecipe)
BASE = "teacher-toy-0123456789ab"


@pytest.fixture
def recipe(work: Path) -> dict[str, Any]:
    made = {
        "name": "toy",
        "store": "/mnt/store",
        "source": {"parquet": "s3://b/data"},
        "teacher": {"factory": "json:loads", "dtype": "float32", "batch_size": 8},
        "targets": {"encoding": "dense"},
        "tracking": {"uri": "off"},
    }
    (work / "recipes").mkdir()
    (work / "recipes" / "r.yaml").write_text(yaml.safe_dump(made))
    return made


def prepared(*overrides: str) -> Submission:
    return prepare(JOB, "recipes/r.yaml", overrides)


@pytest.mark.parametrize(
    "words",
    [["a b.yaml", "x={n: 1}"], ["r.yaml", "x='y'", "z=$HOME", "q=a;b", "p=`id`"], ["r.yaml", 'x="*"', "y=a\nb"]],
)
def test_a_shell_reads_the_command_line_as_it_was_meant(words: list[str]) -> None:
    command = ["python", "-m", "stillhouse_commands", "student-train"]
    assert shlex.split(entrypoint("student-train", words[0], words[1:])) == [*command, *words]


def test_the_first_job_of_a_recipe_has_no_number() -> None:
    assert next_id(BASE, []) == (BASE, None)
    assert next_id(BASE, [(None, False), ("other", False), (f"x{BASE}", False), (f"{BASE}-x", False)]) == (BASE, None)
    assert next_id(BASE, [(f"{BASE[:-1]}c", False), (f"{BASE}3", False)]) == (BASE, None)


def test_jobs_that_have_ended_are_counted_and_one_that_has_not_is_named() -> None:
    assert next_id(BASE, [(BASE, True)]) == (f"{BASE}-2", None)
    assert next_id(BASE, [(f"{BASE}-10", True), (BASE, True), (f"{BASE}-9", True)]) == (f"{BASE}-11", None)
    assert next_id(BASE, [(f"{BASE}-2", False), (BASE, True)])[1] == f"{BASE}-2"
    assert next_id(BASE, [(BASE, False), (f"{BASE}-2", True)])[1] == BASE


def test_the_id_is_what_is_asked_and_not_where_or_who_is_told(recipe: dict[str, Any], work: Path) -> None:
    made = prepared()
    assert made.base == f"teacher-toy-{made.digest[:12]}"
    assert prepared("ray.actors=4", "tracking.uri=http://tracker").base == made.base
    assert prepared("max_bad_samples=0").base == made.base
    assert prepared("span_rows=7").base != made.base
    assert prepare(JOB, str(work / "recipes" / "r.yaml"), []) == made
    assert made.entrypoint == "python -m stillhouse_commands teacher-infer recipes/r.yaml"
    assert made.shipped.files.keys() == {"recipes/r.yaml"}


def test_the_submitters_tracker_stands_in_the_command_line(
    recipe: dict[str, Any], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del recipe["tracking"]
    (work / "recipes" / "r.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeError, match=r"tracking\.uri is not set"):
        prepared()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    command = "python -m stillhouse_commands teacher-infer"
    assert prepared("seed=1").entrypoint == f"{command} recipes/r.yaml seed=1 tracking.uri=http://tracker"


def test_a_recipe_that_does_not_travel_is_refused(recipe: dict[str, Any], work: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UsageError, match=r"The recipe '\.\./r\.yaml' lies outside the working directory"):
        prepare(JOB, "../r.yaml", [])
    for ignore in (".gitignore", ".rayignore"):
        (work / ignore).write_text("recipes/*.yaml\n")
        with pytest.raises(UsageError, match=r"The recipe 'recipes/r\.yaml' is not shipped\. Ray leaves behind"):
            prepared()
        (work / ignore).unlink()


def test_what_the_recipe_says_is_checked_first(recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="unknown key 'span_row'"):
        prepared("span_row=3")
    with pytest.raises(RecipeError, match="store: is a relative path"):
        prepared("store=runs/store")
    with pytest.raises(RecipeError, match=r"teacher\.weights is '.*', which lies in the working directory"):
        prepared(f"teacher.weights={Path.cwd()}/w.safetensors")
    with pytest.raises(RecipeError, match="An override holds a password"):
        prepared("store=s3://me:pw@host/b", "store=/mnt/store")
