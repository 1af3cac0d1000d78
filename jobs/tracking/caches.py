"""A cache in MLflow: a run of its own, and the dataset that students name as their input."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from jobs.tracking.client import (
    DIGEST_CHARACTERS,
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    best_effort,
    connect,
    registered,
    within,
)
from storage.base import yaml12
from storage.cache.cache import Cache

# Which facts of a cache its dataset in MLflow has.
_PROFILE = ("samples", "shards", "bytes", "cache_digest", "encoding", "classes")


def cache_dataset(cache: Cache) -> Any:
    """The cache as an MLflow dataset `logit-cache:<name>`, its digest the cache digest's first 32 digits."""
    from mlflow.data.dataset import Dataset
    from mlflow.data.dataset_source_registry import resolve_dataset_source

    facts = cache.facts()
    profile = {name: facts[name] for name in _PROFILE}

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


def log_inputs(client: Any, run_id: str, datasets: Sequence[tuple[Cache, str]], teacher: dict[str, Any] | None) -> None:
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

    A run that lacks a part ends as FAILED, and the next call completes it. None if MLflow did not answer.
    """
    with best_effort(f"of the cache {cache.label}"):
        client, experiment_id = connect(uri, experiment)
        found = _cache_runs(client, experiment_id, cache)
        if found and found[0].info.status == "FINISHED":
            return found[0].info.run_id
        tags = {**cache_tags(cache), "distill.role": "cache", "distill.recipe.digest": cache.lineage["recipe_digest"]}
        if not found:
            client.create_run(experiment_id, run_name=f"cache:{cache.name}", tags=within(tags, TAG_CHARACTERS))
            # Another job may have sealed the same cache and made a run at this moment.
            found = _cache_runs(client, experiment_id, cache)
        run_id = found[0].info.run_id
        complete = _log_cache(client, run_id, cache, recipe)
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


def _log_cache(client: Any, run_id: str, cache: Cache, recipe: dict[str, Any]) -> bool:
    """Log each part by itself; True when all arrived. A part that is there already may be logged again."""
    from mlflow.entities import Metric, Param

    def values() -> None:
        now = int(time.time() * 1000)
        targets = within({"targets": json.dumps(cache.encoding, sort_keys=True)}, PARAM_CHARACTERS)
        metrics = [Metric(n, float(getattr(cache, n)), now, 0) for n in ("samples", "positions", "bytes")]
        client.log_batch(run_id, metrics, [Param(key, value) for key, value in targets.items()])

    def inputs() -> None:
        teacher = registered(client, cache.lineage["teacher"].get("weights_sha256"))
        log_inputs(client, run_id, [(cache, "cache_output")], teacher)
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
    for what, log in parts.items():
        with best_effort(f"of the cache {cache.label}: {what}"):
            log()
            arrived.append(what)
    return len(arrived) == len(parts)
