"""Packed documents through a language model into a cache, with their inputs and by reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.models.hugging_face import HuggingFaceSpec
from storage.cache.cache import Cache
from storage.cache.seal import seal
from storage.encodings.dense import Dense
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.row_groups import RowGroups, read_group
from storage.samples.samples import Inputs
from storage.sources import Source, make_source
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import make_plan
from teacher_infer.teachers import make_teacher
from tests.tiny_models import SIZE, WORDS, save_model

L = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model")))


def source_of(folder: Path) -> Source:
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, len(WORDS), size).tolist() for size in (5, 11, 1, 30, 2, 9)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    pack = {"column": "text", "sequence_length": L, "block_documents": 4}
    return make_source({"jsonl": str(folder), "pack": pack})


def cache_of(folder: Path, model: str, inputs: Inputs) -> Cache:
    source = source_of(folder)
    work = Work(Folder(f"{folder}/store"), source, Dense(dtype="float32"), "digest", 3, inputs=inputs)
    spans = make_plan(source, 3, KeyParts.of("digest", work.encoding, 0, inputs=inputs)).spans
    teacher = make_teacher(HuggingFaceSpec(model), dtype="float32", seed=0)
    return seal(work.store, "words", [label_span(work, teacher, span).commit for span in spans], {"by": "a test"})


def rows_of(groups: RowGroups) -> list[dict[str, np.ndarray]]:
    read = [read_group(groups, group) for group in range(len(groups.rows))]
    return [{"id": r.sample_id, **r.inputs, "label": r.label, "logits": r.targets.logits_PV} for r in read]


def test_rows_of_a_cache_have_what_the_source_has_and_the_teachers_logits(tmp_path: Path, model: str) -> None:
    source = source_of(tmp_path)
    parts = rows_of(CacheRows(cache_of(tmp_path, model, "stored")))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert found["id"].tolist() == [name for file in source.files() for name in source.ids(file).to_pylist()]
    assert found["input_ids"].shape == found["position_ids"].shape == found["label"].shape == (len(found["id"]), L)
    teacher = make_teacher(HuggingFaceSpec(model), dtype="float32", seed=0)
    logits = teacher.logits({name: found[name] for name in ("input_ids", "position_ids")})
    assert logits.shape == found["logits"].shape == (len(found["id"]), L, SIZE)
    centred = (logits - logits.amax(-1, keepdim=True)).numpy()
    np.testing.assert_allclose(found["logits"], centred, atol=1e-5)


def test_inputs_by_reference_are_joined_with_the_packed_source(tmp_path: Path, model: str) -> None:
    source = source_of(tmp_path)
    cache = cache_of(tmp_path, model, "referenced")
    assert not cache.inputs
    joined = rows_of(JoinedRows(CacheRows(cache), source))
    stored = rows_of(CacheRows(cache_of(tmp_path, model, "stored")))
    assert len(joined) == len(stored)
    for one, other in zip(joined, stored, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
