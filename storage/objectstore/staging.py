"""Where a file is written before it has a name in a store: on a local store's own disk, otherwise on this machine's."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from pathlib import Path

from storage.objectstore.client_errors import in_words

_HOMES = "stillhouse-stage-"


def new_stage(root: str | None) -> Path:
    """A new path to write to; root: of a local store. For others it lies in a folder that this process's id names."""
    home = Path(root) / "tmp" if root is not None else Path(tempfile.gettempdir()) / f"{_HOMES}{os.getpid()}"
    with in_words(str(home)):
        home.mkdir(parents=True, exist_ok=True)
    return home / f"stillhouse-{uuid.uuid4().hex}.part"


def this_machine() -> str:
    """What is full when a file that is staged here has no room."""
    return f"{tempfile.gettempdir()} on the machine {socket.gethostname()}"


def remove_dead_stages() -> None:
    """Remove what processes of this machine staged for object stores and left when they were killed."""
    for home in Path(tempfile.gettempdir()).glob(f"{_HOMES}[0-9]*"):
        # In a container another one's processes are not seen: so what is young is left alone.
        if not Path(f"/proc/{home.name.removeprefix(_HOMES)}").exists() and _age_s(home) > 3600:
            shutil.rmtree(home, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
