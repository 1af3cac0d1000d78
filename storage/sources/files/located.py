"""The file system of a source, the names of its files, and which version of a file is there while it is read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import pyarrow as pa

from storage.base.errors import SourceError, VerificationError
from storage.objectstore.client_errors import in_words
from storage.objectstore.filesystem import open_filesystem


def opened(url: str) -> tuple[Any, str]:
    """The file system of a source, and the path in it. Raises SourceError."""
    try:
        return open_filesystem(url)
    except (ValueError, ImportError) as error:
        raise SourceError(f"'{url}' cannot be opened: {error}.", "A source is at a URL that fsspec knows.") from None


def inside(root: str, name: str) -> str:
    """A file's name from its source's root on, which stays when all of it is moved."""
    if not root:
        return name.lstrip("/")  # in an archive
    return name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else name.rpartition("/")[2]


class Version(NamedTuple):
    """Which version of a file was there. Equal versions are the same bytes.

    facts: what the file system says of it. call: another number at each call where that has neither a time nor
    another name of the version; else 0.
    """

    facts: str
    call: int = 0


_calls = itertools.count(1)

# What file systems name a version by: local ones, S3, Google Cloud Storage, Azure, HTTP, git hosts, memory.
_TIMES = ("mtime", "created", "Last-Modified")
_NAMES = (
    "etag",
    "generation",
    "md5hash",
    "content-md5",
    "digest",
    "version_id",
    "sha",
    "lastmodified",
    "last_modified",
)

# Two writes within one tick of the clock of a file system get the same time. Where the times are whole seconds, the
# tick is a second.
_TICK_S, _COARSE_TICK_S = 0.02, 1.0


def version_of(fs: Any, name: str) -> Version:
    """The version of a file, as its file system has it. Raises what the file system raises.

    Waits where the file was written within the last tick, so that whatever is written from now on is another version.
    """
    info: dict[str, Any] = fs.info(name)
    if not any(key.lower() in _NAMES and value for key, value in info.items()):
        times = [_seconds(info[key]) for key in _TIMES if info.get(key)]
        if not times:
            return Version(repr(info), next(_calls))
        wait = max(at + (_COARSE_TICK_S if at.is_integer() else _TICK_S) for at in times) - time.time()
        if 0 < wait <= _COARSE_TICK_S:
            time.sleep(wait)
            info = fs.info(name)
    return Version(repr(sorted((str(key), str(value)) for key, value in info.items())))


def _seconds(moment: Any) -> float:
    """Since 1970; of a number, a datetime or HTTP's text."""
    if isinstance(moment, str):
        moment = parsedate_to_datetime(moment)
    return float(moment) if isinstance(moment, int | float) else moment.timestamp()


@contextmanager
def reading(fs: Any, name: str, kind: str) -> Generator[Version]:
    """Gives the version of a file that is going to be read.

    What fails meanwhile is a VerificationError if the file is another one by then, and otherwise as with `told`.
    """
    with told(name, kind):
        version = version_of(fs, name)
    try:
        with told(name, kind):
            yield version
    except SourceError as error:
        with told(name, kind):
            now = version_of(fs, name)
        if now.facts == version.facts:
            raise
        raise VerificationError(
            f"'{name}' was written while it was read. {error}",
            "A source stays as it is while a job reads it.",
            "Run the same command again once the file is complete.",
        ) from error


@contextmanager
def told(name: str, kind: str) -> Generator[None]:
    """What fails while a file is read, as a SourceError about it."""
    try:
        with in_words(name):
            yield
    except (pa.ArrowNotImplementedError, ValueError, OSError) as error:
        # ValueError: pyarrow's ArrowInvalid, and a client whose server cannot give parts of a file.
        reason = str(error).strip().rstrip(".")
        raise SourceError(f"'{name}' cannot be read: {reason}.", f"Every file of a source is {kind}.") from None
