"""One Parquet file of soft targets, written so that its bytes follow from its rows alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.errors import RecipeError
from storage.samples import tensor_columns

# A row group is cut by its rows' width, and each column of it is one page; only text, whose width no schema tells, can
# grow beyond and is cut here. Parquet counts a page's bytes in 32 bits.
ROW_GROUP_BYTES = 16 << 20
PAGE_BYTES = LARGEST_ROW = 1 << 30

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "zstd": {"compression": "zstd", "compression_level": 1},
    "none": {"compression": "none"},
}


def write_shard(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    compression: str = "zstd",
    group_row_bytes: int | None = None,
) -> int:
    """Write a whole shard file and return its rows. Row groups depend on the schema only, not on the batches.

    batches: of the schema's columns, in any order. compression: 'zstd' or 'none'. group_row_bytes: the width of
    a row that row groups are cut by, where it is more than the schema's own. Raises RecipeError.
    """
    width = row_bytes(schema)
    _refuse(width, compression)
    group_rows = max(1, ROW_GROUP_BYTES // max(width, group_row_bytes or 0))
    options: dict[str, Any] = {
        **COMPRESSIONS[compression],
        "use_dictionary": False,
        "write_statistics": [field.name for field in schema if not tensor_columns.is_tensor(field)],
        "write_page_checksum": True,
        "data_page_size": PAGE_BYTES,
    }
    if _LIMITS_ROWS:
        options["max_rows_per_page"] = group_rows + 1
    rows = 0
    with pq.ParquetWriter(path, schema, **options) as writer:
        for table in _pieces(schema, batches, group_rows):
            writer.write_table(table, row_group_size=group_rows)
            rows += table.num_rows
        if not rows:
            writer.write_table(schema.empty_table())
    return rows


# A pyarrow that knows of such a limit ends pages at 20,000 rows unless it is told another number.
_LIMITS_ROWS = "max_rows_per_page" in inspect.signature(pq.ParquetWriter.__init__).parameters


def _refuse(width: int, compression: str) -> None:
    if compression not in COMPRESSIONS:
        raise RecipeError(
            f"The compression of a shard is '{compression}'.", f"It is one of: {', '.join(COMPRESSIONS)}."
        )
    if width > LARGEST_ROW:
        raise RecipeError(
            f"A row of a shard would take {width:,} bytes.",
            f"It may take {LARGEST_ROW:,}: Parquet holds a value and its page in less than 2 GiB.",
            "Store smaller inputs, or fewer of them.",
        )


def _pieces(schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches as tables of so many rows each, and one of those that are left."""
    held: list[pa.RecordBatch] = []
    held_rows = 0
    for batch in batches:
        held.append(batch if batch.schema.names == schema.names else batch.select(schema.names))
        held_rows += batch.num_rows
        while held_rows >= rows:
            table = pa.Table.from_batches(held, schema)
            # In one piece: Parquet may end a page where a chunk ends, and batches should leave no mark.
            yield table.slice(0, rows).combine_chunks()
            held = table.slice(rows).to_batches()
            held_rows -= rows
    if held_rows:
        yield pa.Table.from_batches(held, schema).combine_chunks()


def row_bytes(schema: pa.Schema) -> int:
    """What a row takes in memory; of text an estimate, which is enough for sizing row groups and windows."""
    return sum(_width(field) for field in schema)


def _width(field: pa.Field) -> int:
    try:
        return max(1, field.type.byte_width)
    except ValueError:
        return 32  # text
