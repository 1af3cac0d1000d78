"""The parts of a shard file that are read and checked on their own: row groups, and the sections of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from storage.base.errors import CorruptShard
from storage.samples.samples import is_own

# What is read together lies together, in this order: plain columns go with either neighbour as one range of bytes.
SECTIONS = ("inputs", "plain", "targets")


class ByteRange(NamedTuple):
    """Bytes [start, stop) of a shard, and their xxh3-128. Of the footer rows is 0."""

    start: int
    stop: int
    rows: int
    xxh3: str


class RowGroup(NamedTuple):
    """A row group: bytes [start, stop) of its shard, where its sections stop, and the xxh3-128 of all and of each.

    The first section begins at start, each other one where the section before it stops, and the targets stop at stop.
    The fields are those of a row group in the index, which keeps them as columns.
    """

    start: int
    stop: int
    rows: int
    xxh3: str
    inputs_stop: int
    inputs_xxh3: str
    plain_stop: int
    plain_xxh3: str
    targets_xxh3: str

    @property
    def sections(self) -> dict[str, tuple[int, str]]:
        """Of each of SECTIONS where it stops, and its xxh3-128."""
        return {
            "inputs": (self.inputs_stop, self.inputs_xxh3),
            "plain": (self.plain_stop, self.plain_xxh3),
            "targets": (self.stop, self.targets_xxh3),
        }

    def part(self, parts: Collection[str]) -> tuple[int, int, list[tuple[int, str]]]:
        """The bytes [start, stop) that hold some of SECTIONS, and the digests that check them.

        The digests are a list of (stop, xxh3), each of the bytes from where the one before stops. Plain columns are
        always among the bytes.
        """
        checks = [check for name, check in self.sections.items() if name == "plain" or name in parts]
        return self.start if "inputs" in parts else self.inputs_stop, checks[-1][0], checks

    def to_dict(self) -> dict[str, Any]:
        """The row group as a commit record has it."""
        facts = {name: getattr(self, name) for name in ByteRange._fields}
        return {**facts, "sections": [list(check) for check in self.sections.values()]}

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> RowGroup:
        """Raises ValueError, KeyError or TypeError for facts of another form."""
        (inputs_stop, inputs_xxh3), (plain_stop, plain_xxh3), (stop, targets_xxh3) = facts["sections"]
        if stop != facts["stop"]:
            raise ValueError(f"the last section stops at {stop}, and its row group at {facts['stop']}")
        checks = inputs_stop, inputs_xxh3, plain_stop, plain_xxh3, targets_xxh3
        return RowGroup(facts["start"], facts["stop"], facts["rows"], facts["xxh3"], *checks)


def section_of(name: str, targets: Collection[str]) -> str:
    """Which of SECTIONS a column belongs to, in a shard whose encoding has the columns `targets`.

    >>> [section_of(name, {"soft_logits"}) for name in ("image", "label", "soft_entropy", "soft_logits")]
    ['inputs', 'plain', 'plain', 'targets']
    """
    if name in targets:
        return "targets"
    return "plain" if is_own(name) else "inputs"


def section_stops(places: Sequence[tuple[int, int]], kinds: Sequence[str]) -> list[int]:
    """Where the sections of a row group stop, whose columns lie at `places` and are of these `kinds`.

    Raises CorruptShard where the columns do not lie one after another in the order of the sections.

    >>> section_stops([(4, 9), (9, 12), (12, 20)], ["plain", "plain", "targets"])
    [4, 12, 20]
    """
    ranks = [SECTIONS.index(kind) for kind in kinds]
    follows = all(before[1] == after[0] for before, after in pairwise(places))
    if ranks != sorted(ranks) or not follows:
        raise CorruptShard(
            f"A row group has columns of the sections {', '.join(kinds)} at the bytes {places}.",
            f"A shard's columns lie one after another, in the order {', '.join(SECTIONS)}.",
            "Write shards with `write_shard` and the schema of `shard_schema`.",
        )
    # A section without columns stops where it begins.
    ends = [start for start, _ in places] + [places[-1][1]]
    return [ends[bisect_right(ranks, rank)] for rank in range(len(SECTIONS))]
