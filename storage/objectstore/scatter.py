"""Bytes of a local file read into several places at once, so that none is copied on its way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from itertools import islice

# What a system call takes at a time; POSIX promises 16, Linux 1,024.
_PIECES = 512


def fill(file: int, start: int, pieces: Sequence[memoryview]) -> int:
    """Fill pieces, one after another, with a file's bytes from `start` on; how many there were."""
    left, count = deque(piece for piece in pieces if len(piece)), 0
    while left and (more := os.preadv(file, list(islice(left, _PIECES)), start + count)):
        count += more
        while left and more >= len(left[0]):
            more -= len(left.popleft())
        if more:
            left[0] = left[0][more:]
    return count
