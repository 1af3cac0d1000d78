"""The code behind a factory: its module and the user's own modules that this imports, each with a digest."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.models.own_code import is_own_file, module_file, modules_in
from storage.base.errors import ModelError
from storage.base.functions import find_function

# stillhouse's packages: they decide no answer by themselves, and their version is lineage.
_OURS, _ROOT = ("storage", "jobs", "teacher_infer", "student_train"), Path(__file__).resolve().parents[2]


def code_digests(factory: str) -> dict[str, str]:
    """The sha256 of the file of each module that decides what a factory does, by the module's name, sorted.

    factory: package.module:function. Counted are its module, wherever it lies, the module that defines the function,
    and what these import transitively as far as it is the user's own: no part of Python, of an installed package or of
    stillhouse. Only the factory's module is imported; see `own_files`.
    Raises RecipeError where it cannot be, ModelError for a factory that is in no file.
    """
    function, named = find_function(factory, "factory"), factory.partition(":")[0]
    defining = inspect.getmodule(inspect.unwrap(function))
    files = own_files([named, *([defining.__name__] if defining is not None else [])])
    if not files:
        raise ModelError(
            f"The source of {factory} cannot be read.", "A factory is a function or a class in a Python file."
        )
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}


def own_files(modules: Sequence[str]) -> dict[str, Path]:
    """The files of the first module, and of the others and all that they import as far as it is the user's own.

    Nothing is imported: files are read for their imports, those inside functions as well, relative ones, the
    `__init__` of packages, and `importlib.import_module` with a literal name. Of a name that begins with a literal, as
    f"zoo.{net}", all modules of the package zoo count; of one that is wholly computed, none.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = None if module in seen else module_file(module)
        seen.add(module)
        if path is None or not (module == modules[0] or is_own_file(path)):
            continue
        if module.partition(".")[0] in _OURS and _ROOT in path.resolve().parents:
            continue
        found[module] = path
        if path.suffix == ".py":
            waiting += _imported(path, module)
    return found


def _imported(path: Path, module: str) -> Iterator[str]:
    """The names that may be modules which a file imports, and their parents."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return  # importing it will say what is wrong
    reader = _Reader(tree, package)
    for node in ast.walk(tree):
        for name in reader.names(node):
            parts = name.split(".")
            yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


class _Reader:
    """Reads the imports of one file. constants: the texts that its top level gives names to."""

    def __init__(self, tree: ast.Module, package: str) -> None:
        self._package = package
        self._constants: dict[str, ast.expr] = {}
        # What `from importlib import import_module as load` calls it.
        self._aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self._aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                self._constants |= {one.id: node.value for one in node.targets if isinstance(one, ast.Name)}

    def names(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), self._package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call):
            yield from self._called(node)

    def _called(self, node: ast.Call) -> Iterator[str]:
        named = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        function = self._aliases.get(named, named)
        if function in ("iter_modules", "walk_packages"):
            yield from modules_in(self._package)
        if function not in ("import_module", "__import__", "resolve_name"):
            return
        given = [*node.args[:1], *(one.value for one in node.keywords if one.arg == "name")]
        for value in given:
            value = self._constants.get(value.id, value) if isinstance(value, ast.Name) else value
            text, whole = _literal_beginning(value)
            text = text.partition(":")[0]
            if whole and text:
                yield from filter(None, [_absolute(text, self._package)])
            elif text:
                # Of a computed name every module of the package that it begins with may be meant.
                begin = text.rpartition(".")[0]
                yield from modules_in(_absolute(begin, self._package) if begin.strip(".") else self._package)


def _literal_beginning(node: ast.expr) -> tuple[str, bool]:
    """The text that an expression begins with, and whether that is all of it: of f"zoo.{net}" it is 'zoo.'."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, True
    if isinstance(node, ast.JoinedStr) and node.values:
        return _literal_beginning(node.values[0])[0], False
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        text = _literal_beginning(node.left)[0]
        return text.partition("%")[0] if isinstance(node.op, ast.Mod) else text, False
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _literal_beginning(node.func.value)[0].partition("{")[0], False
    return "", False


def _absolute(name: str, package: str) -> str:
    """
    >>> _absolute("..nets.small", "mine.models"), _absolute("torch", "mine")
    ('mine.nets.small', 'torch')
    """
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    if not level:
        return name
    parents = package.split(".")[: len(package.split(".")) - (level - 1)] if package else []
    return ".".join([*parents, *([bare] if bare else [])])
