"""What a cache says of its teacher at temperature 1, position by position and on the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.cache.cache import Cache
from storage.encodings.targets import IGNORED, Targets
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import evenly_spaced, read_group

Array = np.ndarray[Any, Any]

# Row groups that an overview looks at, evenly spaced over all of them.
GROUPS = 16

# Where the bins of the entropies end, in nats; the last has no end.
ENTROPIES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class View:
    """P positions at T = 1: the likeliest classes [P, n] with their probabilities, entropy [P] in nats,
    the mass [P] of what is kept (None where that is every class), and log p(label) [P], NaN without one."""

    top_Pn: Array
    probability_Pn: Array
    entropy_P: Array
    kept_P: Array | None
    label_log_prob_P: Array


def view(targets: Targets, label_P: Array | None, likeliest: int = 1) -> View:
    """Of flat targets, in float64, as right as what is stored."""
    top_Pn, log_p_Pn = targets.top(likeliest)
    sparse = targets.sparse(1.0)
    return View(
        top_Pn,
        np.exp(log_p_Pn),
        targets.entropy(),
        None if sparse is None else -np.expm1(sparse.log_tail_P),
        np.full(len(targets), np.nan) if label_P is None else targets.label_log_prob(label_P),
    )


def overview(cache: Cache) -> dict[str, Any]:
    """Means over the positions of some row groups, evenly spaced; `positions` says over how many that have a target.

    masked: the share of positions without one. mass_kept: of topk, how much of the teacher's distribution its ids
    hold. entropy: the mean and a histogram, in nats. With labels: the teacher's cross entropy and accuracy.
    """
    rows = CacheRows(cache, ["targets"])
    seen, masked, right, log_probs = list[View](), 0, list[Array](), list[Array]()
    for group in evenly_spaced(rows, GROUPS):
        found = read_group(rows, group)
        assert found.targets is not None
        label_P = None if found.label is None else found.label.reshape(-1)
        targets: Any = found.targets.flat()
        # A row that is one position keeps its soft targets without a label; a sequence's position does not.
        if label_P is not None and found.label is not None and found.label.ndim > 1:
            counted = label_P != IGNORED
            masked += int((~counted).sum())
            targets, label_P = targets.each(lambda array, counted=counted: array[counted]), label_P[counted]
        seen.append(view(targets, label_P))
        if label_P is not None:
            labelled = label_P != IGNORED
            right.append((seen[-1].top_Pn[:, 0] == label_P)[labelled])
            log_probs.append(seen[-1].label_log_prob_P[labelled])
    entropy_P = np.concatenate([v.entropy_P for v in seen]) if seen else np.zeros(0)
    count = len(entropy_P)
    facts: dict[str, Any] = {"positions": count, "masked": masked / max(1, count + masked)}
    if not count:
        return facts
    bins = np.bincount(np.searchsorted(ENTROPIES, entropy_P, side="right"), minlength=len(ENTROPIES) + 1)
    ends = [0.0, *ENTROPIES, None]
    facts["entropy"] = {
        "mean": float(entropy_P.mean()),
        "histogram": [
            {"from": ends[at], "to": ends[at + 1], "share": float(found / count)} for at, found in enumerate(bins)
        ],
    }
    kept = [v.kept_P for v in seen if v.kept_P is not None]
    if kept:
        kept_P = np.concatenate(kept)
        facts["mass_kept"] = {"mean": float(kept_P.mean()), "lowest": float(kept_P.min())}
    if sum(map(len, right)):
        facts["teacher_cross_entropy"] = float(-np.concatenate(log_probs).mean())
        facts["teacher_accuracy"] = float(np.concatenate(right).mean())
    return facts
