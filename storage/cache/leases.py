"""Who is at work on a store: jobs hold leases on shard keys, and a sweep waits for none but spares what they name."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from storage.base.errors import JobError, StillhouseError, StoreError
from storage.objectstore.clock import store_now
from storage.objectstore.folder import Folder

log = logging.getLogger("stillhouse.store")

# A lease is renewed every minute, and its holder is taken for dead ten minutes after the last time.
BEAT_S, DEAD_S = 60.0, 600.0

_JOB, _SWEEP = "job-", "sweep-"


@dataclass(frozen=True)
class Job:
    """A lease that was found in a store: who holds it, when it was last renewed, and the shard keys that it names."""

    id: str
    name: str
    host: str
    modified: float | None
    keys: frozenset[str]

    def __str__(self) -> str:
        return f"'{self.name}' on {self.host}"


@dataclass(frozen=True)
class Lease:
    """path: its file in the store. `check` raises JobError once others may have taken its holder for dead."""

    path: str
    check: Callable[[], None]


@contextmanager
def lease(store: Folder, name: str, shard_keys: Iterable[str]) -> Generator[Lease]:
    """Hold a lease on some shard keys while the block runs.

    First it is written and then the sweep is looked for, while a sweep announces itself first and then
    reads the leases: so one of the two sees the other. Waits for a sweep that is under way.
    """
    path, keys = f"jobs/{_JOB}{uuid.uuid4().hex}", "\n".join(shard_keys).encode()
    record = json.dumps({"name": name, "host": socket.gethostname(), "pid": os.getpid()}).encode()

    def write() -> None:
        # A gc that took this job for dead took the keys as well.
        if not store.exists(f"{path}.keys"):
            store.write(f"{path}.keys", keys)
        store.write(f"{path}.json", record)

    try:
        with renewed(write, f"{path}.json") as longest_gap_s:

            def check() -> None:
                gap_s = longest_gap_s()
                if gap_s > DEAD_S:
                    raise JobError(
                        f"For {gap_s / 60:.0f} minutes this job could not say that it is at work on {store.url}.",
                        "After ten, gc and other jobs take it for dead.",
                        "Run the same command again: what was committed stays.",
                    )

            _wait_for_sweeps(store)
            yield Lease(f"{path}.json", check)
    finally:
        # Once nothing renews it any more.
        take_back(store, f"{path}.json", f"{path}.keys")


def live_jobs(store: Folder) -> list[Job]:
    """The leases whose holders are alive, by the store's own clock. Raises StoreError for one that cannot be read."""
    now = store_now(store)
    jobs: list[Job] = []
    for entry in store.entries("jobs"):
        file = entry.name
        id, _, kind = file.partition(".")
        if kind != "json" or not file.startswith(_JOB) or not is_fresh(entry.modified, now):
            continue
        record, keys = store.read_some([f"jobs/{file}", f"jobs/{id}.keys"])
        if record is None or keys is None:
            continue  # it ended while it was looked at
        try:
            facts = json.loads(record)
            jobs.append(Job(id, facts["name"], facts["host"], entry.modified, frozenset(keys.decode().split())))
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"{store.url_of(f'jobs/{file}')} is no lease.", "It is JSON that a running job wrote."
            ) from None
    return jobs


@contextmanager
def sweep(store: Folder) -> Generator[Callable[[], None]]:
    """Announce a sweep while the block runs; gives a check that raises JobError once that is in doubt.

    Two sweeps do each other no harm: each spares what the leases name.
    """
    path = f"jobs/{_SWEEP}{uuid.uuid4().hex}.json"
    try:
        # Empty, since a full disk takes no more than that, and it is gc that makes room.
        with renewed(lambda: store.write(path, b""), path) as longest_gap_s:

            def check() -> None:
                if longest_gap_s() > DEAD_S / 2:
                    raise JobError(
                        "gc could not say for five minutes that it is at work, so a job may have begun.",
                        "It takes nothing from a running job.",
                        "Run it again.",
                    )

            yield check
    finally:
        take_back(store, path)


def _wait_for_sweeps(store: Folder) -> None:
    told = False
    while _swept(store):
        if not told:
            log.warning(
                f"A gc is under way in {store.url}, or was killed in the last ten minutes; waiting for it to end."
            )
        told = True
        time.sleep(1.0)


def _swept(store: Folder) -> bool:
    # Where a store tells no dates there is no gc, which goes by them.
    dates = [e.modified for e in store.entries("jobs") if e.name.startswith(_SWEEP) and e.modified is not None]
    return bool(dates) and is_fresh(max(dates), store_now(store))


def is_fresh(modified: float | None, now: float) -> bool:
    # Where a store tells no times, whoever left a lease may be alive.
    return modified is None or now - modified < DEAD_S


def take_back(store: Folder, *paths: str) -> None:
    # How the block ended counts. A lease that stays is stale after a while, and gc removes it.
    with suppress(StillhouseError, OSError):
        store.remove_files(paths)


@contextmanager
def renewed(write: Callable[[], None], name: str) -> Generator[Callable[[], float]]:
    """Write a lease, and again until the block ends; gives the longest time in seconds between two writes, or since."""
    over, last, longest = threading.Event(), [_awake_or_not()], [0.0]
    write()

    def gap() -> float:
        return max(longest[0], _awake_or_not() - last[0])

    def beat() -> None:
        while not over.wait(BEAT_S):
            try:
                write()
            except (StillhouseError, OSError):
                continue  # a store that is away for a while is asked again; the lease lasts for ten beats
            longest[0], last[0] = gap(), _awake_or_not()

    thread = threading.Thread(target=beat, name=f"lease {name}", daemon=True)
    thread.start()
    try:
        yield gap
    finally:
        over.set()
        thread.join()


def _awake_or_not() -> float:
    """Seconds of a clock that also goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
