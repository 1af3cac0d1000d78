"""A program of several commands: argparse's sub-parsers, of which one may be the default."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.console import run_command
from storage.base.names import nearest


@dataclass(frozen=True)
class Command:
    """help: its line in the program's --help. arguments: adds what it takes, besides --json.

    run: gives (answer, the same as text, exit code).
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], tuple[dict[str, Any], str, int]]
    description: str = ""


@dataclass(frozen=True)
class Program:
    """default: the command that runs when the first word is none, such as a recipe's path or an option."""

    prog: str
    description: str
    commands: Mapping[str, Command]
    default: str | None = None

    def run(self, arguments: Sequence[str] | None) -> int:
        """Run the command that the arguments name (the process's own, if None), print its answer; the exit code.

        Raises SystemExit for --help and --version, and with exit code 2 for arguments that no command takes.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        name, parser, rest = self._choose(given)
        command = self.commands[name]
        command.arguments(parser)
        parser.add_argument("--json", action="store_true", help="the answer as JSON on stdout, and nothing else there")
        asked = parser.parse_intermixed_args(rest)
        return run_command(lambda: command.run(asked), as_json=asked.json)

    def _choose(self, given: list[str]) -> tuple[str, argparse.ArgumentParser, list[str]]:
        """The command's name, its parser, and its arguments."""
        parser = argparse.ArgumentParser(prog=self.prog, description=self.description)
        parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
        commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        parsers = {
            name: commands.add_parser(name, help=command.help, description=command.description or command.help)
            for name, command in self.commands.items()
        }
        if given and given[0] in parsers:
            return given[0], parsers[given[0]], given[1:]
        if self.default is not None:
            parser.usage = f"%(prog)s [-h] [--version] COMMAND ..., or the arguments of {self.default}"
            parsers[self.default].prog = f"{self.prog} [{self.default}]"
            if given and given[0] not in ("-h", "--help", "--version"):
                self._refuse_misspelt(parser, given[0])
                return self.default, parsers[self.default], given
        parser.parse_args(given)
        parser.error("the command stands first")

    def _refuse_misspelt(self, parser: argparse.ArgumentParser, word: str) -> None:
        hint = nearest(word, self.commands)
        if hint and word.isalpha() and not os.path.exists(word):
            parser.error(f"'{word}' is no command and no file.{hint} The commands: {', '.join(self.commands)}.")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            version = importlib.metadata.version("stillhouse")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"stillhouse {version}")
        parser.exit()
