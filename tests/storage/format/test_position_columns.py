"""The fields of the summary columns."""

from __future__ import annotations

import pyarrow as pa

from storage.format.position_columns import SEQUENCE_FIELDS, SUMMARY_FIELDS, summary_fields


def test_a_row_has_an_entropy_and_a_sequence_no_likeliest_class() -> None:
    assert summary_fields(None) == SUMMARY_FIELDS and summary_fields(8) == SEQUENCE_FIELDS
    types = {field.name: field.type for field in SUMMARY_FIELDS}
    assert types == {"soft_entropy": pa.float32(), "soft_top1": pa.int32()}
    assert [(field.name, field.type) for field in SEQUENCE_FIELDS] == [("soft_entropy", pa.float32())]
    for field in (*SUMMARY_FIELDS, *SEQUENCE_FIELDS):
        assert not field.nullable and list(field.metadata) == [b"meaning"]
