"""Where samples come from: files of rows, each row a sample with a stable id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from storage.errors import RecipeError
from storage.samples import Columns, SourceFile
from storage.sources.function import FunctionSource
from storage.sources.parquet import ParquetSource


class Source(Protocol):
    """A frozen dataclass whose fields are its settings."""

    def files(self) -> Sequence[SourceFile]:
        """The files in a stable order. Raises SourceError when there are none."""
        ...

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) of one file, as samples (see `as_samples`)."""
        ...

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        """The ids of all rows of one file, as `read` would give them; without reading the inputs where that can be."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


SOURCES: dict[str, Any] = {"parquet": ParquetSource, "function": FunctionSource}


def make_source(settings: dict[str, Any]) -> Source:
    """The source that a recipe describes: {parquet: URL} or {function: package.module:name}, and `columns`."""
    settings = dict(settings)
    kinds = [name for name in SOURCES if settings.get(name) is not None]
    if len(kinds) != 1:
        raise RecipeError(
            f"source names {' and '.join(kinds) or 'no kind'}.", f"It names exactly one of: {', '.join(SOURCES)}."
        )
    columns = dict(settings.pop("columns", None) or {})
    if columns.get("inputs") is not None:
        columns["inputs"] = tuple(columns["inputs"])
    return SOURCES[kinds[0]](**settings, columns=Columns(**columns))
