"""One job as a cluster is given it: its id, its command line, its files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.portable import refuse_left_behind, refuse_secrets, tracker
from jobs.cluster.shipped import LEFT_BEHIND, Shipped, shipped
from jobs.recipe import read_recipe, recipe_digest
from storage.base.errors import UsageError
from storage.base.settings import Section

# What a job is asked does not change with the machines that it is given, nor with who is told of it.
_ELSEWHERE = ("ray", "tracking")


@dataclass(frozen=True)
class Job:
    """command: the script that runs its recipes, such as teacher-infer. role: what the ids of its jobs begin with."""

    command: str
    role: str
    kind: type[Section]


@dataclass(frozen=True)
class Submission:
    """base: the id of the first job of this recipe; further ones have a number behind it. notes: what to say first."""

    base: str
    digest: str
    entrypoint: str
    shipped: Shipped
    notes: tuple[str, ...] = ()


def prepare(job: Job, recipe_path: str, overrides: Sequence[str]) -> Submission:
    """A recipe of the working directory, checked.

    Raises RecipeError or UsageError where it would not run there as it does here.
    """
    folder = Path.cwd()
    recipe: Any = read_recipe(recipe_path, overrides, job.kind, on_cluster=True)
    refuse_secrets(recipe_path, recipe, overrides)
    overrides = [*overrides, *tracker(recipe_path, recipe.tracking, os.environ)]
    files = shipped(folder)
    inside = files.inside(recipe_path)
    if inside is None:
        raise UsageError(
            f"The recipe '{recipe_path}' lies outside the working directory {folder}.",
            "The working directory goes to the cluster, and the recipe with it.",
            "Submit from the folder that holds your code and recipes.",
        )
    if not files.holds(inside):
        raise UsageError(
            f"The recipe '{recipe_path}' is not shipped.",
            f"{LEFT_BEHIND}.",
            "Take it out of the ignore file, or put it into another folder.",
        )
    notes = refuse_left_behind(recipe_path, recipe, files)
    digest = recipe_digest(recipe, without=_ELSEWHERE)
    base = f"{job.role}-{recipe.name}-{digest[:12]}"
    return Submission(base, digest, entrypoint(job.command, inside, overrides), files, tuple(notes))


def entrypoint(command: str, recipe: str, overrides: Sequence[str]) -> str:
    """The command line, which the cluster gives to a shell.

    Not the script: where the project goes along in the working directory, none is installed.

    >>> entrypoint("teacher-infer", "a b.yaml", ["source.arguments={n: 1}"])
    "python -m stillhouse_commands teacher-infer 'a b.yaml' 'source.arguments={n: 1}'"
    """
    return shlex.join(["python", "-m", "stillhouse_commands", command, recipe, *overrides])


def next_id(base: str, jobs: Iterable[tuple[str | None, bool]]) -> tuple[str, str | None]:
    """The id of a recipe's next job, and that of its job that has not ended, if there is one.

    jobs: (id, whether it has ended) of every job that the cluster remembers.

    >>> next_id("teacher-toy-0123", [("teacher-toy-0123", True), ("other", False)])
    ('teacher-toy-0123-2', None)
    """
    last, going = 0, None
    for name, ended in jobs:
        found = re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", name or "")
        if found:
            last = max(last, int(found[1] or 1))
            going = going if ended else name
    return (f"{base}-{last + 1}" if last else base), going
