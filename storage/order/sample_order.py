"""The endless order of samples: a pure function of (rows, seed, lanes, window, place), with no cluster in it.

A *place* t counts samples for ever: epoch t div N, and p = t mod N inside it, so epochs run on
without a seam. Each epoch permutes the row groups and lays them end to end; that sequence is cut
into L *lanes*, and p belongs to lane p mod L. A lane is cut into *windows* of M rows, and a second
permutation mixes the rows inside a window. A batch thus draws from L windows at once: many small
windows mix better than one large one for the same memory. Both permutations are Feistel networks,
computed place by place: nothing is stored, and resuming costs nothing. With L = 1 and M = N, which
is the default of a cache that fits into memory, an epoch is a full shuffle.

The windows of lane l are shifted by l M / L rows, so that in every M places one lane opens a new
window: row groups are needed at an even pace, not all lanes' at once.

The permutations are made of 64-bit integer arithmetic only. numpy's own generators may change
their streams between releases (NEP 19), and an order that a checkpoint relies on must not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

VERSION = "feistel6-v2"
ROUNDS = 6

U64 = np.uint64
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Order:
    """seed: which order. window: M, the rows of a lane that are mixed with each other. lanes: L. Both at least 1."""

    seed: int
    window: int
    lanes: int = 1

    def __post_init__(self) -> None:
        if self.window < 1 or self.lanes < 1:
            raise ValueError(f"a window of {self.window} rows in {self.lanes} lanes; there is at least one of each")

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, "seed": self.seed, "window": self.window, "lanes": self.lanes}

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> Order | None:
        """The order that `to_dict` describes; None for an order of another version.

        Raises KeyError, TypeError, ValueError or OverflowError for what describes no order.
        """
        if facts.get("version") != VERSION:
            return None
        return Order(int(facts["seed"]), int(facts["window"]), int(facts["lanes"]))


def _mix(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): every bit of x moves every bit of the result."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def _key(*parts: int) -> np.uint64:
    """The parts folded into 64 bits, as `_mix` would: in Python's integers, which one number is faster with."""
    state = 0
    for part in parts:
        x = (state + 0x9E3779B97F4A7C15 + part) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        state = x ^ (x >> 31)
    return U64(state)


def _modulo(x: np.ndarray[Any, Any], divisor: int) -> np.ndarray[Any, Any]:
    # numpy divides by one number with a multiplication, but not where it wants the remainder.
    return x - x // U64(divisor) * U64(divisor)


