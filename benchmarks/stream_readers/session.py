"""The asking side of a reader's process: start it, ask it, see how much memory it and its own children take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
EVERY_S = 0.02


class Session:
    """One reader in a process of its own. `ask("first", "shuffled")` answers with a dict."""

    def __init__(self, python: str, job: dict[str, Any], settings: dict[str, str]) -> None:
        """settings: of the process's environment."""
        environment = {**os.environ, **settings, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
        self._name = f"{job['reader']} {job['options']}"
        self._log = Path(job["log"])
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [python, "-m", "stream_readers.child", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def ask(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(words), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.stderr.write(self._log.read_text()[-3000:])
            raise RuntimeError(f"{self._name} ended while it was asked to {words}; its last words are above")
        return json.loads(answer)

    def ask_watched(self, *words: str) -> dict[str, Any]:
        """The answer, with the peak memory meanwhile above that of now, in MB: 'peak_mb', and 'peak_own_mb' of it
        that is not a file's mapped pages."""
        before, peak = memory(self._process.pid), [0, 0]
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                now = memory(self._process.pid)
                peak[:] = max(peak[0], now[0]), max(peak[1], now[1])
                time.sleep(EVERY_S)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = self.ask(*words)
        finally:
            done.set()
            watcher.join()
        grown = [max(0, high - low) / 1024 for high, low in zip(peak, before, strict=True)]
        return {**answer, "peak_mb": grown[0], "peak_own_mb": grown[1]}

    def end(self) -> None:
        assert self._process.stdin
        try:
            print(json.dumps(["exit"]), file=self._process.stdin, flush=True)
            self._process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def memory(process: int) -> tuple[int, int]:
    """(with the pages of mapped files, without them) in KB, of a process and what it started.

    What several processes share is counted once: a worker that was forked has its parent's pages. Of files
    only the reader's own process counts, since the libraries' pages are shared with all other readers too.
    """
    own = sum(_own(pid) for pid in family(process))
    return own + _lines(f"/proc/{process}/status").get("RssFile", 0), own


def _own(process: int) -> int:
    told = _lines(f"/proc/{process}/smaps_rollup")
    return told.get("Pss_Anon", 0) + told.get("Pss_Shmem", 0)


def family(process: int) -> list[int]:
    found = [process]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            continue  # it ended meanwhile
    return found


def _lines(path: str) -> dict[str, int]:
    """The lines of /proc that say 'name: number kB'."""
    told: dict[str, int] = {}
    try:
        text = Path(path).read_text()
    except OSError:
        return told
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            told[name] = int(value.split()[0])
    return told
