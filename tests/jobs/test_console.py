"""How a command talks: answers on stdout, talk on stderr, one sentence and one exit code for an error."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import pytest

from jobs import console
from jobs.console import Progress, last, run_command, say, table
from storage.base import errors
from storage.base.errors import StillhouseError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StillhouseError)]


def answer() -> tuple[dict[str, Any], str, int]:
    return {"samples": 3, "name": "é"}, "three samples", 0


def test_text_goes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(answer, as_json=False) == 0
    assert capfd.readouterr() == ("three samples\n", "")


def test_json_goes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(answer, as_json=True) == 0
    out, err = capfd.readouterr()
    assert (json.loads(out), err) == ({"samples": 3, "name": "é"}, "")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_commands_log_is_printed_as_say_prints(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    log = logging.getLogger("stillhouse.stream")

    def command() -> tuple[dict[str, Any], str, int]:
        log.debug("not shown")
        log.info("a note")
        log.warning("of %s: %s", "s3://key:planted-4711@bucket/x", "fetched again")
        return answer()

    assert run_command(command, as_json=as_json) == 0
    assert capfd.readouterr().err == "a note\nof s3://***@bucket/x: fetched again\n"


def test_a_commands_log_is_printed_once_whatever_else_handles_it(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A library that a command imports may give the root logger a handler."""
    log = logging.getLogger("stillhouse.stream")

    def command() -> tuple[dict[str, Any], str, int]:
        log.warning("under a command")
        return answer()

    run_command(command, as_json=False)
    assert caplog.messages == []
    log.warning("as a library")
    log.info("below the user's level")
    # Afterwards the records go where the user's logging sends them, and nowhere else.
    assert caplog.messages == ["as a library"]
    assert capfd.readouterr().err == "under a command\n"


def test_a_command_that_fails_leaves_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> tuple[dict[str, Any], str, int]:
        raise errors.JobError("It broke.")

    logger = logging.getLogger("stillhouse")
    before = logger.level, logger.propagate, list(logger.handlers)
    run_command(command, as_json=False)
    assert (logger.level, logger.propagate, logger.handlers) == before


@contextmanager
def real_stdout() -> Iterator[None]:
    """sys.stdout on descriptor 1, as outside of pytest; capfd's own writes past it."""
    with open(1, "w", closefd=False) as file, redirect_stdout(file):
        yield


def chatter() -> None:
    """Print in every way that a library or a worker might."""
    print("from print")
    os.write(1, b"from the descriptor\n")
    subprocess.run([sys.executable, "-S", "-c", "print('from a child')"], check=True)
    print("without a newline", end="")
    say("said")


