"""Whose code a module is: where its file lies, found without importing anything of it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import site
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def module_file(name: str) -> Path | None:
    """The file of package.module, found without running any of its code; None where there is none.

    importlib.util.find_spec imports the parents of a dotted name, so only the top-level name is looked up by it.
    """
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file, folders = spec.origin, list(spec.submodule_search_locations or [])
    for part in inner:
        file, folders = _inside(folders, part)
    # Otherwise it is built in, frozen, a package without `__init__`, or not there.
    return Path(file) if file is not None and Path(file).is_file() else None


def _inside(folders: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The file of a module in a package's folders, as Python finds it, and the folders of its own modules."""
    if not name:
        return None, []
    for folder in folders:
        package = os.path.join(folder, name)
        inits = [f"{package}{os.sep}__init__{suffix}" for suffix in importlib.machinery.all_suffixes()]
        for file in inits:
            if os.path.isfile(file):
                return file, [package]
        for suffix in importlib.machinery.all_suffixes():
            if os.path.isfile(f"{package}{suffix}"):
                return f"{package}{suffix}", []
    # A package without `__init__`, which may have a part in each folder.
    return None, [found for folder in folders if os.path.isdir(found := os.path.join(folder, name))]


def is_own_file(path: Path) -> bool:
    """Whether a file is neither Python's own nor an installed package's: of this Python, of a user, or of another."""
    resolved = path.resolve()
    if {"site-packages", "dist-packages"} & set(resolved.parts) or _IN_LIBRARY.search(resolved.as_posix()):
        return False
    return not any(place in resolved.parents for place in _installed())


# Where any Python has its standard library.
_IN_LIBRARY = re.compile(r"/lib(64)?/python\d(\.\d+)?/")


def _installed() -> set[Path]:
    # Not sysconfig's `data`: that is all of /usr where Python is the system's.
    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return {Path(place).resolve() for place in (*places, site.getusersitepackages())}


def is_own_code(name: str) -> bool:
    """Whether package.module:function lies in a Python file of the user's own; True where there is no such module."""
    path = module_file(name.partition(":")[0])
    if path is None:
        return _is_absent(name)
    return path.suffix == ".py" and is_own_file(path)


def is_in_working_directory(name: str) -> bool:
    """Whether package.module:function lies in a Python file of the user's own below the working directory."""
    path, here = module_file(name.partition(":")[0]), Path.cwd()
    if path is None or path.suffix != ".py" or not is_own_file(path):
        return False
    return here in path.absolute().parents or here.resolve() in path.resolve().parents


def _is_absent(name: str) -> bool:
    """Whether nothing of this name can be imported: importing it will say so."""
    try:
        return importlib.util.find_spec(name.partition(":")[0].partition(".")[0]) is None
    except (ImportError, ValueError):
        return True
