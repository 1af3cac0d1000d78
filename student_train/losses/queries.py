"""A loss's query about the student's distribution, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Unprojected(NamedTuple):
    """A student's output before its head: the logits are hidden @ weight.T + bias.

    hidden: [..., d]; weight: [V, d]; bias: [V]. A student that gives this, instead of logits [..., V], never
    holds the logits of all positions: losses make them chunk by chunk, and once more in the backward pass.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def classes(self) -> int:
        return int(self.weight.shape[0])

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of positions: (R,) or (R, L)."""
        return tuple(self.hidden.shape[:-1])


Output = torch.Tensor | Unprojected

# A teacher's log probabilities [C, V] of a slice of the positions: finite (the lowest number where a class has
# probability 0), their exponentials sum to one, and in new memory, which is written over.
LogProbs = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class Query:
    """A query about q = softmax(z / temperature) of P positions.

    ids_PK: classes whose log q is wanted; distinct within a position.
    tail: whether the log of the mass outside these ids is wanted.
    mean: weights of the classes, whose mean of log q is: one vector m [V] for all positions, of which the classes
      outside the ids count, or a teacher's whole rows, made chunk by chunk (then there are no ids).
    """

    temperature: float = 1.0
    ids_PK: torch.Tensor | None = None
    tail: bool = False
    mean: torch.Tensor | LogProbs | None = None

    @property
    def owns(self) -> bool:
        """Whether it needs the classes outside its ids by themselves."""
        return self.tail or self.mean is not None


@dataclass(frozen=True)
class QueryResult:
    """The result of a Query, in float32 or the logits' higher precision; what was not queried is empty.

    log_q_PK: [P, K] log q of the ids. log_tail_P: [P] log of q's mass outside them.
    mean_log_q_P: [P] the sum of m log q. mean_log_m_P: [P] the sum of m log m of a teacher's rows; no gradient.
    """

    log_q_PK: torch.Tensor
    log_tail_P: torch.Tensor
    mean_log_q_P: torch.Tensor
    mean_log_m_P: torch.Tensor


class Term(NamedTuple):
    """The two halves of a loss: its query, and its value [P] from the query's result."""

    query: Query
    value: Callable[[QueryResult], torch.Tensor]


def flat(output: Output) -> Output:
    """One axis of positions: [P, V], or hidden states [P, d]."""
    if isinstance(output, Unprojected):
        return output._replace(hidden=output.hidden.reshape(-1, output.hidden.shape[-1]))
    return output.reshape(-1, output.shape[-1])
