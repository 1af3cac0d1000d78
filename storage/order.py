"""The endless order of samples: a pure function of (rows, seed, window, place), with no cluster in it.

A *place* t counts samples for ever: epoch t div N, and p = t mod N inside it, so epochs run on
without a seam. Each epoch permutes the row groups; p falls into a window of M rows of that
sequence, and a second permutation mixes the rows inside the window. Both permutations are Feistel
networks, computed place by place: nothing is stored, and resuming costs nothing. With M = N, which
is the default of a cache that fits into memory, an epoch is a full shuffle.

The permutations are made of 64-bit integer arithmetic only. numpy's own generators may change
their streams between releases (NEP 19), and an order that a checkpoint relies on must not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

VERSION = "feistel6-v1"
ROUNDS = 6

U64 = np.uint64
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Order:
    """seed: which order. window: M, the rows that are mixed with each other, at least 1."""

    seed: int
    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window of {self.window} rows; there is at least one")

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


def _mix(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): every bit of x moves every bit of the result."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def _key(*parts: int) -> np.ndarray[Any, Any]:
    state = np.zeros(1, U64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _mix(state + U64(0x9E3779B97F4A7C15) + np.array([part % 2**64], U64))
    return state


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
            left, right = x // U64(b), x % U64(b)
            for step, round_key in enumerate(keys):
                if step % 2:
                    right = (right + _mix(left + round_key) % U64(b)) % U64(b)
                else:
                    left = (left + _mix(right + round_key) % U64(a)) % U64(a)
            x = left * U64(b) + right
            result[walking] = x
            walking = walking[x >= U64(size)]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Epoch:
    """The row groups of one epoch in their order: groups [R], and the first row of each, starts [R + 1]."""

    groups: Ints
    starts: Ints

    def window_groups(self, order: Order, window: int) -> Ints:
        """The row groups that a window draws from."""
        first, last = window * order.window, min((window + 1) * order.window, int(self.starts[-1])) - 1
        low, high = np.searchsorted(self.starts, [first, last], side="right")
        return self.groups[low - 1 : high]


def epoch(order: Order, rows: Ints, number: int) -> Epoch:
    """Epoch `number` of a cache whose row groups hold `rows` [R]."""
    groups = permute(np.arange(len(rows)), len(rows), order.seed, number, 0)
    return Epoch(groups, np.concatenate([[0], np.cumsum(rows[groups])]))


def locate(order: Order, rows: Ints, number: int, within: Ints) -> tuple[Ints, Ints]:
    """(row group, row in it), both [B], of places `within` [B] epoch `number`.

    >>> order, rows = Order(seed=1, window=4), np.array([2, 3])
    >>> group, row = locate(order, rows, 0, np.arange(5))
    >>> sorted(zip(group.tolist(), row.tolist()))
    [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    """
    total = int(rows.sum())
    laid = epoch(order, rows, number)
    windows = within // order.window
    at = np.empty(len(within), np.int64)
    for window in np.unique(windows):
        mine = windows == window
        first = int(window) * order.window
        size = min(order.window, total - first)
        at[mine] = first + permute(within[mine] - first, size, order.seed, number, 1, int(window))
    slot = np.searchsorted(laid.starts, at, side="right") - 1
    return laid.groups[slot], at - laid.starts[slot]


def rank_slice(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The [start, stop) of a global batch that a rank takes: contiguous, sizes one apart at most."""
    return rank * batch_size // world, (rank + 1) * batch_size // world
