"""What can answer for a teacher: inputs in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.model_spec import ModelSpec
from teacher_infer.teachers.checked import CheckedTeacher
from teacher_infer.teachers.loading import resolve_attention
from teacher_infer.teachers.module import ModuleTeacher
from teacher_infer.teachers.transformers import TransformersTeacher


class Teacher(Protocol):
    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> Any:
        """Logits on the teacher's device, as a torch tensor, for inputs by name, of S rows each. Raises JobError.

        [S, V] of samples, [S, L, V] of sequences of L positions.
        """
        ...

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        """The shape of one row's logits, (V,) or (L, V), for samples like the example's, without running the teacher.

        None when that cannot be told.
        """
        ...


Spec = ModelSpec | HuggingFaceSpec

TEACHERS: dict[str, Any] = {"module": ModuleTeacher, "transformers": TransformersTeacher}
SPECS: dict[str, Callable[..., Spec]] = {"module": ModelSpec, "transformers": HuggingFaceSpec}


def spec_settings(spec: Spec) -> dict[str, Any]:
    """A spec as plain values, which `make_spec` takes."""
    return {"kind": spec.kind, **asdict(spec)}


def make_spec(settings: dict[str, Any]) -> Spec:
    return SPECS[settings["kind"]](**{key: value for key, value in settings.items() if key != "kind"})


def resolve(spec: Spec, dtype: str) -> Spec:
    """The spec with the choices that transformers would make when it loads, as the key counts them.

    Raises what loading would raise, as far as it shows without weights. A torch module is not built for it.
    """
    return resolve_attention(spec, dtype) if isinstance(spec, HuggingFaceSpec) else spec


def build_without_weights(spec: Spec, seed: int) -> Any:
    """The torch module of a spec that names no weights file, which its key counts; None of any other spec."""
    return spec.build(seed) if isinstance(spec, ModelSpec) and spec.weights is None else None


def make_teacher(spec: Spec, *, dtype: str, seed: int, gpus: int = 0, model: Any = None) -> Teacher:
    """The teacher behind a spec, loaded, on as many GPUs as this process was given. Raises what loading raises.

    seed: of one without weights. model: what `build_without_weights` gave, so that the model that was digested is the
    one that answers.
    """
    device = "cpu" if not gpus else "auto" if gpus > 1 and spec.kind == "transformers" else "cuda"
    more = {} if model is None else {"model": model}
    teacher = TEACHERS[spec.kind](spec, dtype=dtype, seed=seed, device=device, **more)
    # After the user's code was imported, which may have set another precision.
    set_precision()
    return CheckedTeacher(teacher, dtype)


def set_precision() -> None:
    """Make float32 products and convolutions in float32. cuDNN's default is TF32 on GPUs since Ampere."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    # Newer versions of torch have a setting for each library and operation, which the ones above do not reach.
    backends = torch.backends
    for group in (backends, backends.cuda, backends.cudnn, backends.mkldnn):
        for settings in (group, *(getattr(group, name, None) for name in ("conv", "rnn", "matmul"))):
            if settings is not None and hasattr(settings, "fp32_precision"):
                settings.fp32_precision = "ieee"


def answer_shape(spec: Spec, example: pa.Table, *, dtype: str, seed: int) -> tuple[int, ...] | None:
    """`Teacher.answer_shape`; of one whose config tells it without loading any weights."""
    if isinstance(spec, HuggingFaceSpec):
        return spec.answer_shape(example)
    return make_teacher(spec, dtype=dtype, seed=seed).answer_shape(example)
