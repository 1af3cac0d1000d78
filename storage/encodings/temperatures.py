"""Which temperatures a cache is kept at."""

from __future__ import annotations

from typing import Any

# Beyond these float32 sums of softened logits are no numbers any more, or all classes alike.
LOWEST, HIGHEST = 1e-3, 1e3
BOUNDS = f"from {LOWEST:g} to {HIGHEST:g}"


def is_temperature(value: Any) -> bool:
    """
    >>> is_temperature(2), is_temperature(True), is_temperature(10**400), is_temperature(float("nan"))
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST
