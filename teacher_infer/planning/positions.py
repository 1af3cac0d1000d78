"""How many positions a row has: L of sequences, 1 of what is classified as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.model_spec import ModelSpec
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, input_names
from teacher_infer.planning.plan import labelled_positions
from teacher_infer.teachers import Spec
from teacher_infer.teachers.module import ModuleTeacher


def positions_of(spec: Spec, example: pa.Table) -> int:
    """The positions of a row for a teacher, known without its weights. example: samples of the source."""
    if isinstance(spec, HuggingFaceSpec):
        return spec.answer_shape(example)[0] if spec.is_language_model else labelled_positions(example.schema)
    if LABEL in example.schema.names or not _has_tokens(example.schema):
        return labelled_positions(example.schema)
    return _positions_of_module(spec, example)


def _positions_of_module(spec: ModelSpec, example: pa.Table) -> int:
    """By the shape of what the model gives on torch's meta device; 1 where that does not show."""
    import torch

    try:
        with torch.device("meta"):
            model = replace(spec, weights=None).build(0)
        shape = ModuleTeacher(spec, dtype="float32", seed=0, device="meta", model=model).answer_shape(example)
    except Exception:  # whatever a factory raises that does not know this device
        return 1
    return shape[0] if shape is not None and len(shape) == 2 else 1


def _has_tokens(samples: pa.Schema) -> bool:
    """Whether an input is a row of integers, as token ids are."""
    fields = [samples.field(name) for name in input_names(samples)]
    forms = [tensor_columns.form(field) for field in fields if tensor_columns.is_tensor(field)]
    return any(len(shape) == 1 and np.issubdtype(dtype, np.integer) for dtype, shape in forms)
