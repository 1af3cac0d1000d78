"""A student's logits, made for some positions at a time, and the way of their gradient back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from student_train.losses.queries import Output, Unprojected, flat

# Logits that are held at once, as float32. Large enough that reading and writing the head's gradient [V, d], once a
# chunk, is little beside the products; a GPU needs more for that.
CPU_BYTES, GPU_BYTES = 64 << 20, 512 << 20

Positions = torch.Tensor | slice


def rows_of_a_chunk(classes: int, like: torch.Tensor, chunk_bytes: int | None = None) -> int:
    """How many positions' logits are held at once."""
    held = chunk_bytes or (GPU_BYTES if like.is_cuda else CPU_BYTES)
    return max(1, held // (classes * (8 if like.dtype == torch.float64 else 4)))


def logits(output: Output, at: Positions | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some positions of those `at` at a time, and their logits [C, V], in float32 or the output's higher precision.

    The logits lie in memory that the next ones take. No gradient goes through them.
    """
    output = flat(output)
    head = Head(*output) if isinstance(output, Unprojected) else Head(output)
    for piece in head.pieces(at, None):
        yield piece, head.make(head.where(at, piece))


class Head:
    """Logits [P, V] themselves, or hidden states [P, d] with a weight [V, d]: what both are to a loss.

    Products are made in `dtype`; the logits are float32, or float64 where dtype is.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rows, self.bias = rows.detach(), None if bias is None else bias.detach()
        self.dtype = dtype or rows.dtype
        if not (rows.is_cuda or self.dtype == torch.float64):
            # Without a GPU nothing is won by less than float32.
            self.dtype = torch.float32
        self.wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
        self.weight = None if weight is None else weight.detach().to(self.dtype)
        self.classes = int(rows.shape[-1] if weight is None else weight.shape[0])
        self._held: list[torch.Tensor] = []

    def pieces(self, at: Positions | None, chunk_bytes: int | None) -> Iterator[slice]:
        """All positions that count, a chunk at a time."""
        count = len(at) if isinstance(at, torch.Tensor) else len(self.rows)
        step = rows_of_a_chunk(self.classes, self.rows, chunk_bytes)
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    @staticmethod
    def where(at: Positions | None, piece: slice) -> Positions:
        return at[piece] if isinstance(at, torch.Tensor) else piece

    def buffer(self, number: int, count: int) -> torch.Tensor:
        """Memory for a chunk's logits, the same each time: on a CPU new memory takes longer than what is done in it."""
        while len(self._held) <= number or len(self._held[number]) < count:
            del self._held[number:]
            self._held.append(torch.empty(count, self.classes, dtype=self.wide, device=self.rows.device))
        return self._held[number][:count]

    def make(self, where: Positions, scale: float = 1.0) -> torch.Tensor:
        """The logits [C, V] of some positions, times `scale`, in the first buffer."""
        rows = self.rows[where]
        z = self.buffer(0, len(rows))
        if self.weight is None:
            return torch.mul(rows.to(self.wide), scale, out=z) if scale != 1.0 else z.copy_(rows)
        if scale != 1.0:
            # The few numbers of hidden states, not the many of logits.
            rows = rows.to(self.wide) * scale
        rows = rows.to(self.dtype)
        if self.dtype == self.wide:
            torch.mm(rows, self.weight.t(), out=z)
        elif _sums_wide(self.dtype):
            torch.mm(rows, self.weight.t(), out_dtype=self.wide, out=z)
        else:
            z.copy_(torch.mm(rows, self.weight.t()))
        return z if self.bias is None else z.add_(self.bias, alpha=scale)


class Gradients:
    """Those of what a Head was given, filled chunk by chunk; None for what needs none."""

    def __init__(self, head: Head, needed: tuple[bool, bool, bool], masked: bool) -> None:
        new = torch.zeros_like if masked else torch.empty_like
        self.head = head
        self.rows = new(head.rows) if needed[0] else None
        # Summed over chunks, so in full precision.
        weight = head.weight if needed[1] else None
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=head.wide)
        self.bias = torch.zeros_like(head.bias, dtype=head.wide) if needed[2] and head.bias is not None else None

    def add(self, where: Positions, grad_CV: torch.Tensor) -> None:
        head = self.head
        if self.bias is not None:
            self.bias += grad_CV.sum(dim=0)
        if head.weight is None:
            if self.rows is not None:
                self._put(where, grad_CV)
            return
        narrow = grad_CV.to(head.dtype)
        if self.rows is not None:
            self._put(where, torch.mm(narrow, head.weight))
        if self.weight is not None:
            rows = head.rows[where].to(head.dtype)
            if head.dtype == head.wide:
                self.weight.addmm_(narrow.t(), rows)
            elif _sums_wide(head.dtype):
                torch.addmm(self.weight, narrow.t(), rows, out_dtype=head.wide, out=self.weight)
            else:
                self.weight += torch.mm(narrow.t(), rows)

    def _put(self, where: Positions, grad: torch.Tensor) -> None:
        assert self.rows is not None
        if isinstance(where, slice):
            self.rows[where] = grad
        else:
            self.rows.index_copy_(0, where, grad.to(self.rows.dtype))


@cache
def _sums_wide(dtype: torch.dtype) -> bool:
    """Whether this torch multiplies `dtype` on a GPU into float32 without rounding in between."""
    try:
        one, total = torch.ones(16, 16, dtype=dtype, device="cuda"), torch.full((16, 16), 0.125, device="cuda")
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
        torch.mm(one, one, out_dtype=torch.float32, out=torch.empty_like(total))
        return bool((total == 16.125).all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False
