"""Which attempt at a shard won: one record a shard key, put if absent, never changed."""

from __future__ import annotations

import gc
import json
import os
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from storage.base.digest import canonical_json, sha256_file
from storage.base.errors import CorruptShard, StoreLost
from storage.format.byte_ranges import byte_ranges
from storage.format.sections import ByteRange, RowGroup
from storage.objectstore.client_errors import in_words
from storage.objectstore.folder import Folder


class Quarantined(NamedTuple):
    """A sample of a span that the teacher could not label, and why; the shard has no row of it."""

    sample_id: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Commit:
    """The committed file of one shard: where it lies and what its bytes must be."""

    shard_key: str
    attempt: str
    path: str
    bytes: int
    sha256: str
    rows: int
    row_groups: tuple[RowGroup, ...]
    footer: ByteRange
    quarantined: tuple[Quarantined, ...] = ()
    # The readable parts of the shard key. The record has them; a commit that was read does not, so that 100,000 of
    # them stay small (see `read_key`).
    key: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        # By hand: asdict copies field by field, which a cache of 100,000 shards feels.
        return {
            **({} if self.key is None else {"key": self.key}),
            **{name: getattr(self, name) for name in PLAIN},
            "row_groups": [group.to_dict() for group in self.row_groups],
            "footer": self.footer._asdict(),
            "quarantined": [sample.to_dict() for sample in self.quarantined],
        }

    @staticmethod
    def from_dict(facts: dict[str, Any], *, with_key: bool = False) -> Commit:
        # Fields that a later version added are left alone.
        return Commit(
            *_plain(facts),
            key=facts.get("key") if with_key else None,
            row_groups=tuple(map(RowGroup.from_dict, facts["row_groups"])),
            footer=ByteRange(*(facts["footer"][name] for name in ByteRange._fields)),
            quarantined=tuple(Quarantined(q["sample_id"], q["reason"]) for q in facts["quarantined"]),
        )


# The fields that are a number or a text each.
PLAIN = ("shard_key", "attempt", "path", "bytes", "sha256", "rows")
_plain = itemgetter(*PLAIN)


def new_attempt() -> str:
    return uuid.uuid4().hex[:16]


def shard_path(shard_key: str, attempt: str) -> str:
    return f"shards/{shard_key[:2]}/{shard_key}-{attempt}.parquet"


def commit_path(shard_key: str) -> str:
    return f"commits/{shard_key[:2]}/{shard_key}.json"


def commit_shard(
    store: Folder, shard_key: str, attempt: str, staged: Path, rows: int, quarantined: Sequence[Quarantined] = ()
) -> Commit:
    """Publish a staged shard file and try to win its key with it: `publish_shard`, then `settle`."""
    return settle(store, publish_shard(store, shard_key, attempt, staged, rows, quarantined))


def publish_shard(
    store: Folder,
    shard_key: str,
    attempt: str,
    staged: Path,
    rows: int,
    quarantined: Sequence[Quarantined] = (),
    key: dict[str, Any] | None = None,
) -> Commit:
    """Check a staged shard file and publish it under its attempt's name; its commit, which nobody knows of yet.

    Raises CorruptShard when the staged file does not hold what was written to it.
    """
    # A disk may tell that it is full only when it must write in earnest.
    with in_words(store.stage_place()):
        try:
            groups, footer = _checked(staged, shard_key, rows)
        except CorruptShard:
            staged.unlink()
            raise
        with open(staged, "rb") as file:
            digest = sha256_file(file)
        path, size = shard_path(shard_key, attempt), staged.stat().st_size
    store.publish(staged, path)
    return Commit(shard_key, attempt, path, size, digest, rows, tuple(groups), footer, tuple(quarantined), key)


def settle(store: Folder, mine: Commit, tries: int = 3) -> Commit:
    """Try to win a shard's key for an attempt that is published.

    Returns the commit that won, which is another's when another was first; the file of an attempt
    that lost is removed. Where the store does not keep `create`'s promise, one process settles for all.
    """
    try:
        if store.create(commit_path(mine.shard_key), canonical_json(mine.to_dict())):
            return mine
        winner = read_commit(store, mine.shard_key)
    except (StoreLost, FileNotFoundError):
        # An answer that was lost says nothing of the put; the same record put again can do no harm.
        if tries == 1:
            raise
        return settle(store, mine, tries - 1)
    # A refused put may be my own, retried by a client whose first answer was lost.
    if winner.path != mine.path:
        store.remove(mine.path)
    return winner


def _checked(staged: Path, shard_key: str, rows: int) -> tuple[list[RowGroup], ByteRange]:
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
    return _parse(store, shard_key, store.read(commit_path(shard_key)))


def read_key(store: Folder, shard_key: str) -> dict[str, Any] | None:
    """The readable parts of a committed shard key; None where the record has none. Raises FileNotFoundError."""
    return json.loads(store.read(commit_path(shard_key))).get("key")


def _parse(store: Folder, shard_key: str, record: bytes) -> Commit:
    try:
        facts = json.loads(record)
        if facts["shard_key"] == shard_key:
            facts["shard_key"] = shard_key  # the caller's own text: 100,000 of them are 11 MB
        return Commit.from_dict(facts)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{store.url_of(commit_path(shard_key))} is no commit record ({type(error).__name__}: {error}).",
            "It is JSON that says where a shard lies and what its bytes are.",
            "Remove it and run the recipe again; its shard is computed anew.",
        ) from None


def read_commits(store: Folder, shard_keys: Sequence[str]) -> list[Commit | None]:
    """The commits of some shard keys, in their order; None for one without. Raises CorruptShard."""
    records = store.read_some(commit_path(key) for key in shard_keys)
    with collector_at_rest():
        return [
            None if record is None else _parse(store, key, record)
            for key, record in zip(shard_keys, records, strict=True)
        ]


@contextmanager
def collector_at_rest() -> Generator[None]:
    """Hundreds of thousands of small objects are made, none of which is garbage; looking for some doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def committed_keys(store: Folder, shard_keys: Iterable[str]) -> set[str]:
    """Which of some shard keys are committed; one listing for each folder that they could lie in."""
    wanted = set(shard_keys)
    folders = sorted({f"commits/{key[:2]}" for key in wanted})
    found = {entry.name.removesuffix(".json") for entries in store.entries_of(folders) for entry in entries}
    return wanted & found
