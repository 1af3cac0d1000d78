"""Passes over a chunk of logits: one exponential over the classes that several queries share, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from student_train.losses.chunked_logits import Positions
from student_train.losses.queries import Query, QueryResult


@dataclass
class Pass:
    """Asks of one temperature that share an exponential: one of them at most takes its ids out of it."""

    temperature: float
    queries: list[int]
    owner: int | None = None


@dataclass
class Plan:
    """What a call of `query_student` does at each chunk, forward and backward. dtype: that of the products."""

    queries: list[Query]
    at: Positions | None
    chunk_bytes: int | None
    dtype: torch.dtype
    passes: list[Pass] = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.passes = []
        for number, query in enumerate(self.queries):
            if query.ids_PK is not None and callable(query.mean):
                raise ValueError("A mean over whole rows has no ids.")
            if query.ids_PK is None and query.tail:
                raise ValueError("A tail is what lies outside ids.")
            mine = (one for one in self.passes if one.temperature == query.temperature)
            found = next((one for one in mine if one.owner is None or not query.owns), None)
            if found is None:
                found = Pass(query.temperature, [])
                self.passes.append(found)
            found.queries.append(number)
            if query.owns:
                found.owner = number
        # Where there is one temperature only, logits are made divided by it.
        self.scale = 1 / self.passes[0].temperature if len(self.passes) == 1 else 1.0

    def soften(self, z: torch.Tensor, one: Pass) -> torch.Tensor:
        """z / T in place, of z made with `scale`."""
        return z if one.temperature == 1.0 or self.scale != 1.0 else z.mul_(1 / one.temperature)


def forward_chunk(
    y: torch.Tensor, one: Pass, plan: Plan, answers: list[QueryResult], piece: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer the queries of a pass for a chunk. Returns the logsumexp over all classes and over those outside the ids.

    y: the chunk's logits [C, V], which are overwritten.
    """
    plan.soften(y, one)
    for number in one.queries:
        ids = _ids(plan.queries[number], piece)
        if ids is not None:
            answers[number].log_q_PK[piece] = y.gather(1, ids)
    owner = None if one.owner is None else plan.queries[one.owner]
    out = None if owner is None else _ids(owner, piece)
    if out is not None:
        y.scatter_(1, out, -torch.inf)
    # Of the classes outside by themselves: beside a head of 1e30 times their mass they would all be 0.
    top = y.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(y.dtype).min)
    y.sub_(top)
    mean = None if owner is None or owner.mean is None else _mean(y, owner, out, piece)
    rest = y.exp_().sum(dim=1).log_() + top[:, 0]
    lse = rest
    if out is not None and one.owner is not None:
        lse = torch.logaddexp(rest, torch.logsumexp(answers[one.owner].log_q_PK[piece], dim=1))
    for number in one.queries:
        answers[number].log_q_PK[piece] -= lse[:, None]
    if one.owner is not None and owner is not None:
        answer = answers[one.owner]
        if owner.tail:
            answer.log_tail_P[piece] = rest - lse
        if mean is not None:
            total, mass, log_m = mean
            answer.mean_log_q_P[piece] = total - (lse - top[:, 0]) * mass
            if log_m is not None:
                answer.mean_log_m_P[piece] = log_m
    return lse, rest


def _mean(
    y: torch.Tensor, owner: Query, out: torch.Tensor | None, piece: slice
) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | None]:
    """The sum of m y, of m, and of m log m [C]; y [C, V] is -inf at the ids `out`, and left so.

    Where a student rules a class out (y = -inf) that the teacher rules out too (m = 0), it adds nothing; where only
    the student does, the sum is -inf.
    """
    if isinstance(owner.mean, torch.Tensor):
        m = owner.mean.to(y.dtype)
        if out is None:
            return y @ m, m.sum(), None
        total = y.scatter_(1, out, 0.0) @ m
        y.scatter_(1, out, -torch.inf)
        return total, outside(owner.mean, out).to(y.dtype), None
    assert owner.mean is not None
    log_m = owner.mean(piece).to(y.dtype)
    m = log_m.exp()
    impossible_P = (y.isneginf() & (m > 0)).any(dim=1)
    # 0 times -inf is no number, and 0 times a finite one is 0.
    total = torch.linalg.vecdot(m, y.clamp_(min=torch.finfo(y.dtype).min / 4))
    return total.masked_fill(impossible_P, -torch.inf), 1.0, torch.linalg.vecdot(m, log_m)


