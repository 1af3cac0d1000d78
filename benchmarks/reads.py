"""How often the ranks of each world read a cache in an epoch, and what the order costs a rank for each batch.

python benchmarks/reads.py [--groups 512] [--rows 4096] [--row-bytes 4096] [--batch-sizes 1024 1000] [--json]

The cache is described by its row groups alone: nothing is read. Lanes and window are those that a stream takes by
default. factor: rows that all ranks read in an epoch over the rows of the cache. order_us: CPU time in
microseconds in which rank 0 works out which samples of a batch it takes and where they lie, the least of three runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jobs.console import table  # noqa: E402
from storage.order.rank_share import Share  # noqa: E402
from storage.order.read_amplification import read_factor  # noqa: E402
from storage.order.sample_order import Order  # noqa: E402
from storage.order.schedule import lookups  # noqa: E402
from storage.rows.row_groups import Column, RowGroups  # noqa: E402
from storage.stream.batch_producer import PLACES_AHEAD  # noqa: E402
from storage.stream.stream import default_order  # noqa: E402

WORLDS = (1, 2, 3, 7, 8, 16, 24, 32, 48, 64)


class _Sizes:
    """Row groups of one size, as far as the default order asks."""

    def __init__(self, groups: int, rows: int, row_bytes: int) -> None:
        self.rows = self.sizes = np.full(groups, rows)
        self.columns = (Column("x", np.dtype(np.uint8), (row_bytes,)),)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4096, help="rows of a row group")
    parser.add_argument("--row-bytes", type=int, default=4096)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1024, 1000])
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    sizes = _Sizes(asked.groups, asked.rows, asked.row_bytes)
    order = default_order(cast(RowGroups, sizes), seed=0)
    rows: list[dict[str, Any]] = []
    for batch_size, world in itertools.product(asked.batch_sizes, asked.worlds):
        factor = read_factor(sizes.rows, order, batch_size, world)
        cost = _order_us(order, sizes.rows, batch_size, world)
        rows.append({"batch_size": batch_size, "world": world, "factor": round(factor, 2), "order_us": round(cost, 1)})
    if asked.json:
        print(json.dumps({"lanes": order.lanes, "window": order.window, "rows": rows}, indent=1))
    else:
        print(f"{order.lanes} lanes, windows of {order.window:,} rows")
        print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    return 0


def _order_us(order: Order, rows: Any, batch_size: int, world: int) -> float:
    """CPU time a batch, in microseconds."""
    # As many batches as are looked up at once, four times.
    count = max(100, 4 * PLACES_AHEAD * world // batch_size)
    runs: list[float] = []
    for _ in range(3):
        found = lookups(order, rows, Share(batch_size, 0, world), itertools.count(0, batch_size), PLACES_AHEAD)
        begun = time.process_time()
        for _ in itertools.islice(found, count):
            pass
        runs.append((time.process_time() - begun) / count)
    return 1e6 * min(runs)


if __name__ == "__main__":
    sys.exit(main())
