"""The teacher's Ray job: plan, subtract what is committed, run an actor pool over the rest, seal."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from storage import cache as caches
from storage.commits import Commit, read_commit
from storage.console import Progress, say
from storage.encodings import make_encoding
from storage.errors import JobError, RecipeError, SourceChanged, StillhouseError, StoreError
from storage.folder import Folder
from storage.lineage import redact
from storage.models import ModelSpec
from storage.sources import make_source
from teacher_infer.config import RaySection
from teacher_infer.label import Work, label_span
from teacher_infer.plan import Span
from teacher_infer.prepare import Prepared, lineage_of, nested
from teacher_infer.teachers.module import ModuleTeacher

SPANS_IN_FLIGHT = 2


def run(prepared: Prepared) -> dict[str, Any]:
    """Compute what is missing and seal every cache of the recipe. Raises JobError and all that a span raises."""
    started = time.monotonic()
    prepared.store.prepare()
    missing = [(index, span) for index, part in enumerate(prepared.parts) for span in part.missing]
    computed = _label_all(prepared, missing) if missing else {}
    answers: list[dict[str, Any]] = []
    sealed: list[caches.Cache] = []
    for part in prepared.parts:
        shards = [computed.get(s.shard_key) or read_commit(prepared.store, s.shard_key) for s in part.plan.spans]
        cache = caches.seal(prepared.store, part.name, shards, lineage_of(prepared, part))
        sealed.append(cache)
        answers.append(
            {
                "cache": cache.url,
                **part.answer(),
                "cache_digest": cache.digest,
                "forward_positions": sum(span.rows for span in part.missing),
                "bytes": cache.bytes,
            }
        )
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 3), **nested(answers), "tracking": _track(prepared, sealed)}


def _track(prepared: Prepared, sealed: Sequence[caches.Cache]) -> dict[str, Any] | None:
    uri = prepared.recipe.tracking.resolved_uri()
    if uri is None:
        return None
    from storage.mlflow_lineage import track_cache

    recipe = redact(prepared.recipe.model_dump(mode="json"))
    runs = [track_cache(uri, prepared.recipe.tracking.experiment, cache, recipe) for cache in sealed]
    return {"uri": redact(uri), "run_ids": [run for run in runs if run is not None]}


def connect(num_cpus: int | None) -> None:
    """The Ray of RAY_ADDRESS, or one embedded in this process until it ends; the one at hand if there is one."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


@ray.remote
class TeacherActor:
    """A loaded teacher that labels spans. Only commit records leave it.

    Loading happens in `ready`, whose errors reach the driver as they are; an actor that Ray has
    restarted loads again with its first span.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._works: list[Work] = []

    def ready(self) -> bool:
        import torch

        settings = self._settings
        store = Folder(settings["store"])
        if not store.exists(settings["marker"]):
            raise StoreError(
                f"The machine {socket.gethostname()} does not see the store {store.url}.",
                "Every machine of the job reads and writes the same store.",
                "Name a shared folder.",
            )
        spec = ModelSpec(**settings["spec"])
        found = spec.digest(settings["dtype"])
        if found != settings["teacher_digest"]:
            raise SourceChanged(
                f"The teacher {spec.factory} on {socket.gethostname()} has the digest {found[:16]}.",
                f"The job was planned with {settings['teacher_digest'][:16]}.",
                "Its weights or its source file changed, or this machine has others; run the recipe again.",
            )
        torch.set_num_threads(max(1, int(settings["cpus"])))
        targets = dict(settings["targets"])
        encoding = make_encoding(targets.pop("encoding"), targets)
        self._teacher = ModuleTeacher(
            spec,
            dtype=settings["dtype"],
            seed=settings["seed"],
            device="cuda" if ray.get_gpu_ids() else "cpu",
        )
        self._works = [
            Work(store, make_source(source), encoding, settings["teacher_digest"], settings["batch_size"])
            for source in settings["sources"]
        ]
        return True

    def label(self, part: int, span: Span) -> dict[str, Any]:
        if not self._works:
            self.ready()
        return label_span(self._works[part], self._teacher, span).to_dict()


def _label_all(prepared: Prepared, missing: Sequence[tuple[int, Span]]) -> dict[str, Commit]:
    settings, recipe = prepared.recipe.ray, prepared.recipe
    if prepared.store.protocol == "memory":
        raise RecipeError("store is memory://.", "Ray's workers are other processes, which cannot see it.")
    connect(settings.num_cpus)
    marker = f"tmp/job-{uuid.uuid4().hex}"
    prepared.store.create(marker, b"")
    facts = {
        "store": prepared.store.url,
        "marker": marker,
        "spec": {
            "factory": prepared.spec.factory,
            "arguments": prepared.spec.arguments,
            "weights": prepared.spec.weights,
        },
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
        "batch_size": recipe.teacher.batch_size,
        "targets": prepared.encoding.to_dict(),
        "teacher_digest": prepared.teacher_digest,
        "sources": [part.source for part in prepared.parts],
        "cpus": settings.cpus_per_actor,
    }
    options = TeacherActor.options(
        num_cpus=settings.cpus_per_actor,
        num_gpus=settings.gpus_per_actor,
        label_selector=settings.label_selector or None,
        max_restarts=settings.max_restarts,
        max_task_retries=settings.max_restarts,
    )
    actors: list[Any] = [options.remote(facts) for _ in range(min(settings.actors, len(missing)))]
    try:
        return _drive(actors, missing, settings)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        raise _actor_died(error) from None
    finally:
        for actor in actors:
            ray.kill(actor)
        prepared.store.remove(marker)


def _drive(actors: Sequence[Any], missing: Sequence[tuple[int, Span]], settings: RaySection) -> dict[str, Commit]:
    waiting = {actor.ready.remote(): actor for actor in actors}
    flying: dict[Any, Any] = {}
    todo, done = list(reversed(missing)), dict[str, Commit]()
    total = sum(span.rows for _, span in missing)
    labelled, asked = 0, time.monotonic()
    with Progress("teacher", total, "positions") as progress:
        while len(done) < len(missing):
            answered, _ = ray.wait([*waiting, *flying], num_returns=1, timeout=5)
            if not answered and not flying and not done and time.monotonic() - asked > settings.capacity_timeout_s:
                raise JobError(
                    f"No actor could start in {settings.capacity_timeout_s:.0f} s: each asks for "
                    f"{settings.cpus_per_actor} CPUs and {settings.gpus_per_actor} GPUs, the cluster has "
                    f"{ray.cluster_resources()}.",
                    remedy="Ask for less under `ray`, or wait for nodes.",
                )
            for reference in answered:
                actor = waiting.pop(reference, None) or flying.pop(reference)
                answer = ray.get(reference)
                if isinstance(answer, dict):
                    commit = Commit.from_dict(answer)
                    done[commit.shard_key] = commit
                    labelled += commit.rows
                    progress.update(labelled, f"{len(done)}/{len(missing)} spans")
                while todo and sum(a is actor for a in flying.values()) < SPANS_IN_FLIGHT:
                    part, span = todo.pop()
                    flying[actor.label.remote(part, span)] = actor
    return done


def _cause(error: RayTaskError) -> StillhouseError:
    cause = error.cause
    if isinstance(cause, StillhouseError):
        return cause
    say(str(error))
    return JobError(f"A span failed: {type(cause).__name__}: {cause}.", remedy="The worker's own account stands above.")


def _actor_died(error: RayActorError) -> StillhouseError:
    text = " ".join(str(error).split())
    return JobError(
        f"A teacher's actor died and could not be restarted: {text}",
        remedy="What was committed stays; run the same command to go on.",
    )
