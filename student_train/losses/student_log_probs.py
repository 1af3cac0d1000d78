"""The one thing that losses are made of: log q of a few classes, of the others together, and means of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from student_train.losses.chunked_logits import Gradients, Head, Positions
from student_train.losses.queries import Output, Query, QueryResult, Term, Unprojected, flat
from student_train.losses.softmax_passes import PassGradient, Plan, forward_chunk


def query_student(
    output: Output, queries: Sequence[Query], at: Positions | None = None, chunk_bytes: int | None = None
) -> list[QueryResult]:
    """The results of losses' queries, with one pass over the student's logits for each temperature.

    output: logits [P, V] or [R, L, V], which are not changed, or Unprojected. at: [P'] which positions, all axes of
    them made one, are meant; the queries are of those. chunk_bytes: the logits that are held at once, as float32.

    With y = z / T the masses of the ids S and of the others are summed apart: log q_i = y_i - lse(y), and
    log tail = lse(y outside S) - lse(y); so a tail of 1e-30 is right to rounding. In the backward pass z is made
    again, and with g the gradients of the results, c = -(sum g_ids + g_tail + g_mean sum m), r = q / tail,
        dL/dy_j = r_j (c tail + g_tail) + g_mean m_j   outside S,
        dL/dy_i = q_i c + g_i                           in S:
    one exponential over the classes, with no difference of large numbers.
    """
    output = flat(output)
    rows, weight, bias = output if isinstance(output, Unprojected) else (output, None, None)
    dtype = rows.dtype
    if weight is not None and torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
    plan = Plan(list(queries), at, chunk_bytes, dtype)
    with torch.autocast(rows.device.type, enabled=False):
        found = iter(_QueryStudent.apply(rows, weight, bias, plan))  # pyright: ignore[reportArgumentType]
    return [QueryResult(*(next(found) for _ in range(4))) for _ in queries]


class _QueryStudent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Any, weight: Any, bias: Any, plan: Plan) -> tuple[torch.Tensor, ...]:
        head = Head(rows, weight, bias, plan.dtype)
        count = len(plan.at) if isinstance(plan.at, torch.Tensor) else len(rows)
        new = {"dtype": head.wide, "device": rows.device}
        answers = [
            QueryResult(
                torch.empty(count, 0 if query.ids_PK is None else query.ids_PK.shape[1], **new),
                torch.zeros(count if query.tail else 0, **new),
                torch.zeros(count if query.mean is not None else 0, **new),
                torch.zeros(count if callable(query.mean) else 0, **new),
            )
            for query in plan.queries
        ]
        # lse(y) over all classes, and over those outside the owner's ids.
        whole = [torch.empty(count, **new) for _ in plan.passes]
        rest = [torch.empty(count, **new) for _ in plan.passes]
        for piece in head.pieces(plan.at, plan.chunk_bytes):
            z = head.make(head.where(plan.at, piece), plan.scale)
            for number, one in enumerate(plan.passes):
                y = z if number == len(plan.passes) - 1 else head.buffer(1, len(z)).copy_(z)
                whole[number][piece], rest[number][piece] = forward_chunk(y, one, plan, answers, piece)
        ctx.plan = plan
        ctx.save_for_backward(rows, weight, bias, *whole, *rest, *(answer.log_q_PK for answer in answers))
        ctx.mark_non_differentiable(*(answer.mean_log_m_P for answer in answers))
        return tuple(
            value
            for answer in answers
            for value in (answer.log_q_PK, answer.log_tail_P, answer.mean_log_q_P, answer.mean_log_m_P)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan: Plan = ctx.plan
        rows, weight, bias, *saved = ctx.saved_tensors
        # Whoever calls it under autocast means the model's own operations.
        with torch.autocast(rows.device.type, enabled=False):
            filled = _fill(plan, Head(rows, weight, bias, plan.dtype), saved, grads, ctx.needs_input_grad[:3])
        to = (rows, weight, bias)
        return *(
            None if grad is None else grad.to(of.dtype)
            for grad, of in zip((filled.rows, filled.weight, filled.bias), to, strict=True)
        ), None


def _fill(
    plan: Plan,
    head: Head,
    saved: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    needed: tuple[bool, bool, bool],
) -> Gradients:
    """The gradients of the inputs of a head, from those of the results."""
    number = len(plan.passes)
    whole, rest, log_q = saved[:number], saved[number : 2 * number], saved[2 * number :]
    given = [grads[4 * query : 4 * query + 3] for query in range(len(plan.queries))]
    filled = Gradients(head, needed, isinstance(plan.at, torch.Tensor))
    gradients = [
        PassGradient(one, plan, given, log_q, *ends) for one, *ends in zip(plan.passes, whole, rest, strict=True)
    ]
    for piece in head.pieces(plan.at, plan.chunk_bytes):
        where = head.where(plan.at, piece)
        z = head.make(where, plan.scale)
        total = None
        for place, gradient in enumerate(gradients):
            last = place == len(gradients) - 1
            y = z if last else head.buffer(1 + min(place, 1), len(z)).copy_(z)
            gradient.put(y, piece)
            total = y if total is None else (y.add_(total) if last else total.add_(y))
        if total is not None:
            filled.add(where, total)
    return filled


def single_loss(output: Output, term: Term, at: Positions) -> torch.Tensor:
    """The value [P] of a loss that is taken by itself, at the positions `at` of all P; 0 at the others."""
    output = flat(output)
    value = term.value(query_student(output, [term.query], at)[0])
    if isinstance(at, slice):
        return value
    positions = len(output.hidden if isinstance(output, Unprojected) else output)
    return value.new_zeros(positions).index_copy(0, at, value)
