"""What softening a block of positions gives, whatever the encoding, and how positions are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.targets import Targets

if TYPE_CHECKING:
    import torch

# Bytes of float32 that a block of positions takes.
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Parts:
    """Of P positions, as tensors of the device or arrays: targets, and at T = 1 the entropy and likeliest class.

    bad_P: whether a logit is NaN, +inf or overflows, or all are -inf. A single -inf is a probability of 0.
    """

    targets: Targets
    entropy_P: Any
    top1_P: Any
    bad_P: Any

    def each(self, change: Callable[[Any], Any]) -> Parts:
        """The same with every tensor put through `change`."""
        return Parts(self.targets.each(change), change(self.entropy_P), change(self.top1_P), change(self.bad_P))


def blocks(logits_PV: torch.Tensor) -> Iterator[slice]:
    """Positions in blocks, so that working on one in float32 takes little memory beside the logits."""
    width = 4 * logits_PV.shape[1]
    size = max(1, BLOCK_BYTES // width if logits_PV.device.type == "cpu" else 16 * BLOCK_BYTES // width)
    return (slice(start, start + size) for start in range(0, len(logits_PV), size))
