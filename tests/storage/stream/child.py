"""Processes of their own: ranks that stream a cache until they are killed, and one that is watched for its memory."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from storage.cache.open import open_cache
from storage.rows.cache_rows import CacheRows
from storage.rows.reading import Reading
from storage.rows.row_groups import row_bytes
from storage.stream.stream import Stream
from tests.storage.stream.fakes import Fake


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def rank(told: dict[str, Any], number: int) -> None:
    """Write down each batch and the state after it; die at the step, or after the time, that was told."""
    fatal = told["fatal"][number]
    groups = CacheRows(open_cache(told["url"]))
    stream = Stream(
        groups,
        rank=number,
        world=len(told["fatal"]),
        reading=Reading(prefetch_bytes=told["prefetch_bytes"], threads=2),
        **told["settings"],
    )
    if told["state"] is not None:
        stream.load_state_dict(told["state"])
    if "seconds" in fatal:
        threading.Timer(fatal["seconds"], die).start()
    with open(f"{told['out']}.{number}", "wb", buffering=0) as file:
        for step, batch in enumerate(stream.endless()):
            facts = {"first": batch.first, "places": batch.places.tolist(), "ids": batch.sample_id.tolist()}
            line = json.dumps({**facts, "state": stream.state_dict()}).encode() + b"\n"
            if step == fatal.get("step"):
                file.write({"before": b"", "torn": line[: len(line) // 2], "after": line}[fatal["how"]])
                os.fsync(file.fileno())
                die()
            file.write(line)
            os.fsync(file.fileno())


def ranks(facts: str) -> None:
    """One process for each rank; prints how they ended."""
    told = json.loads(facts)
    pids: list[int] = []
    for number in range(len(told["fatal"])):
        pid = os.fork()
        if not pid:
            try:
                rank(told, number)
            finally:
                os._exit(1)
        pids.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


def resident() -> int:
    """Bytes of this process that are in memory."""
    told = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(told[0]) << 10


def memory(facts: str) -> None:
    """Stream row groups that are made as they are read; prints what was resident before, and after so many batches."""
    told = json.loads(facts)
    reading = Reading(prefetch_bytes=told["prefetch_bytes"], threads=2)
    # The same with hardly any bytes: threads, the places that are looked up ahead, and what is made once.
    streamed(Stream(Fake([told["group"]] * told["groups"], shape=(1,)), reading=reading, **told["settings"]), 2500)
    groups = Fake([told["group"]] * told["groups"], shape=(told["width"],))
    before, whole = resident(), groups.total * row_bytes(groups)
    stream = Stream(groups, reading=reading, **told["settings"])
    seen = streamed(stream, told["count"])
    print(json.dumps({"before": before, "seen": seen, "bound": stream.memory_bound, "whole": whole}))


def streamed(stream: Stream, count: int) -> list[int]:
    """What was resident after each 500 batches."""
    seen: list[int] = []
    for number, _ in enumerate(itertools.islice(stream.endless(), count), 1):
        if number % 500 == 0:
            seen.append(resident())
    stream.close()
    return seen


if __name__ == "__main__":
    {"ranks": ranks, "memory": memory}[sys.argv[1]](sys.argv[2])
