"""Metrics on disk: nothing is lost while MLflow is away, and nothing is told twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.objectstore.folder import Folder
from student_train.training import journal
from student_train.training.journal import Journal, Point, read_progress, show_progress, tell, untold


def points(*steps: int) -> list[Point]:
    return [("train/loss", step / 10, step, 1_700_000_000_000 + step) for step in steps]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What MLflow was told; it is at home."""
    told: list[Point] = []
    monkeypatch.setattr(journal, "log_points", lambda uri, run_id, points: told.extend(points) or True)
    return told


def test_points_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Journal(Folder(str(tmp_path)), None, None)
    kept.add(points(1, 2))
    kept.close_segment(2)
    kept.add([("train/lr", 0.1 + 0.2, 3, 5)])
    kept.close_segment(3)
    assert untold(Folder(str(tmp_path)), "run") == ([2, 3], [*points(1, 2), ("train/lr", 0.1 + 0.2, 3, 5)])


def test_what_was_told_is_not_told_again(tmp_path: Path, told: list[Point]) -> None:
    folder = Folder(str(tmp_path))
    kept = Journal(folder, None, None)
    kept.add(points(1))
    kept.close_segment(1)
    tell(folder, "uri", "run")
    tell(folder, "uri", "run")
    kept.add(points(2))
    kept.close_segment(2)
    tell(folder, "uri", "run")
    assert told == points(1, 2)


def test_a_resumed_run_tells_no_step_twice(tmp_path: Path, told: list[Point]) -> None:
    """Told up to 4, stopped before its checkpoint was kept, and gone on from 2: the steps to 4 come again."""
    folder = Folder(str(tmp_path))
    kept = Journal(folder, None, None)
    for step in (2, 4):
        kept.add(points(step))
        kept.close_segment(step)
    tell(folder, "uri", "run")
    kept = Journal(folder, None, None)
    for step in (4, 6):
        kept.add(points(step))
        kept.close_segment(step)
    tell(folder, "uri", "run")
    assert told == points(2, 4, 6)


def test_another_run_is_told_everything(tmp_path: Path, told: list[Point]) -> None:
    folder = Folder(str(tmp_path))
    kept = Journal(folder, None, None)
    kept.add(points(1))
    kept.close_segment(1)
    tell(folder, "uri", "run")
    tell(folder, "uri", "another run")
    assert told == points(1, 1)


def test_while_mlflow_is_away_points_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    kept = Journal(folder, None, None)
    kept.add(points(1))
    kept.close_segment(1)
    monkeypatch.setattr(journal, "log_points", lambda *_: False)
    tell(folder, "uri", "run")
    assert untold(folder, "run")[1] == points(1)


def test_a_worker_tells_with_a_checkpoint_once_it_is_time(
    tmp_path: Path, told: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    kept = Journal(Folder(str(tmp_path)), "uri", "run")
    kept.add(points(1))
    clock[0] += journal.TELL_EVERY_S - 1
    kept.close_segment(1)
    assert told == []
    kept.add(points(2))
    clock[0] += 1
    kept.close_segment(2)
    assert told == points(1, 2)


def test_progress_is_shown_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    folder = Folder(str(tmp_path))
    assert read_progress(folder) == {"step": 0, "loss": None}
    kept: Any = Journal(folder, None, None)
    kept.add(points(1))
    assert read_progress(folder)["step"] == 0
    clock[0] += journal.PROGRESS_EVERY_S
    kept.add(points(7))
    assert read_progress(folder) == {"step": 7, "loss": 0.7}
    show_progress(folder, 9, None)
    assert read_progress(folder)["step"] == 9
