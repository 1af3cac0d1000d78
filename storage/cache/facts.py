"""What a cache says of itself: the fields of `cache.json`, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from storage.cache.index import Index
from storage.format.header import ShardHeader, stored_inputs
from storage.samples.samples import LABEL


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """What the shards of a cache are together, the label that they were first sealed under, and their lineage.

    encoding: the settings of the targets. classes: V. samples: rows. positions: of all rows together. bytes: of the
    shards' files. quarantined: samples of the source that no shard has. inputs: in the order of the model's arguments.
    """

    name: str
    encoding: dict[str, Any]
    classes: int
    samples: int
    positions: int
    bytes: int
    quarantined: int
    inputs: list[str]
    labelled: bool
    lineage: dict[str, Any]

    @staticmethod
    def of(index: Index, header: ShardHeader, schema: pa.Schema, name: str, lineage: dict[str, Any]) -> CacheFacts:
        """The facts that follow from an index, and from the header and the schema of one of its shards."""
        rows, size = map(sum, zip(*index.facts("rows", "bytes"), strict=True))
        return CacheFacts(
            name=name,
            encoding=header.encoding.to_dict(),
            classes=header.classes,
            samples=rows,
            positions=rows * (header.positions or 1),
            bytes=size,
            quarantined=index.quarantined,
            inputs=stored_inputs(schema, header),
            labelled=LABEL in schema.names,
            lineage=lineage,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as `cache.json` has them."""
        return {field.name: getattr(self, field.name) for field in fields(CacheFacts)}

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> CacheFacts:
        """The fields out of a `cache.json`; others are ignored. Raises KeyError where one is missing."""
        return CacheFacts(**{field.name: facts[field.name] for field in fields(CacheFacts)})
