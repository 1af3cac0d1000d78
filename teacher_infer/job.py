"""The teacher's Ray job: actors that hold a teacher and label spans, and the driver that feeds and replaces them."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.connect import connect
from cluster.losses import Losses, what_there_is
from cluster.metrics import Meter
from storage.commits import Commit, settle
from storage.console import Progress, say
from storage.digest import sha256_of
from storage.encodings import make_encoding
from storage.errors import DeviceLost, JobError, RecipeError, SourceChanged, StillhouseError, StoreError, StoreLost
from storage.folder import Folder
from storage.key_parts import differences
from storage.leases import Lease
from storage.sources import make_source
from storage.stages import remove_dead_stages
from teacher_infer.label import Labelled, Seconds, Work, label_span
from teacher_infer.plan import Span
from teacher_infer.pool import SPANS_IN_FLIGHT, Pool, Task
from teacher_infer.prepare import Prepared, actor_settings
from teacher_infer.tally import Tally
from teacher_infer.teachers import build_without_weights, make_spec, make_teacher


@ray.remote
class TeacherActor:
    """A loaded teacher that labels spans, two at a time: one is with the teacher, the other one read or written.

    Only commit records leave it. Loading happens in `ready`, whose errors reach the driver as they are.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import threading

        self._settings, self._turn = settings, threading.Lock()

    def where(self) -> str:
        """The id of its node; answers as soon as Ray has placed it."""
        return ray.get_runtime_context().get_node_id()

    def ready(self) -> None:
        settings, here = self._settings, socket.gethostname()
        store = Folder(settings["store"], settings["keeps_create"])
        remove_dead_stages()
        if not store.exists(settings["marker"]):
            raise StoreError(
                f"The machine {here} does not see the store {store.url} that the job began on.",
                "Every machine of the job reads and writes the same store.",
                "Name a shared folder or an object store.",
            )
        spec = make_spec(settings["spec"])
        planned = settings["teacher_parts"]
        try:
            model = build_without_weights(spec, settings["seed"])
            found = spec.key_parts(settings["dtype"], model)
        except RecipeError as error:
            raise RecipeError(
                f"On the machine {here}: {error}",
                remedy="Ship the module with the job's working directory, or install it on every machine.",
            ) from None
        if found != planned:
            raise SourceChanged(
                f"The teacher {spec.lineage()['factory']} on {here} has the digest {sha256_of(found)[:16]}; other than "
                f"planned: {', '.join(differences(planned, found))}.",
                f"The job was planned with {sha256_of(planned)[:16]}.",
                "Its weights or its code changed, or this machine has others; run the recipe again. Where the factory "
                "makes its weights itself, it makes the same ones each time (torch.manual_seed is set before).",
            )
        targets = dict(settings["targets"])
        encoding = make_encoding(targets.pop("encoding"), targets)
        gpus = len(ray.get_gpu_ids())
        self._teacher = make_teacher(spec, dtype=settings["dtype"], seed=settings["seed"], gpus=gpus, model=model)
        common = (encoding, sha256_of(planned), settings["batch_size"], settings["max_bad_samples"])
        kept = {"inputs": settings["inputs"], "compression": settings["compression"]}
        self._works = [
            Work(store, make_source(source), *common, settings["keeps_create"], **kept, key=key)
            for source, key in zip(settings["sources"], settings["keys"], strict=True)
        ]

    def label(self, part: int, span: Span) -> dict[str, Any]:
        import torch

        # A setting of the calling thread, of which this actor has several.
        torch.set_num_threads(max(1, int(self._settings["cpus"])))
        labelled = label_span(self._works[part], self._teacher, span, self._turn)
        return {
            "commit": labelled.commit.to_dict(),
            "computed": labelled.computed,
            "seconds": vars(labelled.seconds),
        }


def label_all(prepared: Prepared, missing: Sequence[tuple[int, Span]], held: Lease, tally: Tally) -> None:
    """Label spans, each with the index of its part, on an actor pool, and add them to the tally as they come.

    held: the job's lease, whose file every machine must see. Raises JobError and all that a span raises.
    """
    settings = prepared.recipe.ray
    connect(settings.num_cpus)
    crew = _Crew(prepared, Pool([Task(*place) for place in missing], settings), held, tally)
    total = sum(span.rows * prepared.parts[part].plan.positions_a_row for part, span in missing)
    try:
        with Progress("teacher", total, "positions") as progress:
            while not crew.pool.over:
                crew.step()
                progress.update(tally.done, tally.note())
    finally:
        crew.dismiss()


