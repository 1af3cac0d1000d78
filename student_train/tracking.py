"""A training run in MLflow: the driver makes and ends it, the first worker tells its metrics in batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from storage.mlflow_lineage import (
    cache_tags,
    finish_run,
    link_caches,
    log_points,
    register_model,
    reopen_run,
    start_run,
    tag_run,
)
from storage.stream import CacheRows, RowGroups
from student_train.checkpoint import Point
from student_train.config import StudentRecipe


class Tracker:
    """One run as the driver sees it. With tracking off, or MLflow out of reach, run_id is None and nothing is told."""

    def __init__(self, recipe: StudentRecipe, run_id: str | None, data: RowGroups, held_out: RowGroups | None) -> None:
        self._recipe, self._data, self._held_out = recipe, data, held_out
        self.uri = recipe.tracking.resolved_uri()
        self.run_id = None
        if self.uri is None:
            return
        if run_id is not None and reopen_run(self.uri, run_id):
            self.run_id = run_id
            return
        name = f"{recipe.name}-seed-{recipe.seed}"
        self.run_id = start_run(self.uri, recipe.tracking.experiment, name, self._tags(), self._params())
        read = ((data, "distillation"), (held_out, "eval"))
        datasets = [(groups.cache, context) for groups, context in read if isinstance(groups, CacheRows)]
        if self.run_id is not None and datasets:
            link_caches(self.uri, self.run_id, datasets)

    def _tags(self) -> dict[str, str]:
        recipe, data, held_out = self._recipe, self._data, self._held_out
        tags = {
            "distill.role": recipe.role_name(),
            "distill.name": recipe.name,
            "distill.seed": str(recipe.seed),
            "distill.recipe.digest": recipe.digest(),
            "distill.recipe.family": recipe.family(),
            "distill.student.factory": recipe.student.factory,
            "distill.data.digest": data.digest,
        }
        if isinstance(data, CacheRows):
            tags |= cache_tags(data.cache)
        if held_out is not None:
            tags |= {"distill.eval.digest": held_out.digest, "distill.eval.uri": held_out.where}
        return tags

    def _params(self) -> dict[str, Any]:
        recipe = self._recipe
        losses = {name: section.model_dump() for name, section in recipe.loss_sections().items()}
        return {
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "seed": recipe.seed,
            "lr": recipe.optimizer.lr,
            "optimizer": recipe.optimizer.name,
            "losses": losses,
            "student": f"{recipe.student.factory} {recipe.student.arguments}",
        }

    def succeeded(self, result: dict[str, Any], points: Sequence[Point]) -> None:
        """Tell the metrics that are left, what the model is worth and where it lies, and end the run."""
        if self.uri is None or self.run_id is None:
            return
        now, steps = int(time.time() * 1000), self._recipe.steps
        scores = [(f"eval/{name}", value, steps, now) for name, value in result["eval"].items()]
        scores.append(("model/parameters", float(result["parameters"]), steps, now))
        log_points(self.uri, self.run_id, [*points, *scores])
        facts = {
            "distill.weights.sha256": result["weights_sha256"],
            "distill.weights.uri": f"{result['model']}/model.safetensors",
            "distill.init.sha256": result["init_digest"],
            **self._tags(),
        }
        tag_run(self.uri, self.run_id, facts)
        name = self._recipe.tracking.register_as
        if name is not None:
            register_model(self.uri, self.run_id, name, facts)
        finish_run(self.uri, self.run_id, "FINISHED")

    def failed(self, *, interrupted: bool) -> None:
        if self.uri is not None and self.run_id is not None:
            finish_run(self.uri, self.run_id, "KILLED" if interrupted else "FAILED")


class Teller:
    """The first worker's way to a run. Metrics are told with a checkpoint, so that a resumed run tells none twice.

    Importing MLflow takes seconds; a run that is over sooner leaves its metrics to the driver.
    """

    EVERY_S = 10.0

    def __init__(self, uri: str | None, run_id: str | None) -> None:
        self._uri, self._run_id = uri, run_id
        self._told = time.monotonic()

    def tell(self, points: list[Point]) -> list[Point]:
        """The points that are still to be told."""
        if self._uri is None or self._run_id is None or time.monotonic() - self._told < self.EVERY_S:
            return points
        self._told = time.monotonic()
        return [] if log_points(self._uri, self._run_id, points) else points
