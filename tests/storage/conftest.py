"""Small samples, shards and caches, made by hand, and the two kinds of folder that a store may lie in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.digest import sha256_of
from storage.cache.cache import Cache
from storage.cache.commits import Commit, commit_shard, new_attempt
from storage.cache.seal import seal
from storage.encodings.dense import Dense
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.shard import write_shard
from storage.objectstore.folder import Folder
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import Columns, as_samples
from tests.storage.helpers import rows_of

CLASSES = 5


@pytest.fixture(params=["file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """An empty folder of each kind that a store is written to; S3 is a SeaweedFS on loopback."""
    if request.param == "file":
        yield Folder(str(tmp_path / "store"))
        return
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")
        made = Folder(f"s3://{bucket}/{uuid.uuid4().hex}")
        made.__dict__["keeps_create"] = True  # found out once, by the test of the probe
        yield made
        return
    made = Folder(f"memory://{uuid.uuid4().hex}/store")
    yield made
    if made.exists():
        made._fs.rm(made._root, recursive=True)


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An rclone S3 server for the whole session, with a bucket named 'bucket'; it ignores `If-None-Match`."""
    from tests.servers import make_bucket, rclone

    with rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        make_bucket(endpoint, "bucket")
        yield endpoint


@pytest.fixture
def careless(rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """An empty folder on a server where every conditional put wins."""
    from tests.servers import lead_to

    lead_to(rclone_endpoint, monkeypatch)
    return Folder(f"s3://bucket/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "store"))


@pytest.fixture
def make_samples() -> Callable[..., pa.Table]:
    """`make_samples(rows, first)`: ids from `first` on; x [2, 3] float32, n int16 and the label follow from the id."""

    def make(rows: int, first: int = 0) -> pa.Table:
        ids = np.arange(first, first + rows)
        x = (ids[:, None] + np.arange(6) / 8).astype(np.float32)
        raw = {
            "sample_id": ids,
            "x": pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3), 2),
            "n": (ids * 3).astype(np.int16),
            "label": ids % CLASSES,
        }
        return as_samples(pa.table(raw), Columns(), "made by hand")

    return make


@pytest.fixture
def teacher() -> Callable[..., np.ndarray[Any, Any]]:
    """`teacher(ids)`: logits [P, 5] that follow from the ids and that float16 holds exactly."""

    def logits(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return ((ids[:, None] * 7 + np.arange(CLASSES) * 13) % 29 / 4).astype(np.float32)

    return logits


@pytest.fixture
def make_batch(teacher: Callable[..., Any]) -> Callable[..., pa.RecordBatch]:
    """`make_batch(samples, key, temperature)`: a shard's rows, with its schema."""

    def make(samples: pa.Table, key: str = "k", temperature: float = 1.0) -> pa.RecordBatch:
        encoding = Dense(temperature)
        header = ShardHeader(FORMAT_VERSION, key, encoding, CLASSES, "teacher", rows_digest(samples))
        soft_PV = teacher(samples.column("sample_id").to_numpy()) / temperature
        soft_PV -= soft_PV.max(axis=1, keepdims=True)
        return rows_of(samples, encoding, soft_PV, shard_schema(samples.schema, header))

    return make


@pytest.fixture
def put_shard(make_samples: Callable[..., pa.Table], make_batch: Callable[..., Any]) -> Callable[..., Commit]:
    """`put_shard(store, rows, first)`: a committed shard of samples first, first + 1, ..."""

    def put(store: Folder, rows: int, first: int = 0, temperature: float = 1.0, attempt: str | None = None) -> Commit:
        key = sha256_of(["shard", rows, first])
        batch = make_batch(make_samples(rows, first), key, temperature)
        staged = store.stage()
        return commit_shard(
            store, key, attempt or new_attempt(), staged, write_shard(staged, batch.schema, iter([batch]))
        )

    return put


@pytest.fixture
def make_cache(put_shard: Callable[..., Commit]) -> Callable[..., Cache]:
    """`make_cache(store, sizes)`: a sealed cache of one shard for each size, ids from 0 on."""

    def make(store: Folder, sizes: tuple[int, ...] = (4, 3), name: str = "digits") -> Cache:
        firsts = np.concatenate([[0], np.cumsum(sizes)])
        shards = [put_shard(store, rows, int(first)) for rows, first in zip(sizes, firsts, strict=False)]
        return seal(store, name, shards, {"by": "a test"})

    return make


@pytest.fixture
def flip() -> Callable[..., None]:
    """`flip(store, path, at)`: change one byte of a file that lies in a store."""

    def change(store: Folder, path: str, at: int) -> None:
        data = bytearray(store.read(path))
        data[at] ^= 0xFF
        store.write(path, bytes(data))

    return change
