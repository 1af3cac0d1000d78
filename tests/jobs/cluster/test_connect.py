"""A cluster that cannot be reached is told of in a sentence, soon."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

from jobs.cluster import connect as module
from jobs.cluster.connect import connect, first_line
from jobs.errors import ClusterError
from storage.base.errors import StillhouseError, UsageError
from tests.servers import free_ports

ROOT = Path(__file__).resolve().parents[3]
Init = Callable[..., Any]


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What ray.init is called with, as if no Ray were at hand yet. Behind it is a cluster of two nodes."""
    caplog.set_level(logging.INFO, "stillhouse.cluster")
    calls: list[dict[str, Any]] = []
    resources = {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34, "node:10.0.0.1": 1.0}

    def init(*address: str, **settings: Any) -> Any:
        calls.append({"address": address, **settings})
        return SimpleNamespace(dashboard_url="http://me:planted@10.0.0.1:8265", ray_version="2.55.1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    for name in module._STARTS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and as it was when the test is over
    return calls


HAS = "2 nodes, CPU 8, GPU 2, memory 16 GiB"


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_ray_is_embedded(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    connect(3)
    assert [(call["address"], call["num_cpus"], call["include_dashboard"]) for call in inits] == [
        (("local",), 3, False)
    ]
    assert caplog.messages[0].startswith(f"A Ray embedded in this process, at 10.0.0.1:6379: {HAS}, ")


def test_the_ray_at_hand_is_kept(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setenv("RAY_ADDRESS", "http://nowhere")
    connect(None)
    assert inits == []
    assert caplog.messages == [f"The Ray that this process is connected to, at 10.0.0.1:6379: {HAS}."]


def test_the_cluster_that_was_joined_is_logged(
    inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"127.0.0.1:{server.getsockname()[1]}"
        for address in (at, f"ray://{at}", "auto"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            connect(None)
            assert caplog.messages[-1] == (
                f"The Ray cluster of RAY_ADDRESS={address}, at 10.0.0.1:6379: {HAS}, "
                f"Ray 2.55.1 (here {ray.__version__}), dashboard http://***@10.0.0.1:8265."
            )
    assert inits == [{"address": (), "log_to_driver": True}] * 3


# An embedded Ray that does not start

SLOW = Exception("The current node timed out during startup. This could happen because the raylet failed.\nMore.")
LONG = OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /tmp/x")


def failing(errors: list[BaseException], succeed: Init) -> Init:
    def init(*address: str, **settings: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return succeed(*address, **settings)

    return init


@pytest.mark.parametrize("errors", [[SLOW, RuntimeError("Failed to start GCS.")], [LONG], [ValueError("CPU is -1")]])
def test_an_embedded_ray_that_does_not_start_is_a_sentence(
    inits: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, errors: list[BaseException]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    last, left = errors[-1], list(errors)
    monkeypatch.setattr(ray, "init", failing(left, ray.init))
    said = refused(ClusterError)
    assert (
        said.startswith(f"The embedded Ray did not start: {last}".rstrip(".")) and "set RAY_TMPDIR to a short" in said
    )
    assert left == [] and inits == []
    # What may pass was tried once more.
    assert ("Trying once more." in caplog.text) == (len(errors) > 1)


def test_an_embedded_ray_gets_longer_to_start_and_no_second_try_after_that(
    inits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "7")
    monkeypatch.setattr(module, "START_S", 0)
    left: list[BaseException] = [SLOW, SLOW]
    monkeypatch.setattr(ray, "init", failing(left, ray.init))
    assert "RAY_raylet_start_wait_time_s (now 0) gives it longer" in refused(ClusterError)
    assert left == [SLOW]
    assert os.environ["RAY_gcs_server_port_wait_time_s"] == "7"


def test_a_handler_of_sigterm_is_kept(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(*_: object) -> None: ...

    def init(*_: str, **__: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        connect(None)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_while_ray_starts_is_one(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", failing([KeyboardInterrupt()], ray.init))
    with pytest.raises(KeyboardInterrupt):
        connect(None)


HALF_STARTED = """
import logging, psutil, ray
import ray._private.services as services
from jobs.cluster import connect as module

logging.basicConfig(level=logging.INFO)

start, fails = services.start_raylet, [True, True, False]

def start_raylet(*arguments, **settings):
    if fails.pop(0):
        raise RuntimeError("no raylet")
    return start(*arguments, **settings)

services.start_raylet = start_raylet
try:
    module.connect(1)
except module.ClusterError as error:
    assert "did not start: no raylet." in str(error), error
assert fails == [False], fails
assert not psutil.Process().children(), psutil.Process().children()
module.connect(1)
assert ray.cluster_resources()["CPU"] == 1
"""


def test_a_ray_that_started_in_part_is_ended_and_another_one_can_start() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", HALF_STARTED], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("A Ray embedded in this process, at ") == 1


# Addresses


def refused(kind: type[StillhouseError]) -> str:
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        connect(None)
    assert time.monotonic() - started < 5
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_where_nobody_listens(inits: list[Any], monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    address = form.format(free_ports(1)[0])
    monkeypatch.setenv("RAY_ADDRESS", address)
    said = refused(ClusterError)
    assert said.startswith(f"Nobody answers at '{address}', which RAY_ADDRESS names") and "unset RAY_ADDRESS" in said
    assert inits == []


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", ":6379", "[::1", "AUTO", "ray://", "ray://host", "h:p"])
def test_an_address_that_is_none(inits: list[Any], monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert refused(UsageError).startswith(f"RAY_ADDRESS is '{address}'. It is HOST:PORT, ray://HOST:PORT, auto")
    assert inits == []


def test_an_address_for_submitting(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert "Put the word submit before the recipe" in refused(UsageError)


def test_what_ray_says_is_kept_to_its_first_line(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(error: Exception) -> Init:
        def fail(**settings: Any) -> None:
            raise error

        return fail

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(module.ray, "init", init(ConnectionError("Could not find any running Ray instance.\nMore.")))
    said = refused(ClusterError)
    assert said.startswith(
        "RAY_ADDRESS is 'auto', and there is no way to a cluster on this machine: Could not find any"
    )
    assert "More" not in said and "token" not in said
    monkeypatch.setattr(module, "_knock", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(module.ray, "init", init(Exception("The node was not found.")))
    said = refused(ClusterError)
    assert "There is no way to the cluster at '10.0.0.1:6379', which RAY_ADDRESS names: The node was not found" in said
    monkeypatch.setattr(module.ray, "init", init(AuthenticationError("The file cannot be opened: /x")))
    assert refused(UsageError).startswith("The file cannot be opened: /x. With RAY_AUTH_MODE=token Ray takes")
    assert first_line(ValueError()) == "ValueError"
