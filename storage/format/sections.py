"""The parts of a shard file that are read and checked on their own: row groups, and the sections of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from storage.base.errors import CorruptShard
from storage.samples.samples import is_own

# What is read together lies together, in this order: plain columns go with either neighbour as one range of bytes.
SECTIONS = ("inputs", "plain", "targets")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a row group, from where the one before it stops, and its xxh3-128."""

    stop: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of a shard, and their xxh3-128. A row group's, or the footer's (rows = 0).

    sections: of a row group one for each of SECTIONS; the footer has none.
    """

    start: int
    stop: int
    rows: int
    xxh3: str
    sections: tuple[Section, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"start": self.start, "stop": self.stop, "rows": self.rows, "xxh3": self.xxh3}
        if self.sections:
            facts["sections"] = [[section.stop, section.xxh3] for section in self.sections]
        return facts

    @staticmethod
    def from_dict(facts: dict[str, Any], sections: tuple[Section, ...] = ()) -> ByteRange:
        """Raises KeyError or TypeError for facts of another form."""
        return ByteRange(facts["start"], facts["stop"], facts["rows"], facts["xxh3"], sections)

    @staticmethod
    def group_from_dict(facts: dict[str, Any]) -> ByteRange:
        """A row group. Raises ValueError, KeyError or TypeError for facts of another form."""
        inputs, plain, targets = facts["sections"]
        return ByteRange.from_dict(facts, (Section(*inputs), Section(*plain), Section(*targets)))


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
