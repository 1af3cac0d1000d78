"""Losses: pure functions of a student's logits, one value a position, no reduction hidden inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from storage.shard import Rows
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import forward_kl


@dataclass(frozen=True)
class Loss:
    """A member of the table.

    function: (logits_PV, targets or label, *, temperature) -> loss_P, temperature only where it needs targets.
    needs: what it compares the student with.
    zero_when_equal: a divergence, which vanishes when student and teacher agree.
    """

    function: Callable[..., torch.Tensor]
    needs: Literal["targets", "label"]
    zero_when_equal: bool


class Weighted(Protocol):
    """What a recipe says of a loss."""

    @property
    def weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...


LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(forward_kl, needs="targets", zero_when_equal=True),
    "cross_entropy": Loss(cross_entropy, needs="label", zero_when_equal=False),
}


def combine(
    sections: Mapping[str, Weighted], logits_PV: torch.Tensor, rows: Rows
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The weighted sum of a recipe's losses [P], and each loss [P] on its own, unweighted.

    Where soft and hard losses are mixed, the soft ones are multiplied by T^2: their gradients
    shrink by 1 / T^2 otherwise, and the weights would mean something else at each temperature
    (Hinton, Vinyals & Dean 2015, section 2).
    """
    mixed = len({LOSSES[name].needs for name in sections}) > 1
    total_P, parts = torch.zeros(len(logits_PV), device=logits_PV.device), {}
    for name, section in sections.items():
        loss = LOSSES[name]
        if loss.needs == "targets":
            loss_P = loss.function(logits_PV, rows.targets, temperature=section.temperature)
            scale = section.temperature**2 if mixed else 1.0
        else:
            loss_P, scale = loss.function(logits_PV, rows.label), 1.0
        parts[name] = loss_P
        total_P = total_P + section.weight * scale * loss_P
    return total_P, parts
