"""The passes over a whole vocabulary that softening for `topk` takes: two of them, or what a CPU does best.

Legend: C positions of a block, V classes, B blocks of classes, N classes of one, G temperatures.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stillhouse.soften")

# Classes that are searched as one, by their highest: then few blocks of them are searched in earnest.
CLASSES = 32

# What lies further below the highest of a tail counts for nothing in its sums: 262,144 times e^-43 is 6e-14. The square
# of e^-43 is still a normal float32; arithmetic with smaller ones is slow.
_LOWEST = -43.0
# Stands for -inf in float64. It times the number of classes is still finite; as float32 it is -inf again.
_LOWEST_FLOAT64 = -1e300

# Bytes of float32 that a block of positions takes: within a core's own cache, or enough to fill a device.
BLOCK_BYTES = {"cpu": 4 << 20, "other": 64 << 20}
# Where it is compiled, a block takes so much: of each position the keys and candidates of the search.
COMPILED_BYTES, _POSITION_BYTES = 256 << 20, 64 << 10


class Wide(Protocol):
    """Logits [P, V] of one device, worked on block of positions by block."""

    rows: int
    """Positions of a block."""
    dtype: torch.dtype
    """Of the logits."""

    def load(self, logits_CV: torch.Tensor) -> None:
        """The block that the others are of."""
        ...

    def maxima(self) -> torch.Tensor:
        """The highest of each block of classes [C, B]."""
        ...

    def gather(self, ids_Cn: torch.Tensor) -> torch.Tensor:
        """Logits at ids, [C, n] float32; -inf at ids beyond the classes."""
        ...

    def tails(
        self, ids_CK: torch.Tensor, last_C1: torch.Tensor, highest_C1: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each T, of x = (z - highest) / T over all ids but these: sum e^x and sum e^x x, [C, G] each; and [C]
        whether the row is a distribution: no NaN, no +inf, not all -inf.

        last_C1: the logit of the last of the ids, which come before all others in the order of (logit, lowest id).
        """
        ...

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        """See the function of that name."""
        ...


def wide(logits_PV: torch.Tensor) -> Wide:
    """How to work on these logits."""
    passes = _compiled() if logits_PV.device.type == "cuda" else None
    return Eager(logits_PV) if passes is None else Compiled(passes, logits_PV)


