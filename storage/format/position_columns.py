"""What a shard says of each position in plain columns, so that rows are chosen without reading their targets."""

from __future__ import annotations

import pyarrow as pa

from storage.samples.tensor_columns import MEANING

ENTROPY, TOP1 = "soft_entropy", "soft_top1"


def _field(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={MEANING: meaning})


# Of the teacher's own distribution, before a temperature and before any rounding.
SUMMARY_FIELDS = (
    _field(ENTROPY, pa.float32(), "entropy of the teacher's softmax at temperature 1, in nats"),
    _field(TOP1, pa.int32(), "the teacher's likeliest class, of several the lowest"),
)
_MEAN = "mean over the positions with a target of the teacher's entropy at temperature 1, in nats"
SEQUENCE_FIELDS = (_field(ENTROPY, pa.float32(), _MEAN),)


def summary_fields(positions: int | None) -> tuple[pa.Field, ...]:
    """The summary columns of rows that are sequences of so many positions, or a position each."""
    return SUMMARY_FIELDS if positions is None else SEQUENCE_FIELDS
