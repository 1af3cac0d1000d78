"""The student's Ray job: one Ray Train run a seed, around the ordinary loop."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import save_file

from storage.digest import sha256_file
from storage.errors import JobError, StillhouseError
from storage.folder import Folder
from storage.lineage import software
from storage.models import CONFIG_FILE, WEIGHTS_FILE
from storage.stream import RowGroups
from student_train.checkpoint import Point, refuse_foreign
from student_train.config import StudentRecipe
from student_train.loop import Outcome, Place, open_data, open_evaluation, train
from student_train.tracking import Teller, Tracker

RAY_LOGS = "/tmp/ray/session_latest/logs, unless Ray was told otherwise"
RUN_FILE, RESULT_FILE = "run.json", "result.json"


@dataclass(frozen=True)
class Run:
    """One seed of a recipe before it is trained: its folder, what an earlier attempt left there, and its data."""

    recipe: StudentRecipe
    folder: Folder
    left: dict[str, Any]
    data: RowGroups
    held_out: RowGroups | None

    @property
    def finished(self) -> bool:
        return self.folder.exists(RESULT_FILE)


def run(recipe: StudentRecipe) -> list[dict[str, Any]]:
    """Train every seed of a recipe, some at the same time, and give their results in the seeds' order.

    A seed goes on where it stopped, and one that is finished gives the result that it has. Raises
    ForeignState when a run's folder belongs to another recipe or other data.
    """
    data, held_out = open_data(recipe), open_evaluation(recipe)
    runs: list[Run] = []
    for seed in recipe.seeds():
        one = recipe.for_seed(seed)
        folder = Folder(one.run_folder())
        runs.append(Run(one, folder, _begin(one, folder, data, held_out), data, held_out))
    if not all(one.finished for one in runs):
        connect(recipe.ray.num_cpus)
    with ThreadPoolExecutor(min(recipe.ray.concurrent_runs, len(runs))) as pool:
        return list(pool.map(_run_one, runs))


def _run_one(run: Run) -> dict[str, Any]:
    recipe, folder = run.recipe, run.folder
    if run.finished:
        return {**json.loads(folder.read(RESULT_FILE)), "trained": False}
    tracker = Tracker(recipe, run.left.get("run_id"), run.data, run.held_out)
    left = {**_identity(recipe, run.data, run.held_out), "run_id": tracker.run_id}
    folder.write(RUN_FILE, json.dumps(left).encode())
    try:
        told = _fit(recipe, folder, tracker)
    except BaseException as error:
        tracker.failed(interrupted=isinstance(error, KeyboardInterrupt))
        raise
    result = {**told["result"], "run_id": tracker.run_id, "recipe_digest": recipe.digest()}
    tracker.succeeded(result, [tuple(point) for point in told["points"]])
    # Written last: its existence means that the run is finished, and that MLflow was told.
    folder.write(RESULT_FILE, json.dumps(result, indent=1).encode())
    return {**result, "trained": True}


def _identity(recipe: StudentRecipe, data: RowGroups, held_out: RowGroups | None) -> dict[str, Any]:
    evaluation = None if held_out is None else held_out.digest
    return {"recipe_digest": recipe.digest(), "data_digest": data.digest, "evaluation_digest": evaluation}


def _begin(recipe: StudentRecipe, folder: Folder, data: RowGroups, held_out: RowGroups | None) -> dict[str, Any]:
    """What an earlier attempt left in the run's folder; nothing, after clearing it, when resume is `never`."""
    if recipe.resume == "never":
        for name in (RESULT_FILE, RUN_FILE):
            folder.remove(name)
        shutil.rmtree(f"{folder.url}/checkpoints", ignore_errors=True)
    if not folder.exists(RUN_FILE):
        return {}
    known = json.loads(folder.read(RUN_FILE))
    refuse_foreign(known, _identity(recipe, data, held_out), folder.url)
    return known


def connect(num_cpus: int | None) -> None:
    """The Ray of RAY_ADDRESS, or one embedded in this process until it ends; the one at hand if there is one."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        # Ray Train looks at its workers every two seconds; on one machine that is most of a short run.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
        ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _fit(recipe: StudentRecipe, folder: Folder, tracker: Tracker) -> dict[str, Any]:
    settings = recipe.ray
    # Without both, Ray Train asks for workers for ever.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_timeout_s)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json", exclude_unset=True),
            "folder": folder.url,
            "tracking": [tracker.uri, tracker.run_id],
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": settings.cpus_per_worker,
                **({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            name=f"{recipe.name}-seed-{recipe.seed}",
            storage_path=f"{folder.url}/checkpoints",
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        told: Any = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from None
    if isinstance(told, StillhouseError):
        raise told
    return told


def _cause(error: Exception) -> StillhouseError:
    """The error of ours inside Ray Train's, or a sentence about the one that is not."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    seen: BaseException | None = failures[0]
    while seen is not None:
        if isinstance(seen, StillhouseError):
            return seen
        seen = getattr(seen, "_base_exc", None) or getattr(seen, "cause", None) or seen.__cause__
    # A remote error's text is its traceback; the last line says what happened.
    lines = [line.strip() for line in str(failures[0]).splitlines() if line.strip(" ^~")]
    return JobError(
        f"Training failed: {lines[-1] if lines else type(failures[0]).__name__}",
        remedy=f"Ray's logs have the rest; they lie in the session's folder ({RAY_LOGS}).",
    )


def _worker(config: dict[str, Any]) -> dict[str, Any] | StillhouseError | None:
    """What runs on each Ray Train worker: the loop, with Ray's checkpoints and reports around it."""
    import torch

    recipe = StudentRecipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    torch.set_num_threads(max(1, int(recipe.ray.cpus_per_worker)))
    teller = Teller(*config["tracking"])

    def report(step: int, points: list[Point], save: Any) -> list[Point]:
        if place.rank:
            ray.train.report({"step": step})
            return []
        left = teller.tell(points)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), left)
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))
        return left

    latest = ray.train.get_checkpoint()
    try:
        with nullcontext() if latest is None else latest.as_directory() as folder:
            outcome = train(recipe, place, restored=None if folder is None else Path(folder), report=report)
    except StillhouseError as error:
        # Starting again would end the same way. A worker among others must raise, though: they wait for it.
        if place.world > 1:
            raise
        return error
    return None if place.rank else _keep(recipe, Folder(config["folder"]), outcome)


def _keep(recipe: StudentRecipe, folder: Folder, outcome: Outcome) -> dict[str, Any]:
    """Write the model folder; the answer of one run, and the metrics that are left to tell."""
    weights = {name: value.detach().cpu().contiguous() for name, value in outcome.model.state_dict().items()}
    staged = folder.stage()
    save_file(weights, staged)
    with open(staged, "rb") as file:
        digest = sha256_file(file)
    folder.write(WEIGHTS_FILE, staged.read_bytes())
    staged.unlink()
    config = {"factory": recipe.student.factory, "arguments": recipe.student.arguments}
    folder.write(CONFIG_FILE, json.dumps(config, indent=1).encode())
    result = {
        "name": recipe.name,
        "role": recipe.role_name(),
        "seed": recipe.seed,
        "model": folder.url,
        "eval": outcome.eval,
        "steps": recipe.steps,
        "parameters": outcome.parameters,
        "weights_sha256": digest,
        "init_digest": outcome.init_digest,
        "data_digest": outcome.data_digest,
        "resumed_from": outcome.resumed_from,
        "seconds": round(outcome.seconds, 3),
        "software": software(),
    }
    return {"result": result, "points": outcome.points}