def outside(weights_V: torch.Tensor, ids_PK: torch.Tensor) -> torch.Tensor:
    """[P] float64: the sum of the weights of all classes but the ids."""
    wide = weights_V.double()
    return (wide.sum() - wide[ids_PK].sum(dim=1)).clamp_(min=0)


def _ids(query: Query, piece: slice) -> torch.Tensor | None:
    return None if query.ids_PK is None else query.ids_PK[piece].long()


class PassGradient:
    """The gradient of a pass with respect to z; its small parts are worked out for all positions at once."""

    def __init__(
        self,
        one: Pass,
        plan: Plan,
        given: Sequence[Sequence[torch.Tensor]],
        log_q: Sequence[torch.Tensor],
        whole_P: torch.Tensor,
        rest_P: torch.Tensor,
    ) -> None:
        self.one, self.plan, scale = one, plan, 1 / one.temperature
        self.rest_P1 = rest_P.clamp(min=torch.finfo(rest_P.dtype).min)[:, None]
        self.grads = {number: given[number][0] * scale for number in one.queries}
        factor_P = -sum((grad.sum(dim=1) for grad in self.grads.values()), start=torch.zeros_like(rest_P))
        self.owner = None if one.owner is None else plan.queries[one.owner]
        self.mean_P1, inside_PK = None, None
        if self.owner is not None and one.owner is not None:
            tail_P, mean_P = (grad * scale for grad in given[one.owner][1:])
            if self.owner.tail:
                factor_P = factor_P - tail_P
            if self.owner.mean is not None:
                self.mean_P1, mass = mean_P[:, None], 1.0
                if isinstance(self.owner.mean, torch.Tensor):
                    ids = self.owner.ids_PK
                    mass = self.owner.mean.double().sum() if ids is None else outside(self.owner.mean, ids.long())
                factor_P = factor_P - (mean_P * mass).to(mean_P.dtype)
            if self.owner.ids_PK is not None:
                inside_PK = log_q[one.owner].exp() * factor_P[:, None] + self.grads.pop(one.owner)
                factor_P = factor_P * (rest_P - whole_P).exp()
                if self.owner.tail:
                    factor_P = factor_P + tail_P
        self.factor_P1, self.inside_PK = factor_P[:, None], inside_PK

    def put(self, y: torch.Tensor, piece: slice) -> None:
        """The gradient [C, V] in place of a chunk's logits."""
        self.plan.soften(y, self.one)
        # Where an id is far likelier than all the others this is inf; its own value takes that place below.
        y.sub_(self.rest_P1[piece]).exp_().mul_(self.factor_P1[piece])
        if self.owner is not None and self.mean_P1 is not None:
            if isinstance(self.owner.mean, torch.Tensor):
                y.addr_(self.mean_P1[piece, 0], self.owner.mean.to(y.dtype))
            elif self.owner.mean is not None:
                y.addcmul_(self.owner.mean(piece).to(y.dtype).exp_(), self.mean_P1[piece])
        if self.owner is not None and self.inside_PK is not None and self.owner.ids_PK is not None:
            y.scatter_(1, self.owner.ids_PK[piece].long(), self.inside_PK[piece])
        for number, grad_PK in self.grads.items():
            ids = _ids(self.plan.queries[number], piece)
            if ids is not None:
                y.scatter_add_(1, ids, grad_PK[piece])
