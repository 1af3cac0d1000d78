"""How the positions of a batch are cut into blocks, and how a block with fewer positions is padded.

Legend: P positions, C of them a block, V classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Bytes of float32 that a block of positions takes: within a core's own cache, or enough to fill a device.
BLOCK_BYTES = {"cpu": 4 << 20, "other": 64 << 20}
# Positions of a block at most. A batch with fewer positions than a block is padded to one.
_BLOCK_ROWS = {"cpu": 64, "other": 4096}


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
