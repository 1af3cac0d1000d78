"""An audit finds a teacher or a cache that is not what it was, and is content with one that is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from storage.encodings.convert import convert
from storage.encodings.topk import TopK
from teacher_infer.__main__ import main
from teacher_infer.audit import Settings, _log_probs, audit
from teacher_infer.planning.config import TeacherRecipe
from tests import tiny_models
from tests.storage.encodings.test_targets import factored
from tests.teacher_infer.without_ray import labelled


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of a tiny language model over token ids."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny_models.save_model(folder / "model")
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, tiny_models.SIZE, int(n)).tolist() for n in draw.integers(1, 30, 16)]
    pq.write_table(pa.table({"ids": pa.array(documents, pa.list_(pa.int32()))}), folder / "documents.parquet")
    return {
        "name": "corpus",
        "source": {
            "parquet": str(folder / "documents.parquet"),
            "pack": {"column": "ids", "sequence_length": 8, "block_documents": 8},
        },
        "teacher": {"path": str(folder / "model"), "dtype": "float32", "batch_size": 4},
        "span_rows": 8,
        "tracking": {"uri": False},
    }


def case(corpus: dict[str, Any], tmp_path: Path, **replaced: Any) -> dict[str, Any]:
    return {**corpus, "store": str(tmp_path / "store"), "targets": {"encoding": "topk", "k": 4}, **replaced}


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., int]:
    """audited(recipe, *arguments): the exit code of an audit by the command line."""

    def run(recipe: dict[str, Any], *arguments: str) -> int:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return main(["audit", str(path), *arguments])

    return run


@pytest.mark.parametrize("targets", [{"encoding": "topk", "k": 4}, {"encoding": "dense", "temperature": 2.0}])
@pytest.mark.parametrize("inputs", ["stored", "referenced"])
def test_a_cache_that_is_right_is_found_right(
    corpus: dict[str, Any], tmp_path: Path, targets: dict[str, Any], inputs: str
) -> None:
    recipe = case(corpus, tmp_path, targets=targets, inputs=inputs)
    cache, read = labelled(recipe), TeacherRecipe.model_validate(recipe)
    answer = audit(read, cache, Settings(fraction=1.0, batch_size=3))
    assert answer["ok"] and answer["spans"] == {"total": len(cache.shards), "audited": len(cache.shards)}
    assert 0 < answer["mean"] < answer["largest"] < 3e-4  # what float16 takes, and not nothing
    some = audit(read, cache, Settings(fraction=0.3))
    assert some["spans"]["audited"] == -(-3 * len(cache.shards) // 10)
    assert 0 < some["positions"] < answer["positions"] < cache.positions
    assert audit(read, cache, Settings(fraction=0.3)) == some
    places = {audit(read, cache, Settings(fraction=0.2, seed=seed))["largest_at"] for seed in range(5)}
    assert places != {some["largest_at"]}


def test_stored_log_probabilities_are_those_of_any_encoding() -> None:
    mine, dense = factored()
    fresh = torch.from_numpy(dense.flat().logits_PV)
    fresh[0, 0] = -torch.inf
    for targets in (mine, dense):
        stored_PK, fresh_PK = _log_probs(targets.flat(), fresh)
        assert stored_PK.dtype == fresh_PK.dtype == torch.float64
        torch.testing.assert_close(stored_PK[1:], fresh_PK[1:], rtol=1e-6, atol=1e-6)
    # `dense` shares the logits' memory, so both sides rule that class out.
    assert stored_PK[0, 0] == fresh_PK[0, 0] == torch.finfo(torch.float64).min
    fresh[0, :9] = -torch.inf
    stored_PK, fresh_PK = _log_probs(convert(dense.flat(), None, TopK(3)), fresh)
    assert stored_PK.shape == fresh_PK.shape == (6, 3)
    assert stored_PK[0, 2] == fresh_PK[0, 2] == torch.finfo(torch.float64).min


def test_answers_that_are_not_the_teachers_are_found(
    corpus: dict[str, Any], tmp_path: Path, audited: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(logits: Any) -> Any:
        logits = logits.clone()
        logits[0, 2] += 3 * logits[0, 2].flip(0)
        return logits

    recipe = case(corpus, tmp_path)
    labelled(recipe, spoil)
    assert audited(recipe, "--fraction", "1", "--json") == 3
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"] and answer["largest"] > 0.01 and "position 2" in answer["largest_at"]
    assert audited(recipe, "--fraction", "1", "--tolerance", "1") == 0
    assert audited(recipe, "--fraction", "1") == 3
    assert "NOT what was stored" in capsys.readouterr().out


def test_another_teacher_in_its_place_is_named_with_what_differs_without_being_run(
    corpus: dict[str, Any], tmp_path: Path, audited: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.save_model(tmp_path / "model")
    recipe = case(corpus, tmp_path, teacher={**corpus["teacher"], "path": str(model)})
    labelled(recipe)
    assert audited(recipe) == 0
    tiny_models.save_model(model, seed=1)
    capsys.readouterr()
    assert audited(recipe) == 3
    said = capsys.readouterr().out
    assert "has the digest" in said and "Other: weights.model.safetensors." in said
    assert audited(recipe, "teacher.dtype=bfloat16") == 3
    assert "dtype: float32 -> bfloat16" in capsys.readouterr().out


def test_a_cache_may_be_named_beside_the_recipe(
    recipe: Callable[..., dict[str, Any]],
    audited: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = recipe(store=str(tmp_path / "a=b" / "store"))
    cache = labelled(asked)
    assert audited({**asked, "name": "other"}, cache.url) == 0
    assert audited({**asked, "name": "other"}, f"name={cache.name}") == 0
    assert audited({**asked, "name": "other"}) == 2
    assert audited(asked, cache.url, f"{cache.store.url}/elsewhere") == 2
    assert "Two caches are named" in capsys.readouterr().err


def test_a_cache_alone_is_no_recipe(recipe: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", labelled(recipe()).url]) == 2
    assert "takes the teacher's recipe, since nothing that a cache names is run" in capsys.readouterr().err


def test_nothing_that_a_cache_names_is_run(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, audited: Callable[..., int]
) -> None:
    """A cache from elsewhere whose lineage names functions that would leave a file."""
    asked, mark = recipe(inputs="referenced"), tmp_path / "mark"
    cache = labelled(asked)
    path = Path(cache.store.url) / "caches" / cache.key / "cache.json"
    facts = json.loads(path.read_text())
    run = {"factory": "subprocess:getoutput", "arguments": {"cmd": f"touch {mark}"}}
    facts["lineage"]["teacher"] |= run
    facts["lineage"]["source"] = {"function": run["factory"], "arguments": run["arguments"]}
    path.write_text(json.dumps(facts))
    assert audited(asked) == 0
    assert not mark.exists()


def test_a_fraction_that_is_none_is_refused(
    recipe: Callable[..., dict[str, Any]], audited: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(recipe())
    for fraction in ("0", "-1", "1.5"):
        assert audited(recipe(), "--fraction", fraction) == 2
        assert "It lies above 0" in capsys.readouterr().err


def test_a_batch_size_or_a_tolerance_that_is_none_is_refused(
    recipe: Callable[..., dict[str, Any]], audited: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(recipe())
    for option, value in (("--batch-size", "0"), ("--batch-size", "-1"), ("--tolerance", "-1"), ("--tolerance", "nan")):
        assert audited(recipe(), f"{option}={value}") == 2
        assert f"is {value}. It is a" in capsys.readouterr().err


def test_a_module_of_ones_own_is_audited_too(recipe: Callable[..., dict[str, Any]]) -> None:
    cache = labelled(recipe())
    answer = audit(TeacherRecipe.model_validate(recipe()), cache, Settings(fraction=1.0))
    assert answer["ok"] and answer["positions"] == cache.samples


def test_a_teacher_without_weights_is_audited_by_what_its_factory_builds(
    recipe: Callable[..., dict[str, Any]], audited: Callable[..., int]
) -> None:
    asked = recipe()
    del asked["teacher"]["weights"]
    labelled(asked)
    assert audited(asked) == 0
    assert audited(asked, "seed=1") == 3


def test_a_named_attention_is_in_the_key_the_lineage_and_the_audit(
    corpus: dict[str, Any], tmp_path: Path, audited: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    usual, named = case(corpus, tmp_path), {**corpus["teacher"], "attention": "eager"}
    assert labelled(usual).lineage["teacher"]["attention"] == "sdpa"
    assert audited(usual) == 0
    cache = labelled({**usual, "name": "named", "teacher": named})
    assert cache.lineage["teacher"]["attention"] == cache.lineage["key"]["teacher"]["attention"] == "eager"
    assert audited({**usual, "name": "named", "teacher": named}) == 0
    capsys.readouterr()
    assert audited({**usual, "name": "named"}) == 3
    assert "Other: attention: eager -> none." in capsys.readouterr().out
