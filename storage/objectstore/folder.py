"""A folder behind any fsspec URL, with one honest `create` that never overwrites."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from storage.base.errors import StoreError, StoreLost
from storage.objectstore.client_errors import in_words, is_past_the_end, unusable
from storage.objectstore.conditional_put import (
    NoLinks,
    keeps_promise,
    link_if_absent,
    links_hold,
    put_alone,
    put_if_absent,
    replace,
    replace_if_absent,
    write_durably,
)
from storage.objectstore.filesystem import is_there, open_file, open_filesystem
from storage.objectstore.listing import Entry, entry_of, list_folder, list_local
from storage.objectstore.scatter import fill
from storage.objectstore.staging import new_stage, this_machine

# Where nothing lies far away.
_NEAR = ("file", "memory")

_memory_lock = threading.Lock()

# How many requests to an object store wait for their answers at the same time.
_AT_ONCE = 32


class Folder:
    """Files under one URL. Paths are relative to it and use '/'. Raises StoreError, StoreFull and StoreLost."""

    def __init__(self, url: str, keeps_create: bool | None = None) -> None:
        """keeps_create: what another process has found out about the same folder."""
        try:
            fs, root = open_filesystem(url)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"'{url}' cannot be opened: {error}.", "A store is a folder URL that fsspec knows."
            ) from None
        self._opened: tuple[int, Any] = (os.getpid(), fs)
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        self.is_local = protocol in ("file", "local")
        self.protocol: str = "file" if self.is_local else protocol
        if self.is_local:
            root = os.path.abspath(root)
        self._root: str = root.rstrip("/")
        self._keeps_create = keeps_create
        self.url: str = self._root if self.is_local else fs.unstrip_protocol(self._root)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def _fs(self) -> Any:
        pid, fs = self._opened
        if pid != os.getpid():
            # A fork copies a client of an object store without the thread that it talks through.
            fs, _ = open_filesystem(self.url)
            self._opened = (os.getpid(), fs)
        return fs

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _at(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/") or "://" in path:
            raise StoreError(f"The path '{path}' leads out of {self.url}.", "Paths inside a store are relative.")
        return f"{self._root}/{path}" if path else self._root

    def exists(self, path: str = "") -> bool:
        with in_words(self.url_of(path)):
            return is_there(self._fs, self._at(path))

    def size(self, path: str) -> int:
        with in_words(self.url_of(path)):
            return int(self._fs.size(self._at(path)))

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        at = self._at(path)
        with in_words(self.url_of(path)):
            # Without fsspec a small file takes a third of the time, and a job reads as many as it has spans.
            return Path(at).read_bytes() if self.is_local else self._fs.cat_file(at)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file; fewer if it ends before. Raises FileNotFoundError."""
        if start >= stop:
            return b""
        with in_words(self.url_of(path)):
            try:
                return self._fs.cat_file(self._at(path), start=start, end=stop)
            except OSError as error:
                if is_past_the_end(error):
                    return b""
                raise

    def read_into(self, path: str, start: int, into: memoryview) -> int:
        """Fill `into` with the bytes from `start` on; how many there were, fewer if the file ends before.

        Raises FileNotFoundError.
        """
        return self.read_pieces(path, start, [into])

    def read_pieces(self, path: str, start: int, pieces: Sequence[memoryview]) -> int:
        """`read_into` for bytes that belong to several places, one after another."""
        if not self.is_local:
            data, count = memoryview(self.read_range(path, start, start + sum(map(len, pieces)))), 0
            for piece in pieces:
                part = data[count : count + len(piece)]
                piece[: len(part)] = part
                count += len(part)
            return count
        with in_words(self.url_of(path)), open(self._at(path), "rb", buffering=0) as file:
            return fill(file.fileno(), start, pieces)

    def read_some(self, paths: Iterable[str]) -> Iterable[bytes | None]:
        """The whole files in their order, many at a time where they lie far away; None for one that is gone."""

        def read(path: str) -> bytes | None:
            try:
                return self.read(path)
            except FileNotFoundError:
                return None

        return self._each(read, paths)

    def _each(self, call: Any, paths: Iterable[str]) -> Iterable[Any]:
        if self.protocol in _NEAR:
            yield from map(call, paths)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from pool.map(call, paths)

    def open(self, path: str) -> Any:
        """The file opened for reading; what reading it raises is translated as well. Raises FileNotFoundError."""
        return open_file(self._fs, self._at(path), self.url_of(path))

    def names(self, path: str = "") -> list[str]:
        """The names directly inside a folder, sorted; none if it is not there, or a file."""
        return sorted(name for name, _ in self._listed(path))

    def entries(self, path: str) -> list[Entry]:
        """The files directly inside a folder, sorted by name; none if it is not there, or a file."""
        files = (entry_of(name, info) for name, info in self._listed(path))
        return sorted((entry for entry in files if entry is not None), key=lambda entry: entry.name)

    def entries_of(self, paths: Iterable[str]) -> Iterable[list[Entry]]:
        """The entries of each folder, many at a time where they lie far away."""
        return self._each(self.entries, paths)

    def _listed(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        at = self._at(path)
        self._fs.invalidate_cache()
        with in_words(self.url_of(path)):
            if self.is_local:
                return list_local(at)
            try:
                return list_folder(self._fs, at)
            except ValueError as error:
                raise unusable(self.url_of(path), error) from error

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that it holds, if it is there; never the whole of this folder."""
        target = self._at(path)
        if not path.strip("/."):
            raise StoreError(f"'{path}' is all of {self.url}.", "Something inside it can be removed.")
        with in_words(self.url_of(path)):
            try:
                self._fs.rm(target, recursive=True)
            except FileNotFoundError:
                return

    def remove_files(self, paths: Iterable[str]) -> None:
        """Remove files, many at a time where they lie far away; one that is not there is no matter."""

        def remove(path: str) -> None:
            with in_words(self.url_of(path)):
                try:
                    self._fs.rm_file(self._at(path))
                except FileNotFoundError:
                    return

        for _ in self._each(remove, paths):
            pass

    @functools.cached_property
    def keeps_create(self) -> bool:
        """Whether `create` holds here for any number of writers: by hard links, or as a race of puts shows."""
        if self._keeps_create is not None or self.protocol == "memory":
            return self._keeps_create is not False
        with in_words(self.url):
            return links_hold(self.stage()) if self.is_local else keeps_promise(self._fs, self._at("tmp"))

    def create(self, path: str, data: bytes) -> bool:
        """Put a whole file if nothing is there: True when this call made it, False when it existed.

        Of any number of racing callers one gets True, and a caller whose answer was lost on the way may
        be told False. Where `keeps_create` is False that holds inside one process only. A reader sees
        the whole file or none.
        """
        at = self._at(path)
        with in_words(self.url_of(path)):
            if self.protocol == "memory":
                with _memory_lock:
                    if self._fs.exists(at):
                        return False
                    self._fs.pipe_file(at, data)
                    return True
            if not self.is_local:
                return (put_if_absent if self.keeps_create else put_alone)(self._fs, at, data)
            staged = self.stage()
            try:
                write_durably(staged, data)
                return self._name(staged, Path(at))
            finally:
                staged.unlink(missing_ok=True)

    def _name(self, staged: Path, final: Path) -> bool:
        try:
            return link_if_absent(staged, final)
        except NoLinks:
            return replace_if_absent(staged, final)

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file, in place of what is there."""
        at = self._at(path)
        with in_words(self.url_of(path)):
            if not self.is_local:
                self._fs.pipe_file(at, data)
                return
            staged = self.stage()
            try:
                write_durably(staged, data)
                replace(staged, Path(at))
            finally:
                staged.unlink(missing_ok=True)

    def stage(self) -> Path:
        """A new local path to write a file to before `publish`; on a local store, on its own disk."""
        return new_stage(self._root if self.is_local else None)

    def stage_place(self) -> str:
        """What is full when a staged file has no room: the folder, or this machine's own disk."""
        return self.url if self.is_local else this_machine()

    def publish(self, staged: Path, path: str) -> None:
        """Give a staged local file its name in the folder. The name must be new; the staged file goes."""
        at = self._at(path)
        size = staged.stat().st_size
        try:
            with in_words(self.url_of(path)):
                if self.is_local:
                    made = self._name(staged, Path(at))
                else:
                    # A put that a client repeats finds its own file: so no condition, the name is the attempt's own.
                    made = not self._fs.exists(at)
                    if made:
                        self._fs.put_file(str(staged), at)
        finally:
            staged.unlink(missing_ok=True)
        if not made:
            raise StoreError(f"{self.url_of(path)} exists already.", "An attempt's file has a name of its own.")
        if not self.is_local and self.size(path) != size:
            raise StoreLost(f"{self.url_of(path)} has {self.size(path)} bytes.", f"{size} bytes were put there.")


def open_url(url: str) -> Any:
    """One file behind any fsspec URL, opened for reading; see `Folder.open`."""
    fs, path = open_filesystem(url)
    return open_file(fs, path, url)
