"""Where samples come from: files of rows, each row a sample with a stable id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
from pydantic import ValidationError

from storage.base.errors import RecipeError
from storage.samples.samples import Columns, SourceFile
from storage.sources.function import FunctionSource
from storage.sources.jsonl import JsonlSource
from storage.sources.packing.packed_labels import ATTENTION_MASK, USUAL
from storage.sources.packing.packed_source import Pack, PackedSource
from storage.sources.parquet import ParquetSource
from storage.sources.settings import PackSection


class Source(Protocol):
    """A frozen dataclass whose fields are its settings.

    The kinds of SOURCES can be packed, too: they offer what `packed.Documents` asks for.
    """

    def files(self) -> Sequence[SourceFile]:
        """The files in a stable order. Raises SourceError when there are none."""
        ...

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) of one file, as samples (see `as_samples`)."""
        ...

    def pieces(self, file: SourceFile, start: int, stop: int) -> Iterator[pa.Table]:
        """What `read` gives, in tables of about PIECE_BYTES, at least one: in bounded memory, however many rows."""
        ...

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        """The ids of all rows of one file, as `read` would give them; without reading the inputs where that can be."""
        ...

    def left_out(self) -> dict[str, str]:
        """The columns that are no inputs though nothing says so, and the reason for each: of an index, a partition."""
        ...

    def notes(self) -> list[str]:
        """For people: which links to files were followed, which files were left out."""
        ...

    def preprocessing(self) -> dict[str, Any] | None:
        """What was done to the rows before they became samples, for the shard key; None where nothing was."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


SOURCES: dict[str, Any] = {"parquet": ParquetSource, "jsonl": JsonlSource, "function": FunctionSource}


def make_source(settings: dict[str, Any]) -> Source:
    """The source that a recipe describes: one of SOURCES, as in {parquet: URL}, and `columns`; packed by `pack`."""
    settings = dict(settings)
    kinds = [name for name in SOURCES if settings.get(name) is not None]
    if len(kinds) != 1:
        raise RecipeError(
            f"source names {' and '.join(kinds) or 'no kind'}.", f"It names exactly one of: {', '.join(SOURCES)}."
        )
    columns = dict(settings.pop("columns", None) or {})
    pack = settings.pop("pack", None)
    if pack is not None:
        if columns.get("inputs") is not None:
            raise RecipeError(
                "source names columns.inputs beside pack.",
                "What is packed has the inputs input_ids and position_ids.",
                "Name the column of documents in source.pack.column.",
            )
        packing = _pack_of(pack)
        # Columns that a source does not have are not read.
        labels = USUAL if columns.get("label") is None else ()
        mask = () if packing.tokenizer else (ATTENTION_MASK,)
        columns["inputs"] = tuple(dict.fromkeys((packing.column, *labels, *mask)))
        return PackedSource(SOURCES[kinds[0]](**settings, columns=Columns(**columns)), packing)
    return SOURCES[kinds[0]](**settings, columns=columns_of({"columns": columns}))


def _pack_of(settings: dict[str, Any]) -> Pack:
    try:
        return Pack(**PackSection.model_validate(settings).model_dump())
    except ValidationError as error:
        faults = [(".".join(map(str, ("pack", *fault["loc"]))), fault["msg"]) for fault in error.errors()]
        raise RecipeError(
            " ".join(f"source.{key}: {text.removeprefix('Value error, ')}." for key, text in faults),
            f"The keys of source.pack are: {', '.join(PackSection.model_fields)}.",
        ) from None


def columns_of(settings: dict[str, Any]) -> Columns:
    """The columns that a source's settings name; of packed documents those that the rows have."""
    columns: dict[str, Any] = dict(settings.get("columns") or {})
    if settings.get("pack") is not None:
        return Columns()
    if columns.get("inputs") is not None:
        columns["inputs"] = tuple(columns["inputs"])
    return Columns(**columns)


def place_of(settings: dict[str, Any]) -> str:
    """A source for people, from its settings: where it is."""
    return str(next((settings[name] for name in SOURCES if settings.get(name)), None))
