"""The metrics of a run on disk, one file a checkpoint; MLflow is told from them, and the driver sees how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from jobs.tracking.runs import log_points
from storage.objectstore.folder import Folder

# A metric: name, value, step, milliseconds since 1970.
Point = tuple[str, float, int, int]

PROGRESS_FILE, TOLD_FILE, METRICS = "progress.json", "told.json", "metrics"
PROGRESS_EVERY_S, TELL_EVERY_S = 2.0, 10.0


class Journal:
    """The first worker's side: it writes the points of each checkpoint, and tells MLflow now and then.

    A resumed run writes the files after its checkpoint again, with the same names, and `told.json`
    says up to which step MLflow was told: so nothing is lost, and nothing is told twice but what a
    kill in the middle of telling leaves open. Importing MLflow takes seconds; a run that is over
    sooner leaves the telling to the driver.
    """

    def __init__(self, folder: Folder, tracking_uri: str | None, run_id: str | None) -> None:
        self._folder, self._uri, self._run_id = folder, tracking_uri, run_id
        self._new: list[Point] = []
        self._shown = self._told = time.monotonic()

    def add(self, points: Iterable[Point]) -> None:
        self._new += points
        if self._new and time.monotonic() - self._shown >= PROGRESS_EVERY_S:
            self._shown = time.monotonic()
            losses = [value for name, value, _, _ in self._new if name == "train/loss"]
            show_progress(self._folder, self._new[-1][2], losses[-1] if losses else None)

    def close_segment(self, step: int) -> None:
        """Write the points since the last checkpoint, before the checkpoint of `step` is made."""
        lines = "".join(f"{json.dumps(point)}\n" for point in self._new)
        self._folder.write(f"{METRICS}/{step:010d}.jsonl", lines.encode())
        self._new = []
        if self._uri and self._run_id and time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            tell(self._folder, self._uri, self._run_id)


def tell(folder: Folder, tracking_uri: str, run_id: str) -> bool:
    """Tell MLflow the points that it was not told yet. True when it has them all."""
    steps, points = untold(folder, run_id)
    if not steps:
        return True
    arrived = log_points(tracking_uri, run_id, points)
    if arrived:
        folder.write(TOLD_FILE, json.dumps({"step": steps[-1], "run_id": run_id}).encode())
    return arrived


def untold(folder: Folder, run_id: str) -> tuple[list[int], list[Point]]:
    """The checkpoints' steps whose points the run in MLflow was not told, and the points."""
    last = json.loads(folder.read(TOLD_FILE)) if folder.exists(TOLD_FILE) else {"step": -1, "run_id": run_id}
    told = last["step"] if last["run_id"] == run_id else -1
    steps = [step for name in folder.names(METRICS) if (step := int(name.removesuffix(".jsonl"))) > told]
    points: list[Point] = []
    for step in steps:
        lines = folder.read(f"{METRICS}/{step:010d}.jsonl").decode().splitlines()
        points += [tuple(json.loads(line)) for line in lines]
    return steps, points


def show_progress(folder: Folder, step: int, loss: float | None) -> None:
    folder.write(PROGRESS_FILE, json.dumps({"step": step, "loss": loss}).encode())


def read_progress(folder: Folder) -> dict[str, Any]:
    """{"step", "loss"} as the worker last showed it; step 0 before it has."""
    try:
        return json.loads(folder.read(PROGRESS_FILE))
    except FileNotFoundError:
        return {"step": 0, "loss": None}
