"""What reading a span and planning a source take of memory and time, for images in list columns.

python benchmarks/pieces.py [--rows 600 1200 4800] [--groups 200 100000] [--span-rows N] [--json]

Images of 3 x 224 x 224 as list<uint8>, in Parquet files of so many rows in row groups of so many. Each figure is of a
process of its own: seconds, and by how much its peak memory is above what it had after the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PIXELS = 3 * 224 * 224


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[600, 1200, 4800])
    parser.add_argument("--groups", type=int, nargs="+", default=[200, 100_000])
    parser.add_argument("--span-rows", type=int, help="of the plan; one span of all rows unless said")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(*asked.measure)))
        return 0
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in asked.rows:
            for group in asked.groups:
                path = Path(folder) / "images.parquet"
                write(path, rows, group)
                for what in ("read", "plan"):
                    command = [sys.executable, __file__, "--measure", what, str(path), str(asked.span_rows or rows)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                    pixels = round(rows * PIXELS / 1e6)
                    results.append(
                        {"rows": rows, "pixels_mb": pixels, "group": min(group, rows), "what": what, **found}
                    )
                    print(results[-1], file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": results}, indent=1))
    return 0


def write(path: Path, rows: int, group: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("sample_id", pa.int64()), ("image", pa.list_(pa.uint8()))])
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, rows, group):
            count = min(group, rows - start)
            pixels = pa.array(generator.integers(0, 255, count * PIXELS, dtype="uint8"))
            offsets = pa.array(np.arange(0, (count + 1) * PIXELS, PIXELS, dtype=np.int32))
            images = pa.ListArray.from_arrays(offsets, pixels)
            writer.write_table(pa.table([np.arange(start, start + count), images], schema=schema), row_group_size=group)


def measured(what: str, path: str, span_rows: str) -> dict[str, Any]:
    from storage.encodings.dense import Dense
    from storage.sources import make_source
    from teacher_infer.planning.key_parts import KeyParts
    from teacher_infer.planning.plan import make_plan

    before, begun = _peak_mb(), time.perf_counter()
    source = make_source({"parquet": path})
    if what == "plan":
        make_plan(source, int(span_rows), KeyParts.of("teacher", Dense(), 0))
    else:
        [file] = source.files()
        source.read(file, 0, int(span_rows))
    return {"seconds": round(time.perf_counter() - begun, 2), "peak_mb": round(_peak_mb() - before)}


def _peak_mb() -> float:
    # ru_maxrss of a child begins with its parent's.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
