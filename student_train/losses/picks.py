"""The one thing that losses are made of: log q of a few classes, of the others together, and means of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from student_train.losses.asks import Ask, Output, Picked, Term, Unprojected, flat
from student_train.losses.chunks import Gradients, Head, Positions
from student_train.losses.passes import Plan, Slope, look


def pick(
    output: Output, asks: Sequence[Ask], at: Positions | None = None, chunk_bytes: int | None = None
) -> list[Picked]:
    """What losses ask of a student, with one pass over its logits for each temperature.

    output: logits [P, V] or [R, L, V], which are not changed, or Unprojected. at: [P'] which positions, all axes of
    them made one, are meant; the asks are of those. chunk_bytes: the logits that are held at once, as float32.

    With y = z / T the masses of the ids S and of the others are summed apart: log q_i = y_i - lse(y), and
    log tail = lse(y outside S) - lse(y); so a tail of 1e-30 is right to rounding. In the backward pass z is made
    again, and with g the gradients of what was picked, c = -(sum g_ids + g_tail + g_mean sum m), r = q / tail,
        dL/dy_j = r_j (c tail + g_tail) + g_mean m_j   outside S,
        dL/dy_i = q_i c + g_i                           in S:
    one exponential over the classes, with no difference of large numbers.
    """
    output = flat(output)
    rows, weight, bias = output if isinstance(output, Unprojected) else (output, None, None)
    dtype = rows.dtype
    if weight is not None and torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
    plan = Plan(list(asks), at, chunk_bytes, dtype)
    with torch.autocast(rows.device.type, enabled=False):
        found = iter(_Pick.apply(rows, weight, bias, plan))  # pyright: ignore[reportArgumentType]
    return [Picked(*(next(found) for _ in range(4))) for _ in asks]


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Any, weight: Any, bias: Any, plan: Plan) -> tuple[torch.Tensor, ...]:
        head = Head(rows, weight, bias, plan.dtype)
        count = len(plan.at) if isinstance(plan.at, torch.Tensor) else len(rows)
        new = {"dtype": head.wide, "device": rows.device}
        answers = [
            Picked(
                torch.empty(count, 0 if ask.ids_PK is None else ask.ids_PK.shape[1], **new),
                torch.zeros(count if ask.tail else 0, **new),
                torch.zeros(count if ask.mean is not None else 0, **new),
                torch.zeros(count if callable(ask.mean) else 0, **new),
            )
            for ask in plan.asks
        ]
        # lse(y) over all classes, and over those outside the owner's ids.
        whole = [torch.empty(count, **new) for _ in plan.passes]
        rest = [torch.empty(count, **new) for _ in plan.passes]
        for piece in head.pieces(plan.at, plan.chunk_bytes):
            z = head.make(head.where(plan.at, piece), plan.scale)
            for number, one in enumerate(plan.passes):
                y = z if number == len(plan.passes) - 1 else head.buffer(1, len(z)).copy_(z)
                whole[number][piece], rest[number][piece] = look(y, one, plan, answers, piece)
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
    """The gradients of what a head was given, from those of what was picked."""
    number = len(plan.passes)
    whole, rest, log_q = saved[:number], saved[number : 2 * number], saved[2 * number :]
    given = [grads[4 * ask : 4 * ask + 3] for ask in range(len(plan.asks))]
    filled = Gradients(head, needed, isinstance(plan.at, torch.Tensor))
    slopes = [Slope(one, plan, given, log_q, *ends) for one, *ends in zip(plan.passes, whole, rest, strict=True)]
    for piece in head.pieces(plan.at, plan.chunk_bytes):
        where = head.where(plan.at, piece)
        z = head.make(where, plan.scale)
        total = None
        for place, slope in enumerate(slopes):
            last = place == len(slopes) - 1
            y = z if last else head.buffer(1 + min(place, 1), len(z)).copy_(z)
            slope.put(y, piece)
            total = y if total is None else (y.add_(total) if last else total.add_(y))
        if total is not None:
            filled.add(where, total)
    return filled


def alone(output: Output, term: Term, at: Positions) -> torch.Tensor:
    """The value [P] of a loss that is taken by itself, at the positions `at` of all P; 0 at the others."""
    output = flat(output)
    value = term.value(pick(output, [term.ask], at)[0])
    if isinstance(at, slice):
        return value
    positions = len(output.hidden if isinstance(output, Unprojected) else output)
    return value.new_zeros(positions).index_copy(0, at, value)
