"""The columns of a source in words and for JSON: which are inputs, label and id, and which are left out."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from storage.samples import tensor_columns
from storage.samples.column_roles import described
from storage.samples.columns import LABEL, SAMPLE_ID, Columns
from storage.samples.samples import input_names


def described_columns(samples: pa.Schema, columns: Columns, left_out: dict[str, str]) -> dict[str, Any]:
    """Which columns of a source are what, for JSON: inputs, label, sample_id and left_out.

    samples: the schema that `as_samples` made. Each input has a dtype and the shape of a row; label and sample_id have
    besides the column of the source that they are.
    """
    label = columns.label if isinstance(columns.label, str) else LABEL
    has_label = LABEL in samples.names
    return {
        "inputs": {name: tensor_columns.dtype_and_shape(samples.field(name)) for name in input_names(samples)},
        "label": {"column": label, **tensor_columns.dtype_and_shape(samples.field(LABEL))} if has_label else None,
        "sample_id": {"column": columns.sample_id, **tensor_columns.dtype_and_shape(samples.field(SAMPLE_ID))},
        "left_out": [{"column": name, "reason": why} for name, why in left_out.items()],
    }


def columns_line(facts: dict[str, Any]) -> str:
    """`described_columns` as a line for people. Of packed documents, facts have their `preprocessing` besides.

    >>> columns_line({"inputs": {"x": {"dtype": "float32", "shape": [2]}}, "label": None,
    ...     "sample_id": {"column": "key", "dtype": "int64", "shape": []}, "left_out": []})
    'inputs: x float32[2]; no label; sample_id: key int64'
    """

    def kind(of: dict[str, Any]) -> str:
        return f"{of['dtype']}{of['shape'] or ''}"

    inputs = ", ".join(f"{name} {kind(of)}" for name, of in facts["inputs"].items())
    label, sample_id = facts["label"], facts["sample_id"]
    said = f"inputs: {inputs}; " + (f"label: {label['column']} {kind(label)}" if label else "no label")
    said += f"; sample_id: {sample_id['column']} {kind(sample_id)}"
    if facts["left_out"]:
        reasons = described({one["column"]: one["reason"] for one in facts["left_out"]})
        unless = ", unless source.columns.inputs names them" if "preprocessing" not in facts else ""
        said += f"; left out{unless}: {reasons}"
    special = (facts.get("preprocessing") or {}).get("special_tokens")
    if special is not None:
        before, after = (" ".join(special[where]) or "nothing" for where in ("before", "after"))
        said += f"; the tokenizer adds {before} before a document, {after} after it"
    return said
