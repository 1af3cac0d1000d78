"""Small caches of sequences, with dense or sparse soft targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.digest import sha256_of
from storage.cache.cache import Cache
from storage.cache.commits import Commit, Quarantined, commit_shard, new_attempt
from storage.cache.seal import seal
from storage.encodings import Encoding
from storage.encodings.convert import convert
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import IGNORED, Targets
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.position_columns import ENTROPY, SEQUENCE_FIELDS
from storage.format.shard import write_shard
from storage.objectstore.folder import Folder
from storage.samples.samples import Columns, as_samples

LENGTH, CLASSES = 6, 40


def sequences(rows: int, first: int = 0) -> pa.Table:
    """Rows of two documents each: three tokens, then the others; the last position of each has no target."""
    draw = np.random.default_rng(first)
    ids_RL = draw.integers(0, CLASSES, (rows, LENGTH)).astype(np.int32)
    position_RL = np.broadcast_to(np.array([0, 1, 2, 0, 1, 2], np.int32), ids_RL.shape)
    label_RL = np.where(position_RL == 2, IGNORED, np.roll(ids_RL, -1, axis=1)).astype(np.int32)
    columns = {"input_ids": ids_RL, "position_ids": position_RL, "label": label_RL}
    lists = {name: pa.FixedSizeListArray.from_arrays(a.ravel(), LENGTH) for name, a in columns.items()}
    return as_samples(
        pa.table({"sample_id": pa.array([f"d{first + r}:0" for r in range(rows)], pa.string()), **lists}),
        Columns(),
        "made",
    )


def logits(rows: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[R, L, V]"""
    return (np.random.default_rng(1000 + first).normal(size=(rows, LENGTH, CLASSES)) * 3).astype(np.float32)


def labels(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.frombuffer(b"".join(table.column("label").to_pylist()), "<i4").reshape(-1, LENGTH)


def targets_of(encoding: Encoding, z_RLV: np.ndarray[Any, Any], label_RL: np.ndarray[Any, Any]) -> Targets:
    dense = DenseTargets(z_RLV - z_RLV.max(axis=-1, keepdims=True), np.ones(z_RLV.shape[:-1], np.float32))
    return dense if isinstance(encoding, Dense) else convert(dense, label_RL, encoding)


def shard(store: Folder, encoding: Encoding, rows: int, first: int, quarantined: Sequence[Quarantined] = ()) -> Commit:
    table = sequences(rows, first)
    key = sha256_of(["sequences", encoding.to_dict(), first])
    header = ShardHeader(FORMAT_VERSION, key, encoding, CLASSES, "teacher", f"span {first}", positions=LENGTH)
    schema = shard_schema(table.schema, header, SEQUENCE_FIELDS)
    arrays: dict[str, Any] = {name: table.column(name).combine_chunks() for name in table.column_names}
    arrays[ENTROPY] = pa.array(np.arange(rows, dtype=np.float32))
    encoded = encoding.encode(targets_of(encoding, logits(rows, first), labels(table)))
    arrays |= {field.name: array for field, array in zip(header.fields(), encoded, strict=True)}
    staged = store.stage()
    batch = pa.record_batch([arrays[name] for name in schema.names], schema=schema)
    # Two row groups a shard.
    count = write_shard(staged, schema, [batch], group_row_bytes=(16 << 20) // max(1, rows // 2))
    return commit_shard(store, key, new_attempt(), staged, count, quarantined)


def cache(
    store: Folder,
    encoding: Encoding,
    name: str = "corpus",
    shards: int = 2,
    rows: int = 4,
    quarantined: Sequence[Quarantined] = (),
) -> Cache:
    commits = [shard(store, encoding, rows, first * rows, quarantined) for first in range(shards)]
    teacher = {"digest": "teacher", "factory": "made:up", "arguments": {}, "dtype": "float32", "weights": None}
    lineage = {"teacher": teacher, "source": {"function": "made:rows"}, "targets": encoding.to_dict()}
    lineage |= {"sealed_at": "then", "software": {"python": "3"}, "recipe_digest": "0"}
    return seal(store, name, commits, lineage)
