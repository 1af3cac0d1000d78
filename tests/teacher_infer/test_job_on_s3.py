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

from storage.cache import open_cache
from storage.catalog import verify
from storage.folder import Folder
from storage.leases import lease
from tests.servers import FAULTS, SECRET, Proxy, environment, lead_to, make_bucket, rclone

Recipe = Callable[..., dict[str, Any]]
WriteYaml = Callable[..., str]


@pytest.fixture(scope="module")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        make_bucket(endpoint, "bucket")
        yield endpoint


def job(path: str, endpoint: str, *arguments: str, **replaced: str) -> tuple[int, dict[str, Any], str]:
    """The command in a process of its own, so that the Ray that it starts has the servers' environment."""
    done = subprocess.run(
        [sys.executable, "-m", "teacher_infer", path, "--json", *arguments],
        env={**os.environ, **environment(endpoint), **replaced},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def test_a_job_through_a_bad_line_gives_the_cache_of_a_good_one_and_leaks_no_secret(
    toys: Path,
    seaweed_endpoint: str,
    recipe: Recipe,
    write_yaml: WriteYaml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    good = write_yaml("good.yaml", **recipe(store="s3://bucket/good", tracking=tracking, ray={"num_cpus": 1}))
    code, answer, said_good = job(good, seaweed_endpoint)
    assert code == 0, said_good
    assert answer["spans"] == {"total": 4, "reused": 0, "computed": 4}
    bad = write_yaml("bad.yaml", **recipe(store="s3://bucket/bad", tracking=tracking, ray={"num_cpus": 1}))
    dice, proxy = random.Random(4), Proxy(seaweed_endpoint)
    proxy.slow_s = 0.2
    proxy.fault = lambda method, path: dice.choice(FAULTS) if dice.random() < 0.15 else None
    try:
        code, through, said = job(bad, proxy.endpoint)
    finally:
        proxy.close()
    assert code == 0, said
    assert sum(proxy.seen.values()) > 3
    assert through["cache_digest"] == answer["cache_digest"]
    assert "put-if-absent" not in said
    again = job(bad, seaweed_endpoint)[1]
    assert (again["forward_positions"], again["cache_digest"]) == (0, answer["cache_digest"])
    lead_to(seaweed_endpoint, monkeypatch)
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
    kept = {**stored, **dict(everything(tmp_path)), "said": (said_good + said).encode(), "told": str(again).encode()}
    assert [name for name, data in kept.items() if secret in data] == []


def test_where_put_if_absent_is_ignored_the_driver_commits_alone_and_says_so(
    toys: Path, rclone_endpoint: str, recipe: Recipe, write_yaml: WriteYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_yaml(**recipe(store="s3://bucket/store", ray={"actors": 2, "cpus_per_actor": 0.5, "num_cpus": 1}))
    code, _, said = job(path, rclone_endpoint)
    assert code == 0, said
    assert "does not keep put-if-absent (If-None-Match)" in said and "no second job may run on this store" in said
    lead_to(rclone_endpoint, monkeypatch)
    assert verify(open_cache("s3://bucket/store/toy"))["ok"]
    with lease(Folder("s3://bucket/store"), "other", []):
        code, _, said = job(path, rclone_endpoint, "source.arguments.count=50")
    assert code == 2
    assert "and the job 'other' on " in said and "one job may run at a time" in said
    code, more, said = job(path, rclone_endpoint, "source.arguments.count=50")
    assert code == 0, said
    assert more["spans"] == {"total": 5, "reused": 4, "computed": 1}


def test_the_one_committer_outlives_a_worker(
    toys: Path, rclone_endpoint: str, recipe: Recipe, write_yaml: WriteYaml, tmp_path: Path
) -> None:
    """A worker's device fails after its first span was published; another one goes on, and no shard is left over."""
    asked = recipe({"device": str(tmp_path / "failed")}, store="s3://bucket/outlived", ray={"num_cpus": 1})
    code, answer, said = job(write_yaml(**asked), rclone_endpoint)
    assert code == 0, said
    assert (answer["work"]["crashes"], answer["spans"]["computed"]) == (1, 4)


@pytest.mark.parametrize(
    ("replaced", "code", "expected"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "planted-wrong-77"}, 2, "access was refused"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, 2, "access was refused"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 2, "there are no credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 1, "did not answer as a store does"),
    ],
    ids=["wrong secret", "unknown key", "no credentials", "no server"],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(
    toys: Path,
    seaweed_endpoint: str,
    recipe: Recipe,
    write_yaml: WriteYaml,
    tmp_path: Path,
    replaced: dict[str, str],
    code: int,
    expected: str,
) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no"), "AWS_CONFIG_FILE": str(tmp_path / "no")}
    path = write_yaml(**recipe(store="s3://bucket/refused"))
    found, _, said = job(path, seaweed_endpoint, **nowhere, **replaced)
    assert found == code, said
    assert expected in said and len(said.strip().splitlines()) == 1
    assert SECRET not in said and "planted" not in said


def test_a_bucket_that_is_not_there_is_named(
    toys: Path, rclone_endpoint: str, recipe: Recipe, write_yaml: WriteYaml
) -> None:
    code, _, said = job(write_yaml(**recipe(store="s3://no-bucket/store")), rclone_endpoint)
    assert code == 2
    assert "There is no bucket 'no-bucket' for s3://no-bucket/store" in said
