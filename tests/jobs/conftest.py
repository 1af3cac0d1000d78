"""One real head with tokens on, a child of the tests, and the commands that submit to it from a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-0123456789abcdef"
# What a head writes stands in a path; it must not be long, for its sockets' sake.
SHORT = "/tmp"


@dataclass(frozen=True)
class LiveHead:
    """A running head, and a working directory whose environment leads to it."""

    address: str
    folder: Path
    environment: dict[str, str]

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`python -m MODULE submit ARGUMENTS` in the working directory."""
        return subprocess.Popen(
            [sys.executable, "-m", module, "submit", *arguments, "--json"],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, module: str, *arguments: str, **environment: str) -> tuple[int, Any, str]:
        return ended(self.start(module, *arguments, **environment))

    def write(self, **recipe: Any) -> str:
        """A recipe in the working directory, by its name there."""
        file = f"{recipe['name']}.yaml"
        (self.folder / file).write_text(yaml.safe_dump(recipe))
        return file

    def ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(
            f"{self.address}/api/jobs/{path}", method=method, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait_for(self, submission_id: str, *statuses: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.ask(submission_id)["status"] in statuses:
                    return
            except urllib.error.HTTPError as error:
                assert error.code == 404
            assert time.monotonic() < deadline
            time.sleep(0.2)


def ended(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    """(exit code, the JSON answer or None, what was said) of a command."""
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    assert TOKEN not in out + err
    return process.returncode, json.loads(out) if out else None, err


@pytest.fixture(scope="session")
def head(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHead]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{toys}",
        # How long a head that is told to end waits for its workers.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        # The job's command begins with `python`, which is the one with Ray.
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    port, dashboard, agent, client = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    session = tempfile.mkdtemp(prefix="sh", dir=SHORT)
    command = [
        *(str(Path(sysconfig.get_path("scripts")) / "ray"), "start", "--head", "--block", "--num-cpus=2"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--temp-dir={session}", "--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    (folder / "work").mkdir()
    live = LiveHead(address, folder / "work", environment)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            try:
                live.ask("")
                break
            except OSError:
                time.sleep(0.2)
        yield live
    finally:
        _end(process)
        shutil.rmtree(session, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a head, and whatever of its session it leaves behind."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    deadline = time.monotonic() + 10
    while _session_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in _session_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(10)


def _session_of(leader: int) -> list[int]:
    """The processes that a process started as the leader of a session, and their children's."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.fixture
def slow(toys: Path) -> Iterator[Callable[[], None]]:
    """Every forward pass of the toys takes its time until the test calls this, or ends."""
    (toys / "slow").touch()
    yield lambda: (toys / "slow").unlink(missing_ok=True)
    (toys / "slow").unlink(missing_ok=True)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory to submit from, the current one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
