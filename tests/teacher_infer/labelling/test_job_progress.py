"""What a job counts: positions, not rows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from storage.cache.commits import Commit
from storage.format.sections import ByteRange
from teacher_infer import job
from teacher_infer.labelling.job_progress import JobProgress
from teacher_infer.labelling.pool import Task


@pytest.mark.parametrize("computed", [True, False])
def test_rays_counter_counts_the_positions_of_the_committed_rows(computed: bool) -> None:
    commit = Commit("ab" * 32, "attempt", "shards/one.parquet", 4096, "cd" * 32, 9, (), ByteRange(0, 1, 0, "00"))
    span: Any = SimpleNamespace(shard_key=commit.shard_key, rows=10)  # one of its rows is quarantined
    progress = JobProgress({}, 1, 1, {commit.shard_key: 128})
    spans: list[tuple[Any, ...]] = []
    driver: Any = object.__new__(job._Driver)
    driver._settings, driver._progress = {"keeps_create": True}, progress
    driver.pool = SimpleNamespace(done=lambda *_: None)
    driver._meter = SimpleNamespace(span=lambda *given: spans.append(given))
    seconds = {"read": 0.0, "forward": 1.0, "write": 0.0}
    driver._commit(0, Task(0, span), {"commit": commit.to_dict(), "computed": computed, "seconds": seconds})
    assert spans == [(9 * 128, commit.bytes, seconds, computed)]
    assert progress.positions(commit, replace(commit, shard_key="other")) == 9 * 128 + 9
