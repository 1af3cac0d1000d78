"""The order of samples that a stream takes by default: a full shuffle, or windows in lanes for much data."""

from __future__ import annotations

from storage.order.sample_order import Order
from storage.rows.row_groups import RowGroups, row_bytes

# Below this a cache is shuffled whole. Above it so many lanes are cut into windows that together hold about as much.
WHOLE_BYTES = 1 << 30
LANES = 16


def default_order(groups: RowGroups, seed: int, lanes: int | None = None, window: int | None = None) -> Order:
    """A full shuffle of what takes no more than 1 GiB in memory; else 16 lanes whose windows hold about as much.

    What is given of `lanes` and `window` (rows of a lane) stays; the other follows from the rows alone.
    """
    total, loaded, width = int(groups.rows.sum()), int(groups.sizes.sum()), max(1, row_bytes(groups))
    whole = loaded * width <= WHOLE_BYTES
    if lanes is None:
        lanes = 1 if whole and window is None else LANES
    if window is None:
        # A window holds all of the row groups that it begins and ends in.
        largest = int(groups.sizes.max())
        held = loaded if whole and lanes == 1 else max(largest, WHOLE_BYTES // (lanes * width) - largest)
        window = max(1, min(total, held * total // loaded)) if held < loaded else total
    return Order(seed, min(window, total), lanes)
