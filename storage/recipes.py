"""One YAML file that describes one run: read it, apply `a.b=c` overrides, check every key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from storage import yaml12
from storage.digest import canonical_json, sha256_of
from storage.errors import RecipeError
from storage.filesystems import is_url
from storage.recipe_errors import explain
from storage.sqlite_uri import lost_options, sqlite_uri


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments are JSON: text, finite numbers, lists and mappings of text ({error})") from None
    return value


# Arguments count in digests, so they are what JSON can say: no dates, no NaN.
JsonDict = Annotated[dict[str, Any], AfterValidator(_json)]


# Words that PyYAML reads as booleans (not y and n), and YAML 1.2 as text unless they are true and false.
_BOOLEAN_WORDS = ("no", "off", "yes", "on", "true", "false")


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and nothing changes once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def more_keys(cls) -> list[str]:
        """Keys that are no fields, for hints; of a key inside a field the dotted one."""
        return []


def absolute(url: str) -> str:
    """A local path made absolute; a URL as it is."""
    return url if is_url(url) else os.path.abspath(os.path.expanduser(url))


def _located(url: str, info: ValidationInfo) -> str:
    if info.context == _ON_CLUSTER:
        path = url.removeprefix("file://").removeprefix("local://")
        if not is_url(path) and not os.path.isabs(path):
            raise ValueError(
                "is a relative path, and on the cluster the job runs in another folder; "
                "give a URL, or an absolute path that every machine sees"
            )
        if url.startswith("memory:"):
            raise ValueError("memory:// is one process's own, and the cluster's are others")
    return absolute(url)


# What a validator is told of a recipe that another machine is going to read.
_ON_CLUSTER = {"on_cluster": True}

# A path or URL in a recipe. Made absolute where it is read, because Ray's workers run in other folders.
Location = Annotated[str, AfterValidator(_located)]

RecipeType = TypeVar("RecipeType", bound=Section)


class ColumnNames(Section):
    sample_id: str = "sample_id"
    inputs: list[str] | None = None
    label: str | Literal[False] | None = None

    @field_validator("label")
    @classmethod
    def _no_word_for_a_boolean(cls, label: str | Literal[False] | None) -> str | Literal[False] | None:
        if isinstance(label, str) and label.lower() in _BOOLEAN_WORDS:
            raise ValueError(
                "is a text and no boolean in YAML 1.2; write false for no labels, or rename the column of this name"
            )
        return label


class PackSection(Section):
    """Documents packed into rows of one length; see `storage.sources.packed.Pack`."""

    column: str
    sequence_length: int = Field(gt=1)
    tokenizer: Location | None = None
    special_tokens: bool | None = None
    begin_token: str | StrictInt | None = None
    end_token: str | StrictInt | None = None
    block_documents: int = Field(default=1024, gt=0)
    empty_documents: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _tokens_of_their_kind(self) -> PackSection:
        for name, token in (("begin_token", self.begin_token), ("end_token", self.end_token)):
            if isinstance(token, str) and self.tokenizer is None:
                raise ValueError(f"{name} is a text, and there is no tokenizer; give its id")
            if isinstance(token, int) and (self.tokenizer is not None or not 0 <= token < 1 << 31):
                raise ValueError(f"{name} is a token of the tokenizer; only without one it is an id, from 0 on")
        if self.special_tokens is not None and self.tokenizer is None:
            raise ValueError("special_tokens are those of a tokenizer, and there is none; leave it out")
        return self


class SourceSection(Section):
    """Exactly one of `parquet` and `jsonl` (any fsspec URL, a folder or a pattern) and `function`.

    pack: the rows are documents, of text or of token ids, to be packed into sequences of one length.
    """

    parquet: Location | None = None
    jsonl: Location | None = None
    function: str | None = None
    arguments: JsonDict | None = None
    columns: ColumnNames = ColumnNames()
    pack: PackSection | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> SourceSection:
        if sum(kind is not None for kind in (self.parquet, self.jsonl, self.function)) != 1:
            raise ValueError("name exactly one of jsonl, parquet and function")
        if self.arguments is not None and self.function is None:
            raise ValueError("arguments belong to a function")
        if self.pack is not None and self.columns.inputs is not None:
            raise ValueError("with pack, the inputs are its own; columns says sample_id and label only")
        return self

    def settings(self) -> dict[str, Any]:
        """What `storage.sources.make_source` takes."""
        return self.model_dump(exclude_none=True)


class TrackingSection(Section):
    """Where MLflow is.

    uri: None takes MLFLOW_TRACKING_URI, or SQLite at ./runs/mlflow.db; off (or no, none, false) tracks nothing.
    """

    uri: str | Literal[False] | None = None
    experiment: str = "stillhouse"
    register_as: str | None = Field(default=None, description="Register the trained model under this name.")

    @field_validator("uri")
    @classmethod
    def _off_is_false(cls, uri: str | Literal[False] | None) -> str | Literal[False] | None:
        word = uri.lower() if isinstance(uri, str) else ""
        if word in ("off", "no", "none", "false"):
            return False
        if word in ("on", "yes", "true"):
            raise ValueError("is no URI; leave it out for MLFLOW_TRACKING_URI or the default, or write off")
        if isinstance(uri, str) and lost_options(uri):
            raise ValueError("ends for SQLite at the '?', after which it has options; write %3F for one in a path")
        return uri

    def resolved_uri(self) -> str | None:
        if self.uri is False:
            return None
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_database()


def default_database() -> str:
    return sqlite_uri(Path.cwd() / "runs" / "mlflow.db")


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
        return kind.model_validate(tree, context=_ON_CLUSTER if on_cluster else None)
    except ValidationError as error:
        raise RecipeError(explain(path, error, kind)) from None


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
