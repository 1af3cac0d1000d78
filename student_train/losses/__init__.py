"""Losses: small functions of a student's output, one value a position, no reduction hidden inside.

A loss is a file with two functions: `term`, what it asks of the student's distribution and its value from the answer
(see `asks` and, for the shortest, `cross_entropy`), and one of its own name for those who want this loss alone.
Legend: P positions, C those of a chunk, V classes, K ids, d the width of hidden states, R rows of L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from storage.shard import Rows
from student_train.losses import cross_entropy, forward_kl
from student_train.losses.asks import Output, Term, Unprojected
from student_train.losses.chunks import Positions
from student_train.losses.picks import pick
from student_train.positions import counted, kept

__all__ = ["LOSSES", "Loss", "Output", "Unprojected", "Weighted", "combine", "terms_of"]


@dataclass(frozen=True)
class Loss:
    """A member of the table.

    function: (output, targets or label, ...) -> loss_P. term: (targets or label, ...) -> Term, of one axis of
    positions. What needs targets takes temperature, tail and unigram besides.
    needs: what it compares the student with.
    zero_when_equal: a divergence, which vanishes when student and teacher agree.
    """

    function: Callable[..., torch.Tensor]
    term: Callable[..., Term]
    needs: Literal["targets", "label"]
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
    "forward_kl": Loss(forward_kl.forward_kl, forward_kl.term, needs="targets", zero_when_equal=True),
    "cross_entropy": Loss(cross_entropy.cross_entropy, cross_entropy.term, needs="label", zero_when_equal=False),
}


def combine(
    sections: Mapping[str, Weighted],
    output: Output,
    rows: Rows,
    *,
    at: Positions | None = None,
    unigram: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The weighted sum of a recipe's losses at the positions that count [P], and each loss [P] on its own, unweighted.

    at: indices of those positions, or slice(None) where all do; None looks for them in the labels, which a GPU waits
    for. unigram: [V], for a tail of that name. Raises RecipeError for what the targets cannot serve.

    All losses share one pass over the logits for each of their temperatures.
    Where soft and hard losses are mixed, the soft ones are multiplied by T^2: their gradients
    shrink by 1 / T^2 otherwise, and the weights would mean something else at each temperature
    (Hinton, Vinyals & Dean 2015, section 2).
    """
    at = counted(rows.label) if at is None else at
    terms = terms_of(sections, kept(rows, at), unigram)
    picked = pick(output, [term.ask for term in terms.values()], at)
    mixed = len({LOSSES[name].needs for name in sections}) > 1
    parts = {name: term.value(found) for (name, term), found in zip(terms.items(), picked, strict=True)}
    total_P: Any = 0.0
    for name, section in sections.items():
        scale = section.temperature**2 if mixed and LOSSES[name].needs == "targets" else 1.0
        total_P = total_P + section.weight * scale * parts[name]
    return total_P, parts


def terms_of(sections: Mapping[str, Weighted], rows: Rows, unigram: torch.Tensor | None = None) -> dict[str, Term]:
    """Each loss's two halves, of rows with one axis of positions. Raises RecipeError."""
    terms: dict[str, Term] = {}
    for name, section in sections.items():
        loss = LOSSES[name]
        more: dict[str, Any] = {}
        if loss.needs == "targets":
            more = {"temperature": section.temperature, "tail": section.tail, "unigram": unigram}
        terms[name] = loss.term(rows.targets if loss.needs == "targets" else rows.label, **more)
    return terms
