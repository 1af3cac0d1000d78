"""Which worker of a run this process is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which worker this is, and the device it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
