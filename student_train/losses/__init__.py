"""Losses: small functions of a student's output, one value a position, no reduction hidden inside.

A loss is a file with two functions: `term`, its query about the student's distribution and its value from the result
(see `queries` and, for the shortest, `cross_entropy`), and one of its own name for those who want this loss alone. It
declares the power of the temperature that keeps the size of its gradient.
Legend: P positions, C those of a chunk, V classes, K ids, d the width of hidden states, R rows of L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from storage.format.rows import DecodedRows
from student_train.losses import cross_entropy, forward_kl
from student_train.losses.chunked_logits import Positions
from student_train.losses.positions import Needs, count_positions, indices, kept, mask_of
from student_train.losses.queries import Output, Term, Unprojected
from student_train.losses.student_log_probs import query_student

__all__ = [
    "LOSSES",
    "Loss",
    "Output",
    "Unprojected",
    "Weighted",
    "count_positions",
    "factor",
    "loss_parts",
    "needed",
    "terms_of",
]


@dataclass(frozen=True)
class Loss:
    """A member of the table.

    function: (output, targets or label, ...) -> loss_P, with T^temperature_power in it. term: (targets or label, ...)
    -> Term without it, of one axis of positions. What needs targets takes temperature, tail and unigram besides.
    needs: what it compares the student with.
    temperature_power: the power of T that keeps the size of its gradient.
    zero_when_equal: a divergence, which vanishes when student and teacher agree.
    """

    function: Callable[..., torch.Tensor]
    term: Callable[..., Term]
    needs: Needs
    temperature_power: int
    zero_when_equal: bool


class Weighted(Protocol):
    """What a recipe says of a loss."""

    @property
    def weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def tail(self) -> str | None: ...


LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(
        forward_kl.forward_kl,
        forward_kl.term,
        needs="targets",
        temperature_power=forward_kl.TEMPERATURE_POWER,
        zero_when_equal=True,
    ),
    "cross_entropy": Loss(
        cross_entropy.cross_entropy,
        cross_entropy.term,
        needs="label",
        temperature_power=cross_entropy.TEMPERATURE_POWER,
        zero_when_equal=False,
    ),
}


def factor(name: str, section: Weighted) -> float:
    """What a recipe's loss is multiplied by in the objective: its weight, and its power of the temperature."""
    return section.weight * section.temperature ** LOSSES[name].temperature_power


def needed(sections: Iterable[str]) -> Needs:
    """Which positions the losses of a recipe look at: those with a target, or where none is soft those with a label."""
    return "targets" if any(LOSSES[name].needs == "targets" for name in sections) else "label"


def loss_parts(
    sections: Mapping[str, Weighted],
    output: Output,
    rows: DecodedRows,
    *,
    at: Positions | None = None,
    unigram: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Each of a recipe's losses [P'] at the P' positions that they look at, without weight and power of T.

    The objective is the sum over losses of `factor` times the mean over the positions that count for the loss; a value
    is 0 where its position does not.
    at: indices of the P' positions, or slice(None) for all; None finds them (see `needed`), for which a GPU waits.
    unigram: [V], for a tail of that name. Raises RecipeError for what the targets cannot serve.

    All losses share one pass over the logits for each of their temperatures.
    """
    at = indices(mask_of(rows, needed(sections))) if at is None else at
    terms = terms_of(sections, kept(rows, at), unigram)
    results = query_student(output, [term.query for term in terms.values()], at)
    return {name: term.value(result) for (name, term), result in zip(terms.items(), results, strict=True)}


def terms_of(
    sections: Mapping[str, Weighted], rows: DecodedRows, unigram: torch.Tensor | None = None
) -> dict[str, Term]:
    """Each loss's two halves, of rows with one axis of positions. Raises RecipeError."""
    terms: dict[str, Term] = {}
    for name, section in sections.items():
        loss = LOSSES[name]
        more: dict[str, Any] = {}
        if loss.needs == "targets":
            more = {"temperature": section.temperature, "tail": section.tail, "unigram": unigram}
        terms[name] = loss.term(rows.targets if loss.needs == "targets" else rows.label, **more)
    return terms
