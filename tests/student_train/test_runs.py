"""A run's folder: whose it is, what is refused, and what beginning anew takes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.cache import open_cache
from storage.errors import ForeignState, StoreError
from student_train.config import StudentRecipe
from student_train.loop import Place, train
from student_train.runs import RESULT_FILE, RUN_FILE, Run, keep_model
from student_train.runs import begin as begin_and_own
from student_train.tracking import Tracker


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
    with pytest.raises(ForeignState, match="another recipe"):
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
    with pytest.raises(ForeignState, match=f"another {word}"):
        begin(make_recipe(**changed))


def test_other_rows_of_a_cache_are_other_data(make_cache: Any, make_recipe: Any) -> None:
    url = make_cache()
    section = {"url": url, "where": "label < 2"}
    begin(make_recipe(cache=section, evaluate=section))[0].note(None)
    assert begin(make_recipe(cache=section, evaluate=section))[0].left
    with pytest.raises(ForeignState, match="another data"):
        begin(make_recipe(cache=url, evaluate=section))
    with pytest.raises(ForeignState, match="another evaluation"):
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
    from storage.models import spec_from_folder

    recipe = make_recipe(cache=make_cache(), steps=2)
    [run] = begin(recipe)
    outcome = train(recipe, Place())
    answer = keep_model(recipe, run.folder, outcome)
    spec = spec_from_folder(answer["model"], recipe.student.factory)
    assert spec.weights_sha256() == answer["weights_sha256"]
    for name, value in spec.build().state_dict().items():
        assert value.equal(outcome.model.state_dict()[name])


def test_models_are_not_written_to_an_object_store(make_cache: Any, make_recipe: Any) -> None:
    asked = make_recipe(cache=make_cache()).model_copy(update={"output": "s3://bucket/models"})
    with pytest.raises(StoreError, match=r"output is s3://bucket/models\. .*Name a local folder"):
        begin(asked)
