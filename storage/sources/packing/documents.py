"""A column of documents, of text or of token ids, as token ids.

Legend: D documents of N tokens together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.errors import SourceError
from storage.samples import tensor_columns
from storage.sources.packing.tokenizer import TokenizerFile


@dataclass(frozen=True)
class TokenDocuments:
    """D documents of N token ids. names: the documents' ids; lengths_D: how many tokens each has."""

    names: list[str]
    ids_N: np.ndarray[Any, Any]
    lengths_D: np.ndarray[Any, Any]

    def without_empty(self, kept_D: np.ndarray[Any, Any]) -> TokenDocuments:
        """The documents of `kept_D` [D], bool. Those left out have no tokens."""
        names = [name for name, kept in zip(self.names, kept_D.tolist(), strict=True) if kept]
        return TokenDocuments(names, self.ids_N, self.lengths_D[kept_D])


def token_documents(
    documents: pa.Array, names: list[str], tokenizer: TokenizerFile | None, special_tokens: bool, where: str
) -> TokenDocuments:
    """A block of documents, before `begin_token` and `end_token` are inserted. A null has no tokens.

    where: the column and its file, for messages. Raises SourceError for other types and for what is no token id.
    """
    valid_D = documents.is_valid().to_numpy(zero_copy_only=False)
    lengths_D, ids_N = np.zeros(len(documents), np.int64), np.empty(0, np.int32)
    if valid_D.any():  # a column of nulls alone has a type of its own
        there = [name for name, valid in zip(names, valid_D.tolist(), strict=True) if valid]
        if tokenizer is None:
            ids_N, lengths_D[valid_D] = _given(documents.drop_null(), there, where)
        else:
            ids_N, lengths_D[valid_D] = _tokenised(documents.drop_null(), tokenizer, special_tokens, where)
    return TokenDocuments(names, ids_N, lengths_D)


def refuse_empty(given: TokenDocuments, documents: pa.Array, where: str) -> None:
    """Raises SourceError where a document has no tokens."""
    empty = np.flatnonzero(given.lengths_D == 0)
    if len(empty):
        first = int(empty[0])
        raise SourceError(
            f"The document '{given.names[first]}' (in {where}) "
            f"{'has no tokens' if documents[first].is_valid else 'is null'} "
            f"(empty: {len(empty):,} of {len(documents):,} documents that were read).",
            "A document has at least one token.",
            "Drop empty documents from the source, or set source.pack.empty_documents=skip: then they are left out and "
            "counted.",
        )


def _tokenised(documents: pa.Array, tokenizer: TokenizerFile, special_tokens: bool, where: str) -> tuple[Any, Any]:
    if not tensor_columns.is_text(documents.type):
        raise SourceError(
            f"{where}: the documents are of type {documents.type}.",
            "With source.pack.tokenizer they are text.",
            "Leave the tokenizer out where the column holds token ids.",
        )
    pieces = tokenizer.encode(documents.to_pylist(), special_tokens)
    lengths_D = np.array([len(piece) for piece in pieces], np.int64)
    return np.concatenate([*pieces, np.empty(0, np.int32)]), lengths_D


def _given(documents: pa.Array, names: list[str], where: str) -> tuple[Any, Any]:
    kind = documents.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    # Lists that are all empty may have no type of value.
    if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise SourceError(
            f"{where}: the documents are of type {kind}.",
            "Without source.pack.tokenizer they are lists of token ids, which are integers.",
            "Name a tokenizer where the column holds text.",
        )
    flat = documents.flatten()
    lengths_D = documents.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    if flat.null_count:
        raise SourceError(f"{where}: a document holds nulls.", "Token ids are integers from 0 on.")
    ids_N = flat.cast(pa.int32() if pa.types.is_null(flat.type) else flat.type).to_numpy(zero_copy_only=False)
    outside = np.flatnonzero((ids_N < 0) | (ids_N >= 1 << 31))
    if len(outside):
        document = int(np.searchsorted(np.cumsum(lengths_D), outside[0], side="right"))
        raise SourceError(
            f"The document '{names[document]}' (in {where}) holds the token id {int(ids_N[outside[0]])}.",
            "Token ids are integers from 0 on, below 2^31.",
        )
    return ids_N.astype(np.int32), lengths_D
