"""Soft targets in memory, as every encoding gives them back and every loss takes them.

Legend: P positions, V classes (a vocabulary's tokens, a classifier's classes), K kept ids, G temperatures.
Of rows that are sequences of L positions, P is [R, L] until `flat` makes one axis of both.
Arrays are numpy when they come from a stream, torch after `storage.stream.torch_tensors`.

`mask_P`, [P] bool, says which positions have a target; None means all. It is set where rows are decoded (see
`with_mask`). What the other arrays hold where it is False has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from storage.base.errors import RecipeError

# The label of a position without a target: torch's own `ignore_index`.
IGNORED = -100


@dataclass(frozen=True)
class DenseTargets:
    """Every class's logit, centred on its position's maximum and divided by that position's temperature.

    logits_PV: [P, V] float16 or float32, at most 0; softmax(logits) is the teacher softened by T_c.
    temperature_P: [P] float32, the T_c of each position; softmax(logits * T_c / T) serves any other T.
    """

    logits_PV: Any
    temperature_P: Any
    mask_P: Any = None

    def __len__(self) -> int:
        return len(self.logits_PV)

    def __getitem__(self, rows: slice) -> DenseTargets:
        """The targets of some rows, `targets[8:16]`."""
        return self.each(_slicer(rows))

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of positions: (R,) of classified samples, (R, L) of sequences."""
        return tuple(self.temperature_P.shape)

    @property
    def classes(self) -> int:
        return int(self.logits_PV.shape[-1])

    def each(self, change: Callable[[Any], Any]) -> DenseTargets:
        """The same with every array put through `change`."""
        mask_P = None if self.mask_P is None else change(self.mask_P)
        return DenseTargets(change(self.logits_PV), change(self.temperature_P), mask_P)

    def flat(self) -> DenseTargets:
        """One axis of positions, whatever the axes before the classes were."""
        mask_P = None if self.mask_P is None else self.mask_P.reshape(-1)
        return DenseTargets(self.logits_PV.reshape(-1, self.classes), self.temperature_P.reshape(-1), mask_P)


@dataclass(frozen=True)
class TopKTargets:
    """The K likeliest classes of each position, and what is exactly known of the rest at each temperature of a grid.

    With l = log softmax(z) and p^T = softmax(z / T):
    ids_PK: [P, K] unsigned integers, likeliest first, of equal ones the lowest first.
    log_probs_PK: [P, K] float16, l of those.
    label_log_prob_P: [P] float16, l of the label (of a language model: the true next token); NaN where there is none.
    log_z_PG: [P, G] float32, L_T = logsumexp(l / T), so that log p^T_i = l_i / T - L_T.
    log_tail_PG: [P, G] float32, the log of the mass that p^T has outside the K ids; -inf where there is none.
    entropy_PG: [P, G] float32, the entropy of p^T, in nats.
    """

    ids_PK: Any
    log_probs_PK: Any
    label_log_prob_P: Any
    log_z_PG: Any
    log_tail_PG: Any
    entropy_PG: Any
    temperatures: tuple[float, ...]
    classes: int
    mask_P: Any = None

    def __len__(self) -> int:
        return len(self.ids_PK)

    def __getitem__(self, rows: slice) -> TopKTargets:
        """The targets of some rows, `targets[8:16]`."""
        return self.each(_slicer(rows))

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of positions: (R,) of classified samples, (R, L) of sequences."""
        return tuple(self.label_log_prob_P.shape)

    def each(self, change: Callable[[Any], Any]) -> TopKTargets:
        """The same with every array put through `change`."""
        return replace(
            self,
            ids_PK=change(self.ids_PK),
            log_probs_PK=change(self.log_probs_PK),
            label_log_prob_P=change(self.label_log_prob_P),
            log_z_PG=change(self.log_z_PG),
            log_tail_PG=change(self.log_tail_PG),
            entropy_PG=change(self.entropy_PG),
            mask_P=None if self.mask_P is None else change(self.mask_P),
        )

    def flat(self) -> TopKTargets:
        """One axis of positions, whatever the axes before the ids were."""
        lead = len(self.label_log_prob_P.shape)
        return self.each(lambda array: array.reshape(-1, *array.shape[lead:]))

    def place(self, temperature: float) -> int:
        """Where in the grid a temperature is. Raises RecipeError, with the grid, for one that is not in it."""
        if temperature not in self.temperatures:
            raise RecipeError(
                f"The temperature {temperature:g} is not in the grid of these targets.",
                f"They were kept for: {', '.join(f'{t:g}' for t in self.temperatures)}.",
                "Take one of those, or label anew with targets.temperatures naming it too.",
            )
        return self.temperatures.index(temperature)


Targets = DenseTargets | TopKTargets


def with_mask(targets: Targets, label: np.ndarray[Any, Any] | None) -> Targets:
    """Targets of decoded rows with their mask: of sequences, where the label [R, L] is not IGNORED; otherwise all.

    A classified sample has a target whether or not it has a label. So has every position of unlabelled sequences.
    """
    if label is not None and len(targets.lead) > 1:
        return replace(targets, mask_P=label != IGNORED)
    return replace(targets, mask_P=np.ones(targets.lead, bool))


def _slicer(rows: slice) -> Callable[[Any], Any]:
    if not isinstance(rows, slice):
        raise TypeError(f"targets are sliced, as in targets[8:16]; found targets[{rows!r}]")
    return lambda array: array[rows]
