"""Logits to what an encoding keeps of them and what is said of each row, on the device that made them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.encodings import Encoding
from storage.encodings.dense import Dense
from storage.encodings.targets import IGNORED, Targets
from storage.encodings.topk import TopK
from teacher_infer.soften.dense import soften_dense
from teacher_infer.soften.parts import Parts
from teacher_infer.soften.topk import soften_topk

if TYPE_CHECKING:
    import torch  # a job that has nothing to compute does without

# How each encoding's targets are made. (logits [P, V], label [P] or None, encoding) -> Positions
SOFTENERS: dict[type, Any] = {Dense: soften_dense, TopK: soften_topk}


@dataclass(frozen=True)
class Softened:
    """R rows, on the host.

    targets: as the encoding takes them, before its own rounding; of sequences of L positions [R, L, ...].
    entropy_R: the teacher's at T = 1, in nats; of a sequence the mean over its positions with a target.
    top1_R: the likeliest class; None of sequences. bad_R: whether a row has NaN, +inf, an overflow or
    a position of -inf only.
    positions: L, or None where a row is one position.
    All of a row follows, to the last bit, from its own logits: not from how many rows are softened with it.
    """

    targets: Targets
    entropy_R: np.ndarray[Any, np.dtype[np.float32]]
    top1_R: np.ndarray[Any, np.dtype[np.int32]] | None
    bad_R: np.ndarray[Any, np.dtype[np.bool_]]
    positions: int | None = None

    def only(self, kept_R: np.ndarray[Any, Any]) -> Softened:
        top1_R = None if self.top1_R is None else self.top1_R[kept_R]
        targets = self.targets.each(lambda array: array[kept_R])
        return Softened(targets, self.entropy_R[kept_R], top1_R, self.bad_R[kept_R], self.positions)


def soften(logits: torch.Tensor, encoding: Encoding, label: np.ndarray[Any, Any] | None = None) -> Softened:
    """What `encoding` keeps of logits [R, V], or [R, L, V] of sequences.

    label: [R] or [R, L], the class that is true, where one is known. A position of a sequence whose label is
    IGNORED has no target: topk keeps zeros of it, and its entropy counts in no mean. A row that is one position
    keeps its soft targets without a label.
    """
    import torch

    with torch.inference_mode():
        *lead, classes = logits.shape
        label_P = None if label is None else torch.from_numpy(np.array(label, np.int64)).to(logits.device).view(-1)
        parts = SOFTENERS[type(encoding)](logits.reshape(-1, classes), label_P, encoding)
        if len(lead) > 1 and label_P is not None:
            parts = replace(parts, targets=parts.targets.cleared(label_P == IGNORED))
        host = _on_host(parts)
    if len(lead) == 1:
        return Softened(host.targets, host.entropy_P, host.top1_P.astype(np.int32), host.bad_P)
    counted_RL = np.ones(lead, bool) if label is None else np.asarray(label).reshape(lead) != IGNORED
    # On the host, since a GPU sums L positions in an order that depends on R.
    sums_R = np.where(counted_RL, host.entropy_P.reshape(lead), 0).astype(np.float64).sum(axis=1)
    entropy_R = (sums_R / counted_RL.sum(axis=1).clip(min=1)).astype(np.float32)
    targets = host.targets.each(lambda array: array.reshape(*lead, *array.shape[1:]))
    return Softened(targets, entropy_R, None, host.bad_P.reshape(lead).any(axis=1), lead[1])


def _on_host(parts: Parts) -> Parts:
    """With arrays of numpy. Of a GPU they are copied all at once, to memory that it can write to by itself."""
    import torch

    if parts.bad_P.device.type != "cuda":
        return parts.each(lambda array: array.cpu().numpy())
    on_host = parts.each(
        lambda array: torch.empty(array.shape, dtype=array.dtype, pin_memory=True).copy_(array, non_blocking=True)
    )
    torch.cuda.synchronize(parts.bad_P.device)
    return on_host.each(lambda array: array.numpy())
