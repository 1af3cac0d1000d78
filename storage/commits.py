"""Which attempt at a shard won: one record a shard key, put if absent, never changed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.digest import canonical_json, sha256_file
from storage.errors import CorruptShard
from storage.folder import Folder
from storage.shard import ByteRange, byte_ranges


@dataclass(frozen=True)
class Commit:
    """The committed file of one shard: where it lies and what its bytes must be."""

    shard_key: str
    attempt: str
    path: str
    bytes: int
    sha256: str
    rows: int
    row_groups: tuple[ByteRange, ...]
    footer: ByteRange

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> Commit:
        parts: dict[str, Any] = {
            "row_groups": tuple(_range(group) for group in facts["row_groups"]),
            "footer": _range(facts["footer"]),
        }
        # Fields that a later version added are left alone.
        return Commit(**{field.name: {**facts, **parts}[field.name] for field in fields(Commit)})


def _range(facts: dict[str, Any]) -> ByteRange:
    return ByteRange(facts["start"], facts["stop"], facts["rows"], facts["xxh3"])


def new_attempt() -> str:
    return uuid.uuid4().hex[:16]


def shard_path(shard_key: str, attempt: str) -> str:
    return f"shards/{shard_key[:2]}/{shard_key}-{attempt}.parquet"


def commit_path(shard_key: str) -> str:
    return f"commits/{shard_key[:2]}/{shard_key}.json"


def commit_shard(store: Folder, shard_key: str, attempt: str, staged: Path, rows: int) -> Commit:
    """Check a staged shard file, publish it under its attempt's name, and try to win its key.

    Returns the commit that won, which is another's when another was first; a file that lost is
    removed. Raises CorruptShard when the staged file does not hold what was written to it.
    """
    try:
        groups, footer = _checked(staged, shard_key, rows)
    except CorruptShard:
        staged.unlink()
        raise
    with open(staged, "rb") as file:
        digest = sha256_file(file)
    path = shard_path(shard_key, attempt)
    mine = Commit(shard_key, attempt, path, staged.stat().st_size, digest, rows, tuple(groups), footer)
    store.publish(staged, path)
    if store.create(commit_path(shard_key), canonical_json(mine.to_dict())):
        return mine
    winner = read_commit(store, shard_key)
    # A refused put may be my own, retried by a client whose first answer was lost.
    if winner.path != mine.path:
        store.remove(path)
    return winner


def _checked(staged: Path, shard_key: str, rows: int) -> tuple[list[ByteRange], ByteRange]:
    with open(staged, "rb+") as file:
        # What is read back and hashed must be what a crash leaves.
        os.fsync(file.fileno())
    try:
        groups, footer = byte_ranges(staged)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptShard(f"The staged shard {shard_key} cannot be read back: {error}.") from None
    found = sum(group.rows for group in groups)
    if found != rows:
        raise CorruptShard(f"The staged shard {shard_key} holds {found} rows.", f"{rows} were written to it.")
    return groups, footer


def read_commit(store: Folder, shard_key: str) -> Commit:
    """The commit of a shard key. Raises FileNotFoundError for none, CorruptShard for one that is no record."""
    record = store.read(commit_path(shard_key))
    try:
        return Commit.from_dict(json.loads(record))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{store.url_of(commit_path(shard_key))} is no commit record ({type(error).__name__}: {error}).",
            "It is JSON that says where a shard lies and what its bytes are.",
            "Remove it and run the recipe again; its shard is computed anew.",
        ) from None


def committed_keys(store: Folder, shard_keys: Iterable[str]) -> set[str]:
    """Which of some shard keys are committed; one listing for each folder that they could lie in."""
    wanted = set(shard_keys)
    found: set[str] = set()
    for prefix in sorted({key[:2] for key in wanted}):
        found.update(name.removesuffix(".json") for name in store.names(f"commits/{prefix}"))
    return wanted & found
