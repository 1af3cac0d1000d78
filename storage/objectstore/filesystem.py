"""The door to fsspec: a file system for a URL, set up as stores need it, and its failures in words."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import fsspec
import fsspec.config
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.base.errors import StillhouseError, StoreError, StoreFull, StoreLost
from storage.base.redact import redact

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
    """The fsspec file system of a URL, and the path in it. Raises ValueError, ImportError, StoreError and StoreLost.

    Credentials and endpoints are the environment's (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, FSSPEC_S3, roles, ...).
    """
    path = url.removeprefix("file://").removeprefix("local://")
    if not is_url(path):
        # fsspec would cut a path at a '::'.
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(path))
    try:
        with in_words(url):
            return url_to_fs(url, **_settings(url))
    except (StillhouseError, ValueError, ImportError):
        raise
    except Exception as error:
        # Some file systems connect, or look into an archive, when they are made, and raise errors of their own.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


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
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise
    except FileNotFoundError as error:
        cause = _real_cause(error)
        if cause is None:
            raise
        raise _refused_or_lost(url, cause) from error
    except PermissionError as error:
        raise _refused(url, error.strerror or str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"{url} is full: {error.strerror}.",
                "What was committed stays.",
                "Make room (`stillhouse-store gc`, or another disk) and run the same command to go on.",
            ) from error
        known = isinstance(error, TimeoutError | ConnectionError | socket.gaierror) or _is_clients(error)
        if _status_of(error) is None and not known and error.errno not in NETWORK_ERRNO:
            raise
        raise _refused_or_lost(url, error) from error
    except Exception as error:
        if "Credentials" in type(error).__name__:
            raise StoreError(
                f"{url}: there are no credentials: {error}.",
                "An object store's client finds them in the environment, in a profile or in the machine's role.",
                "Set them for every machine of the job.",
            ) from error
        if not _is_clients(error):
            raise
        raise _refused_or_lost(url, error) from error


# Errors of the network that Python has no exception of its own for. ESTALE: a server of NFS lost the file's handle.
NETWORK_ERRNO = (
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ENOTCONN,
    errno.ESTALE,
)


class _File(io.RawIOBase):
    """A file that was opened for reading, whose reads and seeks raise what `in_words` raises."""

    def __init__(self, file: Any, url: str) -> None:
        super().__init__()
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def read(self, size: int | None = -1, /) -> bytes:
        with in_words(self._url):
            return self._file.read(-1 if size is None else size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, into: Any, /) -> int:
        with in_words(self._url):
            return self._file.readinto(into)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with in_words(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.close()
            finally:
                super().close()


def open_file(fs: Any, path: str, url: str) -> Any:
    """A file opened for reading in binary. Opening, reading and seeking raise what `in_words(url)` raises."""
    with in_words(url):
        return _File(fs.open(path, "rb"), url)


def is_there(fs: Any, path: str) -> bool:
    """Whether a file or a folder is at a path. Raises what the file system raises, also where its `exists` does not.

    `exists` is False whatever went wrong: S3's for a bucket, HTTP's and the local disk's for a file. Raises
    StoreError for a path that the file system cannot use.
    """
    try:
        if fs.exists(path):
            return True
        if isinstance(fs, MemoryFileSystem):
            return False
        # Locally a link to nothing has an `info`, but no `stat`.
        os.stat(path) if isinstance(fs, LocalFileSystem) else fs.info(path)
    except FileNotFoundError as error:
        if _real_cause(error) is not None:
            raise
        return False
    except NotADirectoryError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False  # links that lead to each other; a name that no file has
        raise
    except ValueError as error:
        raise unusable(path, error) from error
    return True


def _real_cause(error: FileNotFoundError) -> Exception | None:
    """Why a file that may well be there could not be looked at; None where it is not there.

    fsspec's HTTP client raises FileNotFoundError for every failure of a request.
    """
    cause = error.__cause__
    if isinstance(cause, TimeoutError | ConnectionError | socket.gaierror):
        return cause
    if type(cause).__module__.partition(".")[0] != "aiohttp" or _status_of(error) in (404, 410):
        return None
    return cause if isinstance(cause, Exception) else None


# What botocore raises before it asks a server: of a bucket's name, a profile, a region.
_WRONG_SETTINGS = ("ParamValidationError", "ProfileNotFound", "NoRegionError", "ConfigParseError", "ConfigNotFound")


def unusable(url: str, error: Exception) -> StoreError:
    return StoreError(
        f"'{url}' cannot be used: {redact(' '.join(str(error).split()).rstrip('.'))}.",
        "It is a URL whose file system can reach it with the settings in this machine's environment.",
        "Mend the URL, or the endpoint, profile or region that the environment names.",
    )


def _refused(url: str, why: str) -> StoreError:
    return StoreError(
        f"{url}: access was refused: {why}.",
        "A store's files can be read, and by a job written, with the rights that this process has.",
        "Mend the permissions, or the credentials in this machine's environment.",
    )


def _refused_or_lost(url: str, error: Exception) -> StoreError | StoreLost:
    if isinstance(error, ValueError) or type(error).__name__ in _WRONG_SETTINGS:
        return unusable(url, error)
    if _status_of(error) in (401, 403):
        return _refused(url, redact(str(error).rstrip(".")))
    return _lost(url, error)


def _lost(url: str, error: Exception) -> StoreLost:
    return StoreLost(
        f"{url} did not answer as a store does: {redact(' '.join(str(error).split()).rstrip('.'))} "
        f"({type(error).__name__}).",
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
        for name in ("status", "code"):  # in this order: aiohttp warns of its own `code`
            code = getattr(seen, name, None)
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
        "http",
        "ssl",
        "paramiko",
        "httpx",
        "httpx2",
        "huggingface_hub",
    )
    return type(error).__module__.partition(".")[0] in clients
