"""Where to submit to, and what a head that does not answer well is told as."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import head as module
from jobs.cluster.head import ADDRESS_VARIABLES, Head, resolve_address
from jobs.cluster.shipped import Shipped
from jobs.cluster.submission import Submission
from jobs.errors import ClusterError
from storage.base.errors import UsageError


def test_the_address_that_is_given_wins() -> None:
    environment = {"RAY_API_SERVER_ADDRESS": "http://api:8265/", "RAY_ADDRESS": "http://ray:8265"}
    assert resolve_address("https://given:1/", environment) == "https://given:1"
    assert resolve_address(None, environment) == "http://api:8265"
    assert resolve_address(None, {"RAY_ADDRESS": "http://ray:8265"}) == "http://ray:8265"


def test_no_address_or_one_of_another_kind_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"^No cluster is named\. --address, RAY_API_SERVER_ADDRESS or RAY_"):
        resolve_address(None, {"RAY_ADDRESS": ""})
    for address in ("127.0.0.1:6379", "auto", "ray://host:10001"):
        with pytest.raises(UsageError, match=rf"^RAY_ADDRESS is '{address}'\. Jobs are submitted to the head's"):
            resolve_address(None, {"RAY_ADDRESS": address})
    with pytest.raises(UsageError, match=r"^--address is 'host'"):
        resolve_address("host", {"RAY_ADDRESS": "http://ray:8265"})


Answer = Callable[[str, str], tuple[int, Any]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A stand-in for a dashboard: answer(method, path) gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            version = {"version": "4", "ray_version": "2.60.0", "ray_commit": ""}
            status, body = (200, version) if self.path == "/api/version" else answer(self.command, self.path)
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_head_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ClusterError, match=rf"^The head at {address} did not answer in 0 s\."):
            Head(address)
        assert time.monotonic() - started < 10


def test_a_timeout_of_the_request_is_not_that_of_waiting_for_it() -> None:
    with serving(lambda method, path: (200, [])) as address:
        head = Head(address)

    def late() -> None:
        raise TimeoutError("timed out")

    with pytest.raises(ClusterError, match=rf"^The head at {address} cannot be reached \(timed out\)\."):
        head._ask(late, 100.0)


def test_the_environment_leads_nowhere_else_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda method, path: (200, [])) as address:
        assert Head(address).jobs() == []
    assert [os.environ[name] for name in ADDRESS_VARIABLES] == ["http://127.0.0.1:9"] * 2


def test_what_else_goes_wrong_is_a_sentence_without_a_traceback() -> None:
    trace = "Traceback (most recent call last):\n  File 'x'\nRuntimeError: no room.\n."
    for status, body, kind, sentence in (
        (500, trace, ClusterError, "refused: RuntimeError: no room. `ray job list`"),
        (413, "Maximum request body size exceeded", ClusterError, "refused: Request failed with status code 413"),
        (200, "no json", ClusterError, "cannot be reached"),
        (401, "Unauthorized", UsageError, "was not entered: Authentication required: Unauthorized"),
        (403, "Forbidden", UsageError, "was not entered: Authentication failed: Forbidden"),
    ):
        with serving(lambda method, path, said=(status, body): said) as address:
            head = Head(address)
            with pytest.raises(kind) as caught:
                head.jobs()
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_of_two_who_submit_the_same_one_is_told_so(tmp_path: Path) -> None:
    submission = Submission(
        "teacher-toy-01", "01", "python -m stillhouse_commands teacher-infer r.yaml", Shipped(tmp_path, {})
    )
    taken = "Traceback:\nValueError: Job with submission_id teacher-toy-01 already exists. Please use another.\n."

    def answer(method: str, path: str) -> tuple[int, Any]:
        return (500, taken) if method == "POST" else (200, {})

    with serving(answer) as address:
        head = Head(address)
        assert head.submit("teacher-toy-01", submission) is False
        with pytest.raises(ClusterError, match="refused: "):
            head.submit("teacher-toy-01-2", submission)
