"""Softening for `topk`: the likeliest ids, and the exact normaliser, tail mass and entropy at each temperature.

Legend: P positions, C of them a block, V classes, B blocks of N classes, K kept ids, G temperatures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK, TopKTargets
from teacher_infer.soften.passes import CLASSES
from teacher_infer.soften.softened import Softened
from teacher_infer.soften.wide import Wide, wide

if TYPE_CHECKING:
    import torch


def soften_topk(logits_PV: torch.Tensor, label_P: torch.Tensor | None, encoding: TopK) -> Softened:
    """Block by block, so that no second [P, V] in float32 is held.

    label_P: [P] int64; of a position whose label is IGNORED label_log_prob is NaN.
    """
    import torch

    count, k, grid = len(logits_PV), encoding.k, encoding.temperatures

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros((count, *shape), dtype=dtype, device=logits_PV.device)

    head = new(k, dtype=torch.int32), new(k), new()
    targets = TopKTargets(*head, new(len(grid)), new(len(grid)), new(len(grid)), grid, logits_PV.shape[1])
    made = Softened(targets, new(), new(dtype=torch.int32), new(dtype=torch.bool))
    work = wide(logits_PV, k, grid)
    for start in range(0, count, work.rows):
        block = slice(start, start + work.rows)
        work.load(logits_PV[block])
        rows = made.each(lambda array, block=block: array[block])
        _soften_block(work, None if label_P is None else label_P[block], rows)
    made.entropy_R.copy_(targets.entropy_PG[:, grid.index(1.0)])
    made.top1_R.copy_(targets.ids_PK[:, 0])
    if label_P is None:
        targets.label_log_prob_P.fill_(torch.nan)
    else:
        targets.label_log_prob_P.masked_fill_(label_P == IGNORED, torch.nan)
    if logits_PV.dtype == torch.float64:  # a finite one may be -inf in float32
        made.bad_R.logical_or_((torch.isneginf(logits_PV.float()) & torch.isfinite(logits_PV)).any(dim=1))
    return made


def _soften_block(work: Wide, label_C: torch.Tensor | None, made: Softened) -> None:
    """Fill `made`, whose tensors have the block's rows. Those of `work` have as many as a block has at most."""
    targets, count = made.targets, len(made.bad_R)
    k, grid = targets.ids_PK.shape[1], targets.temperatures
    highest, ids = likeliest(work, k + 1)
    label_z_C1 = None if label_C is None else work.gather(label_C.clamp(min=0)[:, None])
    sums_CG, weighted_CG, valid_C = work.tails(ids[:, :k], highest[:, k - 1 : k], highest[:, k:], grid)
    targets.ids_PK.copy_(ids[:count, :k])
    made.bad_R.copy_(~valid_C[:count])
    log_probs_CK, *moments, log_z1_C1 = work.moments(highest, sums_CG, weighted_CG, grid)
    targets.log_probs_PK.copy_(log_probs_CK[:count])
    for whole_CG, found_CG in zip((targets.log_z_PG, targets.log_tail_PG, targets.entropy_PG), moments, strict=True):
        whole_CG.copy_(found_CG[:count])
    if label_z_C1 is not None:
        targets.label_log_prob_P.copy_((label_z_C1 - highest[:count, :1].double() - log_z1_C1[:count])[:, 0])


def likeliest(work: Wide, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest of each row, highest first, of equal ones the lowest id first: values and ids, [C, k] each.

    All k lie in the k blocks with the highest maxima (of equal ones the lowest block first): were one in another, each
    of those k would have an element that comes before it.
    """
    import torch

    maxima_CB = work.maxima()
    _, block = _first(maxima_CB, min(k, maxima_CB.shape[1]), work.dtype)
    block, _ = block.sort(dim=1)  # so that places among the candidates rise with the ids
    ids_CBN = block[:, :, None] * CLASSES + torch.arange(CLASSES, device=block.device)
    ids_Cn = ids_CBN.view(len(block), -1)
    values, place = _first(work.gather(ids_Cn), k, work.dtype)
    return values, ids_Cn.gather(1, place)


def _first(values_CN: torch.Tensor, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """topk, of equal values the first ones first, which torch leaves open. dtype: what the values were rounded to."""
    import torch

    halves = dtype.itemsize == 2 and values_CN.shape[1] <= 1 << 16
    if k < values_CN.shape[1] and not halves:
        values, place = values_CN.topk(k + 1, dim=1)
        # One more than is wanted: a tie with the last one counts too.
        if not (values[:, :-1] == values[:, 1:]).any():
            return values[:, :k], place[:, :k]
    # By keys that are all different: the value's bits, and below them the place. Of 16 bits, many are equal.
    kind, wide, shift = (torch.int16, torch.int32, 16) if halves else (torch.int32, torch.int64, 32)
    bits = (values_CN.to(dtype) if halves else values_CN.contiguous()).view(kind)
    limits = torch.iinfo(kind)
    # Of negative floats the order of the bits is the other way round; -0.0 counts as 0.0.
    ordered = torch.where(bits < 0, bits ^ limits.max, bits).to(wide) + (bits == limits.min).to(wide)
    keys = (ordered << shift) - torch.arange(values_CN.shape[1], dtype=wide, device=values_CN.device)
    place = keys.topk(k, dim=1).indices
    return values_CN.gather(1, place), place
