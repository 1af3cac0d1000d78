"""How likely each class is on the whole, as a cache knows it: what a tail is taken for where only its mass is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.base.errors import UsageError
from storage.encodings.targets import IGNORED, Targets
from storage.rows.row_groups import RowGroups, evenly_spaced, read_group

Array = np.ndarray[Any, Any]

# Row groups that are looked at, evenly spaced over all of them.
GROUPS = 64


def unigram(groups: RowGroups) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[V] float32, each above 0, of sum 1: the teacher's mean distribution at T = 1.

    Of dense targets it is that of the positions looked at. Of topk the heads are counted as they are, and the
    tails' mass in proportion to how often each class is a label, one added for each. The same wherever it is
    worked out, since it follows from the row groups alone.
    """
    counted = _Counted()
    for group in evenly_spaced(groups, GROUPS):
        rows = read_group(groups, group)
        if rows.targets is None:
            raise UsageError(f"{groups.where} has no soft targets.", "A mean is taken of a cache's.")
        counted.add(rows.targets.flat(), rows.label)
    mean_V = counted.mean()
    if not len(mean_V):
        raise UsageError(f"{groups.where} has no rows.", "A mean is taken of some.")
    return mean_V


class _Counted:
    """Sums over positions."""

    def __init__(self) -> None:
        self._head_V: Array = np.zeros(0)
        self._labels_V: Array = np.zeros(0)
        self._tail = 0.0

    def add(self, targets: Targets, label: Array | None) -> None:
        """Flat targets [P] and labels [R] or [R, L]. Only of sequences a position without a label has no target."""
        label_P = None if label is None else label.reshape(-1)
        kept_P = np.ones(len(targets), bool)
        if label is not None and label.ndim > 1:
            kept_P = label.reshape(-1) != IGNORED
        if not len(self._head_V):
            self._head_V, self._labels_V = np.zeros(targets.classes), np.ones(targets.classes)
        targets = targets.each(lambda array: array[kept_P])
        sparse = targets.sparse(1.0)
        if sparse is None:
            self._head_V += np.exp(targets.log_probs(1.0)).sum(axis=0)
        else:
            np.add.at(self._head_V, sparse.ids_PK, np.exp(sparse.log_probs_PK))
            self._tail += float(np.exp(sparse.log_tail_P).sum())
        if label_P is not None:
            self._labels_V += np.bincount(label_P[label_P != IGNORED], minlength=targets.classes)

    def mean(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        sums_V = self._head_V + self._tail * self._labels_V / self._labels_V.sum()
        # What is 0 in float64 is still a class.
        mean_V = np.maximum(sums_V / sums_V.sum(), np.finfo(np.float32).tiny)
        return (mean_V / mean_V.sum()).astype(np.float32)
