"""The Ray actor that loads a teacher and labels spans."""

from __future__ import annotations

from typing import Any

import ray

from teacher_infer.labelling.watch import Advance
from teacher_infer.labelling.worker import Worker
from teacher_infer.planning.plan import Span


@ray.remote(concurrency_groups={"progress": 1})  # pyright: ignore[reportCallIssue]
class TeacherActor:
    """A `Worker` in a process of its own. Loading happens in `ready`, whose errors reach the driver as they are."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._worker = Worker(settings)

    def where(self) -> str:
        """The id of its node; answers as soon as Ray has placed it."""
        return ray.get_runtime_context().get_node_id()

    def ready(self) -> None:
        self._worker.load(gpus=len(ray.get_gpu_ids()))

    def label(self, part: int, span: Span) -> dict[str, Any]:
        return self._worker.label(part, span)

    # In a thread of its own, so that it is answered while the others are busy.
    @ray.method(concurrency_group="progress")
    def progress(self) -> Advance:
        return self._worker.progress()
