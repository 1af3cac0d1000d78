"""A program of commands: its help, its default command, misspelt commands."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from jobs.command_line import Command, Program


def recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--plan", action="store_true")


def echo(name: str, code: int = 0) -> Command:
    def run(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
        return {"command": name, **vars(asked)}, f"ran {name}", code

    return Command(f"what {name} does", recipe, run)


def unused(parser: argparse.ArgumentParser) -> None:
    raise AssertionError("only the arguments of the chosen command are made")


def program(default: str | None = "run") -> Program:
    commands = {"run": echo("run"), "audit": echo("audit", 3), "unused": Command("never", unused, echo("x").run)}
    return Program("still", "What it is for.", commands, default)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, default: str | None = "run") -> str:
    with pytest.raises(SystemExit) as ended:
        program(default).run(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("given", "command", "code"),
    [
        (["r.yaml", "a=1"], "run", 0),
        (["--plan", "r.yaml"], "run", 0),
        (["run", "r.yaml"], "run", 0),
        (["audit", "r.yaml"], "audit", 3),
        (["./audit"], "run", 0),
    ],
)
def test_the_first_word_is_a_command_or_the_default_runs(
    capfd: pytest.CaptureFixture[str], given: list[str], command: str, code: int
) -> None:
    assert program().run([*given, "--json"]) == code
    answer = json.loads(capfd.readouterr().out)
    assert (answer["command"], answer["plan"]) == (command, "--plan" in given)
    assert [answer["recipe"], *answer["overrides"]] == [
        word for word in given if word not in ("run", "audit", "--plan")
    ]


def test_options_stand_between_positional_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    assert program().run(["audit", "r.yaml", "--plan", "a=1", "--json", "b=2"]) == 3
    assert json.loads(capfd.readouterr().out)["overrides"] == ["a=1", "b=2"]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as ended:
            program().run([word])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert "usage: still [-h] [--version] COMMAND ..., or the arguments of run" in out
        assert "What it is for." in out and "what run does" in out and "what audit does" in out


@pytest.mark.parametrize(("given", "name"), [(["audit"], "audit"), (["r.yaml"], "[run]"), (["run"], "run")])
def test_each_command_has_its_own_help(capsys: pytest.CaptureFixture[str], given: list[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        program().run([*given, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: still {name} [-h] [--plan] [--json] recipe")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program().run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("stillhouse ")


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "audti", "r.yaml", "--fraction", "0.5")
    assert "'audti' is no command and no file. Did you mean 'audit'? The commands: run, audit, unused." in said


def test_a_file_of_that_name_is_no_misspelt_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audti").touch()
    assert program().run(["audti"]) == 0
    assert capfd.readouterr().out == "ran run\n"


@pytest.mark.parametrize("word", ["nothing-like-it", "audit.yaml", "recipes/audit"])
def test_what_is_no_misspelt_command_is_the_default_commands(capfd: pytest.CaptureFixture[str], word: str) -> None:
    assert program().run([word]) == 0


def test_a_program_without_a_default_needs_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: COMMAND" in refusal(capsys)
    assert "required: COMMAND" in refusal(capsys, default=None)
    assert "invalid choice: 'r.yaml'" in refusal(capsys, "r.yaml", default=None)
    assert "still: error" in refusal(capsys, "--json", "audit", "r.yaml", default=None)
