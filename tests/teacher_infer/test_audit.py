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

from storage.cache import Cache, open_cache, seal
from storage.folder import Folder
from storage.hugging_face import HuggingFaceSpec
from storage.sources import make_source
from teacher_infer.__main__ import main
from teacher_infer.audit import Settings, audit, spec_of
from teacher_infer.config import TeacherRecipe
from teacher_infer.label import Work, label_span
from teacher_infer.prepare import lineage_of, prepare
from teacher_infer.teachers import make_teacher
from tests import tiny_models


def labelled(recipe: dict[str, Any], spoil: Callable[[Any], Any] = lambda logits: logits) -> Cache:
    """A recipe's cache without Ray; `spoil` changes the teacher's answers on their way."""
    read = TeacherRecipe.model_validate(recipe)
    store = Folder(read.store)
    store.prepare()
    prepared = prepare(read, store)
    [part] = prepared.parts
    teacher = make_teacher(prepared.spec, dtype=read.teacher.dtype, seed=read.seed)
    really = teacher.logits
    teacher.logits = lambda inputs: spoil(really(inputs))  # type: ignore[method-assign]
    work = Work(store, make_source(part.source), prepared.encoding, prepared.teacher_digest, 4, inputs=read.inputs)
    commits = [label_span(work, teacher, span).commit for span in part.plan.spans]
    return seal(store, part.name, commits, lineage_of(prepared, part))


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


@pytest.mark.parametrize("targets", [{"encoding": "topk", "k": 4}, {"encoding": "dense", "temperature": 2.0}])
@pytest.mark.parametrize("inputs", ["stored", "referenced"])
def test_a_cache_that_is_right_is_found_right(
    corpus: dict[str, Any], tmp_path: Path, targets: dict[str, Any], inputs: str
) -> None:
    cache = labelled(case(corpus, tmp_path, targets=targets, inputs=inputs))
    answer = audit(cache, Settings(fraction=1.0, batch_size=3))
    assert answer["ok"] and answer["spans"] == {"total": len(cache.shards), "audited": len(cache.shards)}
    assert 0 < answer["mean"] < answer["largest"] < 3e-4  # what float16 takes, and not nothing
    some = audit(cache, Settings(fraction=0.3))
    assert some["spans"]["audited"] == -(-3 * len(cache.shards) // 10)
    assert 0 < some["positions"] < answer["positions"] < cache.positions
    assert audit(cache, Settings(fraction=0.3)) == some
    assert {audit(cache, Settings(fraction=0.2, seed=seed))["largest_at"] for seed in range(5)} != {some["largest_at"]}


def test_answers_that_are_not_the_teachers_are_found(
    corpus: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(logits: Any) -> Any:
        logits = logits.clone()
        logits[0, 2] += 3 * logits[0, 2].flip(0)
        return logits

    cache = labelled(case(corpus, tmp_path), spoil)
    assert main(["audit", cache.url, "--fraction", "1", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"] and answer["largest"] > 0.01 and "position 2" in answer["largest_at"]
    assert main(["audit", cache.url, "--fraction", "1", "--tolerance", "1"]) == 0
    assert main(["audit", cache.url, "--fraction", "1"]) == 3
    assert "NOT what was stored" in capsys.readouterr().out


def test_another_teacher_in_its_place_is_named_without_being_run(
    corpus: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.save_model(tmp_path / "model")
    cache = labelled(case(corpus, tmp_path, teacher={**corpus["teacher"], "path": str(model)}))
    assert main(["audit", cache.url]) == 0
    tiny_models.save_model(model, seed=1)
    capsys.readouterr()
    assert main(["audit", cache.url]) == 3
    assert "has the digest" in capsys.readouterr().out


def test_a_fraction_that_is_none_is_refused(
    recipe: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = labelled(recipe())
    for fraction in ("0", "-1", "1.5"):
        assert main(["audit", cache.url, "--fraction", fraction]) == 2
        assert "It lies above 0" in capsys.readouterr().err


def test_a_module_of_ones_own_is_audited_too(recipe: Callable[..., dict[str, Any]]) -> None:
    cache = labelled(recipe())
    answer = audit(open_cache(cache.url), Settings(fraction=1.0))
    assert answer["ok"] and answer["positions"] == cache.samples


def test_a_teacher_of_the_hub_is_found_there(corpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = corpus["teacher"]["path"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **settings: folder)
    spec = HuggingFaceSpec(hub="someone/model", revision="0123456789abcdef" * 2 + "01234567")
    found = spec_of(spec.lineage())
    assert isinstance(found, HuggingFaceSpec)
    assert (found.hub, found.revision, found.vocabulary) == (spec.hub, spec.revision, tiny_models.SIZE)
    assert found.digest("float32") == spec.digest("float32")
    assert spec_of(HuggingFaceSpec(folder).lineage()) == HuggingFaceSpec(folder, vocabulary=tiny_models.SIZE)
