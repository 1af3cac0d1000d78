"""Whose code a module is: where its file lies, found without importing anything of it."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import pkgutil
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


def modules_in(package: str) -> list[str]:
    """The names of the modules and packages directly inside a package, sorted; none of what is no package."""
    return sorted({f"{package}.{found.name}" for found in pkgutil.iter_modules(_folders(package))})


def _folders(package: str) -> list[str]:
    """The folders that a package's modules lie in."""
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for part in inner:
        folders = _inside(folders, part)[1]
    return folders


def is_own_file(path: Path) -> bool:
    """Whether a file is neither Python's own nor an installed package's: of this Python, of a user, or of another."""
    resolved = path.resolve()
    if {"site-packages", "dist-packages"} & set(resolved.parts) or _in_a_library(resolved):
        return False
    return not any(place in resolved.parents for place in _installed())


_LIBRARY = re.compile(r".*?/lib(64)?/(python|pypy)\d(\.\d+)?t?/")


def _in_a_library(path: Path) -> bool:
    """Whether a file lies where some Python has its standard library: below /usr or /opt, or beside its os.py."""
    found = _LIBRARY.match(path.as_posix())
    return found is not None and (found.group().startswith(("/usr/", "/opt/")) or Path(found.group(), "os.py").exists())


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
    """Whether package.module:function is defined in a Python file of the user's own below the working directory.

    The file is read and not run. A function or class that the module imports counts by the module that defines it, so
    that `from subprocess import getoutput` in the user's file does not make getoutput the user's. False for a name that
    is bound otherwise, by an assignment or by `import *`.
    """
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        module, _, function = name.partition(":")
        path = module_file(module)
        if path is None or not _is_below_working_directory(path):
            return False
        binding = _last_binding(path, function)
        if not isinstance(binding, ast.ImportFrom):
            return binding is not None
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        original = next(alias.name for alias in binding.names if (alias.asname or alias.name) == function)
        try:
            base = importlib.util.resolve_name("." * binding.level + (binding.module or ""), package)
        except ImportError:
            return False
        name = f"{base}:{original}"
    return False


def _is_below_working_directory(path: Path) -> bool:
    if path.suffix != ".py" or not is_own_file(path):
        return False
    return any(
        here in file.parents
        # A virtual environment also has code outside site-packages: pip puts checkouts into its folder src.
        and not any((folder / "pyvenv.cfg").exists() for folder in file.parents if here in folder.parents)
        for here, file in ((Path.cwd(), path.absolute()), (Path.cwd().resolve(), path.resolve()))
    )


def _last_binding(path: Path, name: str) -> ast.FunctionDef | ast.ClassDef | ast.ImportFrom | None:
    """The last statement of a file's top level that binds a name, if it is a def, a class or a `from` import."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None
    last: ast.stmt | None = None
    for statement in tree.body:
        # After `import *` nobody knows what a name is without running it.
        if {name, "*"} & _bound(statement):
            last = statement if name in _bound(statement) else None
    return last if isinstance(last, ast.FunctionDef | ast.ClassDef | ast.ImportFrom) else None


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement may bind at its module's level, also inside `if`, `try`, `for` and `with`."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _is_absent(name: str) -> bool:
    """Whether nothing of this name can be imported: importing it will say so."""
    try:
        return importlib.util.find_spec(name.partition(":")[0].partition(".")[0]) is None
    except (ImportError, ValueError):
        return True
