"""Who is put beside whom, and that the table, the picture and its numbers say the same."""

from __future__ import annotations

import csv
import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest

from storage.base.errors import UsageError
from student_train.compare import METRICS, as_table, compare, latest_cache, write_picture

CACHE, EVALUATION, WEIGHTS = "c" * 64, "e" * 64, "f" * 64
_clock = itertools.count(1)


def run(
    name: str = "toy", seed: int = 0, *, metrics: dict[str, float] | None = None, **tags: str | None
) -> dict[str, Any]:
    """A finished student run as MLflow gives it, later than every run made before it; a tag of None is not there."""
    usual: dict[str, str | None] = {
        "role": "student",
        "name": name,
        "seed": str(seed),
        "recipe.family": f"family of {name}",
        "data.digest": CACHE,
        "cache.digest": CACHE,
        "eval.digest": EVALUATION,
        "teacher.factory": "nets:teacher",
    }
    given = {key.replace("_", "."): value for key, value in tags.items()}
    told = {f"distill.{key}": value for key, value in {**usual, **given}.items() if value is not None}
    numbers = {"model/parameters": 1234.0, **{f"eval/{key}": value for key, value in (metrics or {}).items()}}
    return {"run_id": f"run-{next(_clock)}", "started": next(_clock), "tags": told, "metrics": numbers}


def baseline(name: str = "labels", seed: int = 0, **more: Any) -> dict[str, Any]:
    return run(name, seed, **{"role": "baseline", "cache_digest": None, "data_digest": "d" * 64, **more})


def names(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["role"], row["name"]) for row in rows]


def test_means_and_spread_are_over_the_seeds_of_a_recipe() -> None:
    values = [0.5, 0.75, 0.9]
    rows = compare([run(seed=seed, metrics={"accuracy": value}) for seed, value in enumerate(values)], CACHE)
    (row,) = rows
    assert (row["name"], row["role"], row["seeds"], row["parameters"]) == ("toy", "student", 3, 1234)
    assert row["accuracy"] == {"mean": statistics.fmean(values), "std": statistics.stdev(values), "values": values}
    assert "ece" not in row


def test_one_seed_has_no_spread() -> None:
    (row,) = compare([run(metrics={"accuracy": 0.5})], CACHE)
    assert row["accuracy"] == {"mean": 0.5, "std": None, "values": [0.5]}


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_one_seed_the_newest_run_counts_in_whatever_order_they_come(newest_first: bool) -> None:
    runs = [run(metrics={"accuracy": 0.1}), run(metrics={"accuracy": 0.2}), run(seed=1, metrics={"accuracy": 0.4})]
    (row,) = compare(runs[::-1] if newest_first else runs, CACHE)
    assert row["seeds"] == 2
    assert sorted(row["accuracy"]["values"]) == [0.2, 0.4]


def test_students_of_another_cache_are_left_out() -> None:
    other = run("other", cache_digest="a" * 64, data_digest="a" * 64)
    assert names(compare([run(), other], CACHE)) == [("student", "toy")]
    assert compare([other], CACHE) == []


def test_a_baseline_counts_only_when_it_was_evaluated_on_the_same_rows() -> None:
    runs = [run(), baseline("same"), baseline("elsewhere", eval_digest="0" * 64), baseline("nowhere", eval_digest=None)]
    assert names(compare(runs, CACHE)) == [("student", "toy"), ("baseline", "same")]


def test_where_no_student_was_evaluated_no_baseline_counts() -> None:
    assert names(compare([run(eval_digest=None), baseline(eval_digest=None)], CACHE)) == [("student", "toy")]


def test_a_run_of_labels_that_is_no_baseline_has_no_row_of_its_own() -> None:
    assert names(compare([run(), baseline("big", role="teacher")], CACHE)) == [("student", "toy")]


def test_recipes_that_share_a_name_get_rows_of_their_own() -> None:
    runs = [
        run(metrics={"accuracy": 0.1}, recipe_family="one"),
        run(metrics={"accuracy": 0.3}, recipe_family="two"),
        run(seed=1, metrics={"accuracy": 0.5}, recipe_family="two"),
        run("alone"),
    ]
    rows = compare(runs, CACHE)
    assert [row["seeds"] for row in rows if row["name"].startswith("toy#")] in ([1, 2], [2, 1])
    assert len({row["name"] for row in rows}) == 3
    assert "alone" in {row["name"] for row in rows}


def test_a_baseline_of_other_data_is_another_row() -> None:
    runs = [run(), baseline(data_digest="1" * 64), baseline(data_digest="2" * 64)]
    assert [role for role, _ in names(compare(runs, CACHE))] == ["student", "baseline", "baseline"]


def test_rows_stand_as_teacher_students_baselines_each_by_name() -> None:
    told = {"teacher_accuracy": 0.9, "teacher_cross_entropy": 0.1, "teacher_ece": 0.01}
    runs = [baseline("b"), run("z", metrics=told), baseline("a"), run("m", metrics=told)]
    assert names(compare(runs, CACHE)) == [
        ("teacher", "nets:teacher"),
        ("student", "m"),
        ("student", "z"),
        ("baseline", "a"),
        ("baseline", "b"),
    ]


