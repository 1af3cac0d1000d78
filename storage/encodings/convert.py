"""Targets of one encoding as those of another that keeps less, worked out from what is stored alone.

Legend: P positions, V classes, K kept ids, G temperatures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from storage.base.errors import RecipeError
from storage.encodings.targets import IGNORED, Targets
from storage.encodings.topk import TopK, TopKTargets

Array = np.ndarray[Any, Any]

# Positions of dense targets that are worked on together, in float64.
_BLOCK_VALUES = 1 << 22


def convert(targets: Targets, label: Array | None, encoding: Any) -> Targets:
    """Rows' targets in another encoding: dense as topk, topk as a smaller k or fewer temperatures.

    label: as rows have it. As right as what was stored: float16 has an error of 2^-11. Raises RecipeError.
    """
    if type(encoding) not in CONVERSIONS:
        raise RecipeError(
            f"Targets are not derived as {encoding.to_dict()['encoding']}.",
            "Derived are: topk, from dense, or from topk with a larger k or more temperatures.",
            "Run the teacher's recipe with those targets.",
        )
    return CONVERSIONS[type(encoding)](targets, label, encoding)


def to_topk(targets: Targets, label: Array | None, encoding: TopK) -> TopKTargets:
    """From topk, or from targets that hold every class. Raises RecipeError for any others."""
    return narrowed(targets, encoding) if isinstance(targets, TopKTargets) else likeliest(targets, label, encoding)


# By the encoding that is wanted.
CONVERSIONS: dict[type, Callable[[Targets, Array | None, Any], Targets]] = {TopK: to_topk}


def narrowed(targets: TopKTargets, encoding: TopK) -> TopKTargets:
    """The same with fewer ids or temperatures; what falls out of the ids is added to each tail."""
    kept = int(targets.ids_PK.shape[-1])
    missing = [t for t in encoding.temperatures if t not in targets.temperatures]
    if encoding.k > kept or missing:
        grid = ", ".join(f"{t:g}" for t in targets.temperatures)
        raise RecipeError(
            f"k={encoding.k} and the temperatures {', '.join(f'{t:g}' for t in encoding.temperatures)} were asked for.",
            f"These targets hold the {kept} likeliest classes, for the temperatures {grid}.",
            "Ask for no more of either, or run the teacher's recipe with those targets.",
        )
    places = [targets.temperatures.index(t) for t in encoding.temperatures]
    log_z_PG, log_tail_PG = targets.log_z_PG[..., places], targets.log_tail_PG[..., places].astype(np.float64)
    dropped_PK = targets.log_probs_PK[..., encoding.k :].astype(np.float64)
    for place, temperature in enumerate(encoding.temperatures if dropped_PK.shape[-1] else ()):
        log_p_PK = dropped_PK / temperature - log_z_PG[..., place : place + 1]
        log_tail_PG[..., place] = np.logaddexp(log_tail_PG[..., place], _log_sum_exp(log_p_PK))
    return TopKTargets(
        targets.ids_PK[..., : encoding.k],
        targets.log_probs_PK[..., : encoding.k],
        targets.label_log_prob_P,
        log_z_PG,
        # Of a position without a target nothing was kept, which reads as zeros and stays so.
        np.where(
            np.isnan(targets.label_log_prob_P)[..., None] & (targets.log_tail_PG[..., places] == 0), 0, log_tail_PG
        ),
        targets.entropy_PG[..., places],
        encoding.temperatures,
        targets.classes,
    )


def likeliest(targets: Targets, label: Array | None, encoding: TopK) -> TopKTargets:
    """The k likeliest of all classes, in float64; a sequence's position whose label is IGNORED reads as zeros."""
    lead, classes = targets.lead, targets.classes
    encoding.fields(classes)  # refuses a k that is no less than the classes
    flat = targets.flat()
    label_P = None if label is None else label.reshape(-1)
    size = max(1, _BLOCK_VALUES // classes)
    blocks = [
        _likeliest(
            flat[start : start + size].logits(1.0),
            None if label_P is None else label_P[start : start + size],
            encoding,
        )
        for start in range(0, max(1, len(flat)), size)
    ]
    columns = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    made = TopKTargets(*columns, temperatures=encoding.temperatures, classes=classes)
    if label_P is not None and len(lead) > 1:
        made = made.cleared(label_P == IGNORED)
    return made.each(lambda array: array.reshape(*lead, *array.shape[1:]))


def _likeliest(z_PV: Array, label_P: Array | None, encoding: TopK) -> tuple[Array, ...]:
    z_PV -= z_PV.max(axis=1, keepdims=True)
    ids_PK = np.argsort(-z_PV, axis=1, kind="stable")[:, : encoding.k]
    log_z1_P = _log_sum_exp(z_PV)
    l_PK = np.take_along_axis(z_PV, ids_PK, axis=1) - log_z1_P[:, None]
    label_l_P = np.full(len(z_PV), np.nan)
    if label_P is not None:
        there = np.maximum(label_P, 0).astype(np.int64)
        label_l_P = np.take_along_axis(z_PV, there[:, None], axis=1)[:, 0] - log_z1_P
        label_l_P[label_P == IGNORED] = np.nan
    tail_PV = z_PV.copy()
    np.put_along_axis(tail_PV, ids_PK, -np.inf, axis=1)
    shape = (len(z_PV), len(encoding.temperatures))
    log_z_PG, log_tail_PG, entropy_PG = np.empty(shape), np.empty(shape), np.empty(shape)
    for place, temperature in enumerate(encoding.temperatures):
        log_z_P = _log_sum_exp(z_PV / temperature)
        log_p_PV = z_PV / temperature - log_z_P[:, None]
        log_z_PG[:, place] = log_z_P - log_z1_P / temperature
        log_tail_PG[:, place] = _log_sum_exp(tail_PV / temperature) - log_z_P
        # 0 * -inf is NaN; a probability of 0 adds 0.
        entropy_PG[:, place] = -(np.exp(log_p_PV) * np.maximum(log_p_PV, np.finfo(np.float64).min)).sum(axis=1)
    return ids_PK, l_PK, label_l_P, log_z_PG, log_tail_PG, entropy_PG


def _log_sum_exp(values: Array) -> Array:
    """Over the last axis; -inf where all values are -inf."""
    highest = values.max(axis=-1, keepdims=True)
    highest = np.where(np.isneginf(highest), 0.0, highest)
    with np.errstate(divide="ignore"):  # log(0) is meant
        return highest[..., 0] + np.log(np.exp(values - highest).sum(axis=-1))
