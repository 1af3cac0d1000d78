"""Caches with summaries, and by reference, whose every value follows from a row's id; and what is read of a store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import sha256_of
from storage.cache.cache import Cache
from storage.cache.commits import Commit, commit_shard, new_attempt
from storage.cache.seal import seal
from storage.encodings.dense import Dense, DenseTargets
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.position_columns import SUMMARY_FIELDS
from storage.format.sections import SECTIONS
from storage.format.shard import ROW_GROUP_BYTES, write_shard
from storage.objectstore.folder import Folder
from storage.samples import tensor_columns
from storage.samples.columns import Columns
from storage.samples.inputs_digest import INPUTS_XXH3_FIELD, inputs_digests
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import INPUTS_XXH3, as_samples, kept_columns

CLASSES = 5
GROUP_ROWS = 4

Kind = Literal["stored", "referenced"]


def raw_rows(ids: Sequence[int], *, texts: bool = False, label: bool = True) -> pa.Table:
    """Rows of a source. x [2, 3] float32, n int16 and the label follow from the id."""
    at = np.asarray(ids, np.int64)
    x = (at[:, None] + np.arange(6) / 8).astype(np.float32)
    columns = {
        "sample_id": pa.array([f"s{i}" for i in at]) if texts else pa.array(at),
        "x": pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3), 2),
        "n": pa.array((at * 3).astype(np.int16)),
    }
    return pa.table(columns | ({"label": pa.array(at % CLASSES)} if label else {}))


def entropy_of(ids: Any) -> np.ndarray[Any, Any]:
    return (np.asarray(ids) * 7 % 16 / 4).astype(np.float32)


def top1_of(ids: Any) -> np.ndarray[Any, Any]:
    return (np.asarray(ids) * 3 % CLASSES).astype(np.int32)


def put_rows(store: Folder, ids: Sequence[int], kind: Kind = "stored", **rows: bool) -> Commit:
    """A committed shard of these ids, in row groups of GROUP_ROWS."""
    samples = as_samples(raw_rows(ids, **rows), Columns(), "made by hand")
    at, encoding = np.asarray(ids, np.int64), Dense(1.0)
    key = sha256_of(["shard", list(map(int, ids)), kind, *sorted(rows.items())])
    header = ShardHeader(FORMAT_VERSION, key, encoding, CLASSES, "teacher", rows_digest(samples))
    extras = [*SUMMARY_FIELDS, *([INPUTS_XXH3_FIELD] if kind == "referenced" else [])]
    kept = kept_columns(samples.schema, kind)
    schema = shard_schema(kept, header, extras)
    soft_PV = (-(at[:, None] * 7 + np.arange(CLASSES) * 13) % 29 / 4).astype(np.float32)
    arrays: dict[str, Any] = {name: samples.column(name).combine_chunks() for name in samples.schema.names}
    arrays |= {"soft_entropy": pa.array(entropy_of(at)), "soft_top1": pa.array(top1_of(at))}
    arrays[INPUTS_XXH3] = tensor_columns.pack(inputs_digests(samples).view(np.uint8).reshape(-1, 16))
    fields = [f.name for f in encoding.fields(CLASSES)]
    arrays |= dict(
        zip(fields, encoding.encode(DenseTargets(soft_PV - soft_PV.max(axis=1, keepdims=True), None)), strict=True)
    )
    batch = pa.record_batch([arrays[name] for name in schema.names], schema=schema)
    staged = store.stage()
    written = write_shard(staged, schema, [batch], group_row_bytes=ROW_GROUP_BYTES // GROUP_ROWS)
    return commit_shard(store, key, new_attempt(), staged, written)


def put_cache(store: Folder, shards: Sequence[Sequence[int]], kind: Kind = "stored", **rows: bool) -> Cache:
    """A sealed cache of a shard for each list of ids."""
    commits = [put_rows(store, ids, kind, **rows) for ids in shards]
    return seal(store, kind, commits, {"source": {"parquet": "the/source"}})


def write_source(folder: Path, files: dict[str, Sequence[int]], *, group_rows: int = 5, **rows: bool) -> str:
    """Parquet files of these ids in a folder, whose path it gives."""
    folder.mkdir(exist_ok=True)
    for name, ids in files.items():
        pq.write_table(raw_rows(ids, **rows), folder / f"{name}.parquet", row_group_size=group_rows)
    return str(folder)


@dataclass
class Reads:
    """The ranges of row groups that were read: path, start, stop."""

    rows: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])

    @property
    def bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.rows)


def watch(store: Folder, spoil: Callable[[int], bool] = lambda _: False) -> Reads:
    """What is read of row groups from now on; the n-th range comes with a wrong byte where `spoil(n)`."""
    reads, really, turn = Reads(), store.read_pieces, threading.Lock()

    def read_pieces(path: str, start: int, pieces: Sequence[memoryview]) -> int:
        stop = start + sum(map(len, pieces))
        if stop == store.size(path):  # a footer
            return really(path, start, pieces)
        # Several threads read; each range has a number of its own.
        with turn:
            reads.rows.append((path, start, stop))
            number = len(reads.rows)
        count = really(path, start, pieces)
        if spoil(number):
            pieces[0][0] ^= 0xFF
        return count

    store.read_pieces = read_pieces
    return reads


def section_bytes(cache: Cache, section: str) -> int:
    """The bytes of one section of all row groups."""
    groups = [group for shard in cache.shards for group in shard.row_groups]
    bounds = [(group.start, group.inputs_stop, group.plain_stop, group.stop) for group in groups]
    at = SECTIONS.index(section)
    return sum(stops[at + 1] - stops[at] for stops in bounds)
