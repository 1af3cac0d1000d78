"""A cluster that cannot be reached is told of in a sentence, soon."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError

from cluster import connect as module
from cluster.connect import connect, first_line
from storage.errors import ClusterError, StillhouseError, SubmissionError, TokenRefused
from tests.servers import free_ports

Init = Callable[..., None]


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ray.init is called with, as if no Ray were at hand yet."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def init(*address: str, **settings: Any) -> Any:
        calls.append({"address": address, **settings})
        return SimpleNamespace(address_info={"gcs_address": "127.0.0.1:1"})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(module, "_embedded", None)
    return calls


def test_without_an_address_ray_is_embedded(inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect(3)
    assert [(call["address"], call["num_cpus"], call["include_dashboard"]) for call in inits] == [
        (("local",), 3, False)
    ]


def test_the_ray_at_hand_is_kept(inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setenv("RAY_ADDRESS", "http://nowhere")
    connect(None)
    assert inits == []


def test_a_head_that_listens_is_asked(inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        connect(None)
    assert inits == [{"address": (), "log_to_driver": True}]


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


def test_an_address_for_submitting(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert "Put the word submit before the recipe" in refused(SubmissionError)


def test_what_ray_says_is_kept_to_its_first_line(inits: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(error: Exception) -> Init:
        def fail(**settings: Any) -> None:
            raise error

        return fail

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(module.ray, "init", init(ConnectionError("Could not find any running Ray instance.\nMore.")))
    said = refused(ClusterError)
    assert "There is no way to the cluster at 'auto', which RAY_ADDRESS names: Could not find any running Ray" in said
    assert "More" not in said
    monkeypatch.setattr(module.ray, "init", init(AuthenticationError("The file cannot be opened: /x")))
    assert refused(TokenRefused).startswith("The file cannot be opened: /x. With RAY_AUTH_MODE=token Ray takes")
    assert first_line(ValueError()) == "ValueError"
