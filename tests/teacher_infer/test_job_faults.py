"""What a teacher's job does when samples, workers, machines, stores and other jobs get in its way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.console import Progress
from storage.cache.open import open_cache
from storage.rows.cache_rows import CacheRows
from storage.stream.scan import scan
from teacher_infer import job
from teacher_infer.__main__ import main
from teacher_infer.labelling import watch

Recipe = Callable[..., dict[str, Any]]
WriteYaml = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Run the command; its exit code, its answer and what it said."""

    def call(path: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main([path, "--json", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        # Between two commands Ray may print of an earlier test's worker.
        start = out.find("{\n")
        return code, json.loads(out[start:]) if start >= 0 else {}, err

    return call


def number(row: int) -> float:
    """The first feature of a row of the toys' source, exactly."""
    return float(np.float32(row) / np.float32(10))


@pytest.mark.parametrize("how", ["raises", "bad"])
def test_bad_samples_are_quarantined_up_to_the_recipes_limit(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, how: str
) -> None:
    path = write_yaml(**recipe({how: number(25)}))
    code, _, said = run(path)
    assert code == 1
    assert "The teacher cannot label the sample 's25' (in stillhouse_toys:rows[20:30])" in said
    code, answer, said = run(path, "max_bad_samples=1")
    assert code == 0, said
    assert answer["quarantined"] == 1
    assert answer["positions"] == 40
    cache = open_cache(answer["cache"])
    assert (cache.samples, cache.quarantined) == (39, 1)
    assert [i for rows in scan(CacheRows(cache), 100) for i in rows.sample_id] == [
        f"s{i}" for i in range(40) if i != 25
    ]
    # What is committed is reused by a recipe that allows fewer no more than it was computed by it.
    code, _, said = run(path, "name=again")
    assert code == 1
    assert "1 samples are quarantined; the first is 's25'" in said and "lets this job leave out 0" in said
    code, answer, _ = run(path, "name=again", "max_bad_samples=3")
    assert (code, answer["forward_positions"], answer["quarantined"]) == (0, 0, 1)


@pytest.mark.slow
def test_a_span_that_kills_its_worker_again_and_again_ends_the_job_with_its_name(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    mark = tmp_path / "survives"
    path = write_yaml(**recipe({"dies": number(25), "survives": str(mark)}, ray={"max_crashes": 1}))
    code, _, said = run(path)
    assert code == 1
    assert "2 actors died over stillhouse_toys:rows[20:30]." in said
    assert "ray.max_crashes is 1." in said and "What was committed stays." in said
    # Once the span does no harm, the same command goes on with what the others have committed.
    mark.touch()
    committed = len(list((tmp_path / "store" / "commits").glob("*/*.json")))
    code, answer, said = run(path)
    assert code == 0, said
    assert answer["spans"] == {"total": 4, "reused": committed, "computed": 4 - committed}
    assert committed >= 2


def test_a_worker_that_dies_once_costs_its_spans_and_nothing_else(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    whole = run(write_yaml("whole.yaml", **recipe(store=str(tmp_path / "undisturbed"))))[1]
    calls, mark = tmp_path / "calls", tmp_path / "survives"
    settings = {"calls": str(calls), "dies": number(15), "survives": str(mark)}
    path = write_yaml(**recipe(settings))

    def survive() -> None:
        while not Path(f"{mark}.died").exists():
            time.sleep(0.01)
        mark.touch()

    thread = threading.Thread(target=survive)
    thread.start()
    code, answer, said = run(path)
    thread.join()
    assert code == 0, said
    assert "An actor died; its spans are given again." in said
    assert answer["work"]["failed_attempts"] == 1
    assert answer["spans"] == {"total": 4, "reused": 0, "computed": 4}
    assert [s.rows for s in open_cache(answer["cache"]).shards] == [s.rows for s in open_cache(whole["cache"]).shards]


@pytest.mark.slow
def test_a_device_that_fails_costs_its_actor_and_no_password_is_told(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    code, answer, said = run(write_yaml(**recipe({"device": str(tmp_path / "failed")})))
    assert code == 0, said
    assert "An actor died; its spans are given again. The teacher's device failed" in said
    assert (answer["work"]["crashes"], answer["work"]["preemptions"], answer["quarantined"]) == (1, 0, 0)
    assert "https://***@host/kernel" in said and "planted" not in said


@pytest.mark.slow
def test_a_teacher_that_hangs_is_replaced_and_its_span_labelled_by_another_actor(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_TIMES", 2.0)
    settings = {"hangs": number(25), "hung": str(tmp_path / "hung")}
    code, answer, said = run(write_yaml(**recipe(settings, ray={"hang_timeout_s": 12.0})))
    assert code == 0, said
    assert "An actor died; its spans are given again. It hangs. It finished no batch for" in said
    assert answer["work"]["crashes"] == 1 and answer["spans"]["computed"] == 4


@pytest.mark.slow
def test_a_teacher_that_hangs_while_it_loads_is_replaced(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    settings = {"driver": os.getpid(), "loaded": str(tmp_path / "loaded")}
    code, answer, said = run(write_yaml(**recipe(settings, ray={"hang_timeout_s": 6.0})))
    assert code == 0, said
    assert "It hangs. It did not load its teacher for" in said
    assert answer["work"]["crashes"] == 1


def test_while_the_driver_was_stopped_no_actor_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-Z, or on a machine that was paused: it hears of no progress meanwhile."""
    driver: Any = object.__new__(job._Driver)
    driver._watch, driver._seen_at, now = watch.Watch(60.0), 0.0, 0.0
    driver._watch.began(0, "label", 0.0)
    monkeypatch.setattr(job.time, "monotonic", lambda: now)
    for now in (2.0, 1002.0, 1004.0):
        driver._notice_pause()
        assert driver._watch.hanging(now) == []
    assert driver._watch.hanging(1000.0 + 60.1) != []


def test_progress_moves_within_a_span(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Recorded(Progress):
        def update(self, done: int, note: str = "") -> None:
            seen.append(done)
            super().update(done, note)

    monkeypatch.setattr(job, "Progress", Recorded)
    slow = toys / "slow"
    slow.touch()
    try:
        code, answer, said = run(write_yaml(**recipe(span_rows=40)))
    finally:
        slow.unlink()
    assert code == 0, said
    assert answer["spans"]["total"] == 1
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 40
    # The span has five batches of eight rows.
    assert {8, 16, 24, 32} & set(seen) and all(done % 8 == 0 for done in seen)


def test_a_span_that_fails_for_a_passing_reason_is_tried_again(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    """A connection that a source's function lost."""
    settings = {"drops": str(tmp_path / "dropped"), "driver": os.getpid()}
    code, answer, said = run(write_yaml(**recipe(source_arguments=settings)))
    assert code == 0, said
    assert "will be tried again. stillhouse_toys:rows failed (ConnectionResetError" in said
    assert answer["work"]["failed_attempts"] >= 1 and answer["work"]["crashes"] == 0


def test_where_there_are_no_hard_links_the_driver_commits_alone_and_says_so(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    code, answer, said = run(write_yaml(**recipe()))
    assert code == 0, said
    assert "does not keep put-if-absent" in said
    assert answer["spans"]["computed"] == 4


def test_a_job_that_was_taken_for_dead_seals_nothing(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.cache import leases

    path = write_yaml(**recipe())
    with monkeypatch.context() as patched:
        patched.setattr(leases, "DEAD_S", 0.001)
        code, _, said = run(path)
    assert code == 1
    assert "this job could not say that it is at work on" in said and "Run the same command again" in said
    assert not (tmp_path / "store" / "caches").exists()
    code, answer, _ = run(path)
    assert (code, answer["spans"]["reused"]) == (0, 4)


@pytest.mark.slow
def test_two_jobs_at_the_same_time_end_well_with_one_set_of_commits(
    one_ray: str, toys: Path, recipe: Recipe, write_yaml: WriteYaml, tmp_path: Path
) -> None:
    path = write_yaml(**recipe(ray={"cpus_per_actor": 0.5}))
    environment = {**os.environ, "RAY_ADDRESS": one_ray}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "teacher_infer", path, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    answers = [json.loads(out) for out, _ in told]
    assert answers[0]["cache_digest"] == answers[1]["cache_digest"]
    store = tmp_path / "store"
    commits = {path.stem: json.loads(path.read_text()) for path in (store / "commits").glob("*/*.json")}
    assert len(commits) == 4
    assert {p.relative_to(store).as_posix() for p in (store / "shards").glob("*/*")} == {
        commit["path"] for commit in commits.values()
    }
    assert list((store / "jobs").iterdir()) == []


@pytest.mark.slow
def test_a_job_that_is_killed_leaves_a_lease_that_hinders_no_other(
    one_ray: str, toys: Path, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path
) -> None:
    path = write_yaml(**recipe())
    (toys / "slow").touch()
    try:
        job = subprocess.Popen(
            [sys.executable, "-m", "teacher_infer", path],
            env={**os.environ, "RAY_ADDRESS": one_ray},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not list((tmp_path / "store").glob("jobs/job-*.json")):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
        job.wait()
        time.sleep(3)
    finally:
        (toys / "slow").unlink()
    assert len(list((tmp_path / "store").glob("jobs/job-*.json"))) == 1
    assert run(path)[0] == 0


def test_a_factory_that_the_workers_cannot_import_is_named_with_the_machine(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here" / "only_here_net.py").write_text(
        "from stillhouse_toys import linear\n\n\ndef net():\n    return linear()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "only_here"))
    asked = recipe()
    asked["teacher"] |= {"factory": "only_here_net:net", "arguments": {}}
    code, _, said = run(write_yaml(**asked))
    assert code == 2
    assert "On the machine" in said and "module 'only_here_net' cannot be imported" in said
    assert "Ship the module with the job's working directory" in said


def test_a_machine_that_does_not_see_the_store_is_told_of(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine's empty disk is played by a marker that nobody wrote."""
    import teacher_infer.job

    really = teacher_infer.job.actor_settings
    monkeypatch.setattr(teacher_infer.job, "actor_settings", lambda prepared, _: really(prepared, "jobs/elsewhere"))
    code, _, said = run(write_yaml(**recipe()))
    assert code == 2
    assert "does not see the store" in said and "Name a shared folder or an object store." in said


def test_a_source_that_changes_while_the_job_runs_is_no_shard(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq
    import stillhouse_toys

    import teacher_infer.run

    source = tmp_path / "rows.parquet"
    pq.write_table(stillhouse_toys.rows(40), source)
    really = teacher_infer.run._reused

    def meanwhile(prepared: Any) -> Any:
        pq.write_table(stillhouse_toys.rows(40, first=1), source)
        return really(prepared)

    monkeypatch.setattr(teacher_infer.run, "_reused", meanwhile)
    code, _, said = run(write_yaml(**recipe(source={"parquet": str(source)})))
    assert code == 3
    assert "The plan read" in said and "Leave a source alone while a job reads it" in said
    assert not list((tmp_path / "store" / "commits").glob("*/*"))


def test_a_commit_that_goes_between_plan_and_work_is_computed_anew(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import teacher_infer.run

    path = write_yaml(**recipe())
    first = run(path)[1]
    [gone, *_] = sorted((tmp_path / "store" / "commits").glob("*/*.json"))
    shard = tmp_path / "store" / json.loads(gone.read_text())["path"]
    cache = Path(first["cache"])
    really = teacher_infer.run._reused

    def meanwhile(prepared: Any) -> Any:
        for name in ("cache.json", "index.parquet"):
            (cache / name).unlink()
        gone.unlink()
        shard.unlink()
        return really(prepared)

    monkeypatch.setattr(teacher_infer.run, "_reused", meanwhile)
    code, answer, said = run(path)
    assert code == 0, said
    assert answer["spans"] == {"total": 4, "reused": 3, "computed": 1}
    assert answer["cache_digest"] == first["cache_digest"]


def test_at_the_end_a_paragraph_says_what_it_took(
    one_ray: str, recipe: Recipe, write_yaml: WriteYaml, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_yaml(**recipe())
    assert main([path]) == 0
    out, err = capfd.readouterr()
    *_, last = out.strip().splitlines()
    assert last.startswith("40 positions computed at ") and ", 0 reused; " in last
    assert "% of the actors' time in forward" in last and "bytes a position" in last
    assert "teacher: 40/40 positions (100 %)" in err and "4/4 spans, 0 reused, 0 failed" in err
    assert main([path]) == 0
    assert capfd.readouterr().out.strip().endswith("Nothing was computed; 40 positions were reused.")
