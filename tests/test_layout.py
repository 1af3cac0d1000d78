"""Imports point down: which package may import which, and no circle between files.

A file imports its own package and packages of lower levels. Two packages of one level do not import each other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = ("storage", "jobs", "teacher_infer", "student_train")

# From the lowest level to the highest. A package's name stands for the files directly in it.
LEVELS = (
    ("storage.base", "storage.order"),
    ("storage.objectstore",),
    ("storage.samples", "storage.sources.files"),
    ("storage.encodings",),
    ("storage.format", "storage.sources.packing"),
    ("storage.cache", "storage.sources"),
    ("storage.rows",),
    ("storage.stream", "storage.analysis"),
    ("storage",),
    ("jobs",),
    ("jobs.failures",),
    ("jobs.models",),
    ("jobs.models.hugging_face",),
    ("jobs.tracking",),
    ("jobs.cluster",),
    ("teacher_infer.soften", "teacher_infer.teachers", "student_train.losses"),
    ("teacher_infer.planning", "student_train.training"),
    ("teacher_infer.labelling", "student_train.run"),
    ("teacher_infer", "student_train"),
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}

# The command line of the store prints as those of the jobs do.
EXCEPTIONS = {("storage/__main__.py", "jobs")}

RAY = (
    "jobs/cluster/",
    "jobs/failures/classification.py",
    "teacher_infer/job.py",
    "teacher_infer/teacher_actor.py",
    "student_train/job.py",
    "student_train/ray_train.py",
)
MLFLOW = ("jobs/tracking/client.py", "jobs/tracking/caches.py", "jobs/tracking/runs.py")
# Commands and the drivers of jobs print. Everything else logs below the logger "stillhouse".
CONSOLE = (
    "storage/__main__.py",
    "jobs/command_line.py",
    "jobs/cluster/follow.py",
    "jobs/cluster/submit.py",
    "student_train/__main__.py",
    "student_train/compare.py",
    "student_train/job.py",
    "teacher_infer/__main__.py",
    "teacher_infer/job.py",
    "teacher_infer/run.py",
)
TORCH_IN_STORAGE = ("storage/stream/torch_tensors.py", "storage/stream/torch_dataset.py")


def files() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for top in TOP for path in (ROOT / top).rglob("*.py"))


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@cache
def imports(file: str) -> frozenset[str]:
    """The modules and names that a file imports, inside functions too.

    `from a import b` gives `a.b`, and `a` as well unless `b` is a module.
    """

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level and node.module is not None, f"{file} has a relative import"
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from named
                if not all(is_module(name) for name in named):
                    yield node.module

    return frozenset(names())


def package_of(module: str) -> str:
    """The longest package that a dotted name lies in."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in LEVEL)


def faults(file: str, names: frozenset[str] | set[str]) -> list[str]:
    """What is wrong with the imports of a file, as sentences."""
    own = file.rpartition("/")[0].replace("/", ".")
    found: list[str] = []
    for package in sorted({package_of(name) for name in names if name.partition(".")[0] in TOP} - {own}):
        tops = {own.partition(".")[0], package.partition(".")[0]}
        if tops == {"teacher_infer", "student_train"}:
            found.append(f"{file} imports {package}: the two jobs do not import each other")
        # `from storage import Stream` names `storage`, and `from storage.base import errors` does not.
        elif LEVEL[package] >= LEVEL[own] and (file, package.partition(".")[0]) not in EXCEPTIONS:
            found.append(f"{file} imports {package}, which is not on a lower level than {own}")
    libraries = {name.partition(".")[0] for name in names}
    if "ray" in libraries and not file.startswith(RAY):
        found.append(f"{file} imports ray, which only these may: {', '.join(RAY)}")
    if "mlflow" in libraries and file not in MLFLOW:
        found.append(f"{file} imports mlflow, which only these may: {', '.join(MLFLOW)}")
    if any(name.startswith("jobs.console") for name in names) and file not in CONSOLE:
        found.append(f"{file} imports jobs.console, which only these may: {', '.join(CONSOLE)}; a library logs")
    if "torch" in libraries and (
        (file.startswith("storage/") and file not in TORCH_IN_STORAGE) or file.startswith("jobs/cluster/")
    ):
        found.append(f"{file} imports torch: storage and the Ray client do without it")
    return found


def test_imports_point_down() -> None:
    assert [fault for file in files() for fault in faults(file, imports(file))] == []


def test_every_package_has_a_level_and_a_docstring() -> None:
    packages = {file.removesuffix("/__init__.py").replace("/", ".") for file in files() if file.endswith("__init__.py")}
    assert packages == set(LEVEL)
    for file in files():
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
        assert file.endswith("__main__.py") or docstring.split("\n\n")[0].endswith("."), file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("storage/cache/cache.py", "ray"),
        ("storage/cache/cache.py", "torch"),
        ("storage/cache/cache.py", "mlflow"),
        ("storage/cache/cache.py", "jobs.recipe"),
        ("storage/cache/cache.py", "storage.stream.stream"),
        ("storage/sources/files/content.py", "storage.sources.parquet"),
        ("jobs/cluster/connect.py", "teacher_infer.job"),
        ("jobs/cluster/connect.py", "torch"),
        ("jobs/models/hugging_face/hub.py", "jobs.tracking.client"),
        ("teacher_infer/labelling/label.py", "ray"),
        ("teacher_infer/labelling/label.py", "student_train.training.loop"),
        ("student_train/run/tracking.py", "mlflow"),
        ("student_train/run/attempts.py", "jobs.console.say"),
    ],
)
def test_an_import_that_points_up_is_a_fault(file: str, name: str) -> None:
    assert len(faults(file, {name})) == 1


def test_imports_that_point_down_are_no_faults() -> None:
    for file, name in (
        ("jobs/cluster/connect.py", "ray"),
        ("storage/__main__.py", "jobs.console"),
        ("student_train/job.py", "ray.train"),
        ("teacher_infer/job.py", "jobs.cluster.connect"),
    ):
        assert faults(file, {name}) == []


def test_the_scripts_import_nothing_before_they_have_set_the_path() -> None:
    assert {name.partition(".")[0] for name in imports("stillhouse_commands.py")} <= sys.stdlib_module_names


def test_no_file_imports_itself_through_others() -> None:
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(imports(modules[name]) & modules.keys() - {name}):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())
