"""The installed commands in a working directory whose modules have the names of our packages."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stillhouse_commands import COMMANDS, OURS, WorkingDirectoryLast, refuse_shadows

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS: dict[str, str] = PYPROJECT["project"]["scripts"]

# As pip writes it.
SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""

# What setuptools installs with `pip install -e`: a finder behind those of Python, sys.path included.
EDITABLE = f"""
import sys
from importlib.machinery import PathFinder

class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(ROOT)!r}]) if name in {OURS!r} else None

sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Editable)
"""

MINE = """
import numpy as np
import pyarrow as pa
import torch

import teacher_infer
from jobs.recipe import read_recipe
from storage import open_cache

class Linear(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x)

def build():
    return Linear(4, 3)

def rows():
    values = pa.array(np.arange(40, dtype=np.float32))
    return pa.table({"sample_id": [f"s{i}" for i in range(10)], "x": pa.FixedSizeListArray.from_arrays(values, 4)})
"""


@pytest.fixture
def work(shadowing: Path) -> Path:
    """The working directory, with a recipe and the module that it names."""
    recipe = {
        "name": "mine",
        "store": "./store",
        "source": {"function": "mine:rows"},
        "teacher": {"factory": "mine:build", "dtype": "float32", "batch_size": 5},
        "targets": {"encoding": "dense", "temperature": 2.0},
        "tracking": {"uri": False},
    }
    (shadowing / "mine.py").write_text(MINE)
    (shadowing / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return shadowing


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(work: Path, tmp_path: Path) -> Start:
    """Run a command in the working directory: a script, or `python ...`. path: PYTHONPATH."""

    def run(command: str, *arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
        if command in SCRIPTS:
            module, function = SCRIPTS[command].split(":")
            file = tmp_path / command
            file.write_text(SCRIPT.format(python=sys.executable, module=module, function=function))
        words = [sys.executable, str(file), *arguments] if command in SCRIPTS else [sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_the_scripts_are_functions_and_their_modules_are_installed() -> None:
    assert SCRIPTS.keys() == COMMANDS.keys()
    for script in SCRIPTS.values():
        module, function = script.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert module in PYPROJECT["tool"]["setuptools"]["py-modules"]
    # Every package at the top is found first, and is installed.
    packages = {pattern.removesuffix("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert {*packages, *PYPROJECT["tool"]["setuptools"]["py-modules"]} == set(OURS)


@pytest.mark.parametrize("editable", [False, True])
def test_a_job_and_its_workers_import_ours(start: Start, work: Path, tmp_path: Path, editable: bool) -> None:
    path = str(ROOT)
    if editable:
        path = str(tmp_path / "site")
        os.mkdir(path)
        Path(path, "sitecustomize.py").write_text(EDITABLE)
    done = start("teacher-infer", "recipe.yaml", "--json", path=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["positions"] == 10
    done = start("stillhouse-store", "ls", "store", "--json", path=path)
    assert done.returncode == 0, done.stderr
    assert [cache["name"] for cache in json.loads(done.stdout)["caches"]] == ["mine"]


@pytest.mark.parametrize(
    "command",
    [
        ("teacher-infer", "recipe.yaml", "--plan"),
        ("student-train", "--help"),
        ("python", "-m", "stillhouse_commands", "teacher-infer", "recipe.yaml", "--plan"),
    ],
)
def test_a_command_imports_ours_even_behind_the_working_directory(
    start: Start, work: Path, command: tuple[str, ...]
) -> None:
    # So is the path of a job that was submitted.
    done = start(*command, path=f"{work}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "plan mine@" in done.stdout or "usage: student-train " in done.stdout


@pytest.mark.parametrize(
    ("module", "script", "others", "found"),
    [
        ("teacher_infer", "teacher-infer", ["teacher_infer.py", "storage.py"], "jobs"),
        ("teacher_infer", "teacher-infer", ["teacher_infer.py", "jobs/__init__.py"], "storage.py"),
        ("student_train", "student-train", ["student_train/__init__.py", "jobs/__init__.py"], "storage.py"),
        ("storage", "stillhouse-store", ["storage.py"], "jobs"),
    ],
)
def test_python_m_says_what_is_in_the_way(
    start: Start, work: Path, module: str, script: str, others: list[str], found: str
) -> None:
    for file in others:
        (work / file).unlink()
    done = start("python", "-m", module, "recipe.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    name = found.removesuffix(".py")
    assert done.stderr == (
        f"ImportError: '{work / found}' is in the place of stillhouse's own package '{name}'. "
        f"Expected is {ROOT / name}, but Python finds the other one first. Run {script} instead of python -m, "
        "which looks into the working directory last, or give your module another name.\n"
    )


def test_a_library_is_refused_with_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in (["train.py"], [""], []):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(ImportError, match=r"own package 'jobs'.* move its folder to the end of sys\.path"):
            refuse_shadows("/elsewhere/teacher_infer/__init__.py", "jobs")
        refuse_shadows(str(ROOT / "teacher_infer" / "__init__.py"), "jobs", "storage")
        refuse_shadows("/elsewhere/teacher_infer/__init__.py", "no_such_module")


def test_modules_of_the_working_directory_come_last(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("installed/both.py", "installed/split/a.py", "shadowing/both.py", "shadowing/split/b.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", [str(work), "", str(tmp_path / "installed"), *sys.path])
    finder = WorkingDirectoryLast([str(work)])

    def origin(name: str) -> str | None:
        spec = finder.find_spec(name)
        return spec and spec.origin

    assert origin("both") == f"{tmp_path}/installed/both.py"
    assert origin("mine") == f"{work}/mine.py"
    assert origin("storage") == f"{ROOT}/storage/__init__.py"
    assert origin("stillhouse_commands") == f"{ROOT}/stillhouse_commands.py"
    split = finder.find_spec("split")  # a package without `__init__`
    assert split is not None and split.submodule_search_locations is not None
    assert list(dict.fromkeys(split.submodule_search_locations)) == [f"{tmp_path}/installed/split", f"{work}/split"]
    assert finder.find_spec("storage.base", importlib.import_module("storage").__path__) is None
    assert finder.find_spec("no_such_module") is None
