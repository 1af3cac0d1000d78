"""teacher-infer [run | submit] RECIPE.yaml [a.b=c ...] [--plan] | audit RECIPE.yaml [CACHE]; each with [--json]"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from jobs.cluster.submit import add_arguments as submit_arguments
from jobs.command_line import Command, Program
from jobs.console import last, say
from jobs.recipe import read_recipe
from storage.base.errors import RecipeError
from storage.objectstore.folder import Folder
from teacher_infer.planning.config import TeacherRecipe

# What sets a key of a recipe; a path may hold a sign of equality only after a folder's name.
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m teacher_infer") -> int:
    commands = {
        "run": Command("seal the caches of a recipe; also what happens without a command", _run_arguments, _run),
        "submit": Command(
            "give a recipe to a Ray cluster, with the working directory, and show its log", submit_arguments, _submit
        ),
        "audit": Command(
            "run a recipe's teacher again on a sample of a cache's spans, and compare",
            _audit_arguments,
            _audit,
            "Run a recipe's teacher again on a seeded sample of a cache's spans, in this process. "
            "Exit 3 where its answers are further from the stored ones than the tolerance, or where the cache is "
            "another teacher's. Teacher and source are the recipe's: nothing that a cache names is run.",
        ),
    }
    description = (
        "Run a teacher over a source and seal a cache of its softened logits. What is committed is not computed again."
    )
    return Program(prog, description, commands, default="run").run(arguments)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", help="key.subkey=value, in place of what the recipe says")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show spans and their size, positions, expected bytes, reuse and which columns are inputs; run nothing",
    )


def _submit(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from jobs.cluster.submission import Job
    from jobs.cluster.submit import submit

    return submit(Job("teacher-infer", "teacher", TeacherRecipe), asked)


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the teacher's recipe, a YAML file")
    parser.add_argument(
        "rest",
        nargs="*",
        metavar="key=value | CACHE",
        help="overrides of the recipe, and a cache in place of the recipe's own: STORE/NAME or STORE/caches/KEY",
    )
    parser.add_argument("--fraction", type=float, default=0.01, help="of the spans, at least one (0.01 unless said)")
    parser.add_argument("--seed", type=int, default=0, help="which spans")
    parser.add_argument("--batch-size", type=int, default=8, help="samples the teacher is given at once")
    parser.add_argument(
        "--tolerance", type=float, help="how far a probability may be; 0.001 for float32, more for 16 bits, unless said"
    )


def _audit(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from storage.cache.open import open_cache
    from storage.objectstore.location import absolute

    if not os.path.isfile(asked.recipe):
        raise RecipeError(
            f"'{asked.recipe}' is no recipe file.",
            "An audit takes the teacher's recipe, since nothing that a cache names is run.",
            "teacher-infer audit RECIPE.yaml [key=value ...] [CACHE]",
        )
    caches = [text for text in asked.rest if not _OVERRIDE.match(text)]
    if len(caches) > 1:
        raise RecipeError(f"Two caches are named: {caches[0]} and {caches[1]}.", "An audit looks at one.")
    recipe = read_recipe(asked.recipe, [text for text in asked.rest if text not in caches], TeacherRecipe)
    from teacher_infer.audit import Settings, audit, summary

    cache = open_cache(absolute(caches[0]) if caches else f"{recipe.store}/{recipe.name}")
    answer = audit(recipe, cache, Settings(asked.fraction, asked.seed, asked.batch_size, asked.tolerance))
    return answer, summary(answer), 0 if answer["ok"] else 3


def _run(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    recipe = read_recipe(asked.recipe, asked.overrides, TeacherRecipe)
    # Imported once the recipe is known to be right: a typing error should not wait for torch and ray.
    from teacher_infer.labelling.job_progress import summary
    from teacher_infer.planning.prepare import prepare, show_plan
    from teacher_infer.run import run

    prepared = prepare(recipe, Folder(recipe.store))
    for note in prepared.notes:
        say(note)
    if asked.plan:
        plan = show_plan(prepared)
        return plan, "\n".join(_plan_lines(part, part) for part in _parts(plan)), 0
    for part in prepared.parts:
        forward = sum(span.rows for span in part.missing) * part.plan.positions_a_row
        say(_plan_lines({**part.answer(), "forward_positions": forward}, part.columns))
    answer = run(prepared)
    return answer, "\n".join([*map(_done_line, _parts(answer)), summary(answer["work"])]), 0


def _parts(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer, *([answer["held_out"]] if "held_out" in answer else [])]


def _plan_lines(part: dict[str, Any], columns: dict[str, Any]) -> str:
    from storage.samples.described_columns import columns_line
    from teacher_infer.planning.cache_miss import CacheMiss

    why = [f"  {CacheMiss(**part['miss'])}"] if "miss" in part else []
    warnings = [f"  warning: {warning}" for warning in part.get("warnings", ())]
    span = [_span_line(part["span"])] if "span" in part else []
    return "\n".join([_plan_line(part), *span, f"  {columns_line(columns)}", *why, *warnings])


def _span_line(span: dict[str, Any]) -> str:
    size = "size unknown" if span["bytes"] is None else f"about {span['bytes'] / 1e6:,.2f} MB before compression"
    return f"  a span: up to {span['rows']:,} rows, {span['positions']:,} positions, {size}"


def _plan_line(part: dict[str, Any]) -> str:
    spans, text = part["spans"], ""
    if "expected_bytes" in part:
        size = part["expected_bytes"]
        text = ", size unknown" if size is None else f", about {size / 1e6:,.2f} MB before compression"
    return (
        f"plan {part['name']}@{part['cache_key'][:8]}: {spans['total']} spans, {part['positions']:,} positions{text}; "
        f"{_work(part)}{_skipped(part)}"
    )


def _done_line(part: dict[str, Any]) -> str:
    return (
        f"sealed {part['name']}@{part['cache_key'][:8]}, digest {part['cache_digest'][:8]}: "
        f"{part['positions']:,} positions, {part['bytes'] / 1e6:,.2f} MB; {_work(part)}{_skipped(part)}"
        + (f"; {part['quarantined']} samples quarantined" if part["quarantined"] else "")
        + f"\n  {part['cache']}"
    )


def _skipped(part: dict[str, Any]) -> str:
    count = part.get("skipped_documents", 0)
    return f"; {count:,} empty documents skipped" if count else ""


def _work(part: dict[str, Any]) -> str:
    spans = part["spans"]
    return f"spans: {spans['reused']} reused, {spans['computed']} new ({part['forward_positions']:,} forward positions)"


if __name__ == "__main__":
    sys.exit(last(main()))
