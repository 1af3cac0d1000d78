"""The readable parts of a key, and in which of them two keys differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABSENT = object()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The parts that differ, dotted, with both values where they can be read.

    >>> differences({"encoding": {"k": 64}, "teacher": {"weights": "a" * 64}}, {"encoding": {"k": 128}, "teacher": {}})
    ['encoding.k: 64 -> 128', 'teacher.weights']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if one == other:
            continue
        values = [value for value in (one, other) if value is not _ABSENT]
        if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in values):
            found.append(name)
        else:
            found.append(f"{name}: {_shown(one)} -> {_shown(other)}")
    return found


def _flat(parts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(parts, dict) and parts:
        for key, value in parts.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif parts not in (None, {}):
        yield name, parts


def _shown(value: Any) -> str:
    return "none" if value is _ABSENT else str(value)
