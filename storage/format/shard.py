"""One Parquet file of soft targets: write it, read it, know what it holds."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import canonical_json, range_digest
from storage.base.errors import CorruptShard, RecipeError
from storage.encodings import Encoding, make_encoding
from storage.encodings.targets import Targets, with_mask
from storage.format.sections import ByteRange, Section, section_of, section_stops
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID

FORMAT_VERSION = 1
METADATA_KEY = b"stillhouse"

# A row group is cut by its rows' width, and each column of it is one page; only text, whose width no schema tells, can
# grow beyond and is cut here. Parquet counts a page's bytes in 32 bits.
ROW_GROUP_BYTES = 16 << 20
PAGE_BYTES = LARGEST_ROW = 1 << 30

COMPRESSIONS: dict[str, dict[str, Any]] = {
    "zstd": {"compression": "zstd", "compression_level": 1},
    "none": {"compression": "none"},
}


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself, so that a reader needs nothing else.

    classes: V. positions: L, of rows that are sequences of as many positions; None where a row is one.
    """

    format_version: int
    shard_key: str
    encoding: Encoding
    classes: int
    teacher: str
    span: str
    positions: int | None = None

    def fields(self) -> list[pa.Field]:
        """The columns of the targets."""
        return self.encoding.fields(self.classes, self.positions)

    def to_metadata(self) -> dict[bytes, bytes]:
        facts: dict[str, Any] = {
            "format_version": self.format_version,
            "shard_key": self.shard_key,
            "targets": self.encoding.to_dict(),
            "classes": self.classes,
            "teacher": self.teacher,
            "span": self.span,
        }
        if self.positions is not None:
            facts["positions"] = self.positions
        return {METADATA_KEY: canonical_json(facts)}


@dataclass(frozen=True)
class DecodedRows:
    """Samples with their soft targets, as arrays of P rows (views of the memory that was read)."""

    sample_id: np.ndarray[Any, Any]
    inputs: dict[str, np.ndarray[Any, Any]]
    label: np.ndarray[Any, Any] | None
    targets: Targets | None

    def __len__(self) -> int:
        return len(self.sample_id)

    def __getitem__(self, rows: slice) -> DecodedRows:
        """Some of the rows, `rows[8:16]`."""
        if not isinstance(rows, slice):
            raise TypeError(f"rows are sliced, as in rows[8:16]; found rows[{rows!r}]")
        return DecodedRows(
            self.sample_id[rows],
            {name: array[rows] for name, array in self.inputs.items()},
            None if self.label is None else self.label[rows],
            None if self.targets is None else self.targets[rows],
        )


