"""The mistakes in settings in one sentence each: the key as it was written, and the key that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from storage.base.names import nearest


def explain(error: ValidationError, kind: type[BaseModel], name: str = "") -> str:
    """Every mistake in the settings of a section, each with its key. name: the key of the section itself, if any."""
    said: dict[str, str] = {}
    above = [name] if name else []
    for fault in error.errors():
        where = above + [str(part) for part in fault["loc"] if not _names_an_alternative(str(part))]
        if fault["type"] == "extra_forbidden":
            where = [*where[:-1], str(fault["loc"][-1])] if where else [str(fault["loc"][-1])]
            known = _known_keys(kind, where[:-1])
            hint = _meant(where[-1], known, _dotted_keys(kind, f"{name}." if name else ""))
            text = f"unknown key '{'.'.join(where)}'.{hint} Known here: {', '.join(known)}."
        elif fault["type"] == "missing":
            text = f"the key '{'.'.join(where)}' is missing."
        else:
            found = f" (found {fault['input']!r})" if not isinstance(fault["input"], dict) else ""
            # pydantic says of a section "a valid dictionary or instance of" its class, which no user knows.
            rule = fault["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
            text = f"{'.'.join(where) or 'the recipe'}: {rule}{found}."
        said.setdefault(".".join(where), text)
    # Where one alternative failed deeper inside, what the others say of the whole value is noise.
    deepest = [key for key in said if not any(other.startswith(f"{key}.") for other in said)]
    return " ".join(said[key] for key in deepest)


def _meant(word: str, here: Sequence[str], everywhere: Sequence[str]) -> str:
    """A hint for an unknown key: the nearest of its section, or all keys of the recipe that end in it, or nearly so.

    >>> _meant("lr", ["optimizer", "steps"], ["optimizer", "steps", "optimizer.lr"])
    " Did you mean 'optimizer.lr'?"
    """

    def likeness(key: str) -> float:
        return difflib.SequenceMatcher(None, key.rpartition(".")[2], word).ratio()

    best = max(map(likeness, everywhere), default=0.0)
    if best < 0.7 or best <= max(map(likeness, here), default=0.0):
        return nearest(word, here)
    *others, last = [f"'{key}'" for key in everywhere if likeness(key) == best]
    return f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _dotted_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a recipe, with those of its parents; NAME stands for a name that the recipe chooses."""
    keys = [f"{prefix}{name}" for name in (*kind.model_fields, *getattr(kind, "more_keys", list)())]
    for name, field in kind.model_fields.items():
        for section, named in _sections(field.annotation):
            keys += _dotted_keys(section, f"{prefix}{name}.{'NAME.' if named else ''}")
    return list(dict.fromkeys(keys))


def _sections(annotation: Any) -> list[tuple[type[BaseModel], bool]]:
    """The sections that a field may be, each with whether it is one of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, False)]
    of_mapping = get_origin(annotation) is dict
    return [(one, named or of_mapping) for inner in get_args(annotation) for one, named in _sections(inner)]


def _names_an_alternative(part: str) -> bool:
    """Whether a part of pydantic's location is no key, but the name of one of a union's types."""
    return "[" in part or part in ("int", "str", "bool", "float") or part.endswith("Section")


def _known_keys(kind: Any, where: Sequence[str]) -> list[str]:
    """The keys of the section at `where`, looked for through the annotations of its parents."""
    for key in where:
        field = kind.model_fields.get(key) if hasattr(kind, "model_fields") else None
        if field is None:
            continue
        inner = [
            t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(t, "model_fields")
        ]
        kind = inner[0] if inner else kind
    return list(kind.model_fields)
