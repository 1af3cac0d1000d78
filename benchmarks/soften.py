"""Claim: what softening and encoding add to a language model's bare forward pass.

    python benchmarks/soften.py [--json] [--model FOLDER] [--device cuda --dtype bfloat16]

A round runs, on the same batch and one after the other: the bare forward; forward and softening for `topk`, as an
actor does it; and those with the encoding, which in a job is another thread's work. Ratios are taken within a round.
Peak memory: on CUDA the allocator's, beside the weights; on a CPU the process's, of one process for each variant,
beside what it had before. Without --model the architecture of SmolLM2-135M with random weights, whose logits are as
many and as wide, but flat.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

VARIANTS = ("forward", "softened", "encoded")
AIM_TIME, AIM_MEMORY = 1.05, 1.3


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", help="a folder in Hugging Face's form")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--temperatures", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(asked: argparse.Namespace) -> Any:
    import torch
    import transformers

    dtype = getattr(torch, asked.dtype)
    if asked.model:
        model = transformers.AutoModelForCausalLM.from_pretrained(asked.model, dtype=dtype, attn_implementation="sdpa")
    else:
        config = transformers.LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).to(dtype)
    return model.to(asked.device).eval()


def variants(asked: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    import numpy as np
    import torch

    from storage.encodings.topk import TopK
    from teacher_infer.soften import soften

    model = load(asked)
    encoding = TopK(asked.k, tuple(map(float, asked.temperatures.split(","))))
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, model.config.vocab_size, (asked.rows, asked.length))).to(asked.device)
    label = draw.integers(0, model.config.vocab_size, (asked.rows, asked.length)).astype(np.int32)

    def forward() -> Any:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
            if asked.device.startswith("cuda"):
                torch.cuda.synchronize()
            return logits

    def softened() -> Any:
        return soften(forward(), encoding, label)

    def encoded() -> Any:
        return encoding.encode(softened().targets)

    return {"forward": forward, "softened": softened, "encoded": encoded}


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak_of(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call takes at most, beside what was held before it."""
    if device.startswith("cuda"):
        import torch

        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - held
    held = _resident()
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    asked = parsed()
    calls = variants(asked)
    if asked.only:
        print(peak_of(calls[asked.only], asked.device))
        return
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(asked.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    if asked.device.startswith("cuda"):
        peaks = {name: peak_of(call, asked.device) for name, call in calls.items()}
    else:
        command = [sys.executable, *sys.argv, "--only"]
        peaks = {name: int(subprocess.check_output([*command, name])) for name in calls}
    positions = asked.rows * asked.length
    ratios = {
        name: [one / bare for one, bare in zip(times[name], times["forward"], strict=True)] for name in VARIANTS[1:]
    }
    answer = {
        "device": asked.device,
        "dtype": asked.dtype,
        "positions": positions,
        "positions_per_s": {name: round(positions / statistics.median(found)) for name, found in times.items()},
        "softened_over_forward_time": round(statistics.median(ratios["softened"]), 4),
        "encoded_over_forward_time": round(statistics.median(ratios["encoded"]), 4),
        "range": {name: [round(min(found), 4), round(max(found), 4)] for name, found in ratios.items()},
        "encoded_over_forward_memory": round(peaks["encoded"] / peaks["forward"], 3),
        "peak_mb": {name: round(peak / 1e6, 1) for name, peak in peaks.items()},
    }
    if asked.json:
        print(json.dumps(answer))
        return
    for name, value in answer.items():
        print(f"{name:32} {value}")
    print(f"aims: time at most {AIM_TIME} of the forward, memory at most {AIM_MEMORY}")


if __name__ == "__main__":
    main()
