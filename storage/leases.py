"""Who is at work on a store: jobs hold leases on shard keys, and a sweep waits for none but spares what they name."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from storage.errors import JobError, StillhouseError, StoreError
from storage.folder import Folder

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


@contextmanager
def lease(store: Folder, name: str, shard_keys: Iterable[str]) -> Generator[str]:
    """Hold a lease on some shard keys while the block runs; gives its path in the store.

    First it is written and then the sweep is looked for, while a sweep announces itself first and then
    reads the leases: so one of the two sees the other. Waits for a sweep that is under way.
    """
    path = f"jobs/{_JOB}{uuid.uuid4().hex}"
    store.write(f"{path}.keys", "\n".join(shard_keys).encode())
    record = json.dumps({"name": name, "host": socket.gethostname(), "pid": os.getpid()}).encode()
    with _renewed(store, f"{path}.json", record):
        try:
            while _swept(store):
                time.sleep(1.0)
            yield f"{path}.json"
        finally:
            _take_back(store, f"{path}.keys")


def live_jobs(store: Folder) -> list[Job]:
    """The leases whose holders are alive, by the store's own clock. Raises StoreError for one that cannot be read."""
    now = store.now()
    jobs: list[Job] = []
    for entry in store.entries("jobs"):
        file = entry.name
        id, _, kind = file.partition(".")
        if kind != "json" or not file.startswith(_JOB) or not _fresh(entry.modified, now):
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
    # Empty, since a full disk takes no more than that, and it is gc that makes room.
    with _renewed(store, f"jobs/{_SWEEP}{uuid.uuid4().hex}.json", b"") as renewed:

        def check() -> None:
            if time.monotonic() - renewed[0] > DEAD_S / 2:
                raise JobError(
                    "gc could not say for five minutes that it is at work, so a job may have begun.",
                    "It takes nothing from a running job.",
                    "Run it again.",
                )

        yield check


def _swept(store: Folder) -> bool:
    sweeps = [entry for entry in store.entries("jobs") if entry.name.startswith(_SWEEP)]
    return bool(sweeps) and any(_fresh(entry.modified, store.now()) for entry in sweeps)


def _fresh(modified: float | None, now: float) -> bool:
    # Where a store tells no times, whoever left a lease may be alive.
    return modified is None or now - modified < DEAD_S


def _take_back(store: Folder, path: str) -> None:
    # How the block ended counts. A lease that stays is stale after a while, and gc removes it.
    with suppress(StillhouseError, OSError):
        store.remove_files([path])


@contextmanager
def _renewed(store: Folder, path: str, record: bytes) -> Generator[list[float]]:
    """Write a lease and write it again until the block ends; gives when it was last written, by time.monotonic."""
    over, last = threading.Event(), [time.monotonic()]
    store.write(path, record)

    def beat() -> None:
        while not over.wait(BEAT_S):
            try:
                store.write(path, record)
                last[0] = time.monotonic()
            except (StillhouseError, OSError):
                continue  # a store that is away for a while is asked again; the lease lasts for ten beats

    thread = threading.Thread(target=beat, name=f"lease {path}", daemon=True)
    thread.start()
    try:
        yield last
    finally:
        over.set()
        thread.join()
        _take_back(store, path)
