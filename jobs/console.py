"""How a command prints: answers on stdout, everything else on stderr, errors as sentences with an exit code.

Commands and the drivers of jobs print with `say` and `Progress`. All other modules log below the logger LOGGER, whose
records `run_command` prints as `say` does.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from storage.base.errors import StillhouseError
from storage.base.redact import redact

LOGGER = "stillhouse"


def say(text: str) -> None:
    """A line for people, on stderr, without the passwords of URLs; lost where stderr is closed or full."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(redact(text), file=sys.stderr, flush=True)


def run_command(command: Callable[[], tuple[dict[str, Any], str, int]], *, as_json: bool) -> int:
    """Run a command that gives (answer, the same as text, exit code), print it, and return the exit code.

    With `as_json` stdout holds the JSON object alone: whatever else a library or a worker prints to
    it meanwhile goes to stderr, and so do the records of LOGGER from INFO on. A StillhouseError ends as one sentence,
    an interrupt with 130, SIGTERM with 143. A reader that closes the pipe, as `head` does, changes nothing of the exit
    code.
    """
    kept = _stdout_to_stderr() if as_json else None
    try:
        with _printed_records(), _sigterm_interrupts():
            answer, text, code = command()
        try:
            if kept is None:
                print(json.dumps(_finite(answer), indent=1) if as_json else text, flush=True)
            else:
                # Before stdout is given back: other threads may print to it from then on.
                os.write(kept, (json.dumps(_finite(answer), indent=1) + "\n").encode())
        except BrokenPipeError:
            # What is still buffered would be written when the process ends, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except StillhouseError as error:
        say(f"{type(error).__name__}: {redact(str(error))}")
        return error.exit_code
    except OSError as error:
        say(f"{type(error).__name__}: {redact(str(error))}. What was committed stays; run the same command to go on.")
        return 1
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        how = "Ended by SIGTERM" if terminated else "Interrupted"
        say(f"{how}. What was committed stays; run the same command to go on.")
        return 143 if terminated else 130
    finally:
        if kept is not None:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
    return code


class _Printer(logging.Handler):
    """Prints each record as `say` does: its text alone, redacted."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


@contextmanager
def _printed_records() -> Generator[None]:
    """Print the records of LOGGER until the block ends, and let no other handler print them again."""
    logger, printer = logging.getLogger(LOGGER), _Printer()
    level, propagate = logger.level, logger.propagate
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(printer)
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.setLevel(level)
        logger.propagate = propagate


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends; whatever an interrupt ends or notes down, it does as well."""


@contextmanager
def _sigterm_interrupts() -> Generator[None]:
    """Raises Terminated in the main thread on SIGTERM, unless the signal is handled or ignored already."""

    def interrupt(*_: object) -> None:
        raise Terminated

    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def last(code: int) -> int:
    """The exit code, unchanged; what a library still prints while the process ends goes to stderr."""
    _stdout_to_stderr()
    return code


def _stdout_to_stderr() -> int | None:
    if sys.stdout is None:  # closed by whoever started the process
        return None
    try:
        sys.stdout.fileno()  # a stand-in for stdout, as tests and notebooks have, is no file
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        return None
    return kept


class Progress:
    """A bar on a terminal, a plain line every few seconds elsewhere; on stderr, with the rate and the time left.

    `update(done, note)` says how far it is; use it as a context manager.
    """

    EVERY_S = 5.0

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._started = self._spoke = time.monotonic()
        self._bar: Any = None
        self._done, self._told, self._note = 0, 0, ""

    def __enter__(self) -> Progress:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self._bar = RichProgress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done != self._told:
            self._line()

    def update(self, done: int, note: str = "") -> None:
        self._done, self._note = done, note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._rate_and_note())
        elif time.monotonic() - self._spoke >= self.EVERY_S:
            self._line()

    def _line(self) -> None:
        self._spoke, self._told = time.monotonic(), self._done
        percent = f" ({100 * self._done // self._total} %)" if self._total else ""
        say(f"{self._what}: {self._done}/{self._total} {self._unit}{percent}, {self._rate_and_note()}")

    def _rate_and_note(self) -> str:
        seconds = time.monotonic() - self._started
        rate = self._done / seconds if seconds else 0.0
        left = f", eta {_clock((self._total - self._done) / rate)}" if rate and self._done < self._total else ""
        return f"{rate:,.1f} {self._unit}/s{left}. {self._note}".rstrip()


def _clock(seconds: float) -> str:
    """
    >>> _clock(59.2), _clock(3600 * 30 + 61)
    ('0:00:59', '30:01:01')
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns side by side, the first one to the left and the others to the right.

    >>> print(table(["name", "n"], [["a", "1"], ["bcde", "22"]]))
    name   n
    a      1
    bcde  22
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
