"""Sparse targets worked out the long way from a teacher's logits, and each loss as its dense definition has it."""

from __future__ import annotations

from typing import Any

import torch

from storage.encodings.topk import TopKTargets

GRID = (0.5, 1.0, 2.0, 8.0)


def top_k(logits_PV: torch.Tensor, k: int, label_P: torch.Tensor | None = None) -> TopKTargets:
    """What a cache keeps of a teacher, without its rounding: in the logits' own precision."""
    log_p = torch.log_softmax(logits_PV, dim=1)
    ids_PK = log_p.sort(dim=1, descending=True, stable=True).indices[:, :k]
    grid = torch.tensor(GRID, dtype=log_p.dtype)
    softened = log_p[:, :, None] / grid
    log_z_PG = torch.logsumexp(softened, dim=1)
    log_p_PVG = softened - log_z_PG[:, None]
    outside = torch.ones_like(log_p, dtype=torch.bool).scatter(1, ids_PK, False)
    log_tail_PG = torch.logsumexp(log_p_PVG.masked_fill(~outside[:, :, None], -torch.inf), dim=1)
    none = torch.full((len(log_p),), torch.nan, dtype=log_p.dtype)
    return TopKTargets(
        ids_PK,
        log_p.gather(1, ids_PK),
        none if label_P is None else log_p.gather(1, label_P.clamp(min=0)[:, None])[:, 0],
        log_z_PG,
        log_tail_PG,
        -(log_p_PVG.exp() * log_p_PVG).nan_to_num().sum(dim=1),
        GRID,
        logits_PV.shape[1],
    )


def dense_definition(
    logits_PV: torch.Tensor, targets: TopKTargets, temperature: float, tail: str, unigram: Any = None
) -> torch.Tensor:
    """The loss [P] from whole rows: a teacher w [P, V] that was completed, or a student whose tail was merged."""
    place = targets.temperatures.index(temperature)
    log_p_PK = targets.log_probs_PK / temperature - targets.log_z_PG[:, place, None]
    tau_P1 = targets.log_tail_PG[:, place, None].exp()
    log_q = torch.log_softmax(logits_PV / temperature, dim=1)
    w = torch.zeros_like(log_q).scatter(1, targets.ids_PK.long(), log_p_PK.exp())
    outside = torch.ones_like(log_q, dtype=torch.bool).scatter(1, targets.ids_PK.long(), False)
    if tail == "renormalise":
        w = w / w.sum(dim=1, keepdim=True)
    if tail == "unigram":
        share = outside * unigram.to(w.dtype)
        w = w + tau_P1 * share / share.sum(dim=1, keepdim=True)
    loss_P = (torch.xlogy(w, w) - w * log_q).sum(dim=1)
    if tail == "bucket":
        log_rest_P1 = torch.logsumexp(log_q.masked_fill(~outside, -torch.inf), dim=1, keepdim=True)
        loss_P = loss_P + (torch.xlogy(tau_P1, tau_P1) - tau_P1 * log_rest_P1)[:, 0]
    return loss_P
