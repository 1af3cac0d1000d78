"""Soft targets in memory: what every encoding decodes to, and what analysis and losses may ask of them.

Legend: P positions, V classes (a vocabulary's tokens, a classifier's classes), K kept ids, n ids that are asked for.
Of rows that are sequences of L positions, P is [R, L] until `flat` makes one axis of both.
Arrays are numpy when they come from a stream, torch after `storage.stream.torch_tensors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from storage.base.errors import RecipeError
from storage.encodings import arrays

# The label of a position without a target: torch's own `ignore_index`.
IGNORED = -100


class Sparse(NamedTuple):
    """The classes that were kept of the teacher's distribution p at one temperature.

    ids_PK: [P, K] int64. log_probs_PK: [P, K] log p of these. log_tail_P: [P] the log of the mass outside them.
    """

    ids_PK: Any
    log_probs_PK: Any
    log_tail_P: Any


class Targets(ABC):
    """The teacher's distribution at each position. An encoding adds a frozen dataclass whose fields are its arrays.

    A subclass defines `lead`, and `logits` where it holds every class. One that holds some defines `sparse`, and
    of `top`, `label_log_prob` and `entropy` what it knows; the others refuse by the encoding's name. Results of numpy
    arrays are float64, of torch tensors float32, or float64 where the tensors are.

    kind: the encoding's name in ENCODINGS, for messages. classes: V.
    mask_P: [P] bool, which positions have a target; None means all. It is set where rows are decoded (see
      `with_mask`). What the other arrays and all results hold where it is False has no meaning.
    """

    kind: ClassVar[str]
    classes: int
    mask_P: Any

    @property
    @abstractmethod
    def lead(self) -> tuple[int, ...]:
        """The axes of positions: (R,) of classified samples, (R, L) of sequences."""

    def __len__(self) -> int:
        return self.lead[0]

    def __getitem__(self, rows: slice) -> Self:
        """The targets of some rows, `targets[8:16]`."""
        if not isinstance(rows, slice):
            raise TypeError(f"targets are sliced, as in targets[8:16]; found targets[{rows!r}]")
        return self.each(lambda array: array[rows])

    def each(self, change: Callable[[Any], Any]) -> Self:
        """The same with every array put through `change`."""
        this: Any = self
        values = {f.name: getattr(this, f.name) for f in fields(this)}
        return replace(this, **{name: change(value) for name, value in values.items() if hasattr(value, "shape")})

    def flat(self) -> Self:
        """One axis of positions, whatever the axes before the classes were."""
        axes = len(self.lead)
        return self.each(lambda array: array.reshape(-1, *array.shape[axes:]))

    def cleared(self, ignored_P: Any) -> Self:
        """These targets, after writing over, in place, what an encoding does not keep of positions without a target.

        ignored_P: [P] bool. Nothing is written by default.
        """
        return self

    def logits(self, temperature: float) -> Any:
        """z / temperature [P, V] of all classes, up to a constant of each position, in new memory.

        Raises RecipeError where only some classes were kept.
        """
        raise RecipeError(
            f"The targets are {self.kind}: they hold some of the {self.classes:,} classes.",
            "The probabilities of all classes are needed here.",
            "Use a cache with an encoding that holds every class, such as targets.encoding=dense.",
        )

    def log_probs(self, temperature: float) -> Any:
        """log p [P, V] of all classes, p = softmax(z / temperature), in new memory.

        Where p is 0 it is -inf in numpy, and the lowest finite number in torch. Raises RecipeError where only some
        classes were kept.
        """
        return arrays.log_softmax(self.logits(temperature))

    def sparse(self, temperature: float) -> Sparse | None:
        """The kept classes at a temperature; None where every class was kept. Raises RecipeError for a temperature that
        they were not kept for."""
        return None

    def top(self, count: int) -> tuple[Any, Any]:
        """The likeliest classes, of equal ones the lowest first: ids [P, n] int64 and log p [P, n] at temperature 1.

        n is `count`, or less where fewer classes were kept.
        """
        log_p_PV = self.log_probs(1.0)
        ids_Pn = arrays.highest_ids(log_p_PV, count)
        return ids_Pn, arrays.gather(log_p_PV, ids_Pn)

    def label_log_prob(self, label_P: Any) -> Any:
        """log p(label) [P] at temperature 1; NaN where the label is IGNORED. label_P: the rows' own labels [P]."""
        log_p_P = arrays.gather(self.log_probs(1.0), label_P.clip(min=0)[..., None])[..., 0]
        log_p_P[label_P == IGNORED] = np.nan
        return log_p_P

    def entropy(self) -> Any:
        """[P] at temperature 1, in nats."""
        return arrays.entropy(self.log_probs(1.0))


def with_mask(targets: Targets, label: np.ndarray[Any, Any] | None) -> Targets:
    """Targets of decoded rows with their mask: of sequences, where the label [R, L] is not IGNORED; otherwise all.

    A classified sample has a target whether or not it has a label. So has every position of unlabelled sequences.
    """
    this: Any = targets
    if label is not None and len(targets.lead) > 1:
        return replace(this, mask_P=label != IGNORED)
    return replace(this, mask_P=np.ones(targets.lead, bool))