def test_the_teacher_is_as_the_evaluation_cache_remembers_it() -> None:
    told = {"teacher_accuracy": 0.9, "teacher_cross_entropy": 0.1, "teacher_ece": 0.01}
    row = compare([run(metrics=told)], CACHE)[0]
    assert row == {
        "name": "nets:teacher",
        "role": "teacher",
        "seeds": 1,
        "parameters": None,
        "accuracy": {"mean": 0.9, "std": None, "values": [0.9]},
        "cross_entropy": {"mean": 0.1, "std": None, "values": [0.1]},
        "ece": {"mean": 0.01, "std": None, "values": [0.01]},
    }


def test_the_teacher_has_the_name_and_size_of_the_run_that_trained_it() -> None:
    told = {"teacher_accuracy": 0.9, "teacher_cross_entropy": 0.1, "teacher_ece": 0.01}
    trained = baseline("professor", role="teacher", weights_sha256=WEIGHTS)
    trained["metrics"]["model/parameters"] = 90_000.0
    student = run(metrics=told, teacher_weights_sha256=WEIGHTS)
    row = compare([trained, student], CACHE)[0]
    assert (row["role"], row["name"], row["parameters"]) == ("teacher", "professor", 90_000)


def test_without_labels_there_is_no_row_for_the_teacher() -> None:
    assert names(compare([run(metrics={"kl_to_teacher": 0.1})], CACHE)) == [("student", "toy")]


def test_the_latest_cache_is_that_of_the_newest_student() -> None:
    runs = [run(cache_digest="1" * 64), run(cache_digest="2" * 64), baseline()]
    assert latest_cache(runs) == latest_cache(runs[::-1]) == "2" * 64


@pytest.mark.parametrize("runs", [[], [baseline()]])
def test_without_a_student_there_is_no_latest_cache(runs: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="No finished student"):
        latest_cache(runs)


ROWS = [
    run(seed=0, metrics={"accuracy": 0.5, "ece": 0.125, "teacher_accuracy": 0.75} | {"teacher_ece": 0.25}),
    run(seed=1, metrics={"accuracy": 0.25, "ece": 0.5, "teacher_accuracy": 0.75} | {"teacher_ece": 0.25}),
    baseline(metrics={"accuracy": 0.125}),
]
for one in ROWS[:2]:
    one["metrics"]["eval/teacher_cross_entropy"] = 0.0625


def test_the_table_has_a_line_a_row_with_mean_and_spread() -> None:
    lines = as_table(compare(ROWS, CACHE)).splitlines()
    assert [line.split()[0] for line in lines] == ["name", "nets:teacher", "toy", "labels"]
    head, teacher, toy, labels = (line.split() for line in lines)
    assert head[:4] == ["name", "role", "seeds", "parameters"]
    assert teacher[1:] == ["teacher", "1", "-", "0.7500", "0.0625", "-", "-", "0.2500"]
    assert toy[1:] == ["student", "2", "1,234", "0.3750", "±", "0.1768", "-", "-", "-", "0.3125", "±", "0.2652"]
    assert labels[1:] == ["baseline", "1", "1,234", "0.1250", "-", "-", "-", "-"]


def test_the_table_names_every_metric_that_is_compared() -> None:
    head = as_table(compare(ROWS, CACHE)).splitlines()[0]
    assert all(title in head for title, _ in METRICS.values())


def test_the_picture_is_a_png_with_its_numbers_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    write_picture(compare(ROWS, CACHE), CACHE, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with open(path.with_suffix(".csv"), newline="") as file:
        numbers = [(row["name"], row["role"], row["metric"], float(row["value"])) for row in csv.DictReader(file)]
    assert numbers == [
        ("nets:teacher", "teacher", "accuracy", 0.75),
        ("nets:teacher", "teacher", "cross_entropy", 0.0625),
        ("nets:teacher", "teacher", "ece", 0.25),
        ("toy", "student", "accuracy", 0.5),
        ("toy", "student", "accuracy", 0.25),
        ("toy", "student", "ece", 0.125),
        ("toy", "student", "ece", 0.5),
        ("labels", "baseline", "accuracy", 0.125),
    ]


def test_runs_evaluated_on_other_rows_are_not_averaged() -> None:
    runs = [run(metrics={"accuracy": 0.9}), run(seed=1, metrics={"accuracy": 0.1}, eval_digest="other rows")]
    assert [row["seeds"] for row in compare(runs, CACHE)] == [1, 1]


def test_a_run_whose_last_metrics_were_not_told_is_shown_without_them(tmp_path: Path) -> None:
    lost = run()
    lost["metrics"] = {}
    (row,) = compare([lost], CACHE)
    assert row["parameters"] is None
    assert "toy" in as_table([row])
    with pytest.raises(UsageError, match="were not evaluated"):
        write_picture([row], "students", tmp_path / "compare.png")


def test_one_lone_run_has_a_picture(tmp_path: Path) -> None:
    write_picture(compare([run(metrics={"kl_to_teacher": 0.5})], CACHE), "students", tmp_path / "compare.png")
    assert (tmp_path / "compare.png").exists()
