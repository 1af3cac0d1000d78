"""Which files a source has at its URL: one file, a folder of them, or a pattern."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from storage.errors import SourceError
from storage.filesystems import in_words, open_filesystem


def opened(url: str) -> tuple[Any, str]:
    """The file system of a source, and the path in it. Raises SourceError."""
    try:
        return open_filesystem(url)
    except (ValueError, ImportError) as error:
        raise SourceError(f"'{url}' cannot be opened: {error}.", "A source is at a URL that fsspec knows.") from None


def find(url: str, endings: Sequence[str], kind: str) -> list[str]:
    """The names of the files at a URL, sorted; in a folder, of those with one of the endings. Raises SourceError."""
    fs, path = opened(url)
    with in_words(url):
        if fs.isdir(path):
            names = [name for name in fs.find(path) if name.endswith(tuple(endings))]
        else:
            names = fs.glob(path) if _is_pattern(path) else [path] if fs.exists(path) else []
    if not names:
        raise SourceError(
            f"There are no {kind} files at '{url}'.", "A source is a file, a folder or a pattern of them."
        )
    return sorted(names)


def inside(url: str, name: str) -> str:
    """A file's name from the source's own folder on, which stays when all of it is moved."""
    _, path = opened(url)
    parts = path.rstrip("/").split("/")
    plain = next((at for at, part in enumerate(parts) if _is_pattern(part)), len(parts))
    root = "/".join(parts[:plain])
    return name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else name.rpartition("/")[2]


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


@contextmanager
def told(name: str, kind: str) -> Generator[None]:
    """What fails while a file is read, as a SourceError about it."""
    try:
        with in_words(name):
            yield
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"'{name}' cannot be read: {error}.", f"Every file of a source is {kind}.") from None
