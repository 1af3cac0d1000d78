"""A source as a recipe describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from storage.base.settings import JsonDict, Section
from storage.objectstore.location import Location

# Words that PyYAML reads as booleans (not y and n), and YAML 1.2 as text unless they are true and false.
_BOOLEAN_WORDS = ("no", "off", "yes", "on", "true", "false")


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
    """Documents packed into rows of one length; see `storage.sources.packing.packed_source.Pack`."""

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