class Eager:
    """In workspaces of float32: torch's own operations, one after the other, on what a core's cache holds."""

    def __init__(self, logits_PV: torch.Tensor) -> None:
        import torch

        classes, kind = logits_PV.shape[1], logits_PV.device.type
        self.rows = max(1, BLOCK_BYTES.get(kind, BLOCK_BYTES["other"]) // (4 * classes))
        shape = (min(self.rows, len(logits_PV)), -(-classes // CLASSES) * CLASSES)
        self._z = torch.full(shape, -torch.inf, dtype=torch.float32, device=logits_PV.device)
        self._x, self._e = torch.empty_like(self._z), torch.empty_like(self._z)
        self._classes, self.dtype = classes, logits_PV.dtype

    def load(self, logits_CV: torch.Tensor) -> None:
        self._count = len(logits_CV)
        self._z[: self._count, : self._classes] = logits_CV

    def maxima(self) -> torch.Tensor:
        return self._z[: self._count].view(self._count, -1, CLASSES).amax(dim=2)

    def gather(self, ids_Cn: torch.Tensor) -> torch.Tensor:
        return self._z[: self._count].gather(1, ids_Cn)

    def tails(
        self, ids_CK: torch.Tensor, last_C1: torch.Tensor, highest_C1: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        z_CV = self._z[: self._count, : self._classes]
        # torch's amax gives NaN where any value is NaN.
        valid_C = torch.isfinite(z_CV.amax(dim=1))
        self._z[: self._count].scatter_(1, ids_CK, -torch.inf)
        highest_C1 = _finite(highest_C1)
        sums: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}
        for temperature in sorted(grid, reverse=True):
            if temperature in sums:
                continue
            x = torch.sub(self._z[: self._count], highest_C1, out=self._x[: self._count])
            if temperature != 1.0:
                x.mul_(1 / temperature)
            # What is infinitely low would give 0 times infinity.
            e = torch.exp(x.clamp_(min=_LOWEST), out=self._e[: self._count])
            sums[temperature] = e.sum(dim=1), torch.linalg.vecdot(e, x)
            if temperature / 2 in grid:
                # e^(2x): an exponential costs more than all else that is done to a tail.
                e.mul_(e)
                sums[temperature / 2] = e.sum(dim=1), torch.linalg.vecdot(e, x) * 2
        sums_CG, weighted_CG = (torch.stack(column, dim=1) for column in zip(*(sums[t] for t in grid), strict=True))
        return sums_CG, weighted_CG, valid_C

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        return moments(highest, sums_CG, weighted_CG, tuple(grid))


@dataclass(frozen=True)
class Passes:
    """The functions below, as they are or compiled."""

    maxima: Callable[..., Any]
    tails: Callable[..., Any]
    moments: Callable[..., Any]


class Compiled:
    """In two passes that read the logits as they are and write almost nothing: what a GPU's memory allows."""

    def __init__(self, passes: Passes, logits_PV: torch.Tensor) -> None:
        self._passes, self.dtype = passes, logits_PV.dtype
        self.rows = max(1, COMPILED_BYTES // _POSITION_BYTES)

    def load(self, logits_CV: torch.Tensor) -> None:
        self._logits_CV = logits_CV

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
        return self._passes.tails(self._logits_CV, ids_CK[:, -1:], last_C1, highest_C1, tuple(grid))

    def moments(
        self, highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: Sequence[float]
    ) -> tuple[torch.Tensor, ...]:
        return self._passes.moments(highest, sums_CG, weighted_CG, tuple(grid))


def maxima_pass(logits_CV: torch.Tensor) -> torch.Tensor:
    """`Wide.maxima`, in one reading of the logits once it is compiled."""
    import torch

    count, classes = logits_CV.shape
    z_CV = logits_CV.float()
    if classes % CLASSES:
        z_CV = torch.nn.functional.pad(z_CV, (0, -classes % CLASSES), value=-torch.inf)
    return z_CV.reshape(count, -1, CLASSES).amax(dim=2)


def tails_pass(
    logits_CV: torch.Tensor,
    last_id_C1: torch.Tensor,
    last_C1: torch.Tensor,
    highest_C1: torch.Tensor,
    grid: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Wide.tails`, in one reading of the logits once it is compiled."""
    import torch

    z_CV = logits_CV.float()
    highest_C1 = _finite(highest_C1)
    ids_V = torch.arange(z_CV.shape[1], device=z_CV.device)
    in_tail_CV = (z_CV < last_C1) | ((z_CV == last_C1) & (ids_V > last_id_C1))
    sums: list[torch.Tensor] = []
    weighted: list[torch.Tensor] = []
    for temperature in grid:
        x_CV = ((z_CV - highest_C1) * (1 / temperature)).clamp(min=_LOWEST)
        e_CV = torch.where(in_tail_CV, x_CV.exp(), 0.0)
        sums.append(e_CV.sum(dim=1))
        weighted.append(torch.where(in_tail_CV, e_CV * x_CV, 0.0).sum(dim=1))
    invalid_C = (torch.isnan(z_CV) | torch.isposinf(z_CV)).any(dim=1) | torch.isneginf(z_CV).all(dim=1)
    return torch.stack(sums, dim=1), torch.stack(weighted, dim=1), ~invalid_C


def _finite(highest_C1: torch.Tensor) -> torch.Tensor:
    """A tail's highest logit, with 0 for -inf: -inf - -inf is NaN. `moments` gives such a tail no mass."""
    return highest_C1.masked_fill(highest_C1.isneginf(), 0.0)


def moments(
    highest: torch.Tensor, sums_CG: torch.Tensor, weighted_CG: torch.Tensor, grid: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p of the kept ids [C, K]; L_T, the log of the tail's mass and the entropy, [C, G] each; log Z [C, 1].

    highest: [C, K + 1] the kept logits and the tail's highest. sums_CG, weighted_CG: of the tail, see `Wide.tails`.
    In float64, relative to the top z_0: Z_T = sum e^((z - z_0) / T). The top's own 1 stays out of the sums, so that
    what is small beside it is not lost: log Z = log1p(rest), H = log Z - sum(e^x x) / Z. The log Z given is of T = 1.
    """
    import torch

    x = highest.double() - highest[:, :1].double()
    found: list[tuple[torch.Tensor, ...]] = []
    for place, temperature in enumerate(grid):
        # Not -inf, of which a product with a probability of 0 is NaN.
        y = (x / temperature).clamp(min=_LOWEST_FLOAT64)
        rest, gap_C = y[:, 1:-1], y[:, -1]
        sum_C, weighted_C = sums_CG[:, place].double(), weighted_CG[:, place].double()
        log_z_C = (rest.exp().sum(dim=1) + gap_C.exp() * sum_C).log1p()
        total_C = (rest.exp() * rest).sum(dim=1) + gap_C.exp() * (weighted_C + sum_C * gap_C)
        found.append((log_z_C, gap_C + sum_C.log() - log_z_C, log_z_C - total_C * (-log_z_C).exp()))
    log_z1_C1 = found[grid.index(1.0)][0][:, None]
    log_z_CG, log_tail_CG, entropy_CG = (torch.stack(column, dim=1) for column in zip(*found, strict=True))
    # l = z - z_0 - log Z_1, so that L_T = logsumexp(l / T) = log Z_T - (log Z_1) / T.
    log_z_CG = log_z_CG - torch.cat([log_z1_C1 / temperature for temperature in grid], dim=1)
    return x[:, :-1] - log_z1_C1, log_z_CG, log_tail_CG, entropy_CG, log_z1_C1


@functools.cache
def _compiled() -> Passes | None:
    """All of them compiled, if that can be done here; tried once, on few numbers."""
    import torch

    try:
        passes = Passes(*(torch.compile(one, dynamic=False) for one in (maxima_pass, tails_pass, moments)))
        z = torch.zeros(2, 2 * CLASSES, device="cuda")
        passes.maxima(z)
        sums, weighted, _ = passes.tails(z, torch.zeros_like(z[:, :1], dtype=torch.int64), z[:, :1], z[:, :1], (1.0,))
        passes.moments(z[:, :3], sums, weighted, (1.0,))
    except Exception as error:
        log.warning("Softening is not compiled, so it takes longer (%s: %s).", type(error).__name__, error)
        return None
    return passes
