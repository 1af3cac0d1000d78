"""Every teacher backend: shapes, the same seed the same answer, batch size within tolerance."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.model_spec import ModelSpec
from storage.base.errors import JobError, ModelError
from storage.samples.samples import Columns, as_samples
from teacher_infer.teachers import (
    TEACHERS,
    Spec,
    answer_shape,
    build_without_weights,
    make_spec,
    make_teacher,
    spec_settings,
)
from teacher_infer.teachers.module import ModuleTeacher
from tests.tiny_models import SIZE, save_model

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
IDS = np.random.default_rng(0).integers(0, SIZE, (32, 6), np.int32)


@dataclass
class Kind:
    """A teacher to be made, and inputs for it."""

    spec: Spec
    inputs: dict[str, np.ndarray]
    shape: tuple[int, ...]

    def make(self, dtype: str = "float32", seed: int = 0) -> Any:
        return make_teacher(self.spec, dtype=dtype, seed=seed)

    @property
    def example(self) -> pa.Table:
        columns = {name: array.tolist() for name, array in self.inputs.items()}
        return as_samples(pa.table({"sample_id": range(32), **columns}), Columns(), "toys").slice(0, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(architecture: str) -> str:
        if architecture not in made:
            made[architecture] = str(save_model(tmp_path_factory.mktemp("model"), architecture, pad_token_id=0))
        return made[architecture]

    return folder


KINDS = ["module", "module of sequences", "language model", "packed language model", "classifier"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, toys: Path, models: Callable[[str], str]) -> Kind:
    if request.param == "module":
        return Kind(ModelSpec("stillhouse_toys:linear", {"classes": 5}), {"x": X}, (5,))
    if request.param == "module of sequences":
        sequences = X.reshape(32, 2, 2)
        return Kind(ModelSpec("stillhouse_toys:linear", {"features": 2, "classes": 7}), {"x": sequences}, (2, 7))
    if request.param == "classifier":
        spec = HuggingFaceSpec(models("LlamaForSequenceClassification"))
        return Kind(spec, {"input_ids": IDS + (IDS == 0), "attention_mask": np.ones_like(IDS)}, (2,))
    spec = HuggingFaceSpec(models("LlamaForCausalLM"))
    if request.param == "language model":
        return Kind(spec, {"input_ids": IDS}, (6, SIZE))
    places = np.tile(np.array([0, 1, 0, 1, 2, 0], np.int32), (32, 1))
    return Kind(spec, {"input_ids": IDS, "position_ids": places}, (6, SIZE))


def test_every_backend_is_tried_here() -> None:
    assert set(TEACHERS) == {"module", "transformers"}


def test_logits_have_a_row_a_sample_and_a_column_a_class(kind: Kind) -> None:
    assert kind.make().logits(kind.inputs).shape == (32, *kind.shape)


def test_the_same_seed_gives_the_same_answer(kind: Kind) -> None:
    first, again, other = (kind.make(seed=seed).logits(kind.inputs) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (build_without_weights(kind.spec, 0) is None)


def test_batch_size_changes_the_answer_within_rounding_only(kind: Kind) -> None:
    teacher = kind.make()
    one_by_one = torch.cat(
        [teacher.logits({name: array[i : i + 1] for name, array in kind.inputs.items()}) for i in range(6)]
    )
    torch.testing.assert_close(one_by_one, teacher.logits(kind.inputs)[:6], rtol=1e-5, atol=1e-5)


def test_a_teacher_that_keeps_tables_answers_again_in_other_threads() -> None:
    """What a model keeps of a call under inference_mode is an inference tensor, which later calls may change."""

    class Remembers(torch.nn.Module):
        table = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.table is None or len(self.table) < len(x):
                self.table = torch.ones(len(x), x.shape[-1])
            self.table.mul_(1.0)
            return x * self.table[: len(x)]

    teacher = ModuleTeacher(ModelSpec("", {}), dtype="float32", seed=0, device="cpu", model=Remembers())
    with ThreadPoolExecutor(2) as pool:
        for rows in (4, 2, 8):
            assert torch.equal(pool.submit(teacher.logits, {"x": X[:rows]}).result(), torch.from_numpy(X[:rows]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_dtype_is_the_recipes(kind: Kind, dtype: str) -> None:
    teacher = kind.make(dtype)
    assert {p.dtype for p in teacher.inner._model.parameters()} == {getattr(torch, dtype)}


def test_a_modules_inputs_are_of_its_dtype(toys: Path) -> None:
    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == torch.float16
            return x

    teacher: Any = make_teacher(ModelSpec("stillhouse_toys:linear"), dtype="float16", seed=0)
    teacher.inner._model = Probe()
    teacher.logits({"x": X})


def test_the_shape_is_told_without_running(kind: Kind) -> None:
    assert answer_shape(kind.spec, kind.example, dtype="float32", seed=0) == kind.shape
    assert kind.make().answer_shape(kind.example) == kind.shape


def test_a_modules_shape_is_told_without_running_it(toys: Path, tmp_path: Path) -> None:
    x = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
    example = as_samples(pa.table({"sample_id": pa.array(range(32)), "x": x}), Columns(), "toys").slice(0, 1)
    calls = tmp_path / "calls"
    spec = ModelSpec("stillhouse_toys:linear", {"classes": 7, "calls": str(calls)})
    assert make_teacher(spec, dtype="float32", seed=0).answer_shape(example) == (7,)
    assert not calls.exists()


def test_a_language_models_shape_is_told_without_its_weights(models: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((Path(models("LlamaForCausalLM")) / "config.json").read_bytes())
    example = as_samples(pa.table({"sample_id": [1], "input_ids": [[1, 2, 3]]}), Columns(), "toys")
    assert answer_shape(HuggingFaceSpec(str(tmp_path)), example, dtype="bfloat16", seed=0) == (3, SIZE)


def test_a_spec_travels_as_plain_values(kind: Kind) -> None:
    import json

    assert make_spec(json.loads(json.dumps(spec_settings(kind.spec)))) == kind.spec


def test_a_module_with_one_logit_is_refused_before_it_runs(toys: Path) -> None:
    example = as_samples(pa.table({"sample_id": range(32), "x": X.tolist()}), Columns(), "toys").slice(0, 1)
    with pytest.raises(ModelError, match=r"one logit a position.*\[0, z\]"):
        answer_shape(ModelSpec("stillhouse_toys:linear", {"classes": 1}), example, dtype="float32", seed=0)


@pytest.mark.parametrize("shape", [(32,), (31, 5), (32, 2, 3, 4)])
def test_a_module_that_gives_no_logits_is_named(toys: Path, shape: tuple[int, ...]) -> None:
    teacher: Any = make_teacher(ModelSpec("stillhouse_toys:linear"), dtype="float32", seed=0)
    teacher.inner._model = lambda x: torch.zeros(shape)
    with pytest.raises(JobError, match=r"gave shape \[.*\[samples, positions, classes\]"):
        teacher.logits({"x": X})


def test_float32_is_never_tf32(toys: Path) -> None:
    """Whatever the user's code, or another teacher, has set before."""
    backends = torch.backends
    for way in ("old", "new"):
        if way == "old":
            backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True
        elif hasattr(backends, "fp32_precision"):
            for group in (backends, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
                group.fp32_precision = "tf32"
            backends.mkldnn.conv.fp32_precision = "bf16"
        make_teacher(ModelSpec("stillhouse_toys:linear"), dtype="float32", seed=0)
        assert not backends.cuda.matmul.allow_tf32 and not backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        if hasattr(backends, "fp32_precision"):
            groups = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv)
            assert {group.fp32_precision for group in groups} == {"ieee"}


def test_the_model_that_was_digested_is_the_one_that_answers(toys: Path) -> None:
    spec = ModelSpec("stillhouse_toys:linear")
    model: Any = build_without_weights(spec, 3)
    found = make_teacher(spec, dtype="float32", seed=0, model=model).logits({"x": X})
    assert torch.equal(found, model(torch.from_numpy(X)))
    assert build_without_weights(ModelSpec("stillhouse_toys:linear", weights="w.safetensors"), 0) is None