def read_header(schema: pa.Schema, where: str) -> ShardHeader:
    """The header in a shard's Parquet metadata. Raises CorruptShard when there is none that can be read."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise CorruptShard(f"{where} has no '{METADATA_KEY.decode()}' metadata.", "A shard describes itself.")
    try:
        facts = json.loads(raw)
        version = facts["format_version"]
        if version != FORMAT_VERSION:
            raise CorruptShard(
                f"{where} has the format version {version}.",
                f"This version reads {FORMAT_VERSION}.",
                "Read it with the version of stillhouse that wrote it.",
            )
        settings = dict(facts["targets"])
        encoding = make_encoding(settings.pop("encoding"), settings)
        classes, positions = facts["classes"], facts.get("positions")
        return ShardHeader(version, facts["shard_key"], encoding, classes, facts["teacher"], facts["span"], positions)
    except RecipeError as error:
        raise CorruptShard(f"{where} is encoded in a way that is not known here: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{where} does not describe itself as a shard does ({type(error).__name__}: {error}).",
            f"Its metadata '{METADATA_KEY.decode()}' is the JSON of a header.",
        ) from None


def shard_schema(samples: pa.Schema, header: ShardHeader, extras: Iterable[pa.Field] = ()) -> pa.Schema:
    """The columns of a shard in the order of SECTIONS; extras: plain columns that the samples do not have."""
    targets = header.fields()
    inputs = [field for field in samples if section_of(field.name, ()) == "inputs"]
    plain = [field for field in samples if section_of(field.name, ()) == "plain"]
    return pa.schema([*inputs, *plain, *extras, *targets], metadata=header.to_metadata())


def stored_inputs(schema: pa.Schema, header: ShardHeader) -> list[str]:
    """The names of a shard's inputs, in the model's argument order."""
    targets = {field.name for field in header.fields()}
    return [name for name in schema.names if section_of(name, targets) == "inputs"]


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


def chunk_start(chunk: Any) -> int:
    """Where a column chunk begins: at its dictionary, where another writer gave it one, which comes before the data."""
    return min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)


def row_bytes(schema: pa.Schema) -> int:
    """What a row takes in memory; of text an estimate, which is enough for sizing row groups and windows."""
    return sum(_width(field) for field in schema)


def _width(field: pa.Field) -> int:
    try:
        return max(1, field.type.byte_width)
    except ValueError:
        return 32  # text


def byte_ranges(path: Path) -> tuple[list[ByteRange], ByteRange]:
    """The row groups of a shard file, and its footer, with their digests; read back from the disk."""
    metadata = pq.read_metadata(path)
    kinds = _kinds(metadata.schema.to_arrow_schema(), str(path))
    groups: list[ByteRange] = []
    with open(path, "rb") as file:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = [group.column(c) for c in range(group.num_columns)]
            places = [(chunk_start(c), chunk_start(c) + c.total_compressed_size) for c in columns]
            start, stop = min(place[0] for place in places), max(place[1] for place in places)
            file.seek(start)
            data = memoryview(file.read(stop - start))
            cuts = [start, *section_stops(places, kinds)]
            sections = (Section(b, range_digest(data[a - start : b - start])) for a, b in pairwise(cuts))
            groups.append(ByteRange(start, stop, group.num_rows, range_digest(data), tuple(sections)))
        start = groups[-1].stop if groups else 4
        file.seek(start)
        rest = file.read()
    return groups, ByteRange(start, start + len(rest), 0, range_digest(rest))


def _kinds(schema: pa.Schema, where: str) -> list[str]:
    """The section of each column; none of a file that does not say which columns are its targets."""
    try:
        header = read_header(schema, where)
    except CorruptShard:
        return []
    targets = {field.name for field in header.fields()}
    return [section_of(name, targets) for name in schema.names]


class RangeFile(io.RawIOBase):
    """The few byte ranges of a file that were fetched, read as if the whole file were there."""

    def __init__(self, size: int, parts: dict[int, bytes]) -> None:
        super().__init__()
        self._size, self._parts, self._place = size, parts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._place + size)
        for start, data in self._parts.items():
            if start <= self._place and stop <= start + len(data):
                piece = data[self._place - start : stop - start]
                self._place = stop
                return piece
        raise OSError(f"bytes [{self._place}, {stop}) were not fetched")


def decode(table: pa.Table, header: ShardHeader) -> DecodedRows:
    """A row group's table as arrays and targets."""
    targets_fields = header.fields()
    names = {field.name for field in targets_fields}
    columns = {f.name: tensor_columns.unpack(table.column(f.name), table.schema.field(f.name)) for f in targets_fields}
    rows = sample_rows(table.select([name for name in table.schema.names if name not in names]))
    targets = with_mask(header.encoding.decode(columns, header.classes), rows.label)
    return DecodedRows(rows.sample_id, rows.inputs, rows.label, targets)


def sample_rows(samples: pa.Table) -> DecodedRows:
    """A table of samples (see `samples`) as arrays, without targets and without what a shard adds to them."""
    inputs = [name for name in samples.schema.names if section_of(name, ()) == "inputs"]
    wanted = [name for name in (SAMPLE_ID, LABEL) if name in samples.schema.names]
    unpacked = {
        name: tensor_columns.unpack(samples.column(name), samples.schema.field(name)) for name in (*inputs, *wanted)
    }
    return DecodedRows(unpacked[SAMPLE_ID], {name: unpacked[name] for name in inputs}, unpacked.get(LABEL), None)
