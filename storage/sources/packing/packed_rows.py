"""Documents of tokens laid end to end and cut into rows of one length: the arithmetic, on arrays.

Legend: N tokens of a block of D documents, R rows of L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.encodings.targets import IGNORED

Ints = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PackedRows:
    """input_ids_RL: the tokens, the last row filled up with padding.

    position_ids_RL: each token's place in its document, counted from 0 anew at a row's beginning, since attention
    leaves neither. Every token of the padding is a document of its own.
    label_RL: the next token of the same document, though it lies in the next row; IGNORED where there is none, or
    where it is no target.
    document_R, offset_R: the document that a row begins in, and at which of its tokens.
    """

    input_ids_RL: Ints
    position_ids_RL: Ints
    label_RL: Ints
    document_R: Ints
    offset_R: Ints


def count_rows(tokens: int, length: int) -> int:
    """
    >>> [count_rows(n, 8) for n in (0, 1, 8, 9)]
    [0, 1, 1, 2]
    """
    return -(-tokens // length)


def insert_tokens(ids_N: Ints, lengths_D: Ints, begin: int | None, end: int | None) -> tuple[Ints, Ints, Ints]:
    """Documents with `begin` before and `end` after each, where it is not there already. None of them is empty.

    Returns the tokens, the lengths of the documents, and which of the tokens were inserted.

    >>> [array.tolist() for array in insert_tokens(np.array([5, 6, 1, 7]), np.array([2, 2]), 1, 2)]
    [[1, 5, 6, 2, 1, 7, 2], [4, 3], [True, False, False, True, False, False, True]]
    """
    stops_D = np.cumsum(lengths_D)
    starts_D = stops_D - lengths_D
    at: list[Ints] = []
    # Of two tokens at the same place the first one here comes first: an end precedes the next document's begin.
    for token, place_D, first_or_last_D in ((end, stops_D, stops_D - 1), (begin, starts_D, starts_D)):
        at.append(place_D[ids_N[first_or_last_D] != token] if token is not None else place_D[:0])
    values = np.repeat(np.array([end or 0, begin or 0], np.int32), [len(places) for places in at])
    inserted_N = np.insert(np.zeros(len(ids_N), bool), np.concatenate(at), True)
    grown_D = lengths_D + np.isin(stops_D, at[0]) + np.isin(starts_D, at[1])
    return np.insert(ids_N, np.concatenate(at), values), grown_D, inserted_N


def packed_rows(
    tokens_N: Ints, starts_D: Ints, length: int, start: int, stop: int, padding: int, targets_N: Ints | None = None
) -> PackedRows:
    """Rows [start, stop) of a block. starts_D: where each document begins; none of them is empty.

    targets_N: each token as a target, IGNORED where it is none; None takes all tokens.

    >>> rows = packed_rows(np.array([5, 6, 7, 8, 9]), np.array([0, 3]), 4, 0, 2, padding=1)
    >>> rows.input_ids_RL.tolist(), rows.position_ids_RL.tolist()
    ([[5, 6, 7, 8], [9, 1, 1, 1]], [[0, 1, 2, 0], [0, 0, 0, 0]])
    >>> rows.label_RL.tolist()
    [[6, 7, -100, 9], [-100, -100, -100, -100]]
    >>> rows.document_R.tolist(), rows.offset_R.tolist()
    ([0, 1], [0, 1])
    """
    at_n = np.arange(start * length, min(stop * length, len(tokens_N)))
    begins_n = starts_D[np.searchsorted(starts_D, at_n, side="right") - 1]
    next_n = np.append(tokens_N if targets_N is None else targets_N, IGNORED)[at_n + 1]
    ends_n = np.isin(at_n + 1, starts_D)
    rows = count_rows(len(at_n), length)

    def filled(values_n: Ints, filler: int) -> Ints:
        made = np.full(rows * length, filler, np.int32)
        made[: len(values_n)] = values_n
        return made.reshape(rows, length)

    first_R = np.arange(start, start + rows) * length
    document_R = np.searchsorted(starts_D, first_R, side="right") - 1
    return PackedRows(
        filled(tokens_N[at_n], padding),
        filled(at_n - np.maximum(begins_n, at_n - at_n % length), 0),
        filled(np.where(ends_n, IGNORED, next_n), IGNORED),
        document_R,
        first_R - starts_D[document_R],
    )
