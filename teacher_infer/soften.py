"""Logits to softened logits, on the device that made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def soften(logits_PV: torch.Tensor, temperature: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """z / T - max(z / T) in float32, as numpy [P, V]. Centring spends low precision on likely classes."""
    z = logits_PV.float() / temperature
    return (z - z.amax(dim=1, keepdim=True)).cpu().numpy()


def first_not_finite(softened_PV: np.ndarray[Any, Any]) -> int | None:
    """The first position with a NaN or infinite value, or None; of softened logits, since dividing can overflow too."""
    bad = (~np.isfinite(softened_PV)).any(axis=1).nonzero()[0]
    return int(bad[0]) if len(bad) else None
