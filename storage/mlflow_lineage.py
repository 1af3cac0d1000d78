"""What MLflow is told: registered teacher, cache run, student runs, and the dataset that joins them.

Best effort, always after the fact: the record is in the cache (or beside the model) already, so a
tracker that is down stops nothing and loses nothing. Nothing else in storage imports this file.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from storage import yaml12
from storage.cache import Cache
from storage.console import say
from storage.errors import TrackingError
from storage.lineage import redact
from storage.sqlite_uri import sqlite_path

# MLflow's own limits: a dataset digest has at most 36 characters, a batch at most 1,000 metrics, 100 parameters and 100
# tags; a parameter 6,000 characters, a tag 8,000.
DIGEST_CHARACTERS, BATCH_METRICS = 32, 1000
PARAM_CHARACTERS, TAG_CHARACTERS = 6000, 8000
CUT = " ... (cut)"

_default_lock, _connecting = threading.Lock(), threading.Lock()


@contextmanager
def best_effort(what: str) -> Generator[None]:
    """Whatever fails inside is said on stderr, and goes no further."""
    try:
        yield
    except Exception as error:
        text = redact(" ".join(str(error).split()))
        say(f"MLflow was not told {what} ({type(error).__name__}: {text[:300]}). The work itself is not affected.")


def _within(values: Mapping[str, Any], characters: int) -> dict[str, str]:
    """The values as texts; those that are longer than MLflow takes are cut, and end with CUT."""
    texts = {key: str(value) for key, value in values.items()}
    return {k: t if len(t) <= characters else t[: characters - len(CUT)] + CUT for k, t in texts.items()}


def connect(uri: str, experiment: str | None = None) -> tuple[Any, str | None]:
    """(client, experiment id). Makes the experiment, and the folder of an SQLite database, where they are missing."""
    # A server that is down should cost seconds; MLflow's default is seven retries with doubling pauses.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # One at a time: two runs that begin together would both make the experiment.
    with _connecting, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A new database is narrated migration by migration.
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        # Without a server, artifacts would land in the current folder.
        artifacts = None if path is None else (path.parent / "mlartifacts").absolute().as_uri()
        if path is not None and not path.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # The client would write the current folder into its first SQL, where quotes and colons break it.
            SqlAlchemyStore(uri, artifacts).engine.dispose()
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if experiment is None:
            return client, None
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        # MLflow's pages open such an experiment among trained models, not among language-model traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return client, client.create_experiment(experiment, artifact_location=artifacts, tags=kind)


@contextmanager
def _as_default(uri: str) -> Generator[None]:
    """MLflow's process-wide default, for the calls that take no other; the environment is left as it was."""
    import mlflow

    with _default_lock:
        before = os.environ.get("MLFLOW_TRACKING_URI")
        try:
            mlflow.set_tracking_uri(uri)
            yield
        finally:
            # set_tracking_uri writes the variable, which a later recipe would take for the user's wish.
            if before is None:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
            else:
                os.environ["MLFLOW_TRACKING_URI"] = before


def cache_dataset(cache: Cache) -> Any:
    """The cache as an MLflow dataset `logit-cache:<name>`, its digest the cache digest's first 32 digits."""
    from mlflow.data.dataset import Dataset
    from mlflow.data.dataset_source_registry import resolve_dataset_source

    profile = {
        "samples": cache.samples,
        "shards": len(cache.index),
        "bytes": cache.bytes,
        "cache_digest": cache.digest,
    }
    profile |= {"encoding": cache.encoding, "classes": cache.classes}

    class LogitCache(Dataset):
        def __init__(self) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = resolve_dataset_source(cache.url)
            super().__init__(source=source, name=f"logit-cache:{cache.name}", digest=cache.digest[:DIGEST_CHARACTERS])

        def _compute_digest(self) -> str:
            raise AssertionError("the digest is given")

        @property
        def profile(self) -> Any:
            return profile

        @property
        def schema(self) -> Any:
            return None

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), "profile": json.dumps(profile)}

    return LogitCache()


def _inputs(client: Any, run_id: str, datasets: Sequence[tuple[Cache, str]], teacher: dict[str, Any] | None) -> None:
    from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

    inputs = [
        DatasetInput(cache_dataset(cache)._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
        for cache, context in datasets
    ]
    models = [LoggedModelInput(teacher["model_id"])] if teacher and teacher["model_id"] else None
    client.log_inputs(run_id, datasets=inputs, models=models)


def cache_tags(cache: Cache) -> dict[str, str]:
    """The flat tags that lead from a run to its cache and its teacher."""
    teacher = cache.lineage["teacher"]
    return {
        "distill.cache.name": cache.name,
        "distill.cache.key": cache.key,
        "distill.cache.digest": cache.digest,
        "distill.cache.uri": cache.url,
        "distill.teacher.digest": teacher["digest"],
        "distill.teacher.factory": teacher["factory"],
        **({"distill.teacher.weights.sha256": teacher["weights_sha256"]} if teacher["weights_sha256"] else {}),
    }


def track_cache(uri: str, experiment: str, cache: Cache, recipe: dict[str, Any]) -> str | None:
    """A run for a sealed cache, with the dataset as its output; the same run again when there is one.

    A run that could not be told all ends as FAILED, and the next call completes it. None if MLflow could not be told.
    """
    with best_effort(f"of the cache {cache.label}"):
        client, experiment_id = connect(uri, experiment)
        found = _cache_runs(client, experiment_id, cache)
        if found and found[0].info.status == "FINISHED":
            return found[0].info.run_id
        tags = {**cache_tags(cache), "distill.role": "cache", "distill.recipe.digest": cache.lineage["recipe_digest"]}
        if not found:
            client.create_run(experiment_id, run_name=f"cache:{cache.name}", tags=_within(tags, TAG_CHARACTERS))
            # Another job may have sealed the same cache and made a run at this moment.
            found = _cache_runs(client, experiment_id, cache)
        run_id = found[0].info.run_id
        complete = _tell_cache(client, run_id, cache, recipe)
        for other in found[1:]:
            if other.info.status == "RUNNING":
                client.set_terminated(other.info.run_id, "KILLED")
        client.set_terminated(run_id, "FINISHED" if complete else "FAILED")
        return run_id
    return None


def _cache_runs(client: Any, experiment_id: str | None, cache: Cache) -> list[Any]:
    """The runs of a cache: a finished one first, then the oldest."""
    which = f"tags.`distill.cache.digest` = '{cache.digest}' AND tags.`distill.role` = 'cache'"
    runs = client.search_runs([experiment_id], which)
    return sorted(runs, key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id))


