"""Errors are sentences, survive the way between processes, and end a command with the code of their branch."""

from __future__ import annotations

import pickle
import re

import jobs.errors
from storage.base import errors
from storage.base.errors import JobError, StillhouseError, UsageError, VerificationError


def below(kind: type[StillhouseError]) -> list[type[StillhouseError]]:
    return [kind, *(child for direct in kind.__subclasses__() for child in below(direct))]


ALL = below(StillhouseError)


def test_an_error_is_its_three_parts_in_one_line() -> None:
    for kind in ALL:
        assert str(kind("Found this.", "Wanted that. ", " Do so.")) == "Found this. Wanted that. Do so."
        assert str(kind("Found this.", "", "Do so.")) == "Found this. Do so."
        assert str(kind("Found this.")) == "Found this."


def test_an_error_survives_pickling() -> None:
    for kind in ALL:
        error = kind("Found this.", remedy="Do so.")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (str(again), again.exit_code) == (str(error), error.exit_code)


def test_each_branch_has_its_exit_code() -> None:
    for branch, code in ((UsageError, 2), (JobError, 1), (VerificationError, 3)):
        assert {kind.exit_code for kind in below(branch)} == {code}
    assert set(ALL) == {StillhouseError, *below(UsageError), *below(JobError), *below(VerificationError)}


def test_the_tree_at_the_head_of_the_file_is_the_tree() -> None:
    for module in (errors, jobs.errors):
        drawn = re.findall(r"^ *[*x+] (\w+)", module.__doc__ or "", re.MULTILINE)
        defined = [kind.__name__ for kind in ALL if kind.__module__ == module.__name__]
        assert [name for name in drawn if name in defined] == defined
        assert {*drawn} - {*defined} <= ({"UsageError", "JobError"} if module is jobs.errors else set())
