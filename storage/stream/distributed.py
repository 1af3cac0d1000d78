"""Which rank of how many this process is, as PyTorch or its launcher tells."""

from __future__ import annotations

import os
import sys
from typing import TypedDict

from storage.base.errors import RecipeError


class World(TypedDict):
    """The two numbers that a stream is given: `Stream(groups, batch_size=256, **world())`."""

    rank: int
    world: int


def world() -> World:
    """This process's rank and their number.

    From torch.distributed where it is initialised, as in a Ray Train worker; else from RANK and WORLD_SIZE, which
    torchrun sets; else a world of one. A script that gives `init_process_group` its rank asks after that call.
    """
    # Whoever initialised it has imported it: so nothing is imported here, and streams stay free of torch.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return World(rank=distributed.get_rank(), world=distributed.get_world_size())
    told = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)}
    if not told:
        return World(rank=0, world=1)
    try:
        rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
        possible = 0 <= rank < size
    except (KeyError, ValueError):
        rank = size = 0
        possible = False
    if not possible:
        found = " and ".join(
            f"{name}={told[name]}" if name in told else f"no {name}" for name in ("RANK", "WORLD_SIZE")
        )
        raise RecipeError(
            f"The environment has {found}.",
            "A launcher sets both, and ranks are counted from 0 to WORLD_SIZE - 1.",
            "Start the script with torchrun, or unset both for one process.",
        )
    return World(rank=rank, world=size)
