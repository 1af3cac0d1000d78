"""The teacher's job on a real Ray: what is computed, what is reused, what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.cache.open import open_cache
from storage.rows.cache_rows import CacheRows
from storage.stream.scan import scan
from teacher_infer.__main__ import main

Recipe = Callable[..., dict[str, Any]]


def run(path: str, capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = main([path, "--json", *arguments])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_a_second_run_makes_no_forward_pass_and_more_data_costs_only_itself(
    one_ray: str, tmp_path: Path, recipe: Recipe, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"

    def forward_rows() -> int:
        return sum(int(line) for line in calls.read_text().split())

    path = write_yaml(**recipe({"calls": str(calls)}, ray={"actors": 2, "cpus_per_actor": 0.5}))
    plan = run(path, capfd, "--plan")
    assert plan["spans"] == {"total": 4, "reused": 0, "computed": 4}
    assert (plan["positions"], plan["forward_positions"], plan["classes"]) == (40, 40, 3)
    assert plan["expected_bytes"] >= 40 * (4 * 4 + 3 * 2)
    assert not calls.exists()
    assert not (tmp_path / "store").exists()

    first = run(path, capfd)
    assert first["spans"] == {"total": 4, "reused": 0, "computed": 4}
    # Each actor's teacher is checked once, with 4 rows of its first batch.
    assert first["forward_positions"] == 40
    rows = forward_rows()
    assert rows in (44, 48)
    assert first["cache_key"] == plan["cache_key"]
    assert first["cache"] == open_cache(f"{tmp_path}/store/toy").url

    again = run(path, capfd)
    assert again["spans"] == {"total": 4, "reused": 4, "computed": 0}
    assert again["forward_positions"] == 0
    assert forward_rows() == rows
    assert again["cache_digest"] == first["cache_digest"]

    # Another temperature, seed, batch size or name is the same question.
    same = run(path, capfd, "targets.temperature=1.0", "seed=9", "teacher.batch_size=5", "name=other")
    assert (same["forward_positions"], same["cache_key"]) == (0, first["cache_key"])

    more = run(path, capfd, "source.arguments.count=57")
    assert more["spans"] == {"total": 6, "reused": 4, "computed": 2}
    assert more["forward_positions"] == 17
    assert forward_rows() - rows in (17 + 4, 17 + 8)
    ids = [i for rows in scan(CacheRows(open_cache(more["cache"])), 100) for i in rows.sample_id]
    assert ids == [f"s{i}" for i in range(57)]


def test_held_out_rows_are_a_cache_of_their_own(
    one_ray: str, tmp_path: Path, recipe: Recipe, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    held_out = {"function": "stillhouse_toys:rows", "arguments": {"count": 15, "first": 1000}}
    answer = run(write_yaml(**recipe(held_out={"name": "toy-test", "source": held_out})), capfd)
    assert answer["spans"]["total"] == 4
    assert answer["held_out"]["spans"] == {"total": 2, "reused": 0, "computed": 2}
    assert answer["held_out"]["forward_positions"] == 15
    assert open_cache(f"{tmp_path}/store/toy-test").samples == 15
    assert open_cache(f"{tmp_path}/store/toy").samples == 40


def test_a_job_killed_half_way_computes_only_what_is_missing(
    one_ray: str,
    toys: Path,
    tmp_path: Path,
    recipe: Recipe,
    write_yaml: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = run(write_yaml("whole.yaml", **recipe(store=str(tmp_path / "undisturbed"))), capfd)

    def committed() -> set[str]:
        return {path.stem for path in (tmp_path / "store" / "commits").glob("*/*.json")}

    path = write_yaml("killed.yaml", **recipe())
    (toys / "slow").touch()
    try:
        with open(tmp_path / "log", "wb") as log:
            environment = {**os.environ, "RAY_ADDRESS": one_ray}
            job = subprocess.Popen(
                [sys.executable, "-m", "teacher_infer", path], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while not committed():
            assert job.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
        job.wait()
        # The actor outlives its driver by a moment, and may still commit the span that it holds.
        before = committed()
        time.sleep(3)
    finally:
        (toys / "slow").unlink()
    before = committed()
    assert 1 <= len(before) < 4
    assert not (tmp_path / "store" / "caches").exists()

    rest = run(path, capfd)
    assert rest["spans"] == {"total": 4, "reused": len(before), "computed": 4 - len(before)}
    assert rest["forward_positions"] == 10 * (4 - len(before))
    assert rest["cache_digest"] == whole["cache_digest"]
    assert rest["cache_key"] == whole["cache_key"]


def test_rows_that_two_caches_share_are_labelled_once(
    one_ray: str, tmp_path: Path, recipe: Recipe, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"
    same = {"function": "stillhouse_toys:rows", "arguments": {}}
    answer = run(write_yaml(**recipe({"calls": str(calls)}, held_out={"name": "same", "source": same})), capfd)
    assert answer["cache_key"] == answer["held_out"]["cache_key"]
    assert (answer["forward_positions"], answer["held_out"]["forward_positions"]) == (40, 0)
    assert answer["held_out"]["spans"] == {"total": 4, "reused": 4, "computed": 0}
    # Each actor's teacher is checked once, with 4 rows of its first batch.
    assert sum(int(line) for line in calls.read_text().split()) in (44, 48)


def test_a_teacher_that_changes_under_a_job_leaves_no_shard(
    one_ray: str, tmp_path: Path, recipe: Recipe, weights: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from storage.base.errors import VerificationError
    from storage.objectstore.folder import Folder
    from teacher_infer.planning.config import TeacherRecipe
    from teacher_infer.planning.prepare import prepare
    from teacher_infer.run import run as run_job

    asked = TeacherRecipe.model_validate(recipe())
    prepared = prepare(asked, Folder(asked.store))
    save_file({name: value + torch.ones(()) for name, value in load_file(weights).items()}, weights)
    with pytest.raises(VerificationError, match="The job was planned with"):
        run_job(prepared)
    assert Folder(asked.store).names("commits") == []


def test_a_committed_shard_that_is_gone_is_not_sealed(
    one_ray: str, tmp_path: Path, recipe: Recipe, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_yaml(**recipe())
    cache = open_cache(run(path, capfd)["cache"])
    shard = tmp_path / "store" / cache.shards[2].path
    shard.unlink()
    assert main([path, "name=again"]) == 3
    said = capfd.readouterr().err
    assert f"The shard {shard} is not there." in said
    commit = tmp_path / "store" / "commits" / cache.shards[2].shard_key[:2] / f"{cache.shards[2].shard_key}.json"
    assert f"remove {commit} to have it computed anew" in said
