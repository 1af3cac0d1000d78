"""Names that people type: hints for misspelt ones, and `package.module:function` found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names of caches and runs, which become files and folders.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint when one of the words is near, otherwise an empty string.

    >>> nearest("temprature", ["temperature", "weight"])
    " Did you mean 'temperature'?"
    """
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
