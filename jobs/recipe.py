"""One YAML file that describes one run: read it, apply `a.b=c` overrides, check every key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from storage.base import yaml12
from storage.base.digest import sha256_of
from storage.base.errors import RecipeError
from storage.base.section_errors import explain
from storage.base.settings import Section
from storage.objectstore.location import ON_CLUSTER

RecipeType = TypeVar("RecipeType", bound=Section)


def read_recipe(path: str, overrides: Sequence[str], kind: type[RecipeType], *, on_cluster: bool = False) -> RecipeType:
    """A recipe file with its overrides applied. Raises RecipeError, which names file, key and the nearest right key.

    on_cluster: another machine is going to read it, so that every path in it must mean the same there.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"The recipe '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RecipeError(f"The recipe '{path}' is no text.", "A recipe is a YAML file.") from None
    try:
        tree = yaml12.load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds {type(tree).__name__}.", "A recipe is a mapping of keys.")
    for override in overrides:
        _override(tree, override)
    try:
        return kind.model_validate(tree, context=ON_CLUSTER if on_cluster else None)
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, kind)}") from None


def recipe_digest(recipe: Section, without: Sequence[str] = ()) -> str:
    """sha256 of a recipe as it was resolved, without some of its top-level keys."""
    return sha256_of(recipe.model_dump(mode="json", exclude=set(without)))


def _override(tree: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"'{override}' is no override.", "Overrides are written key=value or key.subkey=value.")
    try:
        value = yaml12.load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of '{override}' is no YAML: {' '.join(str(error).split())}.") from None
    *parents, last = path.split(".")
    for key in parents:
        if isinstance(tree.get(key), str):
            raise RecipeError(
                f"'{override}' sets a part of '{key}', which the recipe gives as the text '{tree[key]}'.",
                "A part of a mapping can be set.",
                f"Give the whole, as in '{key}={{...}}'.",
            )
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value
