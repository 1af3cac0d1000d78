"""One YAML file describes one run, and a mistake in it is answered with file, key and the nearest right key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field, ValidationError

from jobs.recipe import read_recipe, recipe_digest
from jobs.tracking.settings import TrackingSection
from storage.base.errors import RecipeError
from storage.base.settings import Section
from storage.objectstore.location import Location, absolute
from storage.samples.samples import Columns
from storage.sources import make_source
from storage.sources.settings import SourceSection


class Steps(Section):
    batch_size: int = 32
    learning_rate: float = 1e-3
    layers: list[int] | None = None


class Recipe(Section):
    name: str
    source: SourceSection
    store: Location = "runs/store"
    train: Steps = Steps()
    evaluate: Steps | None = None
    tracking: TrackingSection = TrackingSection()


TEXT = """
name: digits
source:
  parquet: data/*.parquet
  columns: {inputs: [pixels], label: digit}
train:
  batch_size: 16
"""

Read = Callable[..., Recipe]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(TEXT)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def read(path: Path) -> Read:
    """`read(override, ...)`: the recipe with its overrides."""
    return lambda *overrides: read_recipe(str(path), overrides, Recipe)


def refused(read: Read, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(*overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_read_with_its_defaults(read: Read) -> None:
    recipe = read()
    assert (recipe.name, recipe.train.batch_size, recipe.train.learning_rate) == ("digits", 16, 1e-3)
    assert recipe.source.columns.inputs == ("pixels",) and recipe.evaluate is None
    assert recipe.tracking.uri is None and recipe.tracking.experiment == "stillhouse"


def test_a_recipe_does_not_change_once_it_is_read(read: Read) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read().name = "other"


# Keys


@pytest.mark.parametrize(
    "override, key, near",
    [
        ("nmae=x", "nmae", "name"),
        ("train.batchsize=3", "train.batchsize", "batch_size"),
        ("source.paquet=x", "source.paquet", "parquet"),
        ("source.columns.lable=x", "source.columns.lable", "label"),
        ("evaluate.learning_rat=1", "evaluate.learning_rat", "learning_rate"),
        ("tracking.experimnt=x", "tracking.experimnt", "experiment"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    read: Read, path: Path, override: str, key: str, near: str
) -> None:
    text = refused(read, override)
    assert text.startswith(f"{path}: ")
    assert f"unknown key '{key}'. Did you mean '{near}'? Known here: " in text


@pytest.mark.parametrize(
    "override, meant",
    [
        ("experiment=x", "'tracking.experiment'"),
        ("experimnt=x", "'tracking.experiment'"),
        ("lable=x", "'source.columns.label'"),
        ("learning_rate=1", "'train.learning_rate' or 'evaluate.learning_rate'"),
        ("batchsize=1", "'train.batch_size' or 'evaluate.batch_size'"),
        ("train.store=x", "'store'"),
        ("tracking.jsonl=x", "'source.jsonl'"),
        ("size=1", "'parts.NAME.size' or 'more.size'"),
        ("chosen=1", "'parts.chosen'"),
        # The nearest of the section counts before what is less like elsewhere.
        ("stor=x", "'store'"),
    ],
)
def test_a_key_of_another_section_is_named_with_its_parents(path: Path, override: str, meant: str) -> None:
    """From a command line, and from a file that has it at the wrong level."""

    class Part(Section):
        size: int = 0

    class Larger(Recipe):
        parts: dict[str, Part] = Field(default_factory=dict)
        more: Annotated[Part, "some"] | None = None

        @classmethod
        def more_keys(cls) -> list[str]:
            return ["parts.chosen"]

    with pytest.raises(RecipeError, match=rf"unknown key '{override.split('=')[0]}'\. Did you mean {meant}\? Known"):
        read_recipe(str(path), [override], Larger)
    *parents, key = override.partition("=")[0].split(".")
    tree = yaml.safe_load(TEXT)
    (tree.setdefault(parents[0], {}) if parents else tree)[key] = 1
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=rf"Did you mean {meant}\? Known"):
        read_recipe(str(path), [], Larger)


def test_the_keys_that_are_known_there_are_told(read: Read) -> None:
    text = refused(read, "train.qqq=1")
    assert "unknown key 'train.qqq'. Known here: batch_size, learning_rate, layers." in text


def test_every_mistake_is_told_at_once(read: Read) -> None:
    text = refused(read, "train.batch_size=many", "nmae=1", "source=3")
    assert "train.batch_size" in text and "'many'" in text and "'nmae'" in text and "source" in text


def test_a_missing_key_is_named(path: Path) -> None:
    path.write_text("source: {parquet: data}\n")
    with pytest.raises(RecipeError, match=r"the key 'name' is missing\."):
        read_recipe(str(path), [], Recipe)


@pytest.mark.parametrize("override", ["tracking.uri=5", "source.columns.label=5", "source.columns.label=true"])
def test_a_value_of_a_wrong_type_is_named_by_the_key_as_it_is_written(read: Read, override: str) -> None:
    key = override.partition("=")[0]
    text = refused(read, override)
    assert f"{key}: " in text
    assert f"{key}.str" not in text and f"{key}.literal" not in text


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_none_is_refused(read: Read, value: str) -> None:
    assert "train.learning_rate: " in refused(read, f"train.learning_rate={value}")


def test_a_source_of_two_kinds_or_none_is_refused(read: Read, path: Path) -> None:
    assert "source: name exactly one of jsonl, parquet and function." in refused(read, "source.function=a:b")
    assert "source: name exactly one of jsonl, parquet and function." in refused(read, "source.parquet=null")
    assert "source: arguments belong to a function." in refused(read, "source.arguments={a: 1}")


# Overrides


@pytest.mark.parametrize(
    "override, found",
    [
        ("train.batch_size=64", lambda r: r.train.batch_size == 64),
        ("train.learning_rate=0.5", lambda r: r.train.learning_rate == 0.5),
        ("train.learning_rate=1e-4", lambda r: r.train.learning_rate == 1e-4),
        ("train.learning_rate=3", lambda r: r.train.learning_rate == 3.0),
        ("train.layers=[1, 2]", lambda r: r.train.layers == [1, 2]),
        ("train.layers=null", lambda r: r.train.layers is None),
        ("train.layers=", lambda r: r.train.layers is None),
        ("train={batch_size: 5}", lambda r: r.train == Steps(batch_size=5)),
        ("evaluate.batch_size=8", lambda r: r.evaluate == Steps(batch_size=8)),
        ("name=a=b", lambda r: r.name == "a=b"),
        ("name='7'", lambda r: r.name == "7"),
        ("tracking.uri=false", lambda r: r.tracking.uri is False),
        ("tracking.uri=no", lambda r: r.tracking.uri is False),
        ("tracking.uri=Off", lambda r: r.tracking.uri is False),
        ("source.columns.label=y", lambda r: r.source.columns.label == "y"),
        ("train.learning_rate=5.E-6", lambda r: r.train.learning_rate == 5e-6),
        ("train.batch_size=010", lambda r: r.train.batch_size == 10),
        ("name=12:30:45", lambda r: r.name == "12:30:45"),
        ("name=2024-01-02", lambda r: r.name == "2024-01-02"),
        (
            "source={function: 'a:b', arguments: {lr: 1e-5, at: 1:30, n: 1_000, day: 2024-01-02, country: no}}",
            lambda r: (
                r.source.arguments == {"lr": 1e-5, "at": "1:30", "n": "1_000", "day": "2024-01-02", "country": "no"}
            ),
        ),
        ("source.columns.label=false", lambda r: r.source.columns.label is False),
        ("source.columns.inputs=[a, b]", lambda r: r.source.columns.inputs == ("a", "b")),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(read: Read, override: str, found: Callable[[Recipe], bool]) -> None:
    assert found(read(override))


@pytest.mark.parametrize("word", ["no", "off", "yes", "On", "'false'"])
def test_a_word_for_a_boolean_is_no_label_column(read: Read, word: str) -> None:
    assert "source.columns.label: is a text and no boolean" in refused(read, f"source.columns.label={word}")


@pytest.mark.parametrize("word", ["on", "yes", "true"])
def test_a_word_for_true_is_no_tracker(read: Read, word: str) -> None:
    assert "tracking.uri" in refused(read, f"tracking.uri={word}")


def test_an_override_with_a_key_twice_is_refused(read: Read) -> None:
    assert "the key 'batch_size' appears twice" in refused(read, "train={batch_size: 5, batch_size: 6}")


def test_a_recipe_file_is_yaml_1_2(path: Path, read: Read) -> None:
    path.write_text(TEXT.replace("batch_size: 16", "{batch_size: 0x10, learning_rate: 1e-5}").replace("digits", "010e"))
    assert (read().train.batch_size, read().train.learning_rate, read().name) == (16, 1e-5, "010e")


def test_an_override_of_nothing_is_null(read: Read) -> None:
    assert "name: " in refused(read, "name=")


def test_an_override_leaves_its_neighbours_alone_and_the_last_one_counts(read: Read) -> None:
    recipe = read("train.learning_rate=2", "train.learning_rate=4", "source.columns.sample_id=key")
    assert (recipe.train.batch_size, recipe.train.learning_rate) == (16, 4.0)
    assert (recipe.source.columns.inputs, recipe.source.columns.sample_id) == (("pixels",), "key")


@pytest.mark.parametrize("override", ["nonsense", "=3", "", "train.batch_size"])
def test_what_is_no_override_is_refused_with_the_form(read: Read, override: str) -> None:
    assert refused(read, override).startswith(f"'{override}' is no override. Overrides are written key=value")


def test_an_override_whose_value_is_no_yaml_is_refused(read: Read) -> None:
    assert "The value of 'train.layers=[1' is no YAML" in refused(read, "train.layers=[1")


# Files


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^The recipe '.*none\.yaml' cannot be read: No such file or directory\."):
        read_recipe(str(tmp_path / "none.yaml"), [], Recipe)
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory"):
        read_recipe(str(tmp_path), [], Recipe)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tname: x", "a: !!python/object:os.system {}"])
def test_a_file_that_is_no_yaml_is_named_in_one_line(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"^{path} is no YAML: [^\n]+$"):
        read_recipe(str(path), [], Recipe)


def test_a_file_that_is_no_text_is_named(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="is no text"):
        read_recipe(str(path), [], Recipe)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3"])
def test_a_file_that_is_no_mapping_is_named(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"^{path} holds \w+\. A recipe is a mapping of keys\."):
        read_recipe(str(path), ["name=x"], Recipe)


# Paths


def test_paths_are_made_absolute_where_the_recipe_is_read(read: Read, path: Path) -> None:
    recipe = read("store=some/store")
    assert recipe.source.parquet == f"{path.parent}/data/*.parquet"
    assert recipe.store == f"{path.parent}/some/store"
    assert read("store=~/store").store == os.path.expanduser("~/store")
    assert read("store=../x/./y").store == f"{path.parent.parent}/x/y"
    assert read("store=/already/there").store == "/already/there"


@pytest.mark.parametrize(
    "url", ["s3://bucket/store", "memory://x", "file:///tmp/x", "simplecache::s3://b/x", "gs://a/../b"]
)
def test_urls_are_kept(read: Read, url: str) -> None:
    assert read(f"store={url}").store == url
    assert absolute(url) == url


def test_on_a_cluster_every_path_means_the_same_on_every_machine(path: Path) -> None:
    def read(*overrides: str) -> Recipe:
        return read_recipe(str(path), overrides, Recipe, on_cluster=True)

    there = ("source.parquet=s3://bucket/data", "store=/mnt/store")
    assert read(*there) == read_recipe(str(path), there, Recipe)
    for override in ("store=runs/store", "store=./store", "store=~/store", "store=file://store", "store=local://a/b"):
        text = refused(read, *there, override)
        assert text.startswith(f"{path}: store: is a relative path, and on the cluster the job runs in another folder")
        assert f"(found '{override.removeprefix('store=')}')" in text
    for url in ("file:///mnt/x", "gs://a/../b", "simplecache::s3://b/x", "/mnt/*.parquet"):
        assert read(*there, f"store={url}").store == url
    assert "store: memory:// is one process's own" in refused(read, *there, "store=memory://x")


def test_on_a_cluster_defaults_are_paths_too_and_every_one_is_named(path: Path) -> None:
    path.write_text("name: digits\nsource: {parquet: data}\ntarget: out\n")

    class Defaulted(Section):
        name: str
        source: SourceSection
        target: Location | SourceSection
        output: Location = Field(default="./runs", validate_default=True)

    assert read_recipe(str(path), [], Defaulted).output == f"{path.parent}/runs"
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path), [], Defaulted, on_cluster=True)
    for key, found in (("source.parquet", "data"), ("target", "out"), ("output", "./runs")):
        assert f" {key}: is a relative path" in str(caught.value) and f"(found '{found}')" in str(caught.value)
    assert str(caught.value).count("relative") == 3


def test_the_source_of_a_recipe_is_a_source(read: Read, path: Path) -> None:
    source = make_source(read().source.settings())
    assert source.to_dict()["parquet"] == f"{path.parent}/data/*.parquet"
    assert source == make_source(source.to_dict())
    columns: Any = source
    assert columns.columns == Columns(inputs=("pixels",), label="digit")


# Digest and tracking


def test_the_digest_is_that_of_the_resolved_recipe(read: Read, path: Path) -> None:
    plain = recipe_digest(read())
    assert plain == recipe_digest(read("train.batch_size=16", "evaluate=null", "train.learning_rate=0.001"))
    assert plain != recipe_digest(read("train.batch_size=17"))
    path.write_text("# another layout\ntrain: {batch_size: 16}\n" + TEXT.replace("train:\n  batch_size: 16\n", ""))
    assert recipe_digest(read()) == plain


def test_keys_can_be_left_out_of_the_digest(read: Read) -> None:
    one, other = read(), read("tracking.experiment=else", "name=other")
    assert recipe_digest(one) != recipe_digest(other)
    assert recipe_digest(one, without=["tracking"]) != recipe_digest(other, without=["tracking"])
    assert recipe_digest(one, without=["tracking", "name"]) == recipe_digest(other, without=["tracking", "name"])
    assert recipe_digest(one, without=["name"]) != recipe_digest(one)


def test_tracking_is_found_in_the_recipe_then_the_environment_then_here(
    read: Read, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert read().tracking.resolved_uri() == f"sqlite:///{path.parent}/runs/mlflow.db"
    (path.parent / "a?b").mkdir()
    monkeypatch.chdir("a?b")
    assert TrackingSection().resolved_uri() == f"sqlite+pysqlite:///{path.parent}/a%3Fb/runs/mlflow.db"
    monkeypatch.chdir("..")
    assert "ends for SQLite at the '?'" in refused(read, "'tracking.uri=sqlite:////a?b/mlflow.db'".strip("'"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert read().tracking.resolved_uri() == "http://tracker"
    assert read("tracking.uri=http://other").tracking.resolved_uri() == "http://other"
    for off in ("false", "off", "'off'", "none"):
        assert read(f"tracking.uri={off}").tracking.resolved_uri() is None


def test_a_key_that_appears_twice_is_refused(path: Path, read: Read) -> None:
    path.write_text(TEXT + "name: other\n")
    assert "the key 'name' appears twice" in refused(read)
    path.write_text(TEXT.replace("batch_size: 16", "batch_size: 16\n  batch_size: 17"))
    assert "the key 'batch_size' appears twice" in refused(read)
