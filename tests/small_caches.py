"""Sealed caches of random teachers, written without a job: images with dense targets, packed documents with topk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.digest import sha256_of
from storage.cache.commits import commit_shard, new_attempt
from storage.cache.seal import seal
from storage.encodings import Encoding
from storage.encodings.convert import likeliest
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import Targets
from storage.encodings.topk import TopK
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.shard import write_shard
from storage.objectstore.folder import Folder
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import Columns, as_samples
from storage.sources import make_source

CLASSES, TOKENS, LENGTH = 3, 29, 8


def image_cache(folder: Path, sizes: tuple[int, ...] = (16, 16, 5)) -> str:
    """The URL of a cache of images [1, 2, 2] uint8, `image`, a shard for each of the sizes; T_c = 2, no labels."""
    random, parts = np.random.default_rng(0), list[tuple[pa.Table, Targets]]()
    for first, rows in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        image = pa.array(random.integers(0, 256, 4 * rows, dtype=np.uint8))
        for size in (2, 2, 1):
            image = pa.FixedSizeListArray.from_arrays(image, size)
        samples = pa.table({"sample_id": np.arange(first, first + rows), "image": image})
        parts.append((as_samples(samples, Columns(), "made by hand"), _dense(random.normal(size=(rows, CLASSES)), 2.0)))
    return _sealed(folder, parts, Dense(2.0), CLASSES, None)


def packed_cache(folder: Path, documents: int = 40) -> str:
    """The URL of a cache of packed documents of token ids, rows of LENGTH; k = 5, T = 1 and 2."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"ids": random.integers(0, TOKENS, random.integers(2, 15)).tolist()} for _ in range(documents)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = make_source(
        {
            "jsonl": str(folder / "documents.jsonl"),
            "pack": {"column": "ids", "sequence_length": LENGTH, "block_documents": 16},
        }
    )
    encoding, parts = TopK(5, (1.0, 2.0)), list[tuple[pa.Table, Targets]]()
    for file in source.files():
        samples = source.read(file, 0, file.rows)
        column = samples.column("label").combine_chunks()
        label_RL = np.frombuffer(column.buffers()[1], np.int32)[: file.rows * LENGTH].reshape(file.rows, LENGTH)
        logits = 3 * random.normal(size=(file.rows, LENGTH, TOKENS))
        parts.append((samples, likeliest(_dense(logits, 1.0), label_RL, encoding)))
    return _sealed(folder, parts, encoding, TOKENS, LENGTH)


def _dense(logits: np.ndarray[Any, Any], temperature: float) -> DenseTargets:
    softened = (logits / temperature).astype(np.float32)
    lead = softened.shape[:-1]
    return DenseTargets(softened - softened.max(axis=-1, keepdims=True), np.full(lead, temperature, np.float32))


def _sealed(
    folder: Path, parts: list[tuple[pa.Table, Targets]], encoding: Encoding, classes: int, positions: int | None
) -> str:
    store, commits = Folder(str(folder / "store")), []
    for number, (samples, targets) in enumerate(parts):
        key = sha256_of([classes, number])
        header = ShardHeader(FORMAT_VERSION, key, encoding, classes, "teacher", rows_digest(samples), positions)
        schema, staged = shard_schema(samples.schema, header), store.stage()
        arrays = {name: samples.column(name).combine_chunks() for name in samples.schema.names}
        names = [field.name for field in encoding.fields(classes, positions)]
        arrays |= dict(zip(names, encoding.encode(targets), strict=True))

        def batch(arrays: dict[str, Any] = arrays, schema: pa.Schema = schema) -> Iterator[pa.RecordBatch]:
            yield pa.record_batch([arrays[name] for name in schema.names], schema=schema)

        rows = write_shard(staged, schema, batch())
        commits.append(commit_shard(store, key, new_attempt(), staged, rows))
    return f"{store.url}/{seal(store, 'toy', commits, {'by': 'a test'}).name}"
