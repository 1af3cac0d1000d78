"""The student's Ray job: one Ray Train run a seed, around the ordinary loop."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig

from jobs.cluster.connect import connect, is_embedded
from jobs.cluster.resources import refuse_too_large
from jobs.console import Progress
from jobs.failures.classification import portable
from storage.base.errors import StillhouseError
from storage.objectstore.folder import Folder
from student_train.ray_train import ON_ONE_MACHINE, LeanTrainer, no_retries
from student_train.run.attempts import resources, train_in_attempts
from student_train.run.owner import refuse_lost
from student_train.run.run_folder import CHECKPOINTS, Run, begin, keep_model
from student_train.run.tracking import Tracker
from student_train.training.checkpoint import refuse_foreign
from student_train.training.config import StudentRecipe
from student_train.training.journal import Journal, Point, read_progress
from student_train.training.loop import Place, train


def run(recipe: StudentRecipe) -> list[dict[str, Any]]:
    """Train every seed of a recipe, some at the same time, and give their results in the seeds' order.

    A seed goes on where it stopped, and one that is finished gives the result that it has. Raises
    VerificationError when a run's folder belongs to another recipe or other data, FolderInUse when another process
    trains it.
    """
    runs = begin(recipe)
    try:
        return _run_all(recipe, runs)
    finally:
        for one in runs:
            one.release()


def _run_all(recipe: StudentRecipe, runs: Sequence[Run]) -> list[dict[str, Any]]:
    for one in runs:
        Tracker(one).close_replaced()
    if not all(one.finished for one in runs):
        if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
            for name, value in ON_ONE_MACHINE.items():
                os.environ.setdefault(name, value)
        connect(recipe.ray.num_cpus)
        if is_embedded():
            refuse_too_large(resources(recipe.ray), recipe.ray.workers)
    at_once = min(recipe.ray.concurrent_runs, len(runs))
    with _shown(runs):
        # In the main thread where one run at a time will do: Ray Train hears an interrupt only there.
        never = threading.Event()
        return [_run_one(run, never) for run in runs] if at_once == 1 else _run_together(runs, at_once)


def _run_together(runs: Sequence[Run], at_once: int) -> list[dict[str, Any]]:
    stopped = threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            return list(pool.map(partial(_run_one, stopped=stopped), runs))
        except KeyboardInterrupt:
            stopped.set()
            # The other runs would go on, and the pool would wait for them, as it does when one run fails.
            pool.shutdown(wait=False, cancel_futures=True)
            ray.shutdown()
            raise


@contextmanager
def _shown(runs: Sequence[Run]) -> Generator[None]:
    """Show how far the runs are, from what their workers write into their folders, until the block ends."""
    going = [run for run in runs if not run.finished]
    over = threading.Event()

    def watch(progress: Progress) -> None:
        while not over.wait(1.0):
            seen = [read_progress(run.folder) for run in going]
            losses = [f"{p['loss']:.4f}" for p in seen if p["loss"] is not None]
            note = f"loss {', '.join(losses)}" if losses else "workers start"
            progress.update(sum(p["step"] for p in seen), note)

    if not going:
        yield
        return
    with Progress("training", sum(run.recipe.steps for run in going), "steps") as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _run_one(run: Run, stopped: threading.Event) -> dict[str, Any]:
    try:
        return {**_told(run), "trained": False} if run.finished else {**_trained(run, stopped), "trained": True}
    finally:
        run.release()


def _trained(run: Run, stopped: threading.Event) -> dict[str, Any]:
    tracker = Tracker(run)
    try:
        tracker.begin()
        result = {
            **train_in_attempts(run.recipe, lambda: _attempt(run, tracker), stopped),
            "run_id": tracker.run_id,
            "recipe_digest": run.recipe.digest(),
        }
        run.check()
        result["tracked"] = tracker.succeeded(result)
        run.finish(result)
    except BaseException as error:
        # The MLflow run is the other process's as well, where the folder is.
        if run.is_ours():
            tracker.failed(interrupted=isinstance(error, KeyboardInterrupt))
        raise
    return result


def _told(run: Run) -> dict[str, Any]:
    """A finished run's result, after MLflow was told of it if it has not been."""
    result = run.result()
    if not result["tracked"] and run.ownership is not None:
        tracker = Tracker(run)
        if tracker.uri is not None:
            tracker.begin()
        if tracker.run_id is not None:
            result = {**result, "run_id": tracker.run_id}
            result["tracked"] = tracker.succeeded(result)
            run.finish(result)
    return result


def _attempt(run: Run, tracker: Tracker) -> Any:
    """One group of workers from the last checkpoint on: their answer, or the error that ended it."""
    recipe, folder, model_digest = run.recipe, run.folder, run.identity["model_digest"]
    settings = recipe.ray
    # Without it, Ray Train asks for workers for ever.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_timeout_s)
    trainer = LeanTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json", exclude_unset=True),
            "folder": folder.url,
            "model_digest": model_digest,
            "data": [run.identity["data_digest"], run.identity["evaluation_digest"]],
            "tracking": [tracker.uri, tracker.run_id],
            "owner": run.owner_id,
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            label_selector=settings.label_selector or None,
            resources_per_worker=resources(settings),
        ),
        run_config=RunConfig(
            name=f"{recipe.name}-seed-{recipe.seed}",
            storage_path=folder.url_of(CHECKPOINTS),
            failure_config=no_retries(),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except (ray.train.TrainingFailedError, RayError) as error:
        return error
    except SystemExit:
        # Ray Train's own handler of an interrupt stops the workers and exits.
        raise KeyboardInterrupt from None
    finally:
        # Ray Train leaves its handler behind, which stops nothing once its workers are gone.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


class _Reporter:
    """A run's observer on a Ray Train worker: Ray is told by every rank, the journal is kept by the first."""

    def __init__(self, rank: int, journal: Journal, check_owner: Callable[[], None]) -> None:
        self._rank, self._journal, self._check_owner = rank, journal, check_owner

    def points(self, points: list[Point]) -> None:
        if self._rank == 0:
            self._journal.add(points)

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        if self._rank:
            ray.train.report({"step": step})
            return
        self._check_owner()
        self._journal.close_segment(step)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))


def _worker(config: dict[str, Any]) -> dict[str, Any] | StillhouseError | None:
    """What runs on each Ray Train worker: the loop, with Ray's checkpoints and reports around it."""
    import torch

    recipe = StudentRecipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    torch.set_num_threads(max(1, int(recipe.ray.cpus_per_worker)))
    folder = Folder(config["folder"])
    check_owner = partial(refuse_lost, folder, config["owner"])
    observer = _Reporter(place.rank, Journal(folder, *config["tracking"]), check_owner)
    latest = ray.train.get_checkpoint()
    try:
        refuse_foreign(
            {"model_digest": recipe.student.spec().digest("float32")},
            {"model_digest": config["model_digest"]},
            f"The student on {socket.gethostname()}",
        )
        with nullcontext() if latest is None else latest.as_directory() as checkpoint:
            restored = None if checkpoint is None else Path(checkpoint)
            outcome = train(recipe, place, restored=restored, observer=observer, expected=config["data"])
        check_owner()
    except Exception as error:
        sent = portable(error)
        # Ray prints a traceback of what is raised. A worker among others must raise, though: they wait for it.
        if place.world > 1 or not isinstance(sent, StillhouseError):
            raise sent from error
        return sent
    return None if place.rank else keep_model(recipe, folder, outcome)
