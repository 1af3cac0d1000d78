"""A digest of each row's inputs, by which rows that a shard refers to are known again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from storage.base.digest import canonical_json
from storage.samples import tensor_columns
from storage.samples.samples import INPUTS_XXH3, input_names

INPUTS_XXH3_FIELD = tensor_columns.tensor_field(INPUTS_XXH3, np.dtype(np.uint8), (16,), "xxh3-128 of the row's inputs")

# Rows are hashed out of a block of this size: large enough to fill at once, small enough for a core's own cache.
_BLOCK_BYTES = 1 << 20


def inputs_digests(samples: pa.Table) -> np.ndarray[Any, Any]:
    """[P] of dtype V16: the xxh3-128 of each row's inputs, as its canonical (big-endian) bytes.

    The bytes that are hashed are, for each input in the model's argument order, the canonical JSON of
    [name, dtype, shape of a row], and the row's values: little-endian, in C order, a bool as one byte.
    Of a number the shape is []. The id and the label have no part in it.
    """
    rows, pieces = samples.num_rows, list[np.ndarray[Any, Any]]()
    for name in input_names(samples.schema):
        values = tensor_columns.unpack(samples.column(name), samples.schema.field(name))
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        head = canonical_json([name, values.dtype.name, list(values.shape[1:])])
        pieces.append(np.broadcast_to(np.frombuffer(head, np.uint8), (rows, len(head))))
        pieces.append(values.reshape(rows, math.prod(values.shape[1:])).view(np.uint8))
    width = sum(piece.shape[1] for piece in pieces)
    block = np.empty((max(1, min(rows, _BLOCK_BYTES // width)), width), np.uint8)
    data, digests = block.data.cast("B"), bytearray()
    for start in range(0, rows, len(block)):
        count = min(len(block), rows - start)
        np.concatenate([piece[start : start + count] for piece in pieces], axis=1, out=block[:count])
        for at in range(0, count * width, width):
            digests += xxhash.xxh3_128_digest(data[at : at + width])
    return np.frombuffer(digests, "V16")
