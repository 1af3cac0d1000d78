"""A source as a recipe describes it."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from storage.base.settings import JsonDict, Section
from storage.objectstore.location import Location
from storage.samples.columns import Columns
from storage.sources.packing.pack import Pack


class SourceSection(Section):
    """Exactly one of `parquet` and `jsonl` (any fsspec URL, a folder or a pattern) and `function`.

    pack: the rows are documents, of text or of token ids, to be packed into sequences of one length.
    """

    parquet: Location | None = None
    jsonl: Location | None = None
    function: str | None = None
    arguments: JsonDict | None = None
    columns: Columns = Columns()
    pack: Pack | None = None

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
        """The settings that are given, as JSON has them: what is sealed into a cache's lineage."""
        return self.model_dump(mode="json", exclude_none=True)
