"""A teacher that is a torch module: `package.module:function` with safetensors weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.models.model_call import apply_model
from jobs.models.model_spec import ModelSpec
from storage.base.errors import JobError, StillhouseError
from storage.samples import tensor_columns
from storage.samples.samples import input_names


class ModuleTeacher:
    """The module in eval mode and an explicit dtype; its forward takes the inputs by name (see `apply_model`)."""

    def __init__(self, spec: ModelSpec, *, dtype: str, seed: int, device: str, model: Any = None) -> None:
        """model: what `spec.build(seed)` gave, where it is built already; it is moved and changed to the dtype."""
        import torch

        self._torch, self._device, self._dtype = torch, device, getattr(torch, dtype)
        model = spec.build(seed) if model is None else model
        self._model = model.to(device=device, dtype=self._dtype).eval()

    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> Any:
        torch, rows = self._torch, len(next(iter(inputs.values())))
        with torch.inference_mode():
            logits = apply_model(self._model, {name: self._tensor(array) for name, array in inputs.items()})
        if not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 3) or len(logits) != rows:
            found = f"shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise JobError(
                f"The teacher gave {found} for {rows} samples.",
                "It gives logits [samples, classes], or of sequences [samples, positions, classes].",
            )
        return logits

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        torch = self._torch
        try:
            model = copy.deepcopy(self._model).to("meta")
            names = input_names(example.schema)
            arrays = {name: tensor_columns.unpack(example.column(name), example.schema.field(name)) for name in names}
            with torch.inference_mode():
                logits = apply_model(model, {name: self._tensor(array).to("meta") for name, array in arrays.items()})
            return tuple(int(size) for size in logits.shape[1:])
        except StillhouseError:
            raise
        except Exception:
            # A model may look at values, which meta tensors have none of: then the shape shows when it runs.
            return None

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        tensor = self._torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return tensor.to(self._device)
