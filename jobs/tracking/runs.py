"""Training runs in MLflow: their metrics, the caches that they read, and the models that they register.

Best effort, always after the fact: the record is in the cache (or beside the model) already, so a tracker that is down
stops nothing and loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jobs.tracking.caches import log_inputs
from jobs.tracking.client import (
    BATCH_METRICS,
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    as_default,
    best_effort,
    connect,
    registered,
    within,
)
from storage.base import yaml12
from storage.base.errors import JobError
from storage.base.redact import redact
from storage.cache.cache import Cache

log = logging.getLogger("stillhouse.tracking")


def start_run(
    uri: str,
    experiment: str,
    name: str,
    tags: dict[str, str],
    params: dict[str, Any],
    keep: Callable[[str], None] = lambda _: None,
) -> str | None:
    """A new run's id, or None if MLflow is not to be had.

    keep: is called with the id as soon as there is a run, before its parameters are logged.
    """
    run_id: str | None = None
    with best_effort(f"that the run {name} begins"):
        client, experiment_id = connect(uri, experiment)
        run_id = client.create_run(experiment_id, run_name=name, tags=within(tags, TAG_CHARACTERS)).info.run_id
    if run_id is None:
        return None
    keep(run_id)
    with best_effort(f"the parameters of the run {name}"):
        from mlflow.entities import Param

        texts = within(params, PARAM_CHARACTERS)
        connect(uri)[0].log_batch(run_id, params=[Param(key, value) for key, value in texts.items()])
    return run_id


def log_recipe(uri: str, run_id: str, recipe: dict[str, Any]) -> None:
    """The recipe as it was resolved, as the run's artifact recipe.yaml."""
    with best_effort(f"the recipe of the run {run_id}"):
        connect(uri)[0].log_text(run_id, yaml12.dump(recipe), "recipe.yaml")


def log_points(uri: str, run_id: str, points: Sequence[tuple[str, float, int, int]]) -> bool:
    """Tell metrics (name, value, step, milliseconds). True when they arrived."""
    with best_effort(f"{len(points)} metrics of the run {run_id}"):
        from mlflow.entities import Metric

        client, _ = connect(uri)
        metrics = [Metric(name, value, stamp, step) for name, value, step, stamp in points]
        for start in range(0, len(metrics), BATCH_METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])
        return True
    return False


def tag_run(uri: str, run_id: str, tags: dict[str, str]) -> bool:
    """True when the tags arrived."""
    with best_effort(f"the tags of the run {run_id}"):
        from mlflow.entities import RunTag

        connect(uri)[0].log_batch(run_id, tags=[RunTag(*tag) for tag in within(tags, TAG_CHARACTERS).items()])
        return True
    return False


def finish_run(uri: str, run_id: str, status: str) -> bool:
    """status: FINISHED, FAILED or KILLED. True when MLflow knows."""
    with best_effort(f"that the run {run_id} ended"):
        connect(uri)[0].set_terminated(run_id, status)
        return True
    return False


def reopen_run(uri: str, run_id: str) -> bool:
    """Set a run of an earlier attempt running again. False only where MLflow says that it has none with this id.

    Where MLflow does not answer, the run is assumed to exist: what it lacks is logged later.
    """
    with best_effort(f"that the run {run_id} goes on"):
        client, _ = connect(uri)
        if not _is_there(client, run_id):
            log.warning("MLflow at %s has no run %s any more; a new one is made.", redact(uri), run_id)
            return False
        client.update_run(run_id, status="RUNNING")
    return True


def close_run(uri: str, run_id: str) -> None:
    """End a run that another one replaces as KILLED, where it is still said to be running."""
    with best_effort(f"that the run {run_id} was given up"):
        client, _ = connect(uri)
        if _is_there(client, run_id) and client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def _is_there(client: Any, run_id: str) -> bool:
    """Whether MLflow has a run, and not among the deleted ones."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def link_caches(uri: str, run_id: str, datasets: Sequence[tuple[Cache, str]]) -> None:
    """The caches that a run read, each with its context (distillation, eval), and their teacher."""
    with best_effort(f"which caches the run {run_id} read"):
        client, _ = connect(uri)
        # A baseline reads a cache to be evaluated; only who learned from one has a teacher.
        learned = [cache for cache, context in datasets if context == "distillation"]
        teacher = registered(client, learned[0].lineage["teacher"].get("weights_sha256")) if learned else None
        log_inputs(client, run_id, datasets, teacher)
        if teacher:
            client.set_tag(run_id, "distill.teacher.uri", teacher["uri"])


def register_model(uri: str, run_id: str, name: str, facts: dict[str, str]) -> str | None:
    """A version of a registered model that points to weights where they lie; the same version for the same weights.

    facts: tags, among them distill.weights.sha256 and distill.weights.uri. Returns `models:/name/version`.
    """
    with best_effort(f"of the model {name}"):
        import mlflow

        client, _ = connect(uri)
        known = registered(client, facts["distill.weights.sha256"], name)
        if known:
            return known["uri"]
        with as_default(uri):
            experiment_id = client.get_run(run_id).info.experiment_id
            model = mlflow.create_external_model(
                name=name, source_run_id=run_id, tags=facts, experiment_id=experiment_id
            )
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            version = client.create_model_version(name, f"models:/{model.model_id}", run_id, tags=facts)
        return f"models:/{name}/{version.version}"
    return None


def finished_runs(uri: str, filter_string: str) -> list[dict[str, Any]]:
    """Finished runs of every experiment: {"run_id", "started", "tags", "metrics"}. Raises JobError."""
    try:
        client, _ = connect(uri)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs: list[Any] = []
        token = None
        while True:
            page = client.search_runs(ids, f"attributes.status = 'FINISHED' AND {filter_string}", page_token=token)
            runs += page
            token = page.token
            if not token:
                break
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        raise JobError(
            f"MLflow at {redact(uri)} did not answer ({type(error).__name__}: {text[:300]}).",
            "Runs are compared from what MLflow was told.",
            "Name the tracking server with --tracking or MLFLOW_TRACKING_URI.",
        ) from None
    return [
        {
            "run_id": r.info.run_id,
            "started": r.info.start_time,
            "tags": dict(r.data.tags),
            "metrics": dict(r.data.metrics),
        }
        for r in runs
    ]
