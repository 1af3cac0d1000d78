"""Softening for `topk` by compiled passes, on blocks of one shape.

Legend: C positions of a block, P of a batch, V classes, G temperatures, K kept ids.

Every block of the same teacher has the same C: the last one, and a batch with fewer positions, are padded.
So there is one compiled kernel for each pass, and what is stored of a position does not depend on its batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.failures.out_of_memory import is_out_of_memory
from teacher_infer.soften.blocks import padding
from teacher_infer.soften.passes import CLASSES, maxima_pass, moments, tails_pass

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stillhouse.soften")

# Device types whose passes are compiled.
DEVICES = {"cuda"}
# A block's logits take at most so many bytes, which are what padding costs. Yet a block has at least as many positions
# as fill a GPU, and at most as many as leave the search (64 KiB a position) as little memory.
_BLOCK_BYTES, _LEAST_ROWS, _MOST_ROWS = 256 << 20, 512, 4096
# Compiled code assumes that logits begin at a multiple of this many bytes.
_ALIGNMENT = 16
# Kernels that a process may have: three for each vocabulary, dtype, k and grid. torch's own limit is 8; it stays for a
# model that is compiled in the same process.
_KERNELS = 256


@dataclass(frozen=True)
class Passes:
    """The functions of `teacher_infer.soften.passes`, as they are or compiled."""

    maxima: Callable[..., Any]
    tails: Callable[..., Any]
    moments: Callable[..., Any]


@dataclass(frozen=True)
class Layout:
    """Of every block that the passes get, contiguous and aligned: what compiled code is specialised on.

    inference: whether torch made the logits under inference_mode, which its compiler distinguishes.
    """

    rows: int
    classes: int
    dtype: torch.dtype
    inference: bool

    @staticmethod
    def of(logits_PV: torch.Tensor) -> Layout:
        classes = logits_PV.shape[1]
        fit = max(1, _BLOCK_BYTES // (classes * logits_PV.dtype.itemsize))
        # A power of two, so that blocks of aligned logits begin aligned.
        rows = min(_MOST_ROWS, max(_LEAST_ROWS, 1 << (fit.bit_length() - 1)))
        return Layout(rows, classes, logits_PV.dtype, logits_PV.is_inference())

    def block(self, logits_CV: torch.Tensor) -> torch.Tensor:
        """The rows themselves, [rows, V], where they lie so; otherwise a copy, padded."""
        import torch

        count = len(logits_CV)
        if count == self.rows and logits_CV.is_contiguous() and logits_CV.data_ptr() % _ALIGNMENT == 0:
            return logits_CV
        with torch.inference_mode(self.inference):
            whole = torch.empty(self.rows, self.classes, dtype=self.dtype, device=logits_CV.device)
            whole[:count], whole[count:] = logits_CV, padding(logits_CV)
        return whole


class Compiled:
    """In two passes that read the logits as they are and write almost nothing: what a GPU's memory allows."""

    def __init__(self, passes: Passes, layout: Layout) -> None:
        self._passes, self._layout = passes, layout
        self.rows, self.dtype = layout.rows, layout.dtype

    def load(self, logits_CV: torch.Tensor) -> None:
        self._logits_CV = self._layout.block(logits_CV)

    def maxima(self) -> torch.Tensor:
        return self._passes.maxima(self._logits_CV)

    def gather(self, ids_Cn: torch.Tensor) -> torch.Tensor:
        import torch

        classes = self._logits_CV.shape[1]
        if classes % CLASSES == 0:
            return self._logits_CV.gather(1, ids_Cn).float()
        found_Cn = self._logits_CV.gather(1, ids_Cn.clamp(max=classes - 1)).float()
        return found_Cn.masked_fill(ids_Cn >= classes, -torch.inf)

    def tails(
        self, ids_CK: torch.Tensor, last_C1: torch.Tensor, highest_C1: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        columns = (one.contiguous() for one in (ids_CK[:, -1:], last_C1, highest_C1))
        return self._passes.tails(self._logits_CV, *columns, tuple(grid))

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        return self._passes.moments(highest.contiguous(), sums_CG, weighted_CG, tuple(grid))


def compiled_for(logits_PV: torch.Tensor, k: int, grid: tuple[float, ...]) -> Compiled | None:
    """None where nothing is compiled: on other devices, and where it cannot be done."""
    if logits_PV.device.type not in DEVICES:
        return None
    layout = Layout.of(logits_PV)
    passes = compiled_passes(layout, logits_PV.device, k, grid)
    return None if passes is None else Compiled(passes, layout)


@functools.cache
def compiled_passes(layout: Layout, device: torch.device, k: int, grid: tuple[float, ...]) -> Passes | None:
    """The passes, compiled for one shape, or None where that fails; tried once, on zeros, before anything is stored."""
    import torch

    passes = Passes(*map(_compile, (maxima_pass, tails_pass, moments)))
    try:
        work = Compiled(passes, layout)
        work.load(torch.zeros(1, layout.classes, dtype=layout.dtype, device=device))
        work.maxima()
        ids_CK = torch.arange(k, device=device).expand(layout.rows, k)
        highest = torch.zeros(layout.rows, k + 1, device=device)
        sums_CG, weighted_CG, _ = work.tails(ids_CK, highest[:, :1], highest[:, :1], grid)
        work.moments(highest, sums_CG, weighted_CG, grid)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.warning(
            "Softening for %d classes is not compiled in this process, so it takes longer (%s: %s).",
            layout.classes,
            type(error).__name__,
            error,
        )
        return None
    return passes


def _compile(one: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for every shape that it gets. It raises instead of running uncompiled."""
    import torch
    import torch._dynamo

    def only_compiled(*args: Any) -> Any:
        if not torch.compiler.is_compiling():
            raise RuntimeError("torch.compile is switched off")
        return one(*args)

    # fullgraph also turns reaching the limit into an exception.
    compiled = torch.compile(only_compiled, dynamic=False, fullgraph=True)

    def call(*args: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_KERNELS):
            return compiled(*args)

    return call
