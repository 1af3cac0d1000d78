"""A file in a folder's listing: its name, size and date, however a file system tells them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A file in a listing. modified: seconds since 1970 by the store's own clock, None where it tells no time."""

    name: str
    bytes: int
    modified: float | None


def entry_of(name: str, info: dict[str, Any]) -> Entry | None:
    """The entry for what fsspec's `ls` tells of a file; None for a folder."""
    return None if info.get("type") == "directory" else Entry(name, int(info["size"]), _modified(info))


def list_local(path: str) -> list[tuple[str, dict[str, Any]]]:
    """`list_folder` of a local disk, without fsspec's five calls a file."""
    found: list[tuple[str, dict[str, Any]]] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # removed since, or a link to nothing
                kind = "directory" if entry.is_dir() else "file"
                found.append((entry.name, {"type": kind, "size": status.st_size, "mtime": status.st_mtime}))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def list_folder(fs: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    """What lies directly inside a folder, each with its name there; nothing if it is not there, or a file."""
    while True:
        try:
            found = fs.ls(path, detail=True)
            break
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (KeyError, RuntimeError):
            # In memory a listing is of a dict, which another thread may change meanwhile.
            if fs.protocol != "memory":
                raise
    listed = [(info["name"].rstrip("/"), info) for info in found]
    # Some file systems list a file, or a folder's own marker, as the only thing inside itself.
    own = fs._strip_protocol(path)
    return [(name.rsplit("/", 1)[-1], info) for name, info in listed if name != own]


def _modified(info: dict[str, Any]) -> float | None:
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        when = info.get(name)
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when)
        if isinstance(when, str) and when:
            return datetime.fromisoformat(when).timestamp()
    return None
