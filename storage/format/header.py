"""What a shard says about itself, and the columns that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage.base.digest import canonical_json
from storage.base.errors import CorruptShard, RecipeError
from storage.encodings import Encoding, make_encoding
from storage.format.sections import section_of

FORMAT_VERSION = 1
METADATA_KEY = b"stillhouse"


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
