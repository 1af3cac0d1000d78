"""fsspec file systems, set up as stores need them, and files opened in them."""

from __future__ import annotations

import errno
import io
import os
import re
from typing import Any

import fsspec
import fsspec.config
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.base.errors import StillhouseError
from storage.objectstore.client_errors import in_words, real_cause, unusable

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
        if real_cause(error) is not None:
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
