"""Students side by side: a table, a picture and the numbers behind it, from what MLflow was told."""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jobs.console import say, table
from jobs.tracking.settings import TrackingSection
from jobs.tracking.sqlite_uri import sqlite_path
from storage.base.digest import sha256_of
from storage.base.errors import JobError, UsageError
from storage.cache.open import open_cache
from storage.objectstore.location import absolute

ROLES = ("teacher", "student", "baseline")
# What is compared: the metric, its column's head, and whether more is better.
METRICS = {
    "accuracy": ("accuracy", True),
    "cross_entropy": ("cross entropy", False),
    "kl_to_teacher": ("KL to teacher", False),
    "agreement_top1": ("top-1 agreement", True),
    "ece": ("ECE", False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", nargs="?", help="a cache's URL; without it, the cache that was trained on last")
    parser.add_argument("--tracking", help="MLflow's tracking URI (else MLFLOW_TRACKING_URI, else ./runs/mlflow.db)")
    parser.add_argument(
        "--picture", default="runs/compare.png", help="where it goes; its numbers lie beside it as .csv"
    )


def compare_runs(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from jobs.tracking.runs import finished_runs

    uri = asked.tracking or TrackingSection().resolved_uri()
    if uri is None:
        raise UsageError(
            "No tracking URI is known.", "Runs are compared from what MLflow was told.", "Give --tracking."
        )
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        raise JobError(
            f"There is no database at {uri}.", "Training runs make it.", "Train first, or name another with --tracking."
        )
    runs = finished_runs(uri, "tags.`distill.role` != 'cache'")
    digest = open_cache(absolute(asked.cache)).digest if asked.cache else latest_cache(runs)
    rows = compare(runs, digest)
    if not rows:
        raise UsageError(
            f"No finished run at {uri} learned from the cache {digest[:8]}.", remedy="Train a student on it first."
        )
    name = next(run["tags"]["distill.cache.name"] for run in runs if run["tags"].get("distill.cache.digest") == digest)
    write_picture(rows, f"students of the cache {name}, digest {digest[:8]}", Path(asked.picture))
    say(f"cache {name}, digest {digest[:8]}; mean ± standard deviation over seeds; {asked.picture}")
    answer = {"cache": name, "cache_digest": digest, "picture": str(Path(asked.picture).resolve()), "rows": rows}
    return answer, as_table(rows), 0


def latest_cache(runs: Iterable[dict[str, Any]]) -> str:
    """The digest of the cache that the newest student learned from. Raises UsageError when there is none."""
    students = [run for run in runs if "distill.cache.digest" in run["tags"]]
    if not students:
        raise UsageError(
            "No finished student was found.", "A student is a run that learned from a cache.", "Train one first."
        )
    return max(students, key=lambda run: run["started"])["tags"]["distill.cache.digest"]


def compare(runs: Sequence[dict[str, Any]], digest: str) -> list[dict[str, Any]]:
    """Rows for the teacher, the students of a cache and the baselines evaluated on the same rows.

    Of the runs of one recipe and seed the newest counts. Recipes that share a name but differ in
    more than the seed get rows of their own, `name#<digest>`. std is the sample standard deviation,
    None for a single seed.
    """
    students = [run for run in runs if run["tags"].get("distill.cache.digest") == digest]
    evaluations = {run["tags"].get("distill.eval.digest") for run in students} - {None}
    others = [
        run
        for run in runs
        if "distill.cache.digest" not in run["tags"]
        and run["tags"].get("distill.role") == "baseline"
        and run["tags"].get("distill.eval.digest") in evaluations
    ]
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for run in sorted([*students, *others], key=lambda run: run["started"]):
        tags = run["tags"]
        # Seeds belong together when only the seed sets them apart: recipe, data and held-out rows are the same.
        parts = [
            tags.get(f"distill.{part}") for part in ("recipe.family", "data.digest", "eval.digest", "model.digest")
        ]
        family = sha256_of(parts)
        group = (tags["distill.role"], tags["distill.name"], family)
        groups.setdefault(group, {})[tags["distill.seed"]] = run
    names = [name for _, name, _ in groups]
    rows = [
        _row(name if names.count(name) == 1 else f"{name}#{family[:6]}", role, list(by_seed.values()))
        for (role, name, family), by_seed in groups.items()
    ]
    return sorted([*_teachers(students, runs), *rows], key=lambda row: (ROLES.index(row["role"]), row["name"]))


def _row(name: str, role: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "role": role, "seeds": len(runs)}
    row["parameters"] = _parameters(runs[0])
    for metric in METRICS:
        values = [run["metrics"][f"eval/{metric}"] for run in runs if f"eval/{metric}" in run["metrics"]]
        if values:
            row[metric] = _spread(values)
    return row


def _parameters(run: dict[str, Any]) -> int | None:
    """None for a run whose last metrics did not reach MLflow."""
    return int(run["metrics"]["model/parameters"]) if "model/parameters" in run["metrics"] else None


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def _teachers(students: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The teacher as the evaluation cache remembers it; each student's run was told, and all say the same.

    Its name and size are those of the run that trained it, where that is among `runs`.
    """
    told = [run for run in students if "eval/teacher_accuracy" in run["metrics"]]
    if not told:
        return []
    run = max(told, key=lambda run: run["started"])
    weights = run["tags"].get("distill.teacher.weights.sha256")
    trained = [r for r in runs if weights and r["tags"].get("distill.weights.sha256") == weights]
    trained.sort(key=lambda r: r["tags"]["distill.role"] != "teacher")
    name = trained[0]["tags"]["distill.name"] if trained else run["tags"]["distill.teacher.factory"]
    parameters = _parameters(trained[0]) if trained else None
    row: dict[str, Any] = {"name": name, "role": "teacher", "seeds": 1, "parameters": parameters}
    for metric in ("accuracy", "cross_entropy", "ece"):
        row[metric] = _spread([run["metrics"][f"eval/teacher_{metric}"]])
    return [row]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], metric: str) -> str:
        if metric not in row:
            return "-"
        spread = "" if row[metric]["std"] is None else f" ± {row[metric]['std']:.4f}"
        return f"{row[metric]['mean']:.4f}{spread}"

    header = ["name", "role", "seeds", "parameters", *(head for head, _ in METRICS.values())]
    lines = [
        [
            row["name"],
            row["role"],
            str(row["seeds"]),
            "-" if row["parameters"] is None else f"{row['parameters']:,}",
            *(cell(row, metric) for metric in METRICS),
        ]
        for row in rows
    ]
    return table(header, lines)


def _short(name: str) -> str:
    """A run's name as it is; of a teacher that is known by its factory only, the function's module."""
    module, colon, own = name.partition(":")
    # Of a model in Hugging Face's form, its class says more.
    return name if not colon else own if module == "transformers" else module.rpartition(".")[2]


def write_picture(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """One panel a metric: a dot a seed, a bar for the mean; the numbers go beside it as CSV."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "role", "metric", "value"])
        writer.writerows(
            [row["name"], row["role"], metric, value]
            for row in rows
            for metric in METRICS
            if metric in row
            for value in row[metric]["values"]
        )
    colours = {"teacher": "#555555", "student": "#1b6ca8", "baseline": "#c8702a"}
    told = [metric for metric in METRICS if any(metric in row for row in rows)]
    # What only one row has cannot be compared, unless nothing else can be shown.
    shown = [metric for metric in told if sum(metric in row for row in rows) > 1] or told
    if not shown:
        raise UsageError(f"The {title} were not evaluated.", remedy="Give their recipe `evaluate`, and train again.")
    figure, axes = plt.subplots(
        1, len(shown), figsize=(3.1 * len(shown) + 1.2, 1.3 + 0.6 * len(rows)), sharey=True, squeeze=False
    )
    for axis, metric in zip(axes[0], shown, strict=True):
        for at, row in enumerate(rows):
            if metric not in row:
                continue
            values, colour = row[metric]["values"], colours[row["role"]]
            axis.plot(values, [at] * len(values), "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
            axis.plot([row[metric]["mean"]] * 2, [at - 0.28, at + 0.28], color=colour, linewidth=2.5)
        head, more_is_better = METRICS[metric]
        axis.set_title(f"{head}\n({'more' if more_is_better else 'less'} is better)", fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(
        range(len(rows)),
        [f"{_short(row['name'])}\n{row['role']}, {row['seeds']} seed{'s' * (row['seeds'] > 1)}" for row in rows],
    )
    axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(f"{title}: held-out rows, a dot a seed, a bar the mean", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
