"""Put a file if nothing is there: how each kind of file system does it, and a race that finds out whether it does."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage.objectstore.client_errors import is_contested, is_taken

_alone = threading.Lock()

# Racing puts of the probe. Servers that keep the condition let them wait for each other, some for seconds.
_RACERS = 6


def put_if_absent(fs: Any, path: str, data: bytes) -> bool:
    """One conditional put to an object store, asked again while another one contests it."""
    attempt = 0
    while True:
        try:
            fs.pipe_file(path, data, mode="create")
            return True
        except Exception as error:
            if is_taken(error):
                return False
            if not is_contested(error):
                raise
            attempt += 1
            if attempt == 8:
                if fs.exists(path):
                    return False
                raise
            time.sleep(0.05 * 2**attempt)


def put_alone(fs: Any, path: str, data: bytes) -> bool:
    """Look, then put: a promise only where no other process does the same. Threads of this one take turns."""
    with _alone:
        if fs.exists(path):
            return False
        fs.pipe_file(path, data)
        return True


def keeps_promise(fs: Any, folder: str) -> bool:
    """Whether of many racing conditional puts no two are told that they won. Writes under `folder`, and cleans up.

    Some S3 look-alikes accept `If-None-Match` and ignore it; and fsspec's own stand-in looks first and puts then.
    """
    if not fs.async_impl and type(fs).pipe_file is AbstractFileSystem.pipe_file:
        return False
    path = f"{folder}/probe-{uuid.uuid4().hex}"
    gate = threading.Barrier(_RACERS)

    def put(index: int) -> bool:
        gate.wait()
        return put_if_absent(fs, path, str(index).encode())

    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            won = sum(pool.map(put, range(_RACERS)))
        # A winner whose answer was lost on the way is told no by its second try: none is as good as one.
        return won <= 1 and not put_if_absent(fs, path, b"late")
    except (NotImplementedError, TypeError, ValueError):
        return False  # the client knows no such mode
    finally:
        # Not asked for first: a client's `exists` is False as well when a busy server does not answer.
        with suppress(FileNotFoundError):
            fs.rm_file(path)


def link_if_absent(staged: Path, final: Path) -> bool:
    """Give a staged local file its final name as well, if that is free. Raises NoLinks where links do not work."""
    _make_folder(final.parent)
    try:
        os.link(staged, final)
    except FileExistsError:
        # A network file system whose answer was lost asks again, and finds what it has made.
        return os.path.samefile(staged, final)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise NoLinks(error.errno, error.strerror) from None
        raise
    sync_folder(final.parent)
    return True


class NoLinks(OSError):
    """A file system without hard links (exFAT, some network and user-space mounts)."""


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def replace_if_absent(staged: Path, final: Path) -> bool:
    """Look, then give a staged file its final name: whole or not at all, and a promise as `put_alone`'s."""
    with _alone:
        if final.exists():
            return False
        replace(staged, final)
        return True


def links_hold(staged: Path) -> bool:
    """Whether a file can have a second name where a staged file lies."""
    staged.touch()
    second = staged.with_suffix(".link")
    try:
        link_if_absent(staged, second)
    except NoLinks:
        return False
    finally:
        second.unlink(missing_ok=True)
        staged.unlink(missing_ok=True)
    return True


def replace(staged: Path, final: Path) -> None:
    """Give a staged local file its final name, in place of what is there."""
    _make_folder(final.parent)
    os.replace(staged, final)
    sync_folder(final.parent)


def write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    path.mkdir(parents=True, exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    # A new name is durable only once its folder is.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
