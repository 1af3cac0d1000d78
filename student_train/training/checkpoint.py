"""A training run at one step, as safetensors and JSON: enough to go on, and to know that it is ours."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from storage.base.errors import VerificationError

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """step: optimiser steps done; stream: where the next batch begins.

    Random numbers need no state: each step seeds them anew (see `step.step_seed`).
    """

    step: int
    recipe_digest: str
    data_digest: str
    stream: dict[str, Any]


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(cpu_tensors(model.state_dict()), folder / MODEL)
    moments = optimizer.state_dict()["state"]
    flat = {
        f"{index}.{name}": value
        for index, values in moments.items()
        for name, value in values.items()
        if value is not None
    }
    save_file(cpu_tensors(flat), folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(asdict(state)))


def cpu_tensors(values: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Copies that safetensors takes: contiguous, on the CPU, and apart where names share a tensor (tied weights)."""
    return {name: torch.as_tensor(value).detach().cpu().contiguous().clone() for name, value in values.items()}


def read_state(folder: Path) -> State:
    return State(**json.loads((folder / STATE).read_text()))


def restore(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, recipe_digest: str, data_digest: str
) -> State:
    """Load a checkpoint into a model and its optimiser. Raises VerificationError for one of another recipe or data."""
    state = read_state(folder)
    refuse_foreign(asdict(state), {"recipe_digest": recipe_digest, "data_digest": data_digest}, str(folder))
    model.load_state_dict(load_file(folder / MODEL))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / OPTIMIZER).items():
        index, _, part = name.partition(".")
        moments.setdefault(int(index), {})[part] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def refuse_foreign(found: dict[str, Any], mine: dict[str, Any], where: str) -> None:
    """Raises VerificationError where one of the digests that were found is not mine."""
    for name, digest in mine.items():
        if found.get(name) != digest:
            raise VerificationError(
                f"{where} belongs to a run of another {name.removesuffix('_digest')} ({str(found.get(name))[:8]}).",
                f"This one is {str(digest)[:8]}.",
                "Give the run another name, or begin anew in its place with resume=never.",
            )
