"""A demo's commands, told and run one after the other in one process, with one Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from jobs.console import say

# What happens, the module that is run, its main, and its arguments.
Chapter = tuple[str, str, Callable[[list[str]], int], list[str]]


def tell(story: Sequence[Chapter]) -> int:
    """Run the commands, each after it was printed; the exit code of the first that fails, or 0."""
    started = time.monotonic()
    for number, (what, module, command, arguments) in enumerate(story, 1):
        say(f"\n[{number}/{len(story)}] {what}\n$ {module.replace('_', '-')} {' '.join(arguments)}")
        begun = time.monotonic()
        code = command(arguments)
        say(f"({time.monotonic() - begun:.0f} s)")
        if code:
            return code
    say(f"\nDone in {time.monotonic() - started:.0f} s. The picture: runs/compare.png. MLflow's pages: make ui.")
    return 0
