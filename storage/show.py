"""A look inside a cache: its first rows, decoded."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.cache import Cache
from storage.stream import CacheRows, head
from storage.targets import DenseTargets

LIKELIEST = 3


def first_rows(cache: Cache, count: int = 3) -> list[dict[str, Any]]:
    """The first rows in stored order: sample id, label, likeliest classes and entropy (nats) at T = 1."""
    rows = head(CacheRows(cache, ["targets"]), count)
    assert rows.targets is not None
    probabilities_PV = probabilities(rows.targets, count)
    shown: list[dict[str, Any]] = []
    for at, p_V in enumerate(probabilities_PV):
        top = np.argsort(-p_V, kind="stable")[:LIKELIEST]
        shown.append(
            {
                "sample_id": rows.sample_id[at].item() if hasattr(rows.sample_id[at], "item") else rows.sample_id[at],
                "label": None if rows.label is None else int(rows.label[at]),
                "top": [{"class": int(i), "probability": float(p_V[i])} for i in top],
                "entropy": float(-(p_V[p_V > 0] * np.log(p_V[p_V > 0])).sum()),
            }
        )
    return shown


def probabilities(targets: DenseTargets, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """softmax(stored * T_c) of the first positions, [count, V] in float64: the teacher at T = 1."""
    z = targets.logits_PV[:count].astype(np.float64) * targets.temperature_P[:count, None]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
