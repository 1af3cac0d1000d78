"""What many spans cost beside the teacher: plan, resume, seal and open, on local disk, and how that grows.

python benchmarks/many_spans.py [--spans 10000 100000] [--json]

A store is filled with committed shards of one small row group each, made without a teacher, for a
Parquet source of that many spans. Then, each in a process of its own, whose time after its imports and
peak memory are told:

plan     read and digest the source, cut spans, list what is committed
resume   what a rerun of the recipe does after its plan: lease, read the commits once, look for the shards, seal
again    the same with the cache sealed
open     open the sealed cache by its name
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

ROWS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(STEPS[asked.step](Path(asked.folder), asked.spans[0])))
        return 0
    rows: list[dict[str, Any]] = []
    for spans in asked.spans:
        with tempfile.TemporaryDirectory() as folder:
            for step in STEPS:
                answer = _in_a_process(step, folder, spans)
                if step == "fill":
                    print(f"{spans:,} spans filled in {answer['seconds']:.1f} s", file=sys.stderr, flush=True)
                    os.sync()
                else:
                    rows.append({"spans": spans, "step": step, **answer})
                    print(rows[-1], file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"rows": rows}, indent=1))
    else:
        for row in rows:
            print(f"{row['spans']:>8,}  {row['step']:8} {row['seconds']:8.2f} s  {row['peak_mb']:8.0f} MB")
    return 0


def _in_a_process(step: str, folder: str, spans: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, "--folder", folder, "--spans", str(spans)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _told(begun: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.perf_counter() - begun, 3), "peak_mb": round(peak, 1)}


def _prepared(folder: Path) -> tuple[Any, float]:
    """A planned recipe, and when planning began."""
    from storage.objectstore.folder import Folder
    from teacher_infer.planning.config import TeacherRecipe
    from teacher_infer.planning.prepare import prepare

    recipe = TeacherRecipe.model_validate(
        {
            "name": "many",
            "store": str(folder / "store"),
            "source": {"parquet": str(folder / "source")},
            "teacher": {"factory": "many_spans:no_teacher", "dtype": "float32", "batch_size": ROWS},
            "targets": {"encoding": "dense", "temperature": 2.0},
            "span_rows": ROWS,
            "tracking": {"uri": False},
        }
    )
    begun = time.perf_counter()
    return prepare(recipe, Folder(recipe.store)), begun


def fill(folder: Path, spans: int) -> dict[str, Any]:
    """The source, and a committed shard for every span; each shard is real, all have the same made-up targets."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from storage.base.digest import canonical_json, sha256_file
    from storage.cache.commits import Commit, commit_path
    from storage.format.byte_ranges import byte_ranges
    from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
    from storage.format.shard import write_shard

    begun = time.perf_counter()
    (folder / "source").mkdir()
    for part in range(10):
        first, count = part * spans // 10 * ROWS, (spans // 10) * ROWS
        ids = np.arange(first, first + count)
        x = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 8).astype(np.float32)), 8)
        pq.write_table(
            pa.table({"sample_id": ids, "x": x}), folder / "source" / f"{part}.parquet", row_group_size=65536
        )
    prepared, _ = _prepared(folder)
    plan, store = prepared.parts[0].plan, Path(prepared.store.url)
    # One shard's bytes, written again under every key: its content does not matter here, its record does.
    from storage.encodings.dense import DenseTargets
    from storage.sources import make_source

    source, span = make_source(prepared.parts[0].source), plan.spans[0]
    table = source.read(span.file, span.start, span.stop)
    header = ShardHeader(FORMAT_VERSION, span.shard_key, prepared.encoding, 10, prepared.teacher_digest, span.digest)
    schema = shard_schema(table.schema, header)
    arrays = {name: table.column(name).combine_chunks() for name in table.schema.names}
    arrays["soft_logits"] = prepared.encoding.encode(DenseTargets(np.zeros((ROWS, 10)), None))[0]
    one = folder / "one"
    write_shard(one, schema, [pa.record_batch([arrays[name] for name in schema.names], schema=schema)])
    data, (groups, footer) = one.read_bytes(), byte_ranges(one)
    with open(one, "rb") as file:
        digest = sha256_file(file)
    for span in plan.spans:
        path = f"shards/{span.shard_key[:2]}/{span.shard_key}-{'0' * 16}.parquet"
        commit = Commit(span.shard_key, "0" * 16, path, len(data), digest, ROWS, tuple(groups), footer)
        for name, content in ((path, data), (commit_path(span.shard_key), canonical_json(commit.to_dict()))):
            at = store / name
            if not at.parent.is_dir():
                at.parent.mkdir(parents=True)
            at.write_bytes(content)
    return _told(begun)


def plan(folder: Path, spans: int) -> dict[str, Any]:
    prepared, begun = _prepared(folder)
    told = _told(begun)
    assert len(prepared.parts[0].plan.spans) == spans and not prepared.parts[0].missing
    return told


def resume(folder: Path, spans: int) -> dict[str, Any]:
    from teacher_infer.run import run

    prepared, _ = _prepared(folder)
    begun = time.perf_counter()
    answer = run(prepared)
    told = _told(begun)
    assert answer["spans"] == {"total": spans, "reused": spans, "computed": 0}
    return told


def open_sealed(folder: Path, spans: int) -> dict[str, Any]:
    from storage.cache.open import open_cache

    begun = time.perf_counter()
    cache = open_cache(f"{folder}/store/many")
    told = _told(begun)
    assert len(cache.index) == spans
    return told


def no_teacher() -> None:
    """A factory that is digested and never called: so torch is not in the memory that is told."""


STEPS = {"fill": fill, "plan": plan, "resume": resume, "again": resume, "open": open_sealed}

if __name__ == "__main__":
    sys.exit(main())
