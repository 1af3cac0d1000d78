"""Which files a source has at its URL: one file, those of a folder, or those that a pattern matches.

Below the named folder symbolic links are followed, and names that begin with `_` or `.` are left out, as
pyarrow.dataset does. A folder `_key=value` is a partition and is read, as Spark does. In a pattern, as in a shell, such
a name is matched only by a part that begins with the same character. A path that exists is no pattern.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from storage.base.errors import SourceError
from storage.objectstore.client_errors import in_words
from storage.objectstore.filesystem import is_there
from storage.sources.files.compression import COMPRESSED_ENDINGS
from storage.sources.files.linked_files import LinkedFiles
from storage.sources.files.located import opened

# Folders of tables whose log says which of their files count; the others are old or not committed.
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}

# An object that stands for an empty folder, as Hadoop writes it; other programs end its name with a slash.
_FOLDER_MARKER = "_$folder$"


@dataclass(frozen=True)
class FileList:
    """names: sorted. notes: for people, on links that were followed and files that were left out."""

    names: list[str]
    notes: list[str]


def list_files(url: str, endings: Sequence[str], kind: str) -> FileList:
    """The files at a URL; of a folder, those with one of the endings. Raises SourceError when there are none."""
    fs, path = opened(url)
    with _listing(url):
        is_folder = fs.isdir(path)
        if not is_folder and is_there(fs, path):
            return FileList([path], [])
        if is_folder:
            _refuse_table(fs, path.rstrip("/"), url)
            search = _Search(fs, path.rstrip("/"), endings)
            search.add_folder(path)
        else:
            search = _Search(fs, _plain_part(path), endings, path)
            if is_pattern(path):
                search.add_matches(path)
    names, twice = search.read_once()
    _refuse_unpacked_twins(names, url)
    left_out = search.left_out()
    if not names:
        raise SourceError(
            f"There are no {kind} files at '{url}'." + (f" Left out: {'; '.join(left_out)}." if left_out else ""),
            f"A source is a file, a folder or a pattern of them; in a folder those count that end in {_any(endings)}.",
            search.pattern_for_others(url),
        )
    said = [*search.followed(), *twice, *(f"left out: {each}" for each in left_out)]
    return FileList(sorted(names), [f"Source {url}: {'; '.join(said)}."] if said else [])


@contextmanager
def _listing(url: str) -> Generator[None]:
    try:
        with in_words(url):
            yield
    except (ValueError, TypeError, OSError) as error:
        # TypeError: fsspec's HTTP client, of a pattern with brackets.
        raise SourceError(
            f"The files at '{url}' cannot be listed: {str(error).strip().rstrip('.')}.",
            "A source is a file, a folder or a pattern of them.",
        ) from error


def _refuse_table(fs: Any, path: str, url: str) -> None:
    for log, kind in _TABLE_LOGS.items():
        if fs.isdir(f"{path}/{log}"):
            raise SourceError(
                f"'{url}' is a {kind} table: it holds {log}.",
                "Of such a table only those files count that its log names, which is not read.",
                "Write its rows to a folder of Parquet files, or give a function that yields them (source.function).",
            )


def _refuse_unpacked_twins(names: Iterable[str], url: str) -> None:
    """Raises SourceError where a file lies beside its own compressed form, as `gzip -k` leaves it: rows come twice."""
    names = set(names)
    for name in sorted(names):
        plain, ending = os.path.splitext(name)
        if ending.lower() in COMPRESSED_ENDINGS and plain in names:
            raise SourceError(
                f"'{url}' has both '{plain}' and '{name}'.",
                "A file and its compressed form hold the same rows, which would be read twice.",
                "Remove one of them, or name the files by a pattern that matches one.",
            )


def is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def root_of(url: str) -> str:
    """The path that a source's files lie below: the URL's own; of a pattern, what stands before the first wildcard."""
    fs, path = opened(url)
    if not is_pattern(path):
        return path.rstrip("/")
    with _listing(url):
        return path.rstrip("/") if is_there(fs, path) else _plain_part(path)


def inside(root: str, name: str) -> str:
    """A file's name from its source's root on, which stays when all of it is moved."""
    if not root:
        return name.lstrip("/")  # in an archive
    return name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else name.rpartition("/")[2]


def _plain_part(pattern: str) -> str:
    parts = pattern.rstrip("/").split("/")
    return "/".join(parts[: next((at for at, part in enumerate(parts) if is_pattern(part)), len(parts))])


class _Search:
    """Collects the files of one folder or pattern, of which `root` is the part without wildcards."""

    def __init__(self, fs: Any, root: str, endings: Sequence[str], pattern: str = "") -> None:
        self._root, self._endings = root, tuple(endings)
        self._spelled = [part for part in inside(root, pattern).split("/") if part.startswith(("_", "."))]
        self._local: LinkedFiles | None = None
        if isinstance(fs, LocalFileSystem):
            # What a pattern does not match is not left out, so hidden names are looked at afterwards.
            self._local = LinkedFiles((lambda _: False) if pattern else self._is_hidden)
        self._fs: Any = self._local or fs
        self._names, self._others, self._hidden = set[str](), set[str](), set[str]()

    def add_folder(self, path: str) -> None:
        for name in self._fs.find(path):
            if self._is_shown(name):
                (self._names if name.lower().endswith(self._endings) else self._others).add(name)
        if self._local is not None:
            self._refuse_links(lambda name: name.startswith(f"{path.rstrip('/')}/"))

    def add_matches(self, pattern: str) -> None:
        """All files that match, whatever their ending, and the files of folders that match."""
        found = self._fs.glob(pattern, detail=True)
        folders = {name for name, info in found.items() if info.get("type") == "directory"}
        self._names |= {name for name in found.keys() - folders if self._is_shown(name)}
        if self._local is not None:
            loops = self._local.loops
            # A folder that the pattern goes into matters, too.
            depth = len(pattern) if "**" in pattern else pattern.count("/")
            self._refuse_links(lambda name: name in found or (name in loops and name.count("/") < depth))
        for folder in sorted(folders):
            if self._is_shown(folder) and not any(str(above) in folders for above in PurePosixPath(folder).parents):
                self.add_folder(folder)
        self._others -= self._names

    def _is_hidden(self, part: str) -> bool:
        if not part.startswith(("_", ".")) or (part.startswith("_") and "=" in part):
            return False
        return not any(spelled[0] == part[0] and fnmatchcase(part, spelled) for spelled in self._spelled)

    def _is_shown(self, name: str) -> bool:
        if name.endswith(("/", _FOLDER_MARKER)):
            return False
        parts = inside(self._root, name).split("/")
        first = next((at for at, part in enumerate(parts) if self._is_hidden(part)), None)
        if first is not None:
            self._hidden.add("/".join(parts[: first + 1]))
        return first is None

    def _refuse_links(self, matters: Callable[[str], bool]) -> None:
        assert self._local is not None
        for name in self._local.links:
            if not matters(name) or not self._is_shown(name):
                continue
            if name in self._local.broken:
                raise SourceError(
                    f"'{name}' is a link to '{os.readlink(name)}', which is not there.",
                    "Links below a source's folder are followed.",
                    "Remove the link, or put back what it leads to.",
                )
            if name in self._local.loops:
                raise SourceError(
                    f"'{name}' is a link to '{self._local.loops[name]}', the folder that holds it, without an end.",
                    "Links below a source's folder lead to files, or to folders that do not hold the link.",
                    "Remove the link, or name the source's files by a pattern.",
                )

    def read_once(self) -> tuple[set[str], list[str]]:
        """The names without those that lead to another one's file, and what is to be said of that.

        Kept is a name that no link is in, or else the first. Below other partitions a file has other rows.
        """
        if self._local is None or not self._local.links:
            return self._names, []
        real = {name: os.path.realpath(name) for name in self._names}
        root = os.path.realpath(self._root or "/")
        kept, twice = dict[Any, str](), list[str]()
        for name in sorted(real, key=lambda name: (real[name] != os.path.join(root, inside(self._root, name)), name)):
            shown = inside(self._root, name)
            partitions = [part for part in shown.split("/")[:-1] if "=" in part]
            first = kept.setdefault((real[name], *partitions), name)
            if first != name:
                twice.append(f"{shown} is {inside(self._root, first)}")
        said = [f"{_count(twice, 'file')} reached twice and read once ({_some(twice)})"] if twice else []
        return set(kept.values()), said

    def followed(self) -> list[str]:
        links = [] if self._local is None else self._local.links
        above = {str(folder) for name in self._names for folder in PurePosixPath(name).parents} if links else set[str]()
        shown = [inside(self._root, name) for name in links if name in self._names or name in above]
        return [f"{_count(shown, 'link')} followed ({_some(shown)})"] if shown else []

    def left_out(self) -> list[str]:
        said: list[str] = []
        pruned = [] if self._local is None else self._local.hidden
        hidden = self._hidden | {inside(self._root, name) for name in pruned}
        if hidden:
            said.append(f"{len(hidden):,} with a name that begins with '_' or '.' ({_some(hidden)})")
        if self._others:
            counts = Counter(map(_ending, self._others)).most_common()
            each = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in counts)
            said.append(f"{_count(self._others, 'file')} of another ending than {_any(self._endings)} ({each})")
        return said

    def pattern_for_others(self, url: str) -> str:
        """How to name the files of another ending; of several, the most frequent."""
        if not self._others:
            return ""
        ending = Counter(map(_ending, self._others)).most_common(1)[0][0]
        below = "**/" if any("/" in inside(self._root, name) for name in self._others) else ""
        pattern = f"{glob.escape(url.rstrip('/'))}/{below}*{ending}"
        return f"Name them by a pattern if they hold samples: '{pattern}'."


def _ending(name: str) -> str:
    """
    >>> _ending("a/b.json"), _ending("a/b.json.gz"), _ending("a.b/part-0")
    ('.json', '.json.gz', '')
    """
    plain, ending = os.path.splitext(name)
    return os.path.splitext(plain)[1] + ending if ending.lower() in COMPRESSED_ENDINGS else ending


def _any(endings: Sequence[str]) -> str:
    """
    >>> _any([".jsonl", ".ndjson", ".jsonl.gz"])
    '.jsonl or .ndjson, also followed by .gz, .zst, .bz2, .xz'
    """
    plain = [ending for ending in endings if not ending.endswith(tuple(COMPRESSED_ENDINGS))]
    said = f"{', '.join(plain[:-1])} or {plain[-1]}"
    return said if len(plain) == len(endings) else f"{said}, also followed by {', '.join(COMPRESSED_ENDINGS)}"


def _count(things: Iterable[object], noun: str) -> str:
    count = len(list(things))
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
