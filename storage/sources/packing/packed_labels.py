"""Labels beside a packed column of token ids: which tokens are targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.base.errors import SourceError
from storage.encodings.targets import IGNORED
from storage.samples.columns import LABEL, Columns
from storage.sources.packing.documents import TokenDocuments

# The usual names: ours, and that of Hugging Face's data collators.
USUAL = (LABEL, "labels")
ATTENTION_MASK = "attention_mask"
_LEAVE_OUT = "Set source.columns.label=false to leave it out: then every token is a target."


def label_column(names: Sequence[str], columns: Columns, document: str, where: str) -> str | None:
    """The label column among a file's columns, None where there is none. document: the packed column.

    Raises SourceError where the one that was named is missing, or where both usual names are there.
    """
    if isinstance(columns.label, str):
        if columns.label not in names:
            raise SourceError(
                f"{where} has no column '{columns.label}' (named as source.columns.label).",
                f"Its columns are: {', '.join(names)}.",
            )
        return columns.label
    if columns.label is False:
        return None
    there = [name for name in USUAL if name in names and name not in (document, columns.sample_id)]
    if len(there) > 1:
        raise SourceError(
            f"{where} has the columns '{there[0]}' and '{there[1]}'.",
            "One column says which tokens are targets.",
            "Name it in source.columns.label, or set that to false for none.",
        )
    return there[0] if there else None


def unaligned(label: str, where: str) -> SourceError:
    return SourceError(
        f"{where} has a label column '{label}' beside documents of text.",
        "Labels say of each token whether it is a target, and text has no tokens yet.",
        f"{_LEAVE_OUT} Or tokenise the documents yourself, and pack the token ids with their labels.",
    )


def refuse_padding(mask: pa.Array, names: list[str], column: str, where: str) -> None:
    """Raises SourceError where the attention mask beside documents of token ids says that some are padding."""
    is_numbers = _is_list(mask.type) and pa.types.is_integer(mask.type.value_type)
    for row, values in enumerate(mask.to_pylist() if is_numbers else []):
        if values is not None and 0 in values:
            raise SourceError(
                f"The document '{names[row]}' (in {where}) has padding: a 0 at {values.index(0)} in "
                f"'{ATTENTION_MASK}'.",
                "Every token of a document is a token of its text: pack does the padding.",
                f"Take the padding out of '{column}', or drop '{ATTENTION_MASK}' if it means something else.",
            )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _has_labels(labels: pa.Array) -> np.ndarray[Any, Any]:
    if not _is_list(labels.type):
        return labels.is_valid().to_numpy(zero_copy_only=False)
    return pc.fill_null(labels.value_lengths(), 0).to_numpy(zero_copy_only=False) > 0


def targets_of(labels: pa.Array, label: str, documents: TokenDocuments, where: str) -> np.ndarray[Any, Any]:
    """Each token as a target [N], int32: itself, or IGNORED where its label is.

    Labels are aligned with the tokens, as in Hugging Face transformers: labels[t] is ids[t] or -100, and the position
    before it has the target. Of a document without tokens they are empty or null. Raises SourceError for others.
    """
    wanted_D = (documents.lengths_D > 0) | _has_labels(labels)
    if not wanted_D.any():
        return np.empty(0, np.int32)
    labels, documents = labels.filter(pa.array(wanted_D)), documents.without_empty(wanted_D)
    kind = labels.type
    is_list = _is_list(kind)
    aligned = "Labels are lists as long as the document, and each is the token's id or -100 for no target."
    if not is_list or not pa.types.is_integer(kind.value_type) or labels.null_count or labels.flatten().null_count:
        nulls = ", with nulls" if is_list and (labels.null_count or labels.flatten().null_count) else ""
        raise SourceError(f"{where}: the labels in '{label}' are of type {kind}{nulls}.", aligned, _LEAVE_OUT)
    lengths_D = labels.value_lengths().to_numpy(zero_copy_only=False)
    other = np.flatnonzero(lengths_D != documents.lengths_D)
    if len(other):
        at = int(other[0])
        raise SourceError(
            f"The document '{documents.names[at]}' (in {where}) has {documents.lengths_D[at]:,} tokens and "
            f"{lengths_D[at]:,} labels in '{label}'.",
            aligned,
            _LEAVE_OUT,
        )
    labels_N = labels.flatten().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((labels_N != IGNORED) & (labels_N != documents.ids_N))
    if len(wrong):
        at = int(wrong[0])
        stops_D = np.cumsum(documents.lengths_D)
        document = int(np.searchsorted(stops_D, at, side="right"))
        token = at - int(stops_D[document] - documents.lengths_D[document])
        raise SourceError(
            f"The document '{documents.names[document]}' (in {where}) has the token {documents.ids_N[at]} at {token}, "
            f"and its label in '{label}' is {labels_N[at]}.",
            f"{aligned} They are not shifted.",
            _LEAVE_OUT,
        )
    return labels_N.astype(np.int32)
