"""python -m student_train [submit] RECIPE.yaml [a.b=c ...], and python -m student_train compare [CACHE]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jobs.console import last, run_command
from jobs.recipe import read_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        from student_train.compare import main as compare

        return compare(given[1:])
    if given[:1] == ["submit"]:
        from jobs.cluster.submission import Job
        from jobs.cluster.submit import submit
        from student_train.training.config import StudentRecipe

        return submit(Job("student_train", "student", StudentRecipe), given[1:])
    parser = argparse.ArgumentParser(
        prog="python -m student_train",
        description="Train a recipe's model: from a cache of soft targets, or from labels. "
        "`python -m student_train submit` gives it to a Ray cluster, `... compare` puts the results side by side.",
    )
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", help="key.subkey=value, in place of what the recipe says")
    parser.add_argument("--json", action="store_true", help="the answer as JSON on stdout, and nothing else there")
    asked = parser.parse_intermixed_args(given)
    return run_command(lambda: _run(asked), as_json=asked.json)


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
