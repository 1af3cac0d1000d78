"""The teacher's job with its store on S3: a server that keeps put-if-absent, one that does not, and a bad line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.cache.catalog import verify
from storage.cache.leases import lease
from storage.cache.open import open_cache
from storage.objectstore.folder import Folder
from teacher_infer.__main__ import main
from tests.servers import FAULTS, NOBODY, SECRET, Proxy, lead_to, make_bucket, rclone

Recipe = Callable[..., dict[str, Any]]
WriteYaml = Callable[..., str]
Job = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        make_bucket(endpoint, "careless")
        yield endpoint


@pytest.fixture
def to_workers(one_ray: str, line: Proxy) -> Iterator[Proxy]:
    """What the workers ask their store through; what a test sets of it goes with the test."""
    yield line
    line.reset()


@pytest.fixture
def job(capfd: pytest.CaptureFixture[str]) -> Job:
    """`job(path, *arguments)`: (exit code, the JSON answer, what was said) of the command in this process."""

    def run(path: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        capfd.readouterr()
        code = main([path, "--json", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return code, json.loads(out) if out else {}, err

    return run


def in_a_process(path: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """As `job`, in a process of its own, whose end is seen as well."""
    command = [sys.executable, "-m", "teacher_infer", path, "--json", *arguments]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=180)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


@pytest.mark.slow
def test_a_job_through_a_bad_line_gives_the_cache_of_a_good_one_and_leaks_no_secret(
    to_workers: Proxy,
    ray_logs: Path,
    seaweed_endpoint: str,
    recipe: Recipe,
    write_yaml: WriteYaml,
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to_workers.upstream = seaweed_endpoint
    lead_to(to_workers.endpoint, monkeypatch)
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    good = write_yaml("good.yaml", **recipe(store="s3://bucket/good", tracking=tracking))
    code, answer, said_good = job(good)
    assert code == 0, said_good
    assert answer["spans"] == {"total": 4, "reused": 0, "computed": 4}
    bad = write_yaml("bad.yaml", **recipe(store="s3://bucket/bad", tracking=tracking))
    dice = random.Random(4)
    to_workers.slow_s = 0.2
    to_workers.fault = lambda method, path: dice.choice(FAULTS) if dice.random() < 0.15 else None
    code, through, said = job(bad)
    to_workers.fault = lambda method, path: None
    assert code == 0, said
    assert sum(to_workers.seen.values()) > 3
    assert through["cache_digest"] == answer["cache_digest"]
    assert "put-if-absent" not in said
    code, again, said_again = in_a_process(bad, "tracking.uri=false")
    assert code == 0, said_again
    assert (again["forward_positions"], again["cache_digest"]) == (0, answer["cache_digest"])
    cache = open_cache("s3://bucket/bad/toy")
    assert verify(cache)["ok"]
    store = cache.store
    assert store.names("jobs") == [] and store.names("tmp") == []
    secret = SECRET.encode()
    stored = {
        f"{folder}/{name}": store.read(f"{folder}/{name}")
        for kind in ("shards", "commits", "caches")
        for folder in (f"{kind}/{inner}" for inner in store.names(kind))
        for name in store.names(folder)
    }
    assert len(stored) == 4 + 4 + 2
    logs = dict(everything(ray_logs))
    assert any(Path(name).match("worker-*.err") for name in logs)
    told = {"said": said_good + said + said_again, "told": str([answer, through, again])}
    kept = {**stored, **dict(everything(tmp_path)), **logs, **{name: text.encode() for name, text in told.items()}}
    assert [name for name, data in kept.items() if secret in data] == []


@pytest.fixture
def by_workers(to_workers: Proxy, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the workers ask of rclone, as (method, path); the driver goes to it by another way, and is not here."""
    asked: list[tuple[str, str]] = []
    to_workers.upstream = rclone_endpoint
    to_workers.fault = lambda method, path: asked.append((method, path))
    lead_to(rclone_endpoint, monkeypatch)
    return asked


def puts(asked: list[tuple[str, str]], kind: str) -> int:
    return sum(method == "PUT" and f"/{kind}/" in path for method, path in asked)


def test_where_put_if_absent_is_ignored_the_driver_commits_alone_and_says_so(
    by_workers: list[tuple[str, str]], recipe: Recipe, write_yaml: WriteYaml, job: Job
) -> None:
    path = write_yaml(**recipe(store="s3://careless/store", ray={"actors": 2, "cpus_per_actor": 0.5}))
    code, _, said = job(path)
    assert code == 0, said
    assert "does not keep put-if-absent (If-None-Match)" in said and "no second job may run on this store" in said
    assert (puts(by_workers, "shards"), puts(by_workers, "commits")) == (4, 0)
    assert verify(open_cache("s3://careless/store/toy"))["ok"]
    with lease(Folder("s3://careless/store"), "other", []):
        code, _, said = job(path, "source.arguments.count=50")
    assert code == 2
    assert "and the job 'other' on " in said and "one job may run at a time" in said
    code, more, said = job(path, "source.arguments.count=50")
    assert code == 0, said
    assert more["spans"] == {"total": 5, "reused": 4, "computed": 1}
    assert (puts(by_workers, "shards"), puts(by_workers, "commits")) == (5, 0)


@pytest.mark.slow
def test_the_one_committer_outlives_a_worker(
    by_workers: list[tuple[str, str]], recipe: Recipe, write_yaml: WriteYaml, job: Job, tmp_path: Path
) -> None:
    """A worker's device fails after its first span was published; another one goes on, and no shard is left over."""
    code, answer, said = job(write_yaml(**recipe({"device": str(tmp_path / "failed")}, store="s3://careless/outlived")))
    assert code == 0, said
    assert (answer["work"]["crashes"], answer["spans"]["computed"]) == (1, 4)
    assert "put-if-absent" in said and "An actor died" in said and "planted" not in said
    assert puts(by_workers, "shards") >= 4 and puts(by_workers, "commits") == 0
    cache = open_cache("s3://careless/outlived/toy")
    assert verify(cache)["ok"]
    commits = (name for inner in cache.store.names("commits") for name in cache.store.names(f"commits/{inner}"))
    assert len(list(commits)) == 4


@pytest.mark.parametrize(
    ("replaced", "code", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "planted-wrong-77"}, 2, "access was refused"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, 2, "access was refused"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 2, "there are no credentials"),
        ({"AWS_ENDPOINT_URL": NOBODY}, 1, "did not answer as a store does"),
    ],
    ids=["wrong secret", "unknown key", "no credentials", "no server"],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(
    toys: Path,
    seaweed_endpoint: str,
    recipe: Recipe,
    write_yaml: WriteYaml,
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replaced: dict[str, str],
    code: int,
    expected: str,
) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no"), "AWS_CONFIG_FILE": str(tmp_path / "no")}
    lead_to(seaweed_endpoint, monkeypatch, **nowhere, **replaced)
    # It is tried as often as ever, without the pauses.
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    found, _, said = job(write_yaml(**recipe(store="s3://bucket/refused")))
    assert found == code, said
    assert expected in said and len(said.strip().splitlines()) == 1
    assert SECRET not in said and "planted" not in said


def test_a_bucket_that_is_not_there_is_named(
    toys: Path,
    rclone_endpoint: str,
    recipe: Recipe,
    write_yaml: WriteYaml,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lead_to(rclone_endpoint, monkeypatch)
    code, _, said = job(write_yaml(**recipe(store="s3://no-bucket/store")))
    assert code == 2
    assert "There is no bucket 'no-bucket' for s3://no-bucket/store" in said
