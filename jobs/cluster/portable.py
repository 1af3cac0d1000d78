"""Whether a recipe means on the cluster what it means here, and may be read by everyone who has access to it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.cluster.shipped import LEFT_BEHIND, Shipped
from jobs.models.code_digest import own_files
from jobs.models.own_code import is_own_code
from jobs.tracking.settings import TrackingSection
from storage.base.errors import RecipeError
from storage.base.redact import redact, secrets
from storage.base.settings import Section

# The places that a job writes to; whatever else a recipe names is there before.
WRITTEN = ("store", "output")
EVERY_MACHINE = "a URL, or a path outside the working directory that every machine sees"


def refuse_secrets(path: str, recipe: Section, overrides: Sequence[str]) -> None:
    """Raises RecipeError, without the secret, when a password, a token or a key would leave this machine."""
    for key, value in recipe.model_dump(mode="json").items():
        _refuse_secret(f"{path}: {key}", value)
    # What an override replaces and what a comment says travel as well.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        _refuse_secret(f"{path}, line {number}", line.strip())
    for override in overrides:
        _refuse_secret("An override", override)


def _refuse_secret(place: str, value: Any) -> None:
    for where, text in secrets(value, place):
        raise RecipeError(
            f"{where} holds a password, a token or a key ({text}).",
            "Recipes and command lines can be read by everyone who has access to the cluster.",
            "Leave it out, and give the machines their credentials: a role, or their own environment.",
        )


def tracker(path: str, tracking: TrackingSection, environment: Mapping[str, str]) -> list[str]:
    """The override that lets the job find the submitter's tracker; none where the recipe names one, or none is wanted.

    Raises RecipeError when the tracker is this machine's own.
    """
    here = environment.get("MLFLOW_TRACKING_URI")
    if tracking.uri is None and not here:
        raise RecipeError(
            f"{path}: tracking.uri is not set, and neither is MLFLOW_TRACKING_URI.",
            "The default, SQLite in ./runs, is this machine's own.",
            "Add tracking.uri=http://HOST:5000, or tracking.uri=off.",
        )
    uri = here if tracking.uri is None else tracking.resolved_uri()
    if uri and _is_local(uri):
        name = "MLFLOW_TRACKING_URI" if tracking.uri is None else f"{path}: tracking.uri"
        raise RecipeError(
            f"{name} is '{redact(uri)}', a path of this machine's.",
            "The job runs in another folder, of another machine.",
            "Name a server, as in tracking.uri=http://HOST:5000, or tracking.uri=off.",
        )
    if tracking.uri is not None:
        return []
    _refuse_secret("MLFLOW_TRACKING_URI", str(uri))
    return [f"tracking.uri={uri}"]


def _is_local(uri: str) -> bool:
    """Whether a tracker is a file whose path is relative, or in memory."""
    if re.match(r"sqlite(\+\w+)?:", uri):
        return not uri.partition("://")[2].startswith("//")
    if uri.startswith("file:"):
        return not uri.removeprefix("file://").removeprefix("file:").startswith("/")
    # MLflow knows some trackers by a word.
    return ":" not in uri and uri not in ("databricks", "databricks-uc", "uc") and not os.path.isabs(uri)


def refuse_left_behind(path: str, recipe: Section, shipped: Shipped) -> list[str]:
    """Raises RecipeError for files and functions of the working directory that stay here; gives notes on the others."""
    notes: list[str] = []
    for key, value in _texts(recipe.model_dump(mode="json")):
        name = key.rpartition(".")[2]
        in_arguments = ".arguments." in f".{key}"
        if name in ("factory", "function") and not in_arguments:
            _refuse_code_left_behind(path, key, value, shipped)
            continue
        local = _local_path(value, in_arguments)
        relative = None if local is None else shipped.inside(local)
        if local is None or relative is None:
            continue
        if key not in WRITTEN and not any(shipped.holds(found) for found in _matches(shipped, relative)):
            raise RecipeError(
                f"{path}: {key} is '{value}', which lies in the working directory and is not shipped.",
                f"{LEFT_BEHIND}.",
                f"Give {EVERY_MACHINE}, or take it out of the ignore file.",
            )
        if os.path.isabs(local):
            notes.append(
                f"{key}: {value} lies in this machine's working directory, which the cluster unpacks elsewhere. "
                "The job finds it only where this path leads to the same folder on every machine."
            )
    return notes


def _refuse_code_left_behind(path: str, key: str, function: str, shipped: Shipped) -> None:
    if not is_own_code(function):
        return
    named = function.partition(":")[0]
    for module, file in own_files([named]).items():
        relative = shipped.inside(str(file))
        if relative is not None and not shipped.holds(relative):
            whose = "whose file" if module == named else f"which imports {module}, and its file"
            raise RecipeError(
                f"{path}: {key} is '{function}', {whose} {relative} lies in the working directory and is not shipped.",
                f"{LEFT_BEHIND}.",
                "Take it out of the ignore file.",
            )


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a recipe with its key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, str):
        yield key, tree


def _local_path(value: str, in_arguments: bool) -> str | None:
    """The local path that a text is, or None. Elsewhere than in arguments paths are absolute by now."""
    path = value.removeprefix("file://").removeprefix("local://")
    if os.path.isabs(path):
        return path
    # Of an argument nobody knows what it means: it is taken for a path when it is a file, or looks like a path to one.
    return path if in_arguments and (os.path.isfile(path) or ("/" in path and os.path.exists(path))) else None


def _matches(shipped: Shipped, relative: str) -> list[str]:
    """The path itself, or what a pattern stands for; a path that exists is no pattern."""
    if not glob.has_magic(relative) or (shipped.folder / relative).exists():
        return [relative]
    found = glob.glob(str(shipped.folder / relative), recursive=True)
    return [os.path.relpath(one, shipped.folder) for one in found]
