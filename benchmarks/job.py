"""How much of the teacher's own speed a whole job keeps: from `run` to the sealed cache, one actor, over bare forwards.

python benchmarks/job.py [--samples N] [--rounds N] [--json]

bare: a loop of forward passes in a Ray worker of its own, as the job's actor is one, at the job's batch size,
threads and inputs, which are in memory; only the loop is timed. job: Ray is up and the plan is made; the
actor's start, loading, reading, digests, softening, encoding, writing, checking, commits and the seal count.
Interleaved rounds in one call; job_over_bare is the median of the rounds' ratios. start_s: from the job's
begin to its first forward pass, which a job pays once; steady_over_bare leaves it out. All processes are told
not to give memory back to the system: whether glibc does so at each batch moves a forward pass on a CPU by a
third, and differs between a process's first thread and its others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

BATCH_SIZE, SPAN_ROWS = 128, 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=98_304)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{HERE.parent}"
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    from jobs.cluster.connect import connect

    connect(None)
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(Path(folder), asked.samples, asked.rounds)
    if asked.json:
        print(json.dumps(answer, indent=1))
    else:
        for name, value in answer.items():
            print(f"{name:22} {value}")
    return 0


def measure(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    import bench_models
    import pyarrow.parquet as pq

    from jobs.console import say
    from storage.objectstore.folder import Folder
    from teacher_infer.planning.prepare import prepare
    from teacher_infer.run import run

    source = folder / "images.parquet"
    pq.write_table(bench_models.images(samples), source, row_group_size=SPAN_ROWS)
    ratios: list[float] = []
    steady: list[float] = []
    told: dict[str, list[float]] = {"bare_s": [], "job_s": [], "start_s": [], "forward_share": []}
    for number in range(rounds):
        recipe = _recipe(folder / f"store-{number}", source, folder / f"begun-{number}")
        prepared = prepare(recipe, Folder(recipe.store))
        bare = _bare(prepared, samples)
        os.sync()
        begun = time.time()
        answer = run(prepared)
        job = time.time() - begun
        start = (folder / f"begun-{number}").stat().st_mtime - begun
        ratios.append(bare / job)
        steady.append(bare / (job - start))
        for name, value in zip(told, (bare, job, start, answer["work"]["forward_share"]), strict=True):
            told[name].append(value)
        say(f"round {number + 1}/{rounds}: bare {bare:.1f} s, job {job:.1f} s, {start:.1f} of them until it began")
    return {
        "job_over_bare": round(statistics.median(ratios), 4),
        "job_over_bare_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "steady_over_bare": round(statistics.median(steady), 4),
        "steady_over_bare_range": [round(min(steady), 4), round(max(steady), 4)],
        **{name: round(statistics.median(values), 3) for name, values in told.items()},
        "forward_ms_per_batch": round(1000 * statistics.median(told["bare_s"]) * BATCH_SIZE / samples, 2),
        "samples": samples,
        "batch_size": BATCH_SIZE,
        "span_rows": SPAN_ROWS,
        "rounds": rounds,
    }


def _recipe(store: Path, source: Path, mark: Path) -> Any:
    from teacher_infer.planning.config import TeacherRecipe

    return TeacherRecipe.model_validate(
        {
            "name": "bench",
            "store": str(store),
            "source": {"parquet": str(source)},
            "teacher": {
                "factory": "bench_models:marking_teacher",
                "arguments": {"mark": str(mark)},
                "dtype": "float32",
                "batch_size": BATCH_SIZE,
            },
            "targets": {"encoding": "dense", "temperature": 2.0},
            "span_rows": SPAN_ROWS,
            "tracking": {"uri": False},
        }
    )


def _bare(prepared: Any, samples: int) -> float:
    """Seconds of forward passes alone, over inputs that were read before."""
    import ray

    loop = ray.remote(num_cpus=1)(_loop)
    return ray.get(loop.remote(prepared.spec, prepared.parts[0].source, samples))


def _loop(spec: Any, source_settings: dict[str, Any], samples: int) -> float:
    import torch

    from storage.format.rows import sample_rows
    from storage.sources import make_source
    from teacher_infer.teachers.module import ModuleTeacher

    torch.set_num_threads(1)
    teacher = ModuleTeacher(spec, dtype="float32", seed=0, device="cpu")
    source = make_source(source_settings)
    [file] = source.files()
    image = sample_rows(source.read(file, 0, samples)).inputs["image"]
    batches = [image[start : start + BATCH_SIZE] for start in range(0, samples, BATCH_SIZE)]
    teacher.logits({"image": batches[0]})
    Path(spec.arguments["mark"]).unlink()
    begun = time.perf_counter()
    for batch in batches:
        teacher.logits({"image": batch}).sum().item()
    seconds = time.perf_counter() - begun
    Path(spec.arguments["mark"]).unlink()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
