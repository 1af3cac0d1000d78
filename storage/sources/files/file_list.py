"""Which files a source has at its URL: one file, those of a folder, or those that a pattern matches.

Below the named folder symbolic links are followed, and names that begin with `_` or `.` are left out, as
pyarrow.dataset does. A folder `_key=value` is a partition and is read, as Spark does. In a pattern, as in a shell, such
a name is matched only by a part that begins with the same character. A path that exists is no pattern.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from storage.base.errors import SourceError
from storage.objectstore.client_errors import in_words
from storage.objectstore.filesystem import is_there
from storage.sources.files.compression import COMPRESSED_ENDINGS
from storage.sources.files.file_search import FileSearch
from storage.sources.files.located import opened

# Folders of tables whose log says which of their files count; the others are old or not committed.
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


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
            search = FileSearch(fs, path.rstrip("/"), endings)
            search.add_folder(path)
        else:
            search = FileSearch(fs, _plain_part(path), endings, path)
            if is_pattern(path):
                search.add_matches(path)
    names, twice = search.read_once()
    _refuse_unpacked_twins(names, url)
    left_out = search.left_out()
    if not names:
        raise SourceError(
            f"There are no {kind} files at '{url}'." + (f" Left out: {'; '.join(left_out)}." if left_out else ""),
            "A source is a file, a folder or a pattern of them; in a folder those count that end in "
            f"{search.endings_in_words}.",
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


def _plain_part(pattern: str) -> str:
    parts = pattern.rstrip("/").split("/")
    return "/".join(parts[: next((at for at, part in enumerate(parts) if is_pattern(part)), len(parts))])
