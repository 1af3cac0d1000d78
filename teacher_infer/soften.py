"""Logits to softened logits, on the device that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch  # a job that has nothing to compute does without


def soften(logits_PV: torch.Tensor, temperature: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """z / T - max(z / T) in float32, as numpy [P, V]. Centring spends low precision on likely classes."""
    z = logits_PV.float() / temperature
    return (z - z.amax(dim=1, keepdim=True)).cpu().numpy()


def not_finite(softened_PV: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[P]: which positions have a NaN or infinite value; of softened logits, since dividing can overflow too."""
    return np.asarray(~np.isfinite(softened_PV).all(axis=1))
