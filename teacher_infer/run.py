"""A teacher's run from a plan to sealed caches: lease, subtract what is committed, label the rest, seal, tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jobs.console import say
from storage.base.errors import JobError, RecipeError, StoreError
from storage.base.redact import redact
from storage.cache import seal as sealing
from storage.cache.cache import Cache
from storage.cache.commits import Commit, read_commits
from storage.cache.leases import lease, live_jobs
from storage.objectstore.folder import Folder
from storage.objectstore.preparation import prepare_folder
from teacher_infer.labelling.job_progress import JobProgress
from teacher_infer.planning.plan import Span
from teacher_infer.planning.prepare import Part, Prepared, lineage_of, nested


def run(prepared: Prepared) -> dict[str, Any]:
    """Compute what is missing and seal every cache of the recipe. Raises JobError and all that a span raises."""
    started, store = time.monotonic(), prepared.store
    prepared.recipe.tracking.resolved_uri()  # refused before the work, not after it
    if store.protocol == "memory":
        raise RecipeError("store is memory://.", "Ray's workers are other processes, which cannot see it.")
    prepare_folder(store)
    spans: dict[str, tuple[int, Span]] = {}
    for index, part in enumerate(prepared.parts):
        for span in part.plan.spans:
            spans.setdefault(span.shard_key, (index, span))  # what two caches share is labelled for the first
    with lease(store, prepared.recipe.name, spans) as held:
        if not store.keeps_create:
            _be_the_only_one(store, held.path)
        each = {key: prepared.parts[part].plan.positions_a_row for key, (part, _) in spans.items()}
        progress = JobProgress(_reused(prepared), prepared.recipe.max_bad_samples, len(spans), each)
        missing = [place for key, place in spans.items() if key not in progress.reused]
        if missing:
            # Torch and Ray are imported where there is something to compute.
            from teacher_infer.job import label_all

            label_all(prepared, missing, held, progress)
        held.check()
        _refuse_empty(prepared.parts, progress)
        sealed = [
            sealing.seal(
                store, part.name, [progress.commit(span) for span in part.plan.spans], lineage_of(prepared, part)
            )
            for part in prepared.parts
        ]
    seconds = time.monotonic() - started
    answers = _answers(prepared.parts, sealed, progress)
    return {
        "seconds": round(seconds, 3),
        **nested(answers),
        "work": progress.facts(seconds),
        "tracking": _track(prepared, sealed),
    }


def _reused(prepared: Prepared) -> dict[str, Commit]:
    """The commits that the plan counted on, read once; one that has gone since is computed anew."""
    planned_missing = {span.shard_key for part in prepared.parts for span in part.missing}
    keys = [span.shard_key for part in prepared.parts for span in part.plan.spans]
    keys = [key for key in dict.fromkeys(keys) if key not in planned_missing]
    found = read_commits(prepared.store, keys)
    return {key: commit for key, commit in zip(keys, found, strict=True) if commit is not None}


def _be_the_only_one(store: Folder, marker: str) -> None:
    """Where put-if-absent is not kept, only the one committer of the one job may commit."""
    others = [job for job in live_jobs(store) if f"jobs/{job.id}.json" != marker]
    if others:
        raise StoreError(
            f"{store.url} does not keep put-if-absent, and the job {others[0]} is at work on it.",
            "On such a store one job may run at a time.",
            f"Wait until it has ended; if it was killed, ten minutes, or remove jobs/{others[0].id}.json. "
            "Or name a store that keeps it.",
        )
    say(
        f"{store.url} does not keep put-if-absent (If-None-Match): of racing writers several are told that they won. "
        "So this process commits for all actors, and no second job may run on this store meanwhile."
    )


def _refuse_empty(parts: Sequence[Part], progress: JobProgress) -> None:
    for part in parts:
        if not any(progress.commit(span).rows for span in part.plan.spans):
            raise JobError(f"The teacher could label no sample of '{part.name}'.", "A cache has at least one.")


def _answers(parts: Sequence[Part], sealed: Sequence[Cache], progress: JobProgress) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    counted: set[str] = set()
    for part, cache in zip(parts, sealed, strict=True):
        # A span that two caches share counts as computed for the first.
        computed = [s for s in part.plan.spans if progress.computed(s) and s.shard_key not in counted]
        counted.update(span.shard_key for span in computed)
        total = len(part.plan.spans)
        answers.append(
            {
                "cache": cache.url,
                **part.answer(),
                "spans": {"total": total, "reused": total - len(computed), "computed": len(computed)},
                "cache_digest": cache.digest,
                "forward_positions": sum(span.rows for span in computed) * part.plan.positions_a_row,
                "bytes": cache.bytes,
                "quarantined": cache.quarantined,
            }
        )
    return answers


def _track(prepared: Prepared, sealed: Sequence[Cache]) -> dict[str, Any] | None:
    uri = prepared.recipe.tracking.resolved_uri()
    if uri is None:
        return None
    from jobs.tracking.caches import track_cache

    recipe = redact(prepared.recipe.model_dump(mode="json"))
    runs = [track_cache(uri, prepared.recipe.tracking.experiment, cache, recipe) for cache in sealed]
    return {"uri": redact(uri), "run_ids": [run for run in runs if run is not None]}
