"""A folder behind any fsspec URL, with one honest `create` that never overwrites."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from storage.errors import StoreError

# Where put-if-absent is known to be kept. Other backends wait for a probe and a single committer.
KEEPS_CREATE = ("file", "memory")

_memory_lock = threading.Lock()


class Folder:
    """Files under one URL. Paths are relative to it and use '/'."""

    def __init__(self, url: str) -> None:
        try:
            fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"'{url}' cannot be opened: {error}.", "A store is a folder URL that fsspec knows."
            ) from None
        self._fs: Any = fs
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        self.is_local = protocol in ("file", "local")
        self.protocol: str = "file" if self.is_local else protocol
        if self.is_local:
            root = os.path.abspath(root)
        self._root: str = root.rstrip("/")
        self.url: str = self._root if self.is_local else fs.unstrip_protocol(self._root)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _at(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "://" in path:
            raise StoreError(f"The path '{path}' leads out of {self.url}.", "Paths inside a store are relative.")
        return f"{self._root}/{path}" if path else self._root

    def exists(self, path: str = "") -> bool:
        return self._fs.exists(self._at(path))

    def size(self, path: str) -> int:
        return int(self._fs.size(self._at(path)))

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return self._fs.cat_file(self._at(path))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file; fewer if it ends before. Raises FileNotFoundError."""
        return self._fs.cat_file(self._at(path), start=start, end=stop)

    def open(self, path: str) -> Any:
        return self._fs.open(self._at(path), "rb")

    def names(self, path: str = "") -> list[str]:
        """The names directly inside a folder, sorted; none if it is not there, or a file."""
        self._fs.invalidate_cache()
        try:
            if not self._fs.isdir(self._at(path)):
                return []
            found = self._fs.ls(self._at(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that it holds, if it is there; never the whole of this folder."""
        target = self._at(path)
        if not path.strip("/."):
            raise StoreError(f"'{path}' is all of {self.url}.", "Something inside it can be removed.")
        try:
            self._fs.rm(target, recursive=True)
        except FileNotFoundError:
            return

    def prepare(self) -> None:
        """Make the folder and prove that it can be written. Raises StoreError."""
        self._refuse_foreign()
        probe = f"tmp/probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, b"")
            self.remove(probe)
        except OSError as error:
            raise StoreError(
                f"{self.url} cannot be written: {error.strerror or error}.",
                "A job needs a folder that it may write.",
                "Choose another store, or mend its permissions.",
            ) from None

    def _refuse_foreign(self) -> None:
        if self.protocol not in KEEPS_CREATE:
            raise StoreError(
                f"{self.url} is on '{self.protocol}'.",
                f"This version writes on {' and '.join(KEEPS_CREATE)} only: put-if-absent holds there.",
                "Name a local folder that every machine of the job sees.",
            )

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole file if nothing is there: True when this call made it, False when it existed.

        Of any number of racing callers one gets True. A reader sees the whole file or none, but for
        file systems without hard links, where it may see a file that is still being written.
        """
        if self.protocol == "memory":
            with _memory_lock:
                if self._fs.exists(self._at(path)):
                    return False
                self._fs.pipe_file(self._at(path), data)
                return True
        self._refuse_foreign()
        staged = self.stage()
        try:
            _write_durably(staged, data)
            return self._link(staged, path)
        finally:
            staged.unlink(missing_ok=True)

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file, in place of what is there."""
        if self.protocol == "memory":
            self._fs.pipe_file(self._at(path), data)
            return
        self._refuse_foreign()
        staged, final = self.stage(), Path(self._at(path))
        try:
            _write_durably(staged, data)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, final)
        finally:
            staged.unlink(missing_ok=True)
        _sync_folder(final.parent)

    def stage(self) -> Path:
        """A new local path to write a file to before `publish`; on a local store, on its own disk."""
        home = Path(self._root) / "tmp" if self.is_local else Path(tempfile.gettempdir())
        home.mkdir(parents=True, exist_ok=True)
        return home / f"{uuid.uuid4().hex}.part"

    def publish(self, staged: Path, path: str) -> None:
        """Give a staged local file its name in the folder. The name must be new; the staged file goes."""
        if self.is_local:
            made = self._link(staged, path)
        else:
            made = self.create(path, staged.read_bytes())
        staged.unlink(missing_ok=True)
        if not made:
            raise StoreError(f"{self.url_of(path)} exists already.", "An attempt's file has a name of its own.")

    def _link(self, staged: Path, path: str) -> bool:
        final = Path(self._at(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(staged, final)
        except FileExistsError:
            return False
        except OSError as error:
            # File systems without hard links (exFAT, some network mounts) still keep O_EXCL.
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
                raise
            return _create_exclusively(final, staged.read_bytes())
        _sync_folder(final.parent)
        return True


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_exclusively(path: Path, data: bytes) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return True


def _sync_folder(path: Path) -> None:
    # A new name is durable only once its folder is.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_url(url: str) -> Any:
    """One file behind any fsspec URL, opened for reading. Raises FileNotFoundError."""
    return fsspec.open(url, "rb").open()