class _Crew:
    """The actors behind a pool's numbers: carries out what the pool decides, and tells it what it hears."""

    def __init__(self, prepared: Prepared, pool: Pool, held: Lease, tally: Tally) -> None:
        self.pool, self._prepared, self._held, self._tally = pool, prepared, held, tally
        self._settings, self._meter = actor_settings(prepared, held.path), Meter(prepared.recipe.name)
        self._actors: dict[int, Any] = {}
        self._nodes, self._losses = dict[int, str](), Losses()
        self._ready_at: dict[int, float] = {}
        self._asked: dict[Any, tuple[int, Task | None]] = {}

    def step(self) -> None:
        """Hire, hear at least one answer or wait a second, and give out spans."""
        for number in self.pool.hire():
            self._hire(number)
        self.pool.refuse_to_wait(time.monotonic(), what_there_is)
        answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=1.0)
        for reference in answered:
            self._hear(reference)
        for number in list(self._actors):
            while (task := self.pool.give(number)) is not None:
                self._asked[self._actors[number].label.remote(task.part, task.span)] = (number, task)
        for number in self.pool.release():
            self._let_go(number)
        self._meter.actors(self.pool.placed)

    def dismiss(self) -> None:
        for number in list(self._actors):
            self._let_go(number)

    def _hire(self, number: int) -> None:
        settings = self._prepared.recipe.ray
        try:
            actor = TeacherActor.options(
                num_cpus=settings.cpus_per_actor,
                num_gpus=settings.gpus_per_actor,
                label_selector=settings.label_selector or None,
                max_concurrency=SPANS_IN_FLIGHT,
            ).remote(self._settings)
        except ValueError as error:
            raise RecipeError(f"ray: Ray refuses what an actor asks for: {error}") from None
        self._actors[number] = actor
        self._asked[actor.where.remote()] = (number, None)
        self._asked[actor.ready.remote()] = (number, None)

    def _let_go(self, number: int) -> None:
        ray.kill(self._actors.pop(number))
        self._asked = {reference: asked for reference, asked in self._asked.items() if asked[0] != number}
        self._nodes.pop(number, None)
        ready_at = self._ready_at.pop(number, None)
        if ready_at is not None:
            self._tally.actor_s += time.monotonic() - ready_at

    def _hear(self, reference: Any) -> None:
        if reference not in self._asked:
            return  # of an actor that was let go since
        number, task = self._asked.pop(reference)
        try:
            answer: Any = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DeviceLost) or (isinstance(cause, StoreLost) and task is None):
                self._lose(number, str(cause), preempted=False)
            elif isinstance(cause, StoreLost) and task is not None:
                self._try_again(number, task, cause)
            else:
                raise _in_words(error) from None
        except RayError as error:
            preempted = self._losses.took_its_node(error, self._actors[number], self._nodes.get(number))
            self._lose(number, " ".join(str(error).split()), preempted=preempted)
        else:
            if task is not None:
                self._commit(number, task, answer)
            elif answer is not None:
                self._nodes[number] = answer
                self.pool.note_placed(number)
            else:
                self._ready_at[number] = time.monotonic()
                self.pool.note_ready(number)

    def _commit(self, number: int, task: Task, answer: dict[str, Any]) -> None:
        alone = not self._settings["keeps_create"]
        commit = Commit.from_dict(answer["commit"], with_key=alone)
        if alone:
            self._held.check()
            try:
                commit = settle(self._prepared.store, commit)
            except StoreLost as error:
                self._try_again(number, task, error)
                return
        labelled = Labelled(commit, answer["computed"], Seconds(**answer["seconds"]))
        self.pool.done(number, task)
        self._tally.add(task.span, labelled)
        self._meter.span(self._tally.positions(commit), commit.bytes, vars(labelled.seconds), labelled.computed)

    def _try_again(self, number: int, task: Task, error: StoreLost) -> None:
        say(f"{task.span} will be tried again: {error}")
        self._failed("store")
        self.pool.store_lost(number, task, str(error))

    def _lose(self, number: int, reason: str, *, preempted: bool) -> None:
        say(f"An actor {'was lost with its node' if preempted else 'died'}; its spans are given again. {reason}")
        self._failed("preempted" if preempted else "crashed")
        self._let_go(number)
        try:
            self.pool.lost(number, preempted=preempted, reason=reason)
        finally:
            self._tally.crashes, self._tally.preemptions = self.pool.crashes, self.pool.preemptions

    def _failed(self, kind: str) -> None:
        self._tally.failed_attempts += 1
        self._meter.failed(kind)


def _in_words(error: RayTaskError) -> StillhouseError:
    cause = error.cause
    if isinstance(cause, StillhouseError):
        return cause
    say(str(error))
    return JobError(f"A span failed: {type(cause).__name__}: {cause}.", remedy="The worker's own account stands above.")
