"""The ids of a file's samples, apart from their inputs."""

from __future__ import annotations

import pyarrow as pa

from storage import tensors
from storage.errors import SourceError
from storage.samples import Columns


def sample_ids(table: pa.Table, columns: Columns, where: str) -> pa.ChunkedArray:
    """The id column of raw rows, as `as_samples` gives it: int64 or string. Raises SourceError."""
    name = columns.sample_id
    if name not in table.column_names:
        raise SourceError(
            f"{where} has no column '{name}' (asked for as source.columns.sample_id).", "Every sample has an id."
        )
    ids = table.column(name)
    if ids.null_count or not (tensors.is_text(ids.type) or pa.types.is_integer(ids.type)):
        raise SourceError(
            f"{where}: the sample ids in '{name}' are of type {ids.type} with {ids.null_count} nulls.",
            "Ids are integers or text, without nulls.",
        )
    try:
        return ids.cast(pa.string() if tensors.is_text(ids.type) else pa.int64())
    except pa.ArrowInvalid as error:
        raise SourceError(f"{where}: the ids in '{name}' do not fit int64: {error}.") from None
