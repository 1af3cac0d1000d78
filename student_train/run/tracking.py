"""A training run in MLflow as the driver makes and ends it; the first worker tells its metrics (see `journal`)."""

from __future__ import annotations

import time
from typing import Any

from jobs.tracking.caches import cache_tags
from jobs.tracking.runs import (
    close_run,
    finish_run,
    link_caches,
    log_points,
    log_recipe,
    register_model,
    reopen_run,
    start_run,
    tag_run,
)
from storage.base.redact import redact
from storage.rows.open import cache_of, filter_of
from student_train.run.run_folder import Run
from student_train.training.journal import tell


class Tracker:
    """One run as the driver sees it. With tracking off, or MLflow out of reach, run_id is None and nothing is told."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.uri = run.recipe.tracking.resolved_uri()
        self.run_id: str | None = None

    def close_replaced(self) -> None:
        """End the MLflow run of an attempt that was killed and is begun anew, whose id is kept nowhere from now on."""
        if self.uri is not None and self._run.replaced is not None:
            close_run(self.uri, self._run.replaced)

    def begin(self) -> None:
        """Go on with the run of an earlier attempt, or make one; its id is noted in the run's folder at once."""
        run, recipe = self._run, self._run.recipe
        self._keep(run.left.get("run_id"))
        if self.uri is None:
            return
        if self.run_id is not None and reopen_run(self.uri, self.run_id):
            return
        self._keep(None)
        name = f"{recipe.name}-seed-{recipe.seed}"
        start_run(self.uri, recipe.tracking.experiment, name, self._tags(), self._params(), self._keep)
        read = ((run.data, "distillation"), (run.held_out, "eval"))
        datasets = [(cache, context) for groups, context in read if (cache := cache_of(groups)) is not None]
        if self.run_id is not None:
            log_recipe(self.uri, self.run_id, redact(recipe.model_dump(mode="json")))
            if datasets:
                link_caches(self.uri, self.run_id, datasets)

    def _keep(self, run_id: str | None) -> None:
        self.run_id = run_id
        self._run.note(run_id)

    def _tags(self) -> dict[str, str]:
        recipe, data, held_out = self._run.recipe, self._run.data, self._run.held_out
        tags = {
            "distill.role": recipe.role_name(),
            "distill.name": recipe.name,
            "distill.seed": str(recipe.seed),
            "distill.recipe.digest": recipe.digest(),
            "distill.recipe.family": recipe.family(),
            "distill.student.factory": recipe.student.factory,
            "distill.data.digest": data.digest,
            "distill.model.digest": self._run.identity["model_digest"],
        }
        cache, held_out_cache = cache_of(data), cache_of(held_out)
        if cache is not None:
            tags |= cache_tags(cache)
        if held_out is not None:
            uri = held_out.where if held_out_cache is None else held_out_cache.url
            tags |= {"distill.eval.digest": held_out.digest, "distill.eval.uri": uri}
        filters = {"distill.where": filter_of(data), "distill.eval.where": filter_of(held_out)}
        return tags | {name: where for name, where in filters.items() if where is not None}

    def _params(self) -> dict[str, Any]:
        recipe = self._run.recipe
        losses = {name: section.model_dump() for name, section in recipe.loss_sections().items()}
        return {
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "seed": recipe.seed,
            "lr": recipe.optimizer.lr,
            "optimizer": recipe.optimizer.name,
            "losses": losses,
            "student": f"{recipe.student.factory} {redact(recipe.student.arguments)}",
        }

    def succeeded(self, result: dict[str, Any]) -> bool:
        """Tell the metrics that are left, what the model is worth and where it lies, and end the run.

        True when what is compared arrived: the metrics, the tags and the end.
        """
        if self.uri is None or self.run_id is None:
            return False
        now, steps = int(time.time() * 1000), self._run.recipe.steps
        scores = [(f"eval/{name}", value, steps, now) for name, value in result["eval"].items()]
        scores.append(("model/parameters", float(result["parameters"]), steps, now))
        arrived = tell(self._run.folder, self.uri, self.run_id) and log_points(self.uri, self.run_id, scores)
        facts = {
            "distill.weights.sha256": result["weights_sha256"],
            "distill.weights.uri": f"{result['model']}/model.safetensors",
            "distill.init.sha256": result["init_digest"],
            **self._tags(),
        }
        arrived = arrived and tag_run(self.uri, self.run_id, facts)
        name = self._run.recipe.tracking.register_as
        if name is not None:
            register_model(self.uri, self.run_id, name, facts)
        # Whatever was refused, the run is over; what it lacks is logged at the next start.
        return finish_run(self.uri, self.run_id, "FINISHED") and arrived

    def failed(self, *, interrupted: bool) -> None:
        if self.uri is not None and self.run_id is not None:
            finish_run(self.uri, self.run_id, "KILLED" if interrupted else "FAILED")