def permute(values: Ints, size: int, *key: int) -> Ints:
    """Where a permutation of range(size), chosen by the key, takes each value. Vectorised.

    A generalised Feistel network on Z_a x Z_b, a and b near the root of size, with modular addition
    in each round, walking the cycle until the result lies below size (Black & Rogaway 2002, method
    3): a bijection for every size. a * b exceeds size by less than a, so hardly anything walks.
    """
    a = math.isqrt(max(0, size - 1)) + 1
    b = -(-size // a)
    keys = [_key(*key, step) for step in range(ROUNDS)]
    result = values.astype(U64)
    walking = np.arange(len(result))
    with np.errstate(over="ignore"):
        while len(walking):
            x = result[walking]
            left = x // U64(b)
            right = x - left * U64(b)
            for step, round_key in enumerate(keys):
                if step % 2:
                    right = _modulo(right + _modulo(_mix(left + round_key), b), b)
                else:
                    left = _modulo(left + _modulo(_mix(right + round_key), a), a)
            x = left * U64(b) + right
            result[walking] = x
            walking = walking[x >= U64(size)]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """Windows of one epoch, each array [W], in the order in which they open.

    lane, index: the window's lane, and which of its lane's it is. begin, end: the lane's rows [begin, end)
    in it. opens, closes: its first and last place in the epoch. first, last: the slots of its row
    groups (see `Epoch.groups`).
    """

    lane: Ints
    index: Ints
    begin: Ints
    end: Ints
    opens: Ints
    closes: Ints
    first: Ints
    last: Ints

    def where(self, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Windows:
        """Those of the windows that are kept [W]."""
        return Windows(*(getattr(self, field.name)[kept] for field in fields(self)))


@dataclass(frozen=True)
class Epoch:
    """One epoch's row groups laid end to end: groups [R] by slot, and each slot's first row, starts [R + 1]."""

    order: Order
    number: int
    groups: Ints
    starts: Ints

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def following(self) -> Epoch:
        """The next epoch."""
        rows = np.empty(len(self.groups), np.int64)
        rows[self.groups] = np.diff(self.starts)
        return epoch(self.order, rows, self.number + 1)

    def lane_start(self, lane: Any) -> Any:
        """The first row of a lane; lane L begins where the rows end."""
        each, more = divmod(self.rows, self.order.lanes)
        return lane * each + np.minimum(lane, more)

    def _phase(self, lane: Any) -> Any:
        return lane * self.order.window // self.order.lanes

    def windows(self, lanes: Ints) -> Windows:
        """The windows of some lanes."""
        window = self.order.window
        size = self.lane_start(lanes + 1) - self.lane_start(lanes)
        counts = np.where(size > 0, -(-(size + self._phase(lanes)) // window), 0)
        lane = np.repeat(lanes, counts)
        index = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = np.maximum(0, index * window - self._phase(lane))
        end = np.minimum(np.repeat(size, counts), (index + 1) * window - self._phase(lane))
        opens = begin * self.order.lanes + lane
        kept = np.lexsort((lane, opens))
        kept = kept[(begin < end)[kept]]
        lane, index, begin, end, opens = lane[kept], index[kept], begin[kept], end[kept], opens[kept]
        start = self.lane_start(lane)
        first = np.searchsorted(self.starts, start + begin, side="right") - 1
        last = np.searchsorted(self.starts, start + end - 1, side="right") - 1
        return Windows(lane, index, begin, end, opens, (end - 1) * self.order.lanes + lane, first, last)

    def locate(self, within: Ints) -> tuple[Ints, Ints]:
        """(row group, row in it), both [B], of places `within` [B] the epoch.

        >>> laid = epoch(Order(seed=1, window=4), np.array([2, 3]), 0)
        >>> group, row = laid.locate(np.arange(5))
        >>> sorted(zip(group.tolist(), row.tolist()))
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        """
        return self.split(self.rows_at(within))

    def split(self, at: Ints) -> tuple[Ints, Ints]:
        """(row group, row in it), both [B], of rows `at` [B] of the row groups laid end to end."""
        slot = self.slots(at)
        return self.groups[slot], at - self.starts[slot]

    def slots(self, at: Ints) -> Ints:
        """[B] the slots of rows `at` [B] of the row groups laid end to end."""
        return np.searchsorted(self.starts, at, side="right") - 1

    def rows_at(self, within: Ints) -> Ints:
        """[B] the row, of the row groups laid end to end, of places `within` [B] the epoch.

        Those of a lane lie before those of the next one, and those of its windows likewise.
        """
        lanes, window = self.order.lanes, self.order.window
        lane, index = within % lanes, within // lanes
        # No lane has as many windows as this, so every window of an epoch has a number of its own.
        most = -(-self.rows // lanes) // window + 2
        numbers = lane * most + (index + self._phase(lane)) // window
        at = np.empty(len(within), np.int64)
        ranked = np.argsort(numbers, kind="stable")
        told, firsts = np.unique(numbers[ranked], return_index=True)
        for number, mine in zip(told.tolist(), np.split(ranked, firsts)[1:], strict=True):
            one = number // most
            start, stop = int(self.lane_start(one)), int(self.lane_start(one + 1))
            begin = max(0, number % most * window - int(self._phase(one)))
            end = min(stop - start, (number % most + 1) * window - int(self._phase(one)))
            mixed = permute(index[mine] - begin, end - begin, self.order.seed, self.number, 1, number)
            at[mine] = start + begin + mixed
        return at


def epoch(order: Order, rows: Ints, number: int) -> Epoch:
    """Epoch `number` of a cache whose row groups hold `rows` [R]."""
    groups = permute(np.arange(len(rows)), len(rows), order.seed, number, 0)
    return Epoch(order, number, groups, np.concatenate([[0], np.cumsum(rows[groups])]))
