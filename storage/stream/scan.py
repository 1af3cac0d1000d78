"""Every row once, in stored order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.format.rows import DecodedRows
from storage.order.schedule import Need
from storage.rows.prefetch import Reader
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups


def scan(groups: RowGroups, batch_size: int, reading: Reading | None = None) -> Iterator[DecodedRows]:
    """Every row once, in the order it is stored in, for evaluation."""
    starts = np.concatenate([[0], np.cumsum(groups.rows)])
    wanted = (
        Need(group, int(starts[group]), int(starts[group + 1]) - 1) for group in np.flatnonzero(groups.rows).tolist()
    )
    largest = int(groups.sizes.max()) if len(groups.sizes) else 0
    reader = Reader(groups, wanted, reading or Reading(), room=2 * largest + batch_size, near=0)
    try:
        for first in range(0, int(starts[-1]), batch_size):
            places = np.arange(first, min(first + batch_size, int(starts[-1])))
            group = np.searchsorted(starts, places, side="right") - 1
            reader.advance(first, first + len(places))
            yield reader.rows(group, places - starts[group])
    finally:
        reader.close()
