"""Races, a look at all files of a store, and a small job on it, which children run and are killed in."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.base.digest import sha256_of
from storage.cache.cache import Cache
from storage.cache.commits import Commit, commit_path, commit_shard, committed_keys, new_attempt, read_commits
from storage.cache.leases import lease
from storage.cache.seal import seal
from storage.encodings.dense import Dense, DenseTargets
from storage.format.header import FORMAT_VERSION, ShardHeader, shard_schema
from storage.format.shard import write_shard
from storage.objectstore.folder import Folder
from storage.objectstore.listing import Entry
from storage.samples.samples import Columns, as_samples

CLASSES, DAY = 2, 86400.0
KEYS = [sha256_of(["work", index]) for index in range(2)]


def documents_of(kind: str, columns: dict[str, Any], folder: Path, module: Callable[[str], str]) -> dict[str, str]:
    """The setting of a source of this kind whose rows are these columns. module: makes one of a text, see conftest."""
    if kind == "parquet":
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return {"parquet": str(folder / "a.parquet")}
    if kind == "jsonl":
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"jsonl": str(folder / "a.jsonl")}
    return {"function": module(f"import pyarrow as pa\ndef rows(): return pa.table({columns!r})") + ":rows"}


def race(calls: int, call: Callable[[int], object]) -> list[Any]:
    """`call(i)` from that many threads at once; what each returned or raised."""
    gate = threading.Barrier(calls)
    answers: list[object] = [None] * calls

    def run(index: int) -> None:
        gate.wait()
        try:
            answers[index] = call(index)
        except BaseException as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(calls)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # many more chances to come in between
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return answers


def files(store: Folder) -> list[str]:
    """The paths of all files in a store, sorted."""
    store._fs.invalidate_cache()
    root = store._fs._strip_protocol(store._root) + "/"
    # SeaweedFS tells of an empty folder as if it were a file.
    return sorted(path.removeprefix(root) for path in store._fs.find(store._root) if path.startswith(root))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def make_old(store: Folder, *paths: str, days: float = 100) -> None:
    """Date files of a store, all unless some are named, back by that many days."""
    for path in paths or files(store):
        if store.is_local:
            at = Path(store.url) / path
            when = at.stat().st_mtime - days * DAY
            os.utime(at, (when, when))
        elif store.protocol == "memory":
            file = store._fs.store[store._at(path)]
            file.created -= timedelta(days=days)
        else:
            _date_back(store, path, days * DAY)


def _date_back(store: Folder, path: str, seconds: float) -> None:
    """An object cannot be dated, so its listing is changed, until it is written again."""
    folder, _, name = path.rpartition("/")
    really = store.entries
    [written] = [entry.modified for entry in really(folder) if entry.name == name]

    def entries(of: str) -> list[Entry]:
        found = really(of)
        if of != folder:
            return found
        return [replace(e, modified=written - seconds) if (e.name, e.modified) == (name, written) else e for e in found]

    store.entries = entries


def rows_of(samples: pa.Table, encoding: Dense, soft_PV: np.ndarray[Any, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Samples and their encoded targets as rows of a shard, each column where the schema has it."""
    arrays: dict[str, Any] = {name: samples.column(name).combine_chunks() for name in samples.schema.names}
    names = [field.name for field in encoding.fields(soft_PV.shape[1])]
    arrays |= dict(zip(names, encoding.encode(DenseTargets(soft_PV, None)), strict=True))
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)


def make_shard(path: Path, key: str, first: int, rows: int = 3) -> int:
    """Write a shard of small rows, which follow from `first`."""
    ids = np.arange(first, first + rows)
    raw = {"sample_id": ids, "x": ids.astype(np.float32), "label": ids % CLASSES}
    samples = as_samples(pa.table(raw), Columns(), "made by hand")
    encoding = Dense(1.0)
    soft_PV = np.stack([np.zeros(rows), -ids / 8], axis=1).astype(np.float32)
    schema = shard_schema(samples.schema, ShardHeader(FORMAT_VERSION, key, encoding, CLASSES, "teacher", "span"))
    batch = rows_of(samples, encoding, soft_PV, schema)

    def batches() -> Iterator[pa.RecordBatch]:
        yield batch.slice(0, 1)
        step("write")  # in the middle of the file
        yield batch.slice(1)

    return write_shard(path, schema, batches())


def commit(store: Folder, key: str, first: int, rows: int = 3, attempt: str | None = None) -> Commit:
    staged = store.stage()
    return commit_shard(store, key, attempt or new_attempt(), staged, make_shard(staged, key, first, rows))


def label(store: Folder) -> tuple[set[str], Cache]:
    """What a job does: compute the shards that are not committed, and seal. Gives the keys that it computed."""
    with lease(store, "work", KEYS):
        missing = set(KEYS) - committed_keys(store, KEYS)
        for index, key in enumerate(KEYS):
            if key in missing:
                commit(store, key, 10 * index)
        shards = [found for found in read_commits(store, KEYS) if found is not None]
        return missing, seal(store, "work", shards, {"by": "a test"})


def files_of(cache: Cache) -> list[str]:
    """All files of a store that holds one cache and nothing else."""
    paths = [f"caches/{cache.key}/cache.json", f"caches/{cache.key}/index.parquet", f"names/{cache.name}"]
    return sorted(paths + [path for s in cache.shards for path in (s.path, commit_path(s.shard_key))])


# A process that dies

_steps = {"taken": 0, "fatal": 0}


def step(_: str) -> None:
    """Die here, if this is the step to die before."""
    _steps["taken"] += 1
    if _steps["taken"] == _steps["fatal"]:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def _before(owner: Any, name: str) -> None:
    really = getattr(owner, name)

    def call(*arguments: Any, **settings: Any) -> Any:
        step(name)
        return really(*arguments, **settings)

    setattr(owner, name, call)


def main(what: str, url: str, fatal: str) -> None:
    """Run `label` or `collect` on a store; be killed before the step of that number, or say how many there were."""
    store = Folder(url)
    if store.is_local:
        # Not fsync: a kill takes nothing from a disk, so that what is left before it is what is left before the next.
        for name in ("link", "replace", "unlink", "remove") if what == "label" else ("remove",):
            _before(os, name)
    else:
        store.__dict__["keeps_create"] = True
        for name in ("pipe_file", "put_file", "rm_file", "rm"):
            _before(store._fs, name)
    _steps.update(taken=0, fatal=int(fatal))
    if what == "label":
        label(store)
    else:
        from storage.cache.gc import collect

        collect(store, 0, dry_run=False)
    print(_steps["taken"])


if __name__ == "__main__":
    main(*sys.argv[1:])
