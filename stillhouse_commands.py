"""The installed commands: they look for modules in the working directory last.

Recipes name functions of the working directory, so that it has to be on Python's path. `python -m` puts it first: a
storage.py or a jobs/ there hides the package of that name. Here it comes last, in the driver and in Ray's workers.
This file imports nothing but the standard library, because another `storage` may be in the way until it has run.
`python -m stillhouse_commands teacher-infer ...` does what the script does, where scripts are not on the PATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# The package whose `__main__` a command runs.
COMMANDS = {"teacher-infer": "teacher_infer", "student-train": "student_train", "stillhouse-store": "storage"}
OURS = ("jobs", "storage", "student_train", "teacher_infer", "stillhouse_commands")
HERE = os.path.dirname(os.path.abspath(__file__))

# What a worker reads the driver's working directory from.
FOLDER = "STILLHOUSE_WORKING_DIRECTORY"


class WorkingDirectoryLast:
    """A finder of top-level modules that gives ours first, and those of the working directory after all others.

    It leaves sys.path as it is: Ray puts the working directory first there, later than any code of ours runs.
    folders: the working directory, and in a worker also the driver's.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = list(dict.fromkeys(folders))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:
            return None  # a module inside a package
        if name in OURS:
            return PathFinder.find_spec(name, [HERE], target)
        last = {*self.folders, *map(os.path.realpath, self.folders)}
        return PathFinder.find_spec(name, sorted(sys.path, key=lambda place: os.path.abspath(place) in last), target)


def put_last(*folders: str) -> None:
    """Search these folders last, from now on and in this process."""
    if _finder() is None:
        place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
        sys.meta_path.insert(place, WorkingDirectoryLast(folders))


def _finder() -> WorkingDirectoryLast | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, WorkingDirectoryLast)), None)


def ray_settings() -> dict[str, Any]:
    """What `ray.init` takes, so that workers import as this process does.

    Nothing where `python -m` started it, or where the working directory hides none of ours: Ray starts workers ahead of
    their use only without a hook, which saves seconds.
    """
    finder = _finder()
    if finder is None or not any(map(_hides_ours, finder.folders)):
        return {}
    hook, variables = "stillhouse_commands.in_worker", {FOLDER: finder.folders[0]}
    return {"runtime_env": {"worker_process_setup_hook": hook, "env_vars": variables}}


def _hides_ours(folder: str) -> bool:
    places = [os.path.join(folder, name) for name in OURS]
    named = any(os.path.isdir(place) or os.path.isfile(f"{place}.py") for place in places)
    return named and os.path.realpath(folder) != os.path.realpath(HERE)


def in_worker() -> None:
    """What Ray calls in each new worker."""
    put_last(os.environ[FOLDER], os.getcwd())


def refuse_shadows(file: str, *needed: str) -> None:
    """Raises ImportError when another module is in the place of a package that one of ours needs; no code of it runs.

    Under `python -m` the process ends with exit code 2 and a sentence instead.
    file: that of the importing module, which lies directly in its package.
    """
    package = os.path.dirname(os.path.abspath(file))
    for name in needed:
        expected = os.path.join(os.path.dirname(package), name)
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or []), *filter(None, [spec.origin])]
        if places and os.path.realpath(places[0]) != os.path.realpath(expected):
            script = next(script for script, module in COMMANDS.items() if module == os.path.basename(package))
            text = (
                f"'{places[0]}' is in the place of stillhouse's own package '{name}'. Expected is {expected}, but "
                "Python finds the other one first."
            )
            # While Python imports the package of `python -m PACKAGE`, this is "-m".
            if sys.argv[:1] == ["-m"] or os.path.basename((sys.argv or [""])[0]) == "__main__.py":
                remedy = f"Run {script} instead of python -m, which looks into the working directory last"
                print(f"ImportError: {text} {remedy}, or give your module another name.", file=sys.stderr)
                raise SystemExit(2)
            raise ImportError(f"{text} Give your module another name, or move its folder to the end of sys.path.")


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Run one of COMMANDS, with the working directory last on the path; the exit code."""
    folder = os.getcwd()
    put_last(folder)
    if folder not in map(os.path.abspath, sys.path):
        sys.path.append(folder)
    program = importlib.import_module(f"{COMMANDS[command]}.__main__")
    console = importlib.import_module("jobs.console")
    return console.last(program.main(arguments, prog=command))


def teacher_infer() -> int:
    return run("teacher-infer")


def student_train() -> int:
    return run("student-train")


def stillhouse_store() -> int:
    return run("stillhouse-store")


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m stillhouse_commands {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 2
    return run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    # The module that others import, not the copy of it that Python runs under the name __main__.
    sys.exit(importlib.import_module("stillhouse_commands").main())
