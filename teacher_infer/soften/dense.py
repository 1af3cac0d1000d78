"""Softening for `dense`: every class's logit, centred and divided by the temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.encodings.dense import Dense, DenseTargets
from teacher_infer.soften.blocks import block_rows, blocks, padded
from teacher_infer.soften.softened import Softened

if TYPE_CHECKING:
    import torch


def soften_dense(logits_PV: torch.Tensor, label_P: torch.Tensor | None, encoding: Dense) -> Softened:
    """(z - max z) / T in float32. Centring spends low precision on what is likely.

    A logit of -inf stays -inf, a probability of 0. A finite one that overflows makes its position bad.
    """
    import torch

    z_PV = logits_PV.to(torch.float32, copy=True)  # the one copy, changed in place from here on
    highest_P1, top1_P1 = z_PV.max(dim=1, keepdim=True)  # of equal ones torch gives the first
    z_PV.sub_(highest_P1)
    rows = block_rows(z_PV)
    entropies = [_entropy(padded(z_PV[b], rows), padded(top1_P1[b], rows)) for b in blocks(z_PV)]
    entropy_P = torch.cat(entropies or [z_PV.new_zeros(0)])[: len(z_PV)]
    z_PV.div_(encoding.temperature)
    # Conversion to float32 and division can overflow too: infinite may be only what the teacher gave as -inf.
    bad = [(torch.isfinite(z_PV[b]) == torch.isneginf(logits_PV[b])).any(dim=1) for b in blocks(z_PV)]
    bad_P = torch.cat(bad or [z_PV.new_zeros(0).bool()]) | ~torch.isfinite(highest_P1[:, 0])
    temperature_P = z_PV.new_full((len(z_PV),), encoding.temperature)
    return Softened(DenseTargets(z_PV, temperature_P), entropy_P, top1_P1[:, 0].int(), bad_P)


def _entropy(centred_PV: torch.Tensor, top1_P1: torch.Tensor) -> torch.Tensor:
    """[P] of softmax, in nats: log(1 + tail) - sum(e^z z) / (1 + tail), the tail being all but the top, whose e^z is 1.

    A class of -inf adds nothing. Without the top in the sum, a sharp distribution's small tail is not lost beside 1.
    """
    import torch

    e_PV = centred_PV.exp().scatter_(1, top1_P1, 0.0)
    tail_P = e_PV.sum(dim=1)
    # 0 * -inf is NaN; a probability of 0 adds 0.
    lowest = torch.finfo(centred_PV.dtype).min
    return tail_P.log1p() - e_PV.mul_(centred_PV.clamp(min=lowest)).sum(dim=1) / (1 + tail_P)
