"""Blocks of documents that are packed together, as tokens, and a cache of those that were made last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Tokens of blocks that were made, kept for the spans beside the one that asked for them.
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Block:
    """ids: the documents' own; starts_D: where each begins among the tokens; targets_N: see `packing.packed_rows`.

    skipped: how many documents were left out, since they have no tokens.
    """

    ids: list[str]
    tokens_N: np.ndarray[Any, Any]
    starts_D: np.ndarray[Any, Any]
    targets_N: np.ndarray[Any, Any] | None = None
    skipped: int = 0

    @property
    def nbytes(self) -> int:
        return self.tokens_N.nbytes + (0 if self.targets_N is None else self.targets_N.nbytes)


class Blocks:
    """The blocks that were made last, up to so many bytes. They stay behind when their source goes elsewhere."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit, self._lock, self._kept = limit, threading.Lock(), OrderedDict[Any, Block]()

    def __reduce__(self) -> Any:
        return Blocks, (self._limit,)

    def get(self, key: Any, make: Callable[[], Block]) -> Block:
        with self._lock:  # two spans may be read at the same time, by threads; a tokenizer uses all cores by itself
            block = self._kept.pop(key, None) or make()
            self._kept[key] = block
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
            return block
