"""The clock that dates a folder's files: an object store's own, or this machine's."""

from __future__ import annotations

import time
import uuid

from storage.objectstore.folder import Folder


def store_now(folder: Folder) -> float:
    """Seconds since 1970 by the clock that dates the folder's files; this machine's where they have no dates."""
    date = store_clock(folder)
    return time.time() if date is None else date


def store_clock(folder: Folder) -> float | None:
    """Seconds since 1970 by the clock that dates the folder's files; None where they have no dates."""
    name = f"clock-{uuid.uuid4().hex}"
    folder.write(f"tmp/{name}", b"")
    try:
        return {entry.name: entry.modified for entry in folder.entries("tmp")}.get(name)
    finally:
        folder.remove_files([f"tmp/{name}"])
