"""How documents become rows, as a recipe's `source.pack` says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictInt, model_validator

from storage.base.settings import Section
from storage.objectstore.location import Location


class Pack(Section):
    """How documents become rows.

    column: the documents: text, or where there is no tokenizer, lists of token ids.
    tokenizer: a tokenizer.json, or a folder that holds one.
    special_tokens: True adds those that the tokenizer's post-processor adds, False none. None is as True, and
    refuses a tokenizer_config.json that disagrees with the post-processor. A text that has them gets no second ones.
    begin_token, end_token: precedes, follows every document that does not begin, end with it; a token of the
    tokenizer, or without one an id.
    block_documents: so many documents are packed together. Part of where rows, and so spans, lie.
    empty_documents: whether a document that is null, or has no tokens before any are added, is an error, or is left
    out and counted.
    """

    column: str
    sequence_length: int = Field(gt=1)
    tokenizer: Location | None = None
    special_tokens: bool | None = None
    begin_token: str | StrictInt | None = None
    end_token: str | StrictInt | None = None
    block_documents: int = Field(default=1024, gt=0)
    empty_documents: Literal["error", "skip"] = "error"

    @model_validator(mode="after")
    def _tokens_of_their_kind(self) -> Pack:
        for name, token in (("begin_token", self.begin_token), ("end_token", self.end_token)):
            if isinstance(token, str) and self.tokenizer is None:
                raise ValueError(f"{name} is a text, and there is no tokenizer; give its id")
            if isinstance(token, int) and (self.tokenizer is not None or not 0 <= token < 1 << 31):
                raise ValueError(f"{name} is a token of the tokenizer; only without one it is an id, from 0 on")
        if self.special_tokens is not None and self.tokenizer is None:
            raise ValueError("special_tokens are those of a tokenizer, and there is none; leave it out")
        return self
