"""student-train [run | submit] RECIPE.yaml [a.b=c ...] | compare [CACHE]; each with [--json]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jobs.cluster.submit import add_arguments as submit_arguments
from jobs.command_line import Command, Program
from jobs.console import last
from jobs.recipe import read_recipe


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m student_train") -> int:
    commands = {
        "run": Command("train the model of a recipe; also what happens without a command", _run_arguments, _run),
        "submit": Command(
            "give a recipe to a Ray cluster, with the working directory, and show its log", submit_arguments, _submit
        ),
        "compare": Command(
            "put a cache's students, baselines and teacher side by side: means and spread over seeds",
            _compare_arguments,
            _compare,
        ),
    }
    description = "Train a recipe's model: from a cache of soft targets, or from labels."
    return Program(prog, description, commands, default="run").run(arguments)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", help="key.subkey=value, in place of what the recipe says")


def _submit(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from jobs.cluster.submission import Job
    from jobs.cluster.submit import submit
    from student_train.training.config import StudentRecipe

    return submit(Job("student-train", "student", StudentRecipe), asked)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    from student_train.compare import add_arguments

    add_arguments(parser)


def _compare(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from student_train.compare import compare_runs

    return compare_runs(asked)


def _run(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from student_train.training.config import StudentRecipe

    recipe = read_recipe(asked.recipe, asked.overrides, StudentRecipe)
    from student_train.job import run

    results = run(recipe)
    text = "\n".join(_line(result) for result in results)
    answer = {"name": recipe.name, "runs": results} if isinstance(recipe.seed, list) else results[0]
    return answer, text, 0


def _line(result: dict[str, Any]) -> str:
    scores = ", ".join(
        f"{name} {value:.4f}" for name, value in result["eval"].items() if not name.startswith("teacher_")
    )
    state = (
        f"{result['steps']} steps in {result['seconds']:.1f} s"
        if result["trained"]
        else "finished before; resume=never trains it anew"
    )
    head = f"{result['role']} {result['name']} seed {result['seed']}"
    return f"{head}: {scores or 'not evaluated'} ({state})\n  {result['model']}"


if __name__ == "__main__":
    sys.exit(last(main()))
