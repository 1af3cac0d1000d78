"""Local folders as a shell lists them, with symbolic links as what they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from storage.base.errors import SourceError


class LinkedFiles(LocalFileSystem):
    """The local file system as a shell shows it: a link is what it leads to, and hidden names are not listed.

    hidden, broken: names that were met. links: all of them. loops: links to a folder that holds them, with that folder;
    they are not followed.
    """

    cachable = False

    def __init__(self, is_hidden: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_hidden = is_hidden
        self.hidden, self.links, self.broken, self.loops = list[str](), list[str](), set[str](), dict[str, str]()

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        shown: list[Any] = []
        for info in self._all(path):
            name = info["name"]
            if self._is_hidden(name.rpartition("/")[2]):
                self.hidden.append(name)
                continue
            if info["islink"]:
                self.links.append(name)
                info["type"] = self._type_of_link(name)
            shown.append(info if detail else name)
        return shown

    def _all(self, path: str) -> list[dict[str, Any]]:
        try:
            return super().ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            # `find` and `glob` would leave out what is below.
            raise SourceError(
                f"The folder '{path}' cannot be listed: {error.strerror or error}.",
                "All files below a source's folder are listed.",
                "Mend its permissions, or name the source's files by a pattern.",
            ) from None

    def _type_of_link(self, name: str) -> str:
        if not os.path.isdir(name):
            if not os.path.exists(name):
                self.broken.add(name)
            return "file"
        target = os.path.realpath(name)
        if any(os.path.realpath(folder) == target for folder in PurePosixPath(name).parents):
            self.loops[name] = target
            return "other"
        return "directory"
