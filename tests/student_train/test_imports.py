"""A student never sees the teacher: whatever it imports, no code of the teacher's comes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in sys.modules:
    assert not name.split(".")[0] == "teacher_infer" and name != "recipes.digits.teacher_net", name
"""


def check(*modules: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHECK, *modules]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "modules",
    [
        (
            "student_train.__main__",
            "student_train.training.loop",
            "student_train.compare",
            "recipes.digits.student_net",
        ),
        ("student_train.job", "student_train.run.tracking"),
    ],
    ids=["loop", "job"],
)
def test_students_import_nothing_of_the_teachers(modules: tuple[str, ...]) -> None:
    found = check(*modules)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("module", ["teacher_infer", "recipes.digits.teacher_net"])
def test_the_check_sees_the_teacher(module: str) -> None:
    found = check(module)
    assert found.returncode == 1 and f"AssertionError: {module}" in found.stderr
