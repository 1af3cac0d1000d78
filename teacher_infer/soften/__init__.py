"""Softens logits: makes the targets that an encoding stores, and each row's entropy, likeliest class and validity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.encodings import Encoding
from storage.encodings.dense import Dense
from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK
from teacher_infer.soften.dense import soften_dense
from teacher_infer.soften.softened import Softened
from teacher_infer.soften.topk import soften_topk

if TYPE_CHECKING:
    import torch  # a job that has nothing to compute does without

__all__ = ["SOFTENERS", "Softened", "soften"]

# How each encoding's targets are made. (logits [P, V], label [P] or None, encoding) -> Softened, each row a position
SOFTENERS: dict[type, Any] = {Dense: soften_dense, TopK: soften_topk}


def soften(logits: torch.Tensor, encoding: Encoding, label: np.ndarray[Any, Any] | None = None) -> Softened:
    """What `encoding` keeps of logits [R, V], or [R, L, V] of sequences, as numpy arrays.

    label: [R] or [R, L], the class that is true, where one is known. A position of a sequence whose label is
    IGNORED has no target: topk keeps zeros of it, and its entropy counts in no mean. A row that is one position
    keeps its soft targets without a label.

    All of a row follows, to the last bit, from its own logits: not from how many rows are softened with it.
    """
    import torch

    with torch.inference_mode():
        *lead, classes = logits.shape
        label_P = None if label is None else torch.from_numpy(np.array(label, np.int64)).to(logits.device).view(-1)
        softened = SOFTENERS[type(encoding)](logits.reshape(-1, classes), label_P, encoding)
        if len(lead) > 1 and label_P is not None:
            softened = replace(softened, targets=softened.targets.cleared(label_P == IGNORED))
        softened = _on_host(softened)
    return softened if len(lead) == 1 else _sequences(softened, label, lead)


def _on_host(softened: Softened) -> Softened:
    """With arrays of numpy. Of a GPU they are copied all at once, to memory that it can write to by itself."""
    import torch

    if softened.bad_R.device.type != "cuda":
        return softened.each(lambda array: array.cpu().numpy())
    on_host = softened.each(
        lambda array: torch.empty(array.shape, dtype=array.dtype, pin_memory=True).copy_(array, non_blocking=True)
    )
    torch.cuda.synchronize(softened.bad_R.device)
    return on_host.each(lambda array: array.numpy())


def _sequences(positions: Softened, label: np.ndarray[Any, Any] | None, lead: list[int]) -> Softened:
    """Softened positions as rows. lead: R and L."""
    counted_RL = np.ones(lead, bool) if label is None else np.asarray(label).reshape(lead) != IGNORED
    # On the host, since a GPU sums L positions in an order that depends on R.
    sums_R = np.where(counted_RL, positions.entropy_R.reshape(lead), 0).astype(np.float64).sum(axis=1)
    entropy_R = (sums_R / counted_RL.sum(axis=1).clip(min=1)).astype(np.float32)
    targets = positions.targets.each(lambda array: array.reshape(*lead, *array.shape[1:]))
    return Softened(targets, entropy_R, None, positions.bad_R.reshape(lead).any(axis=1))
