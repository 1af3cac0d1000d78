"""Numbers in fewer bits: finite ones are clipped to the lowest that the type has, -inf stays -inf."""

from __future__ import annotations

from typing import Any

import numpy as np


def rounded(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """The same shape in float16 or float32. -inf is a probability of 0, and stays one."""
    made = np.maximum(values, np.finfo(dtype).min).astype(dtype)
    made[np.isneginf(values)] = -np.inf
    return made
