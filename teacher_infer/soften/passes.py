"""The functions of softening for `topk` that a GPU runs compiled: each reads the logits once and writes little.

Legend: C positions of a block, V classes, B blocks of CLASSES classes, G temperatures, K kept ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Classes that are searched as one, by their highest: then few blocks of them are searched in earnest.
CLASSES = 32

# What lies further below the highest of a tail counts for nothing in its sums: 262,144 times e^-43 is 6e-14. The square
# of e^-43 is still a normal float32; arithmetic with smaller ones is slow.
LOWEST = -43.0
# Stands for -inf in float64. It times the number of classes is still finite; as float32 it is -inf again.
_LOWEST_FLOAT64 = -1e300


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
    highest_C1 = finite(highest_C1)
    ids_V = torch.arange(z_CV.shape[1], device=z_CV.device)
    in_tail_CV = (z_CV < last_C1) | ((z_CV == last_C1) & (ids_V > last_id_C1))
    sums: list[torch.Tensor] = []
    weighted: list[torch.Tensor] = []
    for temperature in grid:
        x_CV = ((z_CV - highest_C1) * (1 / temperature)).clamp(min=LOWEST)
        e_CV = torch.where(in_tail_CV, x_CV.exp(), 0.0)
        sums.append(e_CV.sum(dim=1))
        weighted.append(torch.where(in_tail_CV, e_CV * x_CV, 0.0).sum(dim=1))
    invalid_C = (torch.isnan(z_CV) | torch.isposinf(z_CV)).any(dim=1) | torch.isneginf(z_CV).all(dim=1)
    return torch.stack(sums, dim=1), torch.stack(weighted, dim=1), ~invalid_C


def finite(highest_C1: torch.Tensor) -> torch.Tensor:
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
