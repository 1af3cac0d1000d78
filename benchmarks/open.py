"""What opening a large cache costs a reader, and how that grows with its row groups: seconds, and memory.

python benchmarks/open.py [--groups 10000 100000 1000000] [--repeats 5] [--json]

A store is filled with the index of a cache whose shards, ten row groups each, are not there. Then, in processes of
their own, a reader goes through the stages below; of each its own seconds are told, and by how much the process has
grown since its imports: at its peak, and what it holds when the stage is done. Medians of the repeats.

open           open the cache by its name
first batch    a stream over its row groups, to the first batch of 256 rows; without reading and decoding them, since
               they are not there (stream.py tells of that)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

GROUPS_OF_A_SHARD = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        print(json.dumps(measured(stages(asked.read))))
        return 0
    rows: list[dict[str, Any]] = []
    for groups in asked.groups:
        with tempfile.TemporaryDirectory() as folder:
            size = fill(folder, groups)
            runs = [_in_a_process(folder) for _ in range(asked.repeats)]
        for stage in runs[0]:
            medians = {name: round(median(run[stage][name] for run in runs), 3) for name in runs[0][stage]}
            rows.append({"groups": groups, "index_mb": round(size / 1e6, 1), "stage": stage, **medians})
            print(rows[-1], file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}, indent=1))
    else:
        for row in rows:
            memory = f"{row['peak_mb']:8.1f} MB at its peak {row['held_mb']:8.1f} MB held"
            print(f"{row['groups']:>10,}  {row['stage']:12} {row['seconds']:8.3f} s {memory}")
    return 0


def _in_a_process(folder: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--read", folder]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def stages(store: str) -> Iterator[str]:
    """What a reader does, with the name of each stage when it is done; the first one is not told of."""
    from storage.cache.open import open_cache
    from storage.stream.stream import Stream

    yield "imports"
    cache = open_cache(f"{store}/many")
    yield "open"
    assert len(cache.index) * GROUPS_OF_A_SHARD == len(cache.index.rows)
    stream = Stream(_Unread(cache), batch_size=256)
    assert len(next(iter(stream))) == 256
    yield "first batch"


class _Unread:
    """The row groups of a cache, whose rows are whatever lies in memory."""

    def __init__(self, cache: Any) -> None:
        import numpy as np

        from storage.rows.row_groups import Column

        self.rows = self.sizes = cache.index.rows
        self.digest, self.where = cache.digest, cache.url
        number = np.dtype(np.int64)
        self.columns = (
            Column("image", np.dtype(np.uint8), (3, 32, 32)),
            Column("sample_id", number),
            Column("label", number),
            Column("soft_logits", np.dtype(np.float16), (1000,)),
        )

    def load(self, group: int, out: Any) -> dict[str, Any]:
        return {}

    def name_of(self, group: int) -> str:
        return f"row group {group}"

    def loaded_rows(self, group_B: Any, row_B: Any) -> Any:
        return row_B

    def rows_of(self, group_B: Any, columns: Any) -> Any:
        from storage.rows.row_groups import plain_rows

        return plain_rows(columns, ["image"])


def measured(stages: Iterator[str]) -> dict[str, dict[str, float]]:
    next(stages)
    told: dict[str, dict[str, float]] = {}
    # The peak that the kernel counts anew for each program; ru_maxrss begins with that of the parent.
    before, begun = _memory("VmRSS"), time.perf_counter()
    for stage in stages:
        seconds = time.perf_counter() - begun
        grown, held = (_memory(name) - before for name in ("VmHWM", "VmRSS"))
        told[stage] = {"seconds": seconds, "peak_mb": grown / 1e6, "held_mb": held / 1e6}
        begun = time.perf_counter()
    return told


def _memory(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def fill(folder: str, groups: int) -> int:
    """A sealed cache of so many row groups, without its shards; the bytes of its index."""
    import pyarrow as pa

    from storage.base.digest import sha256_file
    from storage.cache.facts import CacheFacts
    from storage.cache.keys import cache_digest, cache_key
    from storage.encodings.dense import Dense
    from storage.format.header import FORMAT_VERSION, ShardHeader
    from storage.objectstore.folder import Folder

    store, index = Folder(folder), made_index(groups)
    data = index.to_bytes()
    key = cache_key(name for (name,) in index.facts("shard_key"))
    store.write(f"caches/{key}/index.parquet", data)
    with store.open(f"caches/{key}/index.parquet") as file:
        facts = {"path": "index.parquet", "bytes": len(data), "sha256": sha256_file(file)}
    dense = ShardHeader(FORMAT_VERSION, "", Dense(1.0), 1000, "", "")
    schema = pa.schema([("image", pa.int64()), ("sample_id", pa.int64()), ("label", pa.int64())])
    sealed = {
        "format_version": FORMAT_VERSION,
        "cache_key": key,
        "cache_digest": cache_digest(index),
        "index": facts,
        **CacheFacts.of(index, dense, schema, "many", {}).to_dict(),
    }
    store.write(f"caches/{key}/cache.json", json.dumps(sealed).encode())
    store.write("names/many", key.encode())
    return len(data)


def made_index(groups: int) -> Any:
    """An index of row groups of some 10 MB, all digests made up."""
    import numpy as np
    import pyarrow as pa

    from storage.cache.index import INDEX_SCHEMA, Index

    dice = np.random.default_rng(0)
    shards = groups // GROUPS_OF_A_SHARD

    def digests(count: int, digits: int) -> pa.Array:
        text = dice.bytes(count * digits // 2).hex().encode()
        offsets = np.arange(count + 1, dtype=np.int32) * digits
        return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))

    def structs(of: Any, values: dict[str, Any]) -> pa.Array:
        return pa.StructArray.from_arrays([pa.array(values[field.name]) for field in of], fields=list(of))

    lengths = dice.integers(9_000_000, 11_000_000, (shards, GROUPS_OF_A_SHARD))
    stop = 4 + np.cumsum(lengths, axis=1)
    start, end = stop - lengths, stop[:, -1]
    row_groups = {"start": start.ravel(), "stop": stop.ravel(), "rows": np.full(groups, 4096)}
    row_groups |= {"inputs_stop": start.ravel() + 6_000_000, "plain_stop": start.ravel() + 6_050_000}
    row_groups |= {n: digests(groups, 32) for n in ("xxh3", "inputs_xxh3", "plain_xxh3", "targets_xxh3")}
    footers = {"start": end, "stop": end + 10_000, "rows": np.zeros(shards, np.int64), "xxh3": digests(shards, 32)}
    keys, attempts = digests(shards, 64), digests(shards, 16)
    pairs = zip(keys.to_pylist(), attempts.to_pylist(), strict=True)
    offsets = np.arange(shards + 1, dtype=np.int32) * GROUPS_OF_A_SHARD
    kinds = {name: INDEX_SCHEMA.field(name).type for name in INDEX_SCHEMA.names}
    columns: dict[str, Any] = {
        "shard_key": keys,
        "attempt": attempts,
        "path": pa.array([f"shards/{key[:2]}/{key}-{attempt}.parquet" for key, attempt in pairs]),
        "bytes": end + 10_000,
        "sha256": digests(shards, 64),
        "rows": np.full(shards, 4096 * GROUPS_OF_A_SHARD),
        "row_groups": pa.ListArray.from_arrays(offsets, structs(kinds["row_groups"].value_type, row_groups)),
        "footer": structs(kinds["footer"], footers),
        "quarantined": pa.array([[]] * shards, kinds["quarantined"]),
    }
    return Index(pa.table(columns, schema=INDEX_SCHEMA))


if __name__ == "__main__":
    sys.exit(main())
