"""A language model on a GPU answers as it does on a CPU, documents apart; skipped where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import SourceError
from storage.cache.seal import seal
from storage.encodings.topk import TopK
from storage.format.rows import DecodedRows
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import read_group
from storage.sources import make_source
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import make_plan
from teacher_infer.teachers.transformers import TransformersTeacher
from tests.tiny_models import SIZE, save_model

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # torch's compiler uses what torch itself has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]

ARCHITECTURES = ["LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"]


def teacher_on(device: str, folder: str, dtype: str = "float32") -> TransformersTeacher:
    return TransformersTeacher(HuggingFaceSpec(folder), dtype=dtype, seed=0, device=device)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_packed_documents_have_the_logits_of_unpacked_ones(
    architecture: str, dtype: str, tolerance: float, device: str, tmp_path: Path
) -> None:
    folder = str(save_model(tmp_path / "model", architecture))
    draw, lengths = np.random.default_rng(0), (5, 1, 9, 17)
    documents = [draw.integers(2, SIZE, length) for length in lengths]
    row = {
        "input_ids": np.concatenate(documents)[None],
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
    }
    teacher = teacher_on(device, folder, dtype)
    found = teacher.logits(row)
    assert found.is_cuda and found.dtype == getattr(torch, dtype)
    alone = torch.cat([teacher.logits({"input_ids": document[None]})[0] for document in documents])
    torch.testing.assert_close(found[0].float(), alone.float(), rtol=0, atol=tolerance)
    cpu = teacher_on("cpu", folder).logits(row)
    torch.testing.assert_close(found.float().cpu(), cpu, rtol=0, atol=tolerance)
    with pytest.raises(SourceError, match=r"The teacher's vocabulary has the ids"):
        teacher.logits({"input_ids": np.array([[SIZE]])})


def test_a_span_that_a_gpu_labelled_is_that_of_a_cpu(tmp_path: Path) -> None:
    """Packed documents, the real writer's thread, and what a student then reads."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, SIZE, size).tolist() for size in (5, 11, 1, 30, 2, 9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    source = make_source({"jsonl": str(tmp_path / "a.jsonl"), "pack": {"column": "text", "sequence_length": 8}})
    spec = str(save_model(tmp_path / "model"))
    read: list[list[DecodedRows]] = []
    for device in ("cpu", "cuda"):
        work = Work(Folder(f"{tmp_path}/{device}"), source, TopK(4, (1.0, 2.0)), "digest", 3, inputs="stored")
        spans = make_plan(source, 3, KeyParts.of("digest", work.encoding, 0, inputs="stored")).spans
        teacher = teacher_on(device, spec)
        cache = seal(work.store, "w", [label_span(work, teacher, span).commit for span in spans], {"by": "a test"})
        groups = CacheRows(cache)
        read.append([read_group(groups, group) for group in range(len(groups.rows))])
    for cpu, cuda in zip(*read, strict=True):
        assert cpu.sample_id.tolist() == cuda.sample_id.tolist()
        np.testing.assert_array_equal(cuda.targets.ids_PK, cpu.targets.ids_PK)
        for name in ("log_probs_PK", "label_log_prob_P", "log_z_PG", "log_tail_PG", "entropy_PG"):
            one, other = (np.asarray(getattr(rows.targets, name), np.float32) for rows in (cuda, cpu))
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
