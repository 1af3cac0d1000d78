"""This project's own stream, on caches that are written without a teacher.

Rows of tokens have no encoding of their own here: tokens, ids and log-probabilities are carried as a
sample's inputs, beside a dense target of two classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stream_readers import Batch
from stream_readers.data import BATCH, TEMPERATURE, Array, Arrays, Shape

SHARDS, NAME = 4, "bench"
# What a cache gets that is larger than the memory bound: windows of so many row groups, in so many lanes.
LANES, WINDOW_GROUPS = 16, 3
# Of a cache of some gigabytes they hold a small part. One of 1.2 GB is its model, with row groups that much smaller:
# else most of them would be held over from one epoch to the next, and not be read.
SMALLER = 4


class Ours:
    """Ways: 'sequential' (`scan`); 'shuffled', the whole cache, which fits; 'again', its later epochs; 'lanes'.

    A stream holds a cache that fits until the epoch ends, and needs all of it in the next one: so its later epochs
    read nothing. 'shuffled' has a new stream for each pass, which reads all of it.
    """

    checks, batches, casts = "xxh3 of every range that is read", True, False

    def __init__(self, home: Path, shape: Shape, compression: str, way: str, times: int) -> None:
        self.home, self._compression, self._times = home, compression, times
        lanes = f"windows of {WINDOW_GROUPS} row groups in {LANES} lanes"
        self.shuffles = {"sequential": "nothing", "lanes": lanes}.get(way, "all rows")

    def write(self, arrays: Arrays) -> None:
        write_cache(self.home, arrays, self._compression, self._times)

    def start(self) -> None:
        import storage.cache.cache
        import storage.stream  # noqa: F401

    def open(self, way: str) -> OurLoader:
        return OurLoader(self.home, way)


class OurLoader:
    def __init__(self, home: Path, way: str) -> None:
        self._groups, self._way = open_groups(home), way
        self._stream: Any = None
        self._state: Any = None

    def epoch(self, number: int) -> Iterator[Batch]:
        if self._way == "sequential":
            yield from map(batch_of, scan_rows(self._groups))
            return
        if self._stream is None:
            self._stream = shuffled(self._groups, 0 if self._state else number, self._way == "lanes")
            if self._state:
                self._stream.load_state_dict(self._state)
        for batch in self._stream:
            yield batch_of(batch.rows)
        if self._way == "shuffled":
            self._let_go()

    def state(self) -> Any:
        return self._stream and self._stream.state_dict()

    def load(self, state: Any) -> None:
        self._state = state

    def close(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = self._state = None


# How the stream is called, all in one place


def open_groups(home: Path) -> Any:
    from storage.cache.open import open_cache
    from storage.rows.cache_rows import CacheRows

    return CacheRows(open_cache(f"{home}/{NAME}"))


def shuffled(groups: Any, seed: int, lanes: bool) -> Any:
    from storage.stream.stream import Stream

    if not lanes:
        return Stream(groups, batch_size=BATCH, seed=seed)
    window = int(WINDOW_GROUPS * groups.rows.max())
    return Stream(groups, batch_size=BATCH, seed=seed, lanes=LANES, window=window)


def scan_rows(groups: Any) -> Iterator[Any]:
    from storage.stream.scan import scan

    return scan(groups, BATCH)


def batch_of(rows: Any) -> Batch:
    """Rows as columns; the two classes that stand in for a target of token rows come along."""
    label = {} if rows.label is None else {"label": rows.label}
    return {"sample_id": rows.sample_id, **rows.inputs, **label, "soft_logits": rows.targets.logits_PV}


def write_cache(home: Path, arrays: Arrays, compression: str, times: int) -> None:
    """The rows `times` over, under ids of their own each time."""
    from storage.cache.seal import seal
    from storage.objectstore.folder import Folder

    store = Folder(str(home))
    rows = len(arrays["sample_id"])
    cuts = np.linspace(0, rows, SHARDS + 1).astype(int)
    shards = []
    for again in range(times):
        for start, stop in pairwise(cuts):
            part = {name: a[start:stop] for name, a in arrays.items()}
            part["sample_id"] = part["sample_id"] + again * rows
            shards.append(_shard(store, part, compression, SMALLER if times > 1 else 1))
    seal(store, NAME, shards, {"by": "benchmarks/stream.py"})


def _shard(store: Any, part: Arrays, compression: str, smaller: int) -> Any:
    import pyarrow as pa

    from storage.base.digest import sha256_of
    from storage.cache.commits import commit_shard, new_attempt
    from storage.encodings.dense import Dense, DenseTargets
    from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
    from storage.format.shard import row_bytes, write_shard

    key = sha256_of(["benchmark", compression, int(part["sample_id"][0]), sorted(part)])
    samples, soft = _samples(part)
    encoding = Dense(TEMPERATURE)
    header = ShardHeader(FORMAT_VERSION, key, encoding, soft.shape[1], "teacher", "span")
    columns = {name: samples.column(name).combine_chunks() for name in samples.schema.names}
    for field, array in zip(encoding.fields(soft.shape[1]), encoding.encode(DenseTargets(soft, None)), strict=True):
        columns[field.name] = array
    schema = shard_schema(samples.schema, header)
    batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    staged = store.stage()
    width = smaller * row_bytes(schema)
    rows = write_shard(staged, schema, iter([batch]), compression=compression, group_row_bytes=width)
    return commit_shard(store, key, new_attempt(), staged, rows)


def _samples(part: Arrays) -> tuple[Any, Array]:
    """Columns as a table of samples, and the targets of its rows."""
    import pyarrow as pa

    from storage.samples import tensor_columns

    soft = part.get("soft_logits", np.zeros((len(part["sample_id"]), 2), np.float16))
    fields, columns = [], []
    inputs = [name for name in part if name not in ("sample_id", "label", "soft_logits")]
    for name in ["sample_id", *inputs, *(["label"] if "label" in part else [])]:
        values = part[name]
        plain = values.ndim == 1
        fields.append(
            pa.field(name, pa.from_numpy_dtype(values.dtype), nullable=False)
            if plain
            else tensor_columns.tensor_field(name, values.dtype, values.shape[1:], "input")
        )
        columns.append(tensor_columns.pack(values))
    return pa.table(columns, schema=pa.schema(fields)), soft


def shard_files(home: Path) -> list[Path]:
    """The files of a cache in its order."""
    from storage.cache.open import open_cache

    return [home / shard.path for shard in open_cache(f"{home}/{NAME}").shards]