def test_json_is_alone_on_stdout_whatever_else_prints(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> tuple[dict[str, Any], str, int]:
        chatter()
        return {"ok": False}, "no", 3

    with real_stdout():
        assert run_command(command, as_json=True) == 3
    out, err = capfd.readouterr()
    assert json.loads(out) == {"ok": False}
    for part in ("from print", "from the descriptor", "from a child", "without a newline", "said"):
        assert part in err


def test_what_was_printed_before_a_command_stays_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with real_stdout():
        print("before")
        run_command(answer, as_json=True)
    out, err = capfd.readouterr()
    assert out.startswith("before\n{") and err == ""


def test_stdout_is_given_back_after_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    with real_stdout():
        run_command(answer, as_json=True)
        capfd.readouterr()
        print("after", flush=True)
        os.write(1, b"and after\n")
    assert capfd.readouterr() == ("after\nand after\n", "")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_one_sentence_on_stderr_and_its_exit_code(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    for kind in KINDS:

        def command(kind: type[StillhouseError] = kind) -> tuple[dict[str, Any], str, int]:
            raise kind("Found this.", "Wanted that.", "Do so.")

        code = run_command(command, as_json=as_json)
        assert code == kind.exit_code
        assert code in (1, 2, 3)
        assert capfd.readouterr() == ("", f"{kind.__name__}: Found this. Wanted that. Do so.\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_ends_with_130_and_no_traceback(capfd: pytest.CaptureFixture[str], as_json: bool) -> None:
    def command() -> tuple[dict[str, Any], str, int]:
        raise KeyboardInterrupt

    assert run_command(command, as_json=as_json) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("Interrupted. ") and err.count("\n") == 1


def test_a_bug_is_not_hidden_and_stdout_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> tuple[dict[str, Any], str, int]:
        raise ZeroDivisionError

    with real_stdout():
        with pytest.raises(ZeroDivisionError):
            run_command(command, as_json=True)
        print("after", flush=True)
    assert capfd.readouterr() == ("after\n", "")


def test_what_is_printed_after_the_last_word_does_not_reach_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    kept = os.dup(1)
    try:
        with real_stdout():
            print("the answer")
            assert last(3) == 3
            print("a library says goodbye", flush=True)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert capfd.readouterr() == ("the answer\n", "a library says goodbye\n")


def test_json_on_stdout_is_json_for_every_parser(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    run_command(lambda: ({"loss": float("nan"), "best": float("inf")}, "", 0), as_json=True)
    json.loads(capfd.readouterr().out, parse_constant=refuse)


# Tables and progress


def test_a_table_stands_in_columns() -> None:
    text = table(["cache", "samples", "MB"], [["digits@1f3a9c04", "1,797", "0.21"], ["b", "2", "12.00"]])
    assert text.split("\n") == [
        "cache            samples     MB",
        "digits@1f3a9c04    1,797   0.21",
        "b                      2  12.00",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(["a", "b"], []) == "a  b"


def test_a_table_of_one_column_has_no_spaces_behind_it() -> None:
    assert table(["name"], [["a"], ["longer"]]) == "name\na\nlonger"


def test_progress_off_a_terminal_is_plain_lines_on_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "EVERY_S", 0.0)
    with Progress("teacher", 10, "spans") as progress:
        progress.update(3)
        progress.update(7, "2 reused")
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert re.fullmatch(r"teacher: 3/10 spans \(30 %\), [\d,.]+ spans/s, eta \d+:\d\d:\d\d\.", lines[0])
    assert re.fullmatch(r"teacher: 7/10 spans \(70 %\), [\d,.]+ spans/s, eta \d+:\d\d:\d\d\. 2 reused", lines[1])
    assert len(lines) == 2  # the last one says where it ended
    assert "\x1b" not in err and "\r" not in err


def test_progress_is_silent_in_between_and_ends_with_where_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "EVERY_S", 1e9)
    with Progress("teacher", 10, "spans") as progress:
        for done in range(11):
            progress.update(done)
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.startswith("teacher: 10/10 spans (100 %), ")


def test_progress_of_nothing_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("teacher", 0, "spans"):
        pass
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("teacher", 10, "spans") as progress:
        progress.update(10, "done")
    err = capsys.readouterr().err
    assert "teacher" in err and "10/10" in err and "done" in err
    assert "spans/s" in err and "eta" not in err


# Whoever reads, and whoever ends a command

COMMAND = """
import os, signal, sys, time
from jobs.console import last, run_command
from storage.base.errors import NoCache

def command():
    if "refuse" in sys.argv:
        raise NoCache("There is none.")
    if "term" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return {"ok": True}, "x" * 100_000, 3

sys.exit(last(run_command(command, as_json="json" in sys.argv)))
"""


def in_a_shell(form: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """COMMAND, as `form` has it of "$@", in a shell that exits as COMMAND does."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(["bash", "-o", "pipefail", "-c", form, "bash", *command], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["json"]])
@pytest.mark.parametrize("form", ['"$@" | true', '"$@" >&-'])
def test_an_answer_that_nobody_reads_changes_nothing_of_the_exit_code(form: str, arguments: list[str]) -> None:
    done = in_a_shell(form, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@pytest.mark.parametrize("form", ['"$@" 2>&-', '"$@" 2>/dev/full'])
def test_a_sentence_that_nobody_can_read_does_not_go_to_stdout(form: str) -> None:
    done = in_a_shell(form, "refuse")
    assert (done.returncode, done.stdout) == (2, "")


def test_sigterm_ends_a_command_as_an_interrupt_does() -> None:
    done = in_a_shell('"$@"', "term")
    assert done.returncode == 143
    assert done.stderr == "Ended by SIGTERM. What was committed stays; run the same command to go on.\n"


def test_a_handler_of_sigterm_that_is_there_stays() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:

        def command() -> tuple[dict[str, Any], str, int]:
            os.kill(os.getpid(), signal.SIGTERM)
            return answer()

        assert run_command(command, as_json=False) == 0
        assert calls == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run_command(answer, as_json=False) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_progress_needs_no_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with Progress("work", 2, "steps") as progress:
        progress.update(1)
