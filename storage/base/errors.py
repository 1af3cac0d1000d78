"""Every error that a user can meet, and the exit code that each one ends a command with.

* StillhouseError
  x UsageError, exit 2: what was asked for cannot be done as it was asked
    + RecipeError         a key, a value or a file of a recipe
    + SourceError         samples that are not there, or not as they were described
    + ModelError          a factory or weights that do not load
    + StoreError          a store that is not there or cannot be written
    + NoCache             a place that holds no sealed cache
  x JobError, exit 1: it was asked for rightly, and failed
    + StoreLost           a store that stopped answering
    + StoreFull           a disk or a quota without room
  x VerificationError, exit 3: bytes, digests or lineage that do not agree
    + CorruptShard        a shard whose bytes are not the bytes that were committed
"""

from __future__ import annotations


class StillhouseError(Exception):
    """An error in three parts: what was found, what was expected, what to do."""

    exit_code = 1

    def __init__(self, found: str, expected: str = "", remedy: str = "") -> None:
        # All three go to Exception.args, so that the error survives pickling between Ray processes.
        super().__init__(found, expected, remedy)

    def __str__(self) -> str:
        return " ".join(part.strip() for part in self.args if part)


class UsageError(StillhouseError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class SourceError(UsageError):
    pass


class ModelError(UsageError):
    pass


class StoreError(UsageError):
    pass


class NoCache(UsageError):
    pass


class JobError(StillhouseError):
    exit_code = 1


class StoreLost(JobError):
    pass


class StoreFull(JobError):
    pass


class VerificationError(StillhouseError):
    exit_code = 3


class CorruptShard(VerificationError):
    pass
