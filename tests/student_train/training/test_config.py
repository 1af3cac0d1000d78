"""A student's recipe refuses what cannot be meant, and its digests count what changes the model and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.portable import refuse_left_behind
from jobs.cluster.shipped import Shipped
from jobs.recipe import read_recipe, recipe_digest
from storage.base.errors import RecipeError
from storage.rows.reading import Reading
from storage.sources.settings import SourceSection
from student_train.training.config import _PLACES, CacheSection, StudentRecipe
from teacher_infer.planning.config import TeacherRecipe

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
        ({"losses": {"cross_entropy": {"tail": "bucket"}}}, "cross_entropy takes no tail"),
        ({"losses": {"forward_kl": {"tail": "buckets"}}}, "losses.forward_kl.tail: .*'bucket', 'unigram', 'renorm"),
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
        ({"source": {"function": "a:b", "parquet": "x"}, "cache": None}, "exactly one of .*parquet and function"),
        ({"stepz": 3}, "unknown key 'stepz'. Did you mean 'steps'"),
        ({"cache": {"where": "label == 1"}}, "the key 'cache.url' is missing"),
        (
            {"cache": {"url": "a", "wher": "label == 1"}},
            "cache: unknown key 'wher'; Did you mean 'where'.*url, inputs,",
        ),
        ({"cache": {"url": "a", "where": "abs(label)"}}, r"cache.where: .* cannot be read: 'abs\(label\)' is not"),
        ({"cache": {"url": "a", "where": ""}}, "cache.where: The filter '' cannot be read"),
        ({"cache": {"url": "a", "inputs": {"parquett": "b"}}}, "'cache.inputs.parquett'. Did you mean 'parquet'"),
        ({"cache": {"url": "a", "inputs": {}}}, "cache.inputs: name exactly one of .*parquet and function"),
        ({"cache": "memory://store/toy"}, "cache.url: memory:// is one process's own"),
        ({"evaluate": {"url": "a", "wher": 1}}, "evaluate: unknown key 'wher'; Did you mean 'where'"),
        ({"evaluate": {"inputs": SOURCE}}, "the key 'evaluate.url' is missing"),
        ({"evaluate": {"parquett": "a"}}, "'evaluate.parquett'. Did you mean 'parquet'.*parquet, .*function"),
        ({"order": {"lanes": 0}}, "order.lanes: .*greater than 0"),
        ({"order": {"windows": 9}}, "'order.windows'. Did you mean 'window'"),
        ({"reading": {"threads": 0}}, "reading.threads: .*greater than 0"),
        ({"reading": {"prefetch": 0}}, "'reading.prefetch'. Did you mean 'prefetch_bytes'"),
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
        "cache={url: store/toy, where: label == 1}",
        "cache={url: store/toy, inputs: {parquet: data}}",
        "evaluate=store/test",
        "evaluate={url: store/test, where: label == 1}",
        "evaluate={function: data:samples}",
        "reading={threads: 3, prefetch_bytes: 0, stall_s: 2.5}",
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
        "losses.forward_kl.tail=unigram",
        "student.factory=nets:other",
        "student.arguments.hidden=3",
        "name=other",
        "order.lanes=4",
        "order.window=100",
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
    assert recipe.cache is not None and recipe.cache.url == f"{tmp_path}/store/toy"
    assert isinstance(recipe.evaluate, CacheSection) and recipe.evaluate.url == f"{tmp_path}/store/test"
    assert recipe.output == f"{tmp_path}/runs/models"
    assert read({"cache": "s3://bucket/toy"}).cache.url == "s3://bucket/toy"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {
            "cache": {
                "url": "store/toy",
                "where": "label == 1",
                "inputs": {"parquet": "data", "columns": {"label": False}},
            }
        },
        {"evaluate": {"url": "store/test", "where": "label == 1"}, "order": {"lanes": 2}, "reading": {"threads": 3}},
        {"evaluate": {"function": "data:samples"}, "order": {"window": 7}},
    ],
    ids=["plain", "cache", "evaluate", "source"],
)
def test_a_recipe_survives_the_way_to_a_worker(read: Any, keys: dict[str, Any]) -> None:
    """The job sends `model_dump(exclude_unset)`; what a worker reads from it has the same digest."""
    losses = {"forward_kl": {"temperature": 2.0, "tail": "none"}}
    recipe = read({"losses": losses, **keys}, "seed=[1,2]").for_seed(2)
    again = StudentRecipe.model_validate(recipe.model_dump(mode="json", exclude_unset=True))
    assert again == recipe and again.digest() == recipe.digest()


def test_a_cache_is_a_url_or_a_mapping_with_one(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, where = {"parquet": "data"}, "soft_entropy < 2 and label != 3"
    alone, whole = read({}), read({"cache": {"url": "store/toy", "where": where, "inputs": inputs}})
    assert alone.cache == read({"cache": {"url": "store/toy"}}).cache == CacheSection(url="store/toy")
    assert (whole.cache.url, whole.cache.where) == (f"{tmp_path}/store/toy", where)
    assert whole.cache.inputs.settings()["parquet"] == f"{tmp_path}/data"
    # A URL alone is told as one, as in every recipe that was told before.
    assert alone.model_dump(mode="json")["cache"] == f"{tmp_path}/store/toy"
    assert whole.model_dump(mode="json", exclude_unset=True)["cache"] == {
        "url": f"{tmp_path}/store/toy",
        "inputs": {"parquet": f"{tmp_path}/data"},
        "where": where,
    }
    assert read({"cache": whole.model_dump()["cache"]}, "cache=elsewhere").cache == CacheSection(url="elsewhere")
    assert read({"cache": {"url": "store/toy"}}, "cache.where=label in [1, 2]").cache.where == "label in [1, 2]"


def test_held_out_rows_are_a_caches_or_a_sources(read: Any) -> None:
    assert read({}).evaluate is None is read({"evaluate": "a"}, "evaluate=null").evaluate
    assert read({"evaluate": "a"}).evaluate == CacheSection(url="a")
    assert read({"evaluate": {"url": "a", "where": "label == 1"}}).evaluate == CacheSection(url="a", where="label == 1")
    assert isinstance(read({"evaluate": SOURCE}).evaluate, SourceSection)
    assert read({"evaluate": "a"}, "evaluate={parquet: b}").evaluate == SourceSection(parquet="b")


def test_on_a_cluster_every_path_of_the_data_means_the_same_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for cache, key in (
        ("store/toy", "cache.url"),
        ({"url": "store/toy"}, "cache.url"),
        ({"url": "s3://b/toy", "inputs": {"parquet": "data"}}, "cache.inputs.parquet"),
    ):
        path.write_text(yaml.safe_dump({**RECIPE, "output": "/models", "cache": cache}))
        with pytest.raises(RecipeError, match=f"{key}: is a relative path, and on the cluster"):
            read_recipe(str(path), [], StudentRecipe, on_cluster=True)


def test_what_is_not_shipped_is_told_with_its_key(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for keys, key in (
        ({}, "cache"),
        ({"cache": {"url": "store/toy", "where": "label == 1"}}, "cache.url"),
        ({"cache": {"url": "s3://b/toy", "inputs": {"parquet": "data"}}}, "cache.inputs.parquet"),
        ({"cache": "s3://b/toy", "evaluate": {"url": "store/toy", "where": "label == 1"}}, "evaluate.url"),
    ):
        with pytest.raises(
            RecipeError, match=f"^r.yaml: {key} is '{tmp_path}/.*', which lies in the working directory"
        ):
            refuse_left_behind("r.yaml", read({"output": "/models", **keys}), Shipped(tmp_path, {}))


# recipes/digits/student.yaml and teacher.yaml, and what their runs are known by.
GOLDEN = [
    (
        {
            "name": "digits-student",
            "cache": "./runs/store/digits",
            "student": {"factory": "recipes.digits.student_net:build", "arguments": {"hidden": 16}},
            "losses": {"forward_kl": {"weight": 1.0, "temperature": 2.0}},
            "optimizer": {"name": "adamw", "lr": 0.005, "weight_decay": 0.01, "schedule": "cosine"},
            "steps": 1500,
            "batch_size": 64,
            "evaluate": "./runs/store/digits-test",
        },
        "9b35f5da8f6a74086190c18d3b4a2aec5915aded64ac33bba27fe089c2404f0e",
        "06f0ce93ca3c458e67bf12bd26f32b83eb40d8d2cef2c551954d17de40fe4060",
    ),
    (
        {
            "name": "digits-teacher",
            "role": "teacher",
            "source": {"function": "recipes.digits.data:samples", "arguments": {"split": "labelled"}},
            "student": {"factory": "recipes.digits.teacher_net:build", "arguments": {"width": 32}},
            "losses": {"cross_entropy": {"weight": 1.0}},
            "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01, "schedule": "cosine"},
            "steps": 800,
            "batch_size": 64,
            "evaluate": {"function": "recipes.digits.data:samples", "arguments": {"split": "test"}},
        },
        "f62f5004e81755a85e1c563ba0d22acf6003ddeb71d48d32824fc8f58ce41f1a",
        "3e182e751eba8ee1ee228b9c7238c997029de0bab4bbdd530381ee1dab2a3d9e",
    ),
]


@pytest.mark.parametrize(("recipe", "digest", "family"), GOLDEN, ids=["student", "teacher"])
def test_recipes_are_known_by_what_they_always_were(recipe: dict[str, Any], digest: str, family: str) -> None:
    """Another digest of the same recipe would part a run from its checkpoints, and seeds from each other."""
    for same in ({}, {"order": None}, {"order": {}}, {"reading": {"threads": 2}}):
        read = StudentRecipe.model_validate({**recipe, **same})
        assert (read.digest(), read.family()) == (digest, family)
    losses = {name: {**section, "tail": None} for name, section in recipe["losses"].items() if name == "forward_kl"}
    if losses:
        assert StudentRecipe.model_validate({**recipe, "losses": losses}).digest() == digest


@pytest.mark.parametrize(
    ("losses", "moved"),
    [
        ({"forward_kl": {"temperature": 2.0}}, True),
        ({}, False),
        ({"forward_kl": {"temperature": 1.0}}, False),
        ({"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.0}}, False),
        ({"cross_entropy": {}}, False),
    ],
)
def test_a_run_that_was_trained_without_its_power_of_the_temperature_is_another_one(
    read: Any, losses: dict[str, Any], moved: bool
) -> None:
    recipe = read({"losses": losses})
    without = [*_PLACES, "order"]
    assert (recipe.digest() != recipe_digest(recipe, without=without)) == moved


def test_reading_is_the_machines_unless_it_is_set(read: Any) -> None:
    assert read({}).reading == Reading()
    settings = {"prefetch_bytes": 0, "threads": 3, "stall_s": 2.5}
    assert read({"reading": settings}).reading == Reading(**settings)
    assert read({"reading": {"threads": 3, "stall_s": None}}).reading == Reading(threads=3)


def test_the_machine_that_reads_a_recipe_leaves_no_default_in_it(read: Any) -> None:
    nothing_set = {"prefetch_bytes": None, "threads": None, "stall_s": None}
    assert read({}).model_dump(mode="json")["reading"] == nothing_set
    assert read({"reading": {"threads": 3}}).model_dump(mode="json", exclude_unset=True)["reading"] == {"threads": 3}


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=0.01", "'optimizer.lr'"),
        ("warmup_step=3", "'optimizer.warmup_steps'"),
        ("forward_kl.temperature=2", "'losses.forward_kl'"),
        ("temperature=2", "'losses.NAME.temperature'"),
        ("experiment=e", "'tracking.experiment'"),
        ("student.optimizer=sgd", "'optimizer'"),
        ("weights=w", "'student.weights'"),
        ("url=u", "'cache.url' or 'evaluate.url'"),
    ],
)
def test_a_key_of_another_section_of_a_students_recipe_is_named(
    override: str, meant: str, tmp_path: Path, make_recipe: Any
) -> None:
    _refused_with(override, meant, make_recipe(cache="c").model_dump(mode="json"), StudentRecipe, tmp_path)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("k=64", "'targets.k'"),
        ("encoding=topk", "'targets.encoding'"),
        ("actors=2", "'ray.actors'"),
        ("dtype=float32", "'teacher.dtype' or 'targets.dtype'"),
    ],
)
def test_a_key_of_another_section_of_a_teachers_recipe_is_named(override: str, meant: str, tmp_path: Path) -> None:
    recipe = {
        "name": "t",
        "store": "s",
        "source": {"parquet": "p"},
        "teacher": {"hub": "a/b", "revision": "0" * 40, "dtype": "float32", "batch_size": 1},
        "targets": {"encoding": "dense"},
    }
    _refused_with(override, meant, recipe, TeacherRecipe, tmp_path)


def _refused_with(override: str, meant: str, recipe: dict[str, Any], kind: Any, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    read_recipe(str(folder / "recipe.yaml"), [], kind)
    with pytest.raises(
        RecipeError, match=rf"unknown key '{override.split('=')[0].split('.temp')[0]}'\. Did you mean {meant}\?"
    ):
        read_recipe(str(folder / "recipe.yaml"), [override], kind)
