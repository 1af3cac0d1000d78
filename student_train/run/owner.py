"""One process at a time owns a folder: it writes a numbered lease there, renews it, and removes it at the end.

The owner is whose lease has the highest number. A lease is put if absent, so of several starts in the same instant one
wins; and a dead owner is replaced by the next number, so of several that find it dead one wins as well.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.errors import FolderInUse
from storage.base.errors import JobError, StillhouseError, StoreError
from storage.cache.leases import DEAD_S, is_fresh, renewed, take_back
from storage.objectstore.clock import store_now
from storage.objectstore.folder import Folder

_PREFIX, _SUFFIX = "lease-", ".json"


@dataclass(frozen=True)
class Owner:
    """The process that a lease names. `machine` and `started` (Linux only) identify it, since ids are used again."""

    id: str
    host: str
    pid: int
    machine: str | None
    started: str | None
    since: str

    @staticmethod
    def here() -> Owner:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid = os.getpid()
        return Owner(uuid.uuid4().hex, socket.gethostname(), pid, _machine(), _started(pid), since)

    def is_gone(self) -> bool:
        """Whether its process has certainly ended: it was one of this machine's, and is not there any more."""
        return self.machine is not None and self.machine == _machine() and _started(self.pid) != self.started


class Ownership:
    """A folder that this process owns until `release`. `id` lets its workers ask whether it still does."""

    def __init__(self, folder: Folder, number: int, owner: Owner) -> None:
        self.id, self._folder, self._path = owner.id, folder, _path(number)
        record = json.dumps(asdict(owner)).encode()

        def renew() -> None:
            # Whoever has taken over is not to find a lease that was given up for dead.
            if _id_of_owner(folder) == self.id:
                folder.write(self._path, record)

        self._stack = ExitStack()
        self._stack.enter_context(renewed(renew, f"{folder.url}/{self._path}"))

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        self._stack.close()
        # How the work ended counts. A lease that stays is taken over once this process has ended.
        with suppress(StillhouseError, OSError):
            if _id_of_owner(self._folder) == self.id:
                take_back(self._folder, self._path)


def own(folder: Folder) -> Ownership:
    """Own a folder. Raises FolderInUse, with nothing changed in it, while another process does."""
    while True:
        found = _leases(folder)
        for number, owner, modified in found:
            _refuse_living(folder, number, owner, modified)
        number, me = max((number for number, _, _ in found), default=0) + 1, Owner.here()
        if folder.create(_path(number), json.dumps(asdict(me)).encode()):
            break
    dead = {owner.id for _, owner, _ in found}
    try:
        # Since the leases were listed, a process may have taken over, ended, and made way for another one.
        for other, owner, modified in _leases(folder):
            if owner.id not in {*dead, me.id}:
                _refuse_living(folder, other, owner, modified)
    except BaseException:
        take_back(folder, _path(number))
        raise
    take_back(folder, *(_path(old) for old, _, _ in found))
    return Ownership(folder, number, me)


def refuse_lost(folder: Folder, id: str) -> None:
    """Raises JobError where the lease with this id is not the one that counts in the folder any more."""
    found = _leases(folder)
    if found and found[-1][1].id == id:
        return
    raise JobError(
        f"{_who(found[-1][1])} has taken over {folder.url}." if found else f"The lease in {folder.url} was removed.",
        "A process writes there while its lease is there, which others take over when it is "
        f"{DEAD_S / 60:.0f} minutes old (of a suspended machine) or its process is gone.",
        "Let the other process end, or, where there is none, run the same command again.",
    )


def _refuse_living(folder: Folder, number: int, owner: Owner, modified: float | None) -> None:
    if owner.is_gone() or not is_fresh(modified, now := store_now(folder)):
        return
    wait_s = DEAD_S - (now - modified) if modified is not None else DEAD_S
    raise FolderInUse(
        f"{_who(owner)} is at work in {folder.url}, since {owner.since}.",
        "One process at a time writes to it.",
        "Wait for it, stop it, or give this run another name. If it was killed, this command takes over in "
        f"{max(1, round(wait_s / 60))} min, or at once when {folder.url_of(_path(number))} is removed.",
    )


def _who(owner: Owner) -> str:
    return f"Process {owner.pid} on {owner.host}"


def _path(number: int) -> str:
    return f"{_PREFIX}{number}{_SUFFIX}"


def _id_of_owner(folder: Folder) -> str | None:
    found = _leases(folder)
    return found[-1][1].id if found else None


def _leases(folder: Folder) -> list[tuple[int, Owner, float | None]]:
    """(number, what it says, when it was renewed) of the leases, by number. Raises StoreError for what is none."""
    found: list[tuple[int, Owner, float | None]] = []
    for entry in folder.entries(""):
        number = entry.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if entry.name != f"{_PREFIX}{number}{_SUFFIX}" or not number.isdecimal():
            continue
        try:
            facts: Any = json.loads(folder.read(entry.name))
            found.append((int(number), Owner(**facts), entry.modified))
        except FileNotFoundError:
            continue  # given up since it was listed
        except (ValueError, TypeError):
            raise StoreError(
                f"{folder.url_of(entry.name)} is no lease.",
                "It is JSON that a running job wrote.",
                "Remove it if no process is at work there.",
            ) from None
    return sorted(found, key=lambda lease: lease[0])


def _machine() -> str | None:
    """What names this boot of this machine, and the processes that are seen here; None where that is not known.

    A host's name is not enough: containers may share one and do not see each other's processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None where there is none, or a zombie."""
    try:
        # The name of the command, in parentheses, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else fields[18]
