"""How much of the teacher's and the disk's own speed is left: the job over a bare loop, the stream over a bare scan.

python benchmarks/spine.py [--json] [--samples N] [--rounds N]

(a) teacher_over_bare: positions/s of the teacher job (actor start, reading, digest, forward,
    softening, writing, commit, seal; Ray is up and the plan is made before) over a loop of forwards
    alone, at the same batch size, threads and inputs. label_over_bare: the same for `label_span` in this process.
(b) stream_over_scan: samples/s of the shuffled, verified stream over `read_row_group` of the same
    shards in storage order, without checks and without batches.
Interleaved rounds, medians; every ratio is of things that were run side by side in one call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from jobs.cluster.connect import connect
from jobs.console import say
from storage.cache.cache import Cache
from storage.cache.open import open_cache
from storage.format.rows import sample_rows
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.sources import make_source
from storage.stream.stream import Stream
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.prepare import prepare
from teacher_infer.run import run
from teacher_infer.teachers import make_teacher

BATCH_SIZE, PASSES_A_ROUND = 128, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    connect(None)
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(Path(folder), asked.samples, asked.rounds)
    if asked.json:
        print(json.dumps(answer, indent=1))
    else:
        for name, value in answer.items():
            print(f"{name:26} {value}")
    return 0


def measure(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        rates.setdefault(name, []).append(samples / (time.perf_counter() - begun))
        return result

    cache: Cache | None = None
    for number in range(rounds):
        recipe = _recipe(folder / f"store-{number}", samples)
        prepared = prepare(recipe, Folder(recipe.store))
        teacher = make_teacher(prepared.spec, dtype="float32", seed=0)
        source = prepared.parts[0].source
        work = _work(prepared, source, folder / f"label-{number}")
        spans = prepared.parts[0].plan.spans
        batches = _inputs(work, samples)
        timed(
            "bare",
            lambda teacher=teacher, batches=batches: [
                teacher.logits({"image": batch}).sum().item() for batch in batches
            ],
        )
        timed("label", lambda work=work, teacher=teacher, spans=spans: [label_span(work, teacher, s) for s in spans])
        timed("job", lambda prepared=prepared: run(prepared))
        cache = open_cache(f"{recipe.store}/bench")
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{k} {v[-1]:,.0f}/s" for k, v in rates.items()))
    assert cache is not None
    # What the jobs wrote goes to the disk first: its writing back disturbs passes of a tenth of a second.
    os.sync()
    for _ in range(1 + PASSES_A_ROUND * rounds):
        timed("scan", lambda: scan_bare(cache))
        timed("stream", lambda: stream_once(cache, samples))
    for name in ("scan", "stream"):
        del rates[name][0]  # the first pass warms up

    def over(above: str, below: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True)), 4)

    def spread(above: str, below: str) -> list[float]:
        ratios = [a / b for a, b in zip(rates[above], rates[below], strict=True)]
        return [round(min(ratios), 4), round(max(ratios), 4)]

    return {
        "teacher_over_bare": over("job", "bare"),
        "label_over_bare": over("label", "bare"),
        "stream_over_scan": over("stream", "scan"),
        "teacher_over_bare_spread": spread("job", "bare"),
        "stream_over_scan_spread": spread("stream", "scan"),
        "positions_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "samples": samples,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "bytes_per_position": round(cache.bytes / cache.positions, 1),
        "forward_ms_per_batch": round(1000 * BATCH_SIZE / statistics.median(rates["bare"]), 2),
    }


def _recipe(store: Path, samples: int) -> TeacherRecipe:
    return TeacherRecipe.model_validate(
        {
            "name": "bench",
            "store": str(store),
            "source": {"function": "bench_models:images", "arguments": {"count": samples}},
            "teacher": {"factory": "bench_models:teacher", "dtype": "float32", "batch_size": BATCH_SIZE},
            "targets": {"encoding": "dense", "temperature": 2.0},
            "span_rows": 4096,
            "tracking": {"uri": False},
        }
    )


def _work(prepared: Any, source: dict[str, Any], store: Path) -> Work:
    folder = Folder(str(store))
    return Work(folder, make_source(source), prepared.encoding, prepared.teacher_digest, BATCH_SIZE)


def _inputs(work: Work, samples: int) -> list[np.ndarray[Any, Any]]:
    [file] = work.source.files()
    image = sample_rows(work.source.read(file, 0, samples)).inputs["image"]
    return [image[start : start + BATCH_SIZE] for start in range(0, samples, BATCH_SIZE)]


def scan_bare(cache: Cache) -> int:
    rows = 0
    for shard in cache.shards:
        with pq.ParquetFile(f"{cache.store.url}/{shard.path}") as file:
            for index in range(file.num_row_groups):
                rows += file.read_row_group(index, use_threads=False).num_rows
    return rows


def stream_once(cache: Cache, samples: int) -> int:
    stream = Stream(CacheRows(cache), batch_size=BATCH_SIZE, seed=0).endless()
    return sum(len(next(stream).rows) for _ in range(samples // BATCH_SIZE))


if __name__ == "__main__":
    sys.exit(main())
