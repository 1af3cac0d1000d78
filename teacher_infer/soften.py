"""Logits to softened logits and what is said of each position, on the device that made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch  # a job that has nothing to compute does without

# Values of [P, V] that are held a second time while entropies are summed.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Softened:
    """P positions: softened logits [P, V], centred; and at T = 1 the entropy in nats and the likeliest class."""

    logits_PV: np.ndarray[Any, np.dtype[np.float32]]
    entropy_P: np.ndarray[Any, np.dtype[np.float32]]
    top1_P: np.ndarray[Any, np.dtype[np.int32]]

    def only(self, kept_P: np.ndarray[Any, Any]) -> Softened:
        return Softened(self.logits_PV[kept_P], self.entropy_P[kept_P], self.top1_P[kept_P])


def soften(logits_PV: torch.Tensor, temperature: float) -> Softened:
    """(z - max z) / T in float32, and a summary of softmax(z). Centring spends low precision on likely classes."""
    import torch

    z_PV = logits_PV.to(torch.float32, copy=True)  # the one copy, changed in place from here on
    highest_P1, top1_P1 = z_PV.max(dim=1, keepdim=True)  # of equal ones torch gives the first
    z_PV.sub_(highest_P1)
    entropy_P = _entropy(z_PV, top1_P1)
    z_PV.div_(temperature)
    return Softened(z_PV.cpu().numpy(), entropy_P.cpu().numpy(), top1_P1[:, 0].int().cpu().numpy())


def _entropy(centred_PV: torch.Tensor, top1_P1: torch.Tensor) -> torch.Tensor:
    """[P] of softmax, in nats: log(1 + tail) - sum(e^z z) / (1 + tail), the tail being all but the top, whose e^z is 1.

    Without the top in the sum, a sharp distribution's small tail is not lost beside 1.
    """
    import torch

    rows, parts = max(1, _BLOCK // centred_PV.shape[1]), list[torch.Tensor]()
    for z, top in zip(centred_PV.split(rows), top1_P1.split(rows), strict=True):
        e = z.exp().scatter_(1, top, 0.0)
        tail = e.sum(dim=1)
        parts.append(tail.log1p() - e.mul_(z).sum(dim=1) / (1 + tail))
    return torch.cat(parts)


def not_finite(softened_PV: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[P]: which positions have a NaN or infinite value; of softened logits, since dividing can overflow too."""
    return np.asarray(~np.isfinite(softened_PV).all(axis=1))
