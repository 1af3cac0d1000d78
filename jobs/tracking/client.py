"""A client of MLflow. Its failures are logged, and stop nothing."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs.tracking.sqlite_uri import sqlite_path
from storage.base.redact import redact

# MLflow's own limits: a dataset digest has at most 36 characters, a batch at most 1,000 metrics, 100 parameters and 100
# tags; a parameter 6,000 characters, a tag 8,000.
DIGEST_CHARACTERS, BATCH_METRICS = 32, 1000
PARAM_CHARACTERS, TAG_CHARACTERS = 6000, 8000
CUT = " ... (cut)"

log = logging.getLogger("stillhouse.tracking")

_default_lock, _connecting = threading.Lock(), threading.Lock()


@contextmanager
def best_effort(what: str) -> Generator[None]:
    """Log what fails inside, and go on."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:300]}"
        log.warning("MLflow was not told %s (%s). The work itself is not affected.", redact(what), reason)


def within(values: Mapping[str, Any], characters: int) -> dict[str, str]:
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
def as_default(uri: str) -> Generator[None]:
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
