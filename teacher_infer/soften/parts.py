"""What softening a block of positions gives, whatever the encoding, and how positions are cut into blocks.

Legend: P positions, C of them a block, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.encodings.targets import Targets

if TYPE_CHECKING:
    import torch

# Bytes of float32 that a block of positions takes: within a core's own cache, or enough to fill a device.
BLOCK_BYTES = {"cpu": 4 << 20, "other": 64 << 20}
# Positions of a block at most. A batch with fewer positions than a block is padded to one.
_BLOCK_ROWS = {"cpu": 64, "other": 4096}


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


def block_rows(logits_PV: torch.Tensor) -> int:
    """Positions of a block. A function of device and V, so that all batches are worked on in blocks of one shape."""
    kind = "cpu" if logits_PV.device.type == "cpu" else "other"
    return max(1, min(_BLOCK_ROWS[kind], BLOCK_BYTES[kind] // (4 * logits_PV.shape[1])))


def blocks(logits_PV: torch.Tensor) -> Iterator[slice]:
    """Positions in blocks, so that working on one in float32 takes little memory beside the logits."""
    size = block_rows(logits_PV)
    return (slice(start, start + size) for start in range(0, len(logits_PV), size))


def padding(logits_CV: torch.Tensor) -> torch.Tensor:
    """Logits [V] of a padded position: finite in every dtype, and in float32 all different, since ties cost time."""
    import torch

    return torch.arange(logits_CV.shape[1], dtype=torch.float32, device=logits_CV.device) * -(2.0**-10)


def padded(rows_Cn: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows: these and zeros. A sum's last bits depend on how many rows are summed in one call."""
    import torch

    return rows_Cn if len(rows_Cn) == count else torch.nn.functional.pad(rows_Cn, (0, 0, 0, count - len(rows_Cn)))