def _tell_cache(client: Any, run_id: str, cache: Cache, recipe: dict[str, Any]) -> bool:
    """Each part by itself; True when all arrived. A part that is there already may be told again."""
    from mlflow.entities import Metric, Param

    def values() -> None:
        now = int(time.time() * 1000)
        targets = _within({"targets": json.dumps(cache.encoding, sort_keys=True)}, PARAM_CHARACTERS)
        metrics = [Metric(n, float(getattr(cache, n)), now, 0) for n in ("samples", "positions", "bytes")]
        client.log_batch(run_id, metrics, [Param(key, value) for key, value in targets.items()])

    def inputs() -> None:
        teacher = registered(client, cache.lineage["teacher"].get("weights_sha256"))
        _inputs(client, run_id, [(cache, "cache_output")], teacher)
        if teacher:
            client.set_tag(run_id, "distill.teacher.uri", teacher["uri"])
            client.set_tag(run_id, "distill.teacher.model_id", teacher["model_id"])

    parts: dict[str, Callable[[], None]] = {
        "of its parameters and metrics": values,
        "of its dataset and its teacher": inputs,
        "its cache.json": lambda: client.log_dict(run_id, cache.facts(), "cache.json"),
        "its recipe": lambda: client.log_text(run_id, yaml12.dump(recipe), "recipe.yaml"),
    }
    arrived: list[str] = []
    for what, tell in parts.items():
        with best_effort(f"of the cache {cache.label}: {what}"):
            tell()
            arrived.append(what)
    return len(arrived) == len(parts)


def start_run(
    uri: str,
    experiment: str,
    name: str,
    tags: dict[str, str],
    params: dict[str, Any],
    keep: Callable[[str], None] = lambda _: None,
) -> str | None:
    """A new run's id, or None if MLflow is not to be had.

    keep: is given the id as soon as there is a run, before its parameters are told.
    """
    run_id: str | None = None
    with best_effort(f"that the run {name} begins"):
        client, experiment_id = connect(uri, experiment)
        run_id = client.create_run(experiment_id, run_name=name, tags=_within(tags, TAG_CHARACTERS)).info.run_id
    if run_id is None:
        return None
    keep(run_id)
    with best_effort(f"the parameters of the run {name}"):
        from mlflow.entities import Param

        texts = _within(params, PARAM_CHARACTERS)
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

        connect(uri)[0].log_batch(run_id, tags=[RunTag(*tag) for tag in _within(tags, TAG_CHARACTERS).items()])
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

    Where MLflow does not answer, the run is taken to be there: it is told later.
    """
    with best_effort(f"that the run {run_id} goes on"):
        client, _ = connect(uri)
        if not _is_there(client, run_id):
            say(f"MLflow at {redact(uri)} has no run {run_id} any more; a new one is made.")
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
        _inputs(client, run_id, datasets, teacher)
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
        with _as_default(uri):
            experiment_id = client.get_run(run_id).info.experiment_id
            model = mlflow.create_external_model(
                name=name, source_run_id=run_id, tags=facts, experiment_id=experiment_id
            )
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            version = client.create_model_version(name, f"models:/{model.model_id}", run_id, tags=facts)
        return f"models:/{name}/{version.version}"
    return None


def registered(client: Any, weights_sha256: str | None, name: str | None = None) -> dict[str, Any] | None:
    """The newest registered version of some weights: its uri and the id of its logged model."""
    if weights_sha256 is None:
        return None
    which = f" AND name = '{name}'" if name else ""
    found = client.search_model_versions(f"tags.`distill.weights.sha256` = '{weights_sha256}'{which}")
    if not found:
        return None
    newest = max(found, key=lambda version: version.creation_timestamp)
    # OSS MLflow leaves model_id empty on versions of external models; the source names it.
    model_id = newest.source.removeprefix("models:/") if newest.source.startswith("models:/") else None
    return {"uri": f"models:/{newest.name}/{newest.version}", "model_id": model_id}


def finished_runs(uri: str, filter_string: str) -> list[dict[str, Any]]:
    """Finished runs of every experiment: {"run_id", "started", "tags", "metrics"}. Raises TrackingError."""
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
        raise TrackingError(
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
