"""A student's recipe refuses what cannot be meant, and its digests count what changes the model and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.errors import RecipeError
from storage.recipes import read_recipe
from student_train.config import StudentRecipe

RECIPE: dict[str, Any] = {
    "name": "toy",
    "cache": "store/toy",
    "student": {"factory": "nets:student"},
    "optimizer": {"lr": 0.01},
    "steps": 10,
    "batch_size": 4,
}
SOURCE = {"function": "data:samples"}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """read(keys, *overrides): RECIPE with other keys (None takes one out), written to a file and read."""

    def read(keys: dict[str, Any], *overrides: str) -> StudentRecipe:
        tree = {key: value for key, value in {**RECIPE, **keys}.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return read_recipe(str(path), overrides, StudentRecipe)

    return read


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"source": SOURCE}, "exactly one of cache .* and source"),
        ({"cache": None}, "exactly one of cache .* and source"),
        (
            {"cache": None, "source": SOURCE, "losses": {"forward_kl": {}}},
            "forward_kl needs soft targets; name a cache",
        ),
        ({"losses": {"forward_kj": {}}}, "unknown loss 'forward_kj'; Did you mean 'forward_kl'.*forward_kl, cross_ent"),
        ({"losses": {"cross_entropy": {"temperature": 2.0}}}, "cross_entropy takes no temperature"),
        ({"losses": {"forward_kl": {"temperature": 0}}}, "losses.forward_kl.temperature: .*greater than 0"),
        ({"losses": {"forward_kl": {"weight": -1}}}, "losses.forward_kl.weight: .*greater than or equal to 0"),
        ({"losses": {"forward_kl": {"temprature": 2}}}, "losses.forward_kl.temprature.*Did you mean 'temperature'"),
        ({"seed": [0, 1, 0]}, "seed.*: seeds are distinct"),
        ({"seed": []}, "seed.*: seeds are distinct, and there is at least one"),
        ({"batch_size": 3, "ray": {"workers": 4}}, "batch_size 3 is less than the 4 workers"),
        ({"steps": 0}, "steps: .*greater than 0"),
        ({"steps": None}, "the key 'steps' is missing"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: .*greater than 0"),
        ({"optimizer": {"lr": 0.1, "momentum": 1.0}}, "optimizer.momentum: .*less than 1"),
        ({"optimizer": {"lr": 0.1, "name": "adam"}}, "optimizer.name: .*'adamw' or 'sgd'"),
        ({"resume": "always"}, "resume: .*'auto' or 'never'"),
        ({"role": "tutor"}, "role: .*'teacher', 'student' or 'baseline'"),
        ({"name": "../up"}, "name: "),
        ({"name": ".hidden"}, "name: "),
        ({"source": {"function": "a:b", "parquet": "x"}, "cache": None}, "exactly one of parquet and function"),
        ({"stepz": 3}, "unknown key 'stepz'. Did you mean 'steps'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence_with_the_file(
    keys: dict[str, Any], sentence: str, read: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence) as refused:
        read(keys)
    assert str(refused.value).startswith(str(tmp_path / "recipe.yaml"))


def test_a_batch_of_one_row_a_worker_is_enough(read: Any) -> None:
    assert read({"batch_size": 4, "ray": {"workers": 4}}).ray.workers == 4


def test_a_cache_asks_for_the_teacher_and_a_source_for_labels(read: Any) -> None:
    assert list(read({}).loss_sections()) == ["forward_kl"]
    assert list(read({"cache": None, "source": SOURCE}).loss_sections()) == ["cross_entropy"]
    assert list(read({"losses": {"cross_entropy": {}, "forward_kl": {}}}).loss_sections()) == [
        "cross_entropy",
        "forward_kl",
    ]


@pytest.mark.parametrize(
    ("keys", "role"),
    [
        ({}, "student"),
        ({"cache": None, "source": SOURCE}, "baseline"),
        ({"cache": None, "source": SOURCE, "role": "teacher"}, "teacher"),
    ],
)
def test_the_role_is_said_or_follows_from_the_data(keys: dict[str, Any], role: str, read: Any) -> None:
    assert read(keys).role_name() == role


@pytest.mark.parametrize(
    "override",
    [
        "cache=elsewhere/toy",
        "evaluate=store/test",
        "output=elsewhere",
        "resume=never",
        "ray.workers=2",
        "ray.num_cpus=3",
        "tracking.experiment=another",
        "tracking.register_as=model",
    ],
)
def test_places_and_machines_move_neither_digest_nor_family(override: str, read: Any) -> None:
    assert read({}, override) != read({})
    assert read({}, override).digest() == read({}).digest()
    assert read({}, override).family() == read({}).family()


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=0.02",
        "optimizer.schedule=constant",
        "optimizer.warmup_steps=1",
        "steps=11",
        "batch_size=5",
        "losses.forward_kl.temperature=2.0",
        "student.factory=nets:other",
        "student.arguments.hidden=3",
        "name=other",
    ],
)
def test_whatever_changes_the_model_changes_digest_and_family(override: str, read: Any) -> None:
    assert read({}, override).digest() != read({}).digest()
    assert read({}, override).family() != read({}).family()


def test_a_seed_changes_the_digest_and_stays_in_the_family(read: Any) -> None:
    assert read({}, "seed=1").digest() != read({}).digest()
    assert read({}, "seed=1").family() == read({}).family() == read({}, "seed=[2,3]").family()


def test_a_seed_of_a_list_is_the_run_of_that_seed_alone(read: Any) -> None:
    several = read({}, "seed=[3,5]")
    assert several.seeds() == [3, 5] and read({}, "seed=5").seeds() == [5]
    assert several.for_seed(5).digest() == read({}, "seed=5").digest()
    assert several.for_seed(5).run_folder() == read({}, "seed=5").run_folder()


def test_a_run_has_a_folder_of_its_own_below_output(read: Any, tmp_path: Path) -> None:
    assert read({"output": str(tmp_path)}, "seed=7").run_folder() == f"{tmp_path}/toy/seed-7"
    with pytest.raises(RecipeError, match="one seed"):
        read({}, "seed=[1,2]").run_folder()


def test_relative_paths_are_absolute_once_read(read: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read({"evaluate": "store/test"})
    assert recipe.cache == f"{tmp_path}/store/toy"
    assert recipe.evaluate == f"{tmp_path}/store/test"
    assert recipe.output == f"{tmp_path}/runs/models"
    assert read({"cache": "s3://bucket/toy"}).cache == "s3://bucket/toy"


def test_a_recipe_survives_the_way_to_a_worker(read: Any) -> None:
    """The job sends `model_dump(exclude_unset)`; what a worker reads from it has the same digest."""
    recipe = read({"losses": {"forward_kl": {"temperature": 2.0}}}, "seed=[1,2]").for_seed(2)
    again = StudentRecipe.model_validate(recipe.model_dump(mode="json", exclude_unset=True))
    assert again == recipe and again.digest() == recipe.digest()
