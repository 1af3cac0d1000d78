"""Checks of a teacher's real answers: logits of several classes that depend on their own row alone."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from storage.base.errors import ModelError

log = logging.getLogger("stillhouse.teacher")

# How far a row's logits may move with the other rows of its batch, in parts of the logits' spread: rounding of batched
# kernels and of mixtures of experts stays below.
_ALLOWED = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.25}
# Rows that are computed twice.
_ROWS = 4
# Values of the first answer that are looked at.
_VALUES = 1 << 22
# Fewer positions than this in [0, 1] may be chance.
_SEVERAL = 8


class _Answering(Protocol):
    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> Any: ...

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None: ...


class CheckedTeacher:
    """A teacher whose first answer is checked.

    inner: the teacher. dtype: its own, which decides the tolerance. `logits` and `answer_shape` raise ModelError for a
    single class; `logits` also for integers, for probabilities, and where a row's logits follow from other rows of the
    batch or from chance. What the teacher raises during a check is raised as in any call, and the next call checks.
    """

    def __init__(self, inner: _Answering, dtype: str) -> None:
        self.inner, self._dtype, self._checked = inner, dtype, False

    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> Any:
        """As `Teacher.logits`."""
        logits = self.inner.logits(inputs)
        if not self._checked:
            _refuse_no_logits(logits)
            self._checked = self._check(inputs, logits)
        return logits

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        """As `Teacher.answer_shape`."""
        shape = self.inner.answer_shape(example)
        if shape is not None:
            _refuse_single_class(shape)
        return shape

    def _check(self, inputs: dict[str, np.ndarray[Any, Any]], logits: Any) -> bool:
        """Whether there were usable positions to check. logits: [S, V] or [S, L, V]."""
        import torch

        with torch.inference_mode():
            flat_PV = logits.reshape(-1, logits.shape[-1])
            step = max(1, -(-flat_PV.numel() // _VALUES))
            some_PV = flat_PV[::step].float()
            some_PV = some_PV[some_PV.isfinite().any(dim=1) & ~(some_PV.isnan() | some_PV.isposinf()).any(dim=1)]
            if not len(some_PV):
                return False
            _refuse_probabilities(some_PV, torch.finfo(logits.dtype).eps)
            _warn_of_constant(some_PV)
            self._refuse_dependence(inputs, logits)
        return True

    def _refuse_dependence(self, inputs: dict[str, np.ndarray[Any, Any]], logits: Any) -> None:
        rows = _other_batch(len(logits))
        again = self.inner.logits({name: array[rows] for name, array in inputs.items()})
        moved = _moved(logits[rows.tolist()], again)
        if moved > _ALLOWED[self._dtype]:
            raise ModelError(
                f"The teacher's logits of a sample differ by {moved:.2g} of their spread when other samples are in its "
                "batch, or when it is run again.",
                f"They follow from the sample alone; up to {_ALLOWED[self._dtype]:g} may be rounding in {self._dtype}.",
                "Look for BatchNorm without running statistics, normalisation over the batch, dropout that eval() does "
                "not switch off, or random numbers in forward.",
            )


def _refuse_no_logits(logits: Any) -> None:
    if not logits.is_floating_point():
        raise ModelError(
            f"The teacher gave values of the type {str(logits.dtype).removeprefix('torch.')}.",
            "Logits are real floating-point numbers.",
            "Return the values before argmax or rounding.",
        )
    _refuse_single_class(tuple(logits.shape))


def _refuse_single_class(shape: tuple[int, ...]) -> None:
    if shape[-1] == 1:
        raise ModelError(
            "The teacher gives one logit a position.",
            "It gives two or more: softmax of a single number is 1, whatever the number is.",
            "Of a sigmoid's logit z return two logits, [0, z].",
        )


def _refuse_probabilities(some_PV: Any, eps: float) -> None:
    """Raises ModelError where each position is non-negative and sums to 1 within rounding.

    Several positions within [0, 1] that do not sum to 1 are taken for sigmoids. Logits of a cosine or a ReLU may look
    alike; moved by a constant they are accepted.
    """
    highest, lowest = float(some_PV.max()), float(some_PV.min())
    # A uniform answer may be a head that was set to a constant; in 16 bits few positions may sum to 1 by chance.
    uniform = bool((some_PV.amax(dim=1) - some_PV.amin(dim=1) <= eps).all())
    if lowest < 0 or highest > 1 + 2 * eps or uniform or (eps > 1e-4 and len(some_PV) < 3):
        return
    if ((some_PV.sum(dim=1) - 1).abs() <= max(1e-4, 2 * eps)).all():
        raise ModelError(
            "The teacher gives probabilities: none is negative, and those of each position sum to 1.",
            "It gives logits, whose softmax is the distribution.",
            "Return the values before the softmax, or the logarithm of the probabilities.",
        )
    if len(some_PV) >= _SEVERAL:
        raise ModelError(
            f"All values of the teacher at {len(some_PV)} positions lie between 0 and 1, as those of a sigmoid do.",
            "It gives logits, whose softmax is the distribution.",
            "Return the values before the sigmoid. If these are logits, return them less 1: the softmax is the same.",
        )


def _warn_of_constant(some_PV: Any) -> None:
    if len(some_PV) > 1 and bool((some_PV == some_PV[:1]).all()):
        log.warning("The teacher gives the same logits at all %d positions looked at.", len(some_PV))


def _other_batch(count: int) -> np.ndarray[Any, Any]:
    """Rows of a batch in another composition: some of the first half, last first. Of two rows the first one twice,
    since some layers take no single row; of one row the same again, which shows chance alone."""
    if count <= 2:
        return np.zeros(count, np.int64)
    return np.arange(min(_ROWS, (count + 1) // 2))[::-1].copy()


def _moved(first: Any, again: Any) -> float:
    """RMS difference of the worst row, in parts of the spread of all; positions with NaN or +inf are left out.

    A constant added to a position's logits changes no distribution, so positions are centred.
    """
    import torch

    first, again = first.float(), again.float()
    eps = torch.finfo(first.dtype).eps
    usable = ~((first.isnan() | first.isposinf()) | (again.isnan() | again.isposinf())).any(dim=-1, keepdim=True)
    if bool((usable & (first.isneginf() != again.isneginf())).any()):
        return float("inf")
    kept = usable & first.isfinite() & again.isfinite()
    if not bool(kept.any()):
        return 0.0
    count = kept.sum(dim=-1, keepdim=True).clamp(min=1)
    size = float(torch.where(kept, first.abs(), 0.0).max())
    first, again = (torch.where(kept, z, 0.0) for z in (first, again))
    first, again = (torch.where(kept, z - z.sum(dim=-1, keepdim=True) / count, 0.0) for z in (first, again))
    spread = float((first.square().sum() / kept.sum()).sqrt())
    difference_R = (first - again).square().flatten(1).sum(dim=1) / kept.flatten(1).sum(dim=1).clamp(min=1)
    # Logits that hardly differ from one another move by the rounding of their size.
    worst = max(0.0, float(difference_R.max().sqrt()) - 16 * eps * size)
    return worst / max(spread, 1e-12)
