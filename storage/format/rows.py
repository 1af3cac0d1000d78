"""Samples with their soft targets as arrays, made of a shard's columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.encodings.targets import Targets, with_mask
from storage.format.header import ShardHeader
from storage.format.sections import section_of
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID


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
