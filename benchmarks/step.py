"""What one step of a student takes, in time and memory: from labels, from a cache, and beside the living teacher.

python benchmarks/step.py [--json] [--device cpu|cuda] [--classes V ...] [--rounds N] [--hidden d] [--layers N]
                          [--batch R] [--length L] [--ids K]

A step is forward, loss, backward and AdamW, of a small Llama on R sequences of L tokens; the copy to the GPU is part of
it, reading a cache is not (see stream.py). On a GPU under bfloat16 autocast; on a CPU in float32.

labels  cross entropy                                  topk   forward_kl, K ids a position, tail as one bucket
dense   forward_kl, all logits of a position in half precision
live    forward_kl against a teacher of SmolLM2-135M's shape, run on the same batch (its weights are random)

textbook  logits of all positions, torch's own functions   naive  the same logits, given to our losses
fused     hidden states and the head's weight (Unprojected)

Times: every variant has its turn in every round; a ratio is the median of those of neighbours in a round. Memory:
each variant by itself (on a CPU in a process of its own), in its second step; `peak_mb` is all that it takes at most,
weights and moments included, `step_mb` what comes on top of what is held between steps. `head` is the same for the
head and its loss alone, forward and backward, hidden states given. Ratios over several V are the worst ones.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.step_models import Step, Task
from jobs.console import say, table

VARIANTS = [
    *(("labels", head) for head in ("textbook", "naive", "fused")),
    *(("topk", head) for head in ("textbook", "naive", "fused")),
    *(("dense", head) for head in ("naive", "fused")),
    *(("live", head) for head in ("naive", "fused")),
]
DEFAULTS = {
    "cpu": {"hidden": 256, "layers": 2, "batch": 4, "length": 256},
    "cuda": {"hidden": 768, "layers": 12, "batch": 16, "length": 1024},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--classes", type=int, nargs="+", default=[49_152, 131_072])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ids", type=int, default=64)
    for name in ("hidden", "layers", "batch", "length"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shape = {name: getattr(asked, name) or value for name, value in DEFAULTS[asked.device].items()}
    tasks = [Task(classes, asked.ids, asked.device, **shape) for classes in asked.classes]
    if asked.memory_of:
        print(json.dumps(memory(tasks[0], *asked.memory_of.split("-"))))
        return 0
    rows: list[dict[str, Any]] = []
    for task in tasks:
        rows += measure(task, asked.rounds)
    by_classes = {str(task.classes): ratios([row for row in rows if row["classes"] == task.classes]) for task in tasks}
    answer = {
        **{
            name: (min if name.startswith("live") else max)(found[name] for found in by_classes.values())
            for name in next(iter(by_classes.values()))
        },
        "by_classes": by_classes,
        "rows": [{name: value for name, value in row.items() if name != "times"} for row in rows],
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        **shape,
        "ids": asked.ids,
        "rounds": asked.rounds,
    }
    print(json.dumps(answer, indent=1) if asked.json else readable(answer))
    return 0


def measure(task: Task, rounds: int) -> list[dict[str, Any]]:
    """A row for each variant; the gradients of fused heads are compared with those of naive ones."""
    rows = []
    for source, head in VARIANTS:
        say(f"memory of {source}, {head}, V = {task.classes:,}")
        found = memory(task, source, head) if task.device == "cuda" else memory_of_a_child(task, source, head)
        rows.append({"classes": task.classes, "source": source, "head": head, **found})
    step = Step(task)
    for row in rows:
        if row["head"] == "fused":
            row["apart"] = step.apart(row["source"])
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}, V = {task.classes:,}")
        for variant in VARIANTS:
            taken = clocked(step, *variant)
            if number:  # the first is for warming up
                times[variant].append(taken)
    for row in rows:
        row["times"] = times[row["source"], row["head"]]
        row["ms"] = statistics.median(row["times"]) * 1000
    del step
    empty()
    return rows


def clocked(step: Step, source: str, head: str) -> float:
    if step.task.device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step.take(source, head)
    if step.task.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(task: Task, source: str, head: str) -> dict[str, float]:
    """What a variant takes, in MB, by itself."""
    empty()
    start = now(task)
    step = Step(task)
    # The first step makes the optimiser's moments.
    step.take(source, head)
    found = {}
    for name, take in (("step", step.take), ("head", step.head_alone)):
        if source == "live" and name == "head":
            continue
        empty()
        held = now(task)
        forget_peak(task)
        take(source, head)
        found[f"{name}_mb"] = peak(task) - held
        if name == "step":
            found["peak_mb"] = peak(task) - start
    del step
    empty()
    return found


def memory_of_a_child(task: Task, source: str, head: str) -> dict[str, float]:
    settings = {name: getattr(task, name) for name in ("classes", "ids", "device", *DEFAULTS["cpu"])}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    run = subprocess.run(
        [sys.executable, __file__, "--memory-of", f"{source}-{head}", *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(run.stdout)


def empty() -> None:
    """Give back what nobody holds, so that what is left is held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def now(task: Task) -> float:
    return torch.cuda.memory_allocated() / 1e6 if task.device == "cuda" else _status("VmRSS")


def peak(task: Task) -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if task.device == "cuda" else _status("VmHWM")


def forget_peak(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    """MB of this process's memory, by Linux's account."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    row = {(one["source"], one["head"]): one for one in rows}

    def timed(one: tuple[str, str], other: tuple[str, str]) -> float:
        pairs = zip(row[one]["times"], row[other]["times"], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    def held(name: str, one: tuple[str, str], other: tuple[str, str]) -> float:
        return round(row[one][name] / row[other][name], 3)

    topk, labels, dense = (("topk", "fused"), ("labels", "fused"), ("dense", "fused"))
    naive, textbook = ("topk", "naive"), ("topk", "textbook")
    return {
        "cached_over_labels_time": timed(topk, labels),
        "cached_over_labels_memory": held("peak_mb", topk, labels),
        "fused_over_naive_memory": held("step_mb", topk, naive),
        "live_over_cached_time": timed(("live", "fused"), topk),
        "fused_over_textbook_memory": held("step_mb", topk, textbook),
        "head_fused_over_naive_memory": held("head_mb", topk, naive),
        "head_fused_over_textbook_memory": held("head_mb", topk, textbook),
        "naive_cached_over_labels_time": timed(naive, ("labels", "naive")),
        "naive_cached_over_labels_memory": held("peak_mb", naive, ("labels", "naive")),
        "cached_over_textbook_labels_time": timed(topk, ("labels", "textbook")),
        "fused_over_naive_time": timed(topk, naive),
        "dense_over_labels_time": timed(dense, labels),
        "dense_over_labels_memory": held("peak_mb", dense, labels),
        "gradients_apart": max(one["apart"] for one in rows if "apart" in one),
    }


def readable(answer: dict[str, Any]) -> str:
    heads = ["V", "source", "head", "ms", "peak MB", "step MB", "head MB", "gradients apart"]
    lines = [
        [
            f"{row['classes']:,}",
            row["source"],
            row["head"],
            *(f"{row[name]:,.0f}" if name in row else "" for name in ("ms", "peak_mb", "step_mb", "head_mb")),
            f"{row['apart']:.1e}" if "apart" in row else "",
        ]
        for row in answer["rows"]
    ]
    said = "\n".join(f"{name} {value:.3g}" for name, value in answer.items() if isinstance(value, float))
    return f"{table(heads, lines)}\n{answer['device']}\n{said}"


if __name__ == "__main__":
    sys.exit(main())
