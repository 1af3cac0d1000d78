"""Where samples come from: files of rows, each row a sample with a stable id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from storage.samples.columns import Columns
from storage.samples.samples import SourceFile
from storage.sources.function import FunctionSource
from storage.sources.jsonl import JsonlSource
from storage.sources.packing.packed_labels import ATTENTION_MASK, USUAL
from storage.sources.packing.packed_source import PackedSource
from storage.sources.parquet import ParquetSource
from storage.sources.settings import SourceSection


class Source(Protocol):
    """A frozen dataclass whose fields are its settings.

    The kinds of SOURCES can be packed, too: they offer what `packed.Documents` asks for.
    """

    @property
    def columns(self) -> Columns:
        """Which columns of its rows are what."""
        ...

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


def make_source(settings: SourceSection | Mapping[str, Any]) -> Source:
    """The source that a recipe's section describes, or a mapping of the same keys, as in {"parquet": URL}.

    Raises RecipeError.
    """
    section = settings if isinstance(settings, SourceSection) else SourceSection.read(settings, "source")
    kind = next(name for name in SOURCES if getattr(section, name) is not None)
    of_kind: dict[str, Any] = {kind: getattr(section, kind)}
    if section.arguments is not None:
        of_kind["arguments"] = section.arguments
    columns, pack = section.columns, section.pack
    if pack is None:
        return SOURCES[kind](**of_kind, columns=columns)
    # Columns that a source does not have are not read.
    labels = USUAL if columns.label is None else ()
    mask = () if pack.tokenizer else (ATTENTION_MASK,)
    inputs = tuple(dict.fromkeys((pack.column, *labels, *mask)))
    return PackedSource(SOURCES[kind](**of_kind, columns=columns.model_copy(update={"inputs": inputs})), pack)


def place_of(settings: dict[str, Any]) -> str:
    """A source for people, from its settings: where it is."""
    return str(next((settings[name] for name in SOURCES if settings.get(name)), None))
