"""What goes to the cluster with a job: the files of the working directory that nothing tells Ray to leave behind."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from storage.base.errors import UsageError

LEFT_BEHIND = "Ray leaves behind what a .gitignore or a .rayignore names, and .git, .venv, venv and __pycache__"


@dataclass(frozen=True)
class Shipped:
    """files: the size in bytes of each one, by its path inside the working directory `folder`."""

    folder: Path
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def inside(self, path: str) -> str | None:
        """A path relative to the working directory, or None when it lies outside."""
        # As it is written first: a link inside the directory is shipped as the file that it leads to.
        for one in (os.path.abspath(self.folder / path), os.path.realpath(self.folder / path)):
            relative = os.path.relpath(one, self.folder)
            if relative != ".." and not relative.startswith("../"):
                return relative
        return None

    def holds(self, relative: str) -> bool:
        """Whether a file, or anything of a folder, is shipped."""
        return relative in self.files or any(name.startswith(f"{relative}/") for name in self.files)


def shipped(folder: Path) -> Shipped:
    """What Ray makes a package of. Raises UsageError when that is more than a cluster takes.

    It is Ray's own walk: `git check-ignore` says another thing of files that are tracked although a
    pattern names them, of ignore files above the working directory, and of .rayignore. The walk has
    no public name; this function is the one that knows it.
    """
    try:
        from ray._private import ray_constants
        from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
    except ImportError as error:
        raise UsageError(
            f"This Ray does not tell what it ships ({error}).",
            "stillhouse asks it in the way of Ray 2.60.",
            "Install the versions of constraints.txt.",
        ) from None

    files: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    try:
        _dir_travel(
            folder,
            [_get_excludes(folder, ray_constants.get_runtime_env_default_excludes())],
            note,
            include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
            logger=_quiet(),
        )
    except OSError as error:
        raise UsageError(
            f"The working directory cannot be read ({error}).",
            "All of it goes with the job.",
            "Name what stays here in a .rayignore.",
        ) from None
    found = Shipped(folder, files)
    # What the dashboard takes in one request; the store behind it would take five times as much.
    limit = ray_constants.DASHBOARD_CLIENT_MAX_SIZE
    if found.bytes >= limit:
        largest = sorted(files, key=lambda name: -files[name])[:5]
        raise UsageError(
            f"The working directory {folder} has {_mib(found.bytes)} in {len(files):,} files to ship. The largest: "
            f"{', '.join(f'{name} ({_mib(files[name])})' for name in largest)}.",
            f"Ray takes less than {_mib(limit)}.",
            "Name what the job does not read in a .rayignore, and put data where every machine sees it.",
        )
    return found


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _quiet() -> logging.Logger:
    logger = logging.Logger(__name__)
    logger.disabled = True
    return logger
