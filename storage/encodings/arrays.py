"""Operations on the arrays of targets: numpy arrays in storage, torch tensors in a loss. torch is not imported here.

Of numpy arrays results are float64. Of torch tensors they are float32, or float64 where the tensor is.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def widen(values: Any) -> Any:
    """Floats in the precision that results are computed in. A tensor that has it already is returned as it is."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64)
    return values if values.element_size() == 8 else values.float()


def as_int64(ids: Any) -> Any:
    return ids.astype(np.int64) if isinstance(ids, np.ndarray) else ids.long()


def log_softmax(logits: Any) -> Any:
    """Over the last axis, in new memory.

    A probability of 0 is -inf in numpy. A tensor has the lowest finite number, since losses multiply by 0 there.
    """
    if isinstance(logits, np.ndarray):
        centred = logits - logits.max(axis=-1, keepdims=True)
        return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))
    log_p = logits.log_softmax(dim=-1)
    return log_p.clamp_(min=_lowest(log_p))


def entropy(log_p: Any) -> Any:
    """In nats, over the last axis of log-probabilities. A probability of 0 adds 0."""
    # 0 * -inf is NaN.
    finite = log_p.clip(min=_lowest(log_p))
    p = np.exp(log_p) if isinstance(log_p, np.ndarray) else log_p.exp()
    return -(p * finite).sum(-1)


def gather(values: Any, ids: Any) -> Any:
    """values [..., V] at ids [..., n]."""
    if isinstance(values, np.ndarray):
        return np.take_along_axis(values, as_int64(ids), axis=-1)
    return values.gather(-1, as_int64(ids))


def highest_ids(values: Any, count: int) -> Any:
    """The ids [..., count] of the highest values, highest first; of equal ones the lowest id first."""
    if count == 1:
        top = values.argmax(-1)
        return top.reshape(*top.shape, 1)
    if isinstance(values, np.ndarray):
        return np.argsort(-values, axis=-1, kind="stable")[..., :count]
    return values.argsort(dim=-1, descending=True, stable=True)[..., :count]


def _lowest(values: Any) -> float:
    """The lowest finite number of the type."""
    if isinstance(values, np.ndarray):
        return float(np.finfo(values.dtype).min)
    return float(np.finfo(np.float64 if values.element_size() == 8 else np.float32).min)
