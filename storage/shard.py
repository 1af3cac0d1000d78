"""One Parquet file of soft targets: write it, read it, know what it holds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import tensors
from storage.digest import canonical_json, range_digest
from storage.encodings import Encoding, make_encoding
from storage.errors import CorruptShard, RecipeError
from storage.samples import LABEL, SAMPLE_ID, input_names
from storage.targets import Targets

FORMAT_VERSION = 1
METADATA_KEY = b"stillhouse"

# A row group is what one read fetches and checks; a page is what Parquet checksums and compresses.
ROW_GROUP_BYTES = 16 << 20
PAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of a shard, and their xxh3-128. A row group's, or the footer's (rows = 0)."""

    start: int
    stop: int
    rows: int
    xxh3: str

    def to_dict(self) -> dict[str, Any]:
        return {"start": self.start, "stop": self.stop, "rows": self.rows, "xxh3": self.xxh3}


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself, so that a reader needs nothing else."""

    format_version: int
    shard_key: str
    encoding: Encoding
    classes: int
    teacher: str
    span: str

    def to_metadata(self) -> dict[bytes, bytes]:
        facts = {
            "format_version": self.format_version,
            "shard_key": self.shard_key,
            "targets": self.encoding.to_dict(),
            "classes": self.classes,
            "teacher": self.teacher,
            "span": self.span,
        }
        return {METADATA_KEY: canonical_json(facts)}


@dataclass(frozen=True)
class Rows:
    """Samples with their soft targets, as arrays of P rows (views of the memory that was read)."""

    sample_id: np.ndarray[Any, Any]
    inputs: dict[str, np.ndarray[Any, Any]]
    label: np.ndarray[Any, Any] | None
    targets: Targets | None

    def __len__(self) -> int:
        return len(self.sample_id)


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
        return ShardHeader(version, facts["shard_key"], encoding, facts["classes"], facts["teacher"], facts["span"])
    except RecipeError as error:
        raise CorruptShard(f"{where} is encoded in a way that is not known here: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{where} does not describe itself as a shard does ({type(error).__name__}: {error}).",
            f"Its metadata '{METADATA_KEY.decode()}' is the JSON of a header.",
        ) from None


def shard_schema(samples: pa.Schema, header: ShardHeader) -> pa.Schema:
    fields = [*samples, *header.encoding.fields(header.classes)]
    return pa.schema(fields, metadata=header.to_metadata())


def write_shard(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a whole shard file and return its rows. Row groups depend on the schema only, not on the batches."""
    width = row_bytes(schema)
    group_rows = max(1, ROW_GROUP_BYTES // width)
    plain = [field.name for field in schema if not tensors.is_tensor(field)]
    rows, held, held_rows = 0, [], 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=plain,  # type: ignore[arg-type]  # a list of columns, as use_dictionary takes one
        write_page_checksum=True,
        data_page_size=PAGE_BYTES,
        # pyarrow looks at the page size only every this many rows.
        write_batch_size=max(1, min(1024, PAGE_BYTES // width)),
    ) as writer:
        for batch in batches:
            held.append(batch)
            held_rows += batch.num_rows
            while held_rows >= group_rows:
                table = pa.Table.from_batches(held, schema)
                # In one piece: Parquet ends a page where a chunk ends, and batches should leave no mark.
                writer.write_table(table.slice(0, group_rows).combine_chunks(), row_group_size=group_rows)
                held = table.slice(group_rows).to_batches()
                held_rows -= group_rows
                rows += group_rows
        if held_rows or not rows:
            writer.write_table(pa.Table.from_batches(held, schema).combine_chunks(), row_group_size=group_rows)
            rows += held_rows
    return rows


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
    groups: list[ByteRange] = []
    with open(path, "rb") as file:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            starts, stops = [], []
            for column in (group.column(c) for c in range(group.num_columns)):
                starts.append(column.data_page_offset)
                stops.append(column.data_page_offset + column.total_compressed_size)
            start, stop = min(starts), max(stops)
            file.seek(start)
            groups.append(ByteRange(start, stop, group.num_rows, range_digest(file.read(stop - start))))
        start = groups[-1].stop if groups else 4
        file.seek(start)
        rest = file.read()
    return groups, ByteRange(start, start + len(rest), 0, range_digest(rest))


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


def decode(table: pa.Table, header: ShardHeader) -> Rows:
    """A row group's table as arrays and targets."""
    targets_fields = header.encoding.fields(header.classes)
    names = {field.name for field in targets_fields}
    columns = {f.name: tensors.unpack(table.column(f.name), table.schema.field(f.name)) for f in targets_fields}
    samples = table.select([name for name in table.schema.names if name not in names])
    rows = sample_rows(samples)
    return Rows(rows.sample_id, rows.inputs, rows.label, header.encoding.decode(columns))


def sample_rows(samples: pa.Table) -> Rows:
    """A table of samples (see `storage.samples`) as arrays, without targets."""
    unpacked = {f.name: tensors.unpack(samples.column(f.name), f) for f in samples.schema}
    inputs = {name: unpacked[name] for name in input_names(samples.schema)}
    return Rows(unpacked[SAMPLE_ID], inputs, unpacked.get(LABEL), None)
