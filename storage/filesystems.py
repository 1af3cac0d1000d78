"""The door to fsspec: a file system for a URL, set up as stores need it, and its failures in words."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import fsspec
import fsspec.config
from fsspec.core import url_to_fs

from storage.errors import StoreError, StoreFull, StoreLost
from storage.lineage import redact

# What a client for objects may remember of a folder is what others have changed since.
_NO_LISTINGS = {"use_listings_cache": False}

# A range is checked against its own digest here. Some servers answer it with the whole object's checksum, which
# the client would hold against the range.
_S3_CONFIG = {
    "response_checksum_validation": "when_required",
    "connect_timeout": 10,
    # As many as there are threads that read; the rest would wait in line.
    "max_pool_connections": 64,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 4},
}


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises ValueError and ImportError as fsspec does.

    Credentials and endpoints are the environment's (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, FSSPEC_S3, roles, ...).
    """
    path = url.removeprefix("file://").removeprefix("local://")
    if not is_url(path):
        # fsspec would cut a path at a '::'.
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path))
    return url_to_fs(url, **_settings(url))


def is_url(text: str) -> bool:
    """Whether a text begins as a URL does, or as a chain of them (`simplecache::s3://...`); otherwise it is a path."""
    begin = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)", text)
    return begin is not None and (begin[2] == "://" or begin[1] in fsspec.available_protocols())


def _settings(url: str) -> dict[str, Any]:
    protocol = url.partition("://")[0]
    if protocol in ("s3", "s3a"):
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        return {**_NO_LISTINGS, "config_kwargs": {**_S3_CONFIG, **own}}
    return _NO_LISTINGS if protocol in ("gs", "gcs", "abfs", "abfss", "az") else {}


@contextmanager
def in_words(url: str) -> Generator[None]:
    """Failures of a file system as sentences about `url`.

    StoreError: access was refused, or there are no credentials. StoreFull: no space. StoreLost: the
    client gave up on the server. What says that a file is there or is not there passes unchanged.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except PermissionError as error:
        raise StoreError(
            f"{url}: access was refused: {error.strerror or error}.",
            "A store's files can be read, and by a job written, with the rights that this process has.",
            "Mend the permissions, or the credentials in this machine's environment.",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"{url} is full: {error.strerror}.",
                "What was committed stays.",
                "Make room (`python -m storage gc`, or another disk) and run the same command to go on.",
            ) from error
        known = isinstance(error, TimeoutError | ConnectionError | socket.gaierror) or _is_clients(error)
        if _status_of(error) is None and not known:
            raise
        raise _lost(url, error) from error
    except Exception as error:
        if "Credentials" in type(error).__name__:
            raise StoreError(
                f"{url}: there are no credentials: {error}.",
                "An object store's client finds them in the environment, in a profile or in the machine's role.",
                "Set them for every machine of the job.",
            ) from error
        if not _is_clients(error):
            raise
        raise _lost(url, error) from error


def _lost(url: str, error: Exception) -> StoreLost:
    return StoreLost(
        f"{url} did not answer as a store does: {redact(str(error).rstrip('.'))} ({type(error).__name__}).",
        "What was committed stays.",
        "Look after the server, or the endpoint in the environment, and run the same command to go on.",
    )


def is_taken(error: BaseException) -> bool:
    """Whether a conditional put was refused because the object is there (HTTP 412), however a client says so."""
    return isinstance(error, FileExistsError) or _status_of(error) in (412, "412", "PreconditionFailed")


def is_contested(error: BaseException) -> bool:
    """Whether a conditional put met another one at the same moment and may be tried again (HTTP 409)."""
    return _status_of(error) in (409, "409", "ConditionalRequestConflict")


def is_past_the_end(error: BaseException) -> bool:
    """Whether a range was refused because the file ends before it (HTTP 416)."""
    return _status_of(error) in (416, "416", "InvalidRange")


def _status_of(error: BaseException) -> int | str | None:
    """The HTTP status, or S3's name for it, behind what a client raised."""
    for seen in (error, error.__cause__):
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response["Error"].get("Code")
        code = getattr(seen, "code", None) or getattr(seen, "status", None)
        if isinstance(code, int):
            return code
    return None


def _is_clients(error: Exception) -> bool:
    clients = (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "azure",
        "google",
        "gcsfs",
        "fsspec",
        "asyncio",
        "requests",
        "urllib3",
    )
    return type(error).__module__.partition(".")[0] in clients
