"""Audits a cache: runs its teacher again on some of its spans, and compares what it gives with what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.base.digest import sha256_of
from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.encodings.targets import IGNORED, Targets
from storage.format.rows import DecodedRows
from storage.order.sample_order import permute
from storage.rows.cache_rows import CacheRows
from storage.rows.open import open_rows
from storage.rows.row_groups import read_group
from storage.samples.samples import INPUTS_XXH3
from storage.stream.torch_tensors import tensor
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.key_parts import differences
from teacher_infer.soften.blocks import blocks
from teacher_infer.teachers import Teacher, build_without_weights, make_teacher, resolve

if TYPE_CHECKING:
    import torch

# How far a probability may be from the stored one. Storing it in float16 takes 2e-4; the rest is what answers in that
# dtype vary by between devices, and between the batches that a sample was in.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Settings:
    """fraction: of the spans, at least one. tolerance: None takes the teacher's dtype's. seed: which spans."""

    fraction: float = 0.01
    seed: int = 0
    batch_size: int = 8
    tolerance: float | None = None


@dataclass
class _Comparison:
    """Sums over the positions compared so far. Differences are of probabilities at T = 1, over the kept classes."""

    largest: float = 0.0
    at: str = ""
    sums: list[float] = field(default_factory=list[float])
    values: int = 0
    positions: int = 0
    largest_log: float = 0.0


def audit(recipe: TeacherRecipe, cache: Cache, settings: Settings) -> dict[str, Any]:
    """Run a recipe's teacher over sampled spans of a cache, and say how far its answers are from the stored ones.

    Teacher and source are the recipe's; of the cache digests are compared, and no name in it is imported or called.
    `largest` and `mean`: absolute differences of probabilities at T = 1. `ok` is False where the largest is
    beyond `tolerance`, or where the cache is another teacher's. Raises what loading raises.
    """
    import torch

    if not 0 < settings.fraction <= 1:
        raise RecipeError(f"The fraction is {settings.fraction:g}.", "It lies above 0, and is at most 1.")
    if settings.batch_size < 1:
        raise RecipeError(f"The batch size is {settings.batch_size}.", "It is a whole number of at least 1.")
    if settings.tolerance is not None and not settings.tolerance >= 0:
        raise RecipeError(f"The tolerance is {settings.tolerance:g}.", "It is a number of at least 0.")
    dtype, sealed = recipe.teacher.dtype, cache.lineage["teacher"]["digest"]
    spec = resolve(recipe.teacher.spec(), dtype)
    tolerance = TOLERANCES[dtype] if settings.tolerance is None else settings.tolerance
    model = build_without_weights(spec, recipe.seed)
    parts = spec.key_parts(dtype, model)
    facts: dict[str, Any] = {"cache": cache.url, "cache_digest": cache.digest, "teacher": sealed}
    if sha256_of(parts) != sealed:
        differs = differences((cache.lineage.get("key") or {}).get("teacher") or {}, parts)
        problem = f"The recipe's teacher {spec.lineage()['factory']} has the digest {sha256_of(parts)[:16]}"
        problem = f"{problem}; the cache was made with {sealed[:16]}. Other: {', '.join(differs)}."
        return {**facts, "ok": False, "problem": problem, "differs": differs}
    teacher = make_teacher(spec, dtype=dtype, seed=recipe.seed, gpus=torch.cuda.device_count(), model=model)
    with_rows = np.unique(cache.index.shard[np.asarray(cache.index.rows) > 0])
    count = math.ceil(settings.fraction * len(with_rows))
    compared = _Comparison()
    for rows in _rows(recipe, cache, with_rows[permute(np.arange(count), len(with_rows), settings.seed)]):
        for start in range(0, len(rows), settings.batch_size):
            _compare(teacher, rows, slice(start, start + settings.batch_size), compared)
    mean = math.fsum(compared.sums) / max(1, compared.values)
    return {
        **facts,
        "spans": {"total": len(cache.index), "audited": count},
        "positions": compared.positions,
        "largest": compared.largest,
        "largest_at": compared.at,
        "largest_log": compared.largest_log,
        "mean": mean,
        "tolerance": tolerance,
        "ok": compared.largest <= tolerance,
    }


def _rows(recipe: TeacherRecipe, cache: Cache, shards: np.ndarray[Any, Any]) -> Iterator[DecodedRows]:
    """Row group by row group. Inputs that the cache keeps by reference are those of the recipe's source."""
    held_out = recipe.held_out
    section = held_out.source if held_out is not None and cache.name == held_out.name else recipe.source
    referenced = INPUTS_XXH3 in CacheRows(cache, []).schema(0).names
    groups = open_rows(cache.url, inputs=section if referenced else None)
    for group in np.flatnonzero(np.isin(cache.index.shard, shards)).tolist():
        yield read_group(groups, group)


def _compare(teacher: Teacher, rows: DecodedRows, batch: slice, found: _Comparison) -> None:
    import torch

    assert rows.targets is not None
    logits = teacher.logits({name: array[batch] for name, array in rows.inputs.items()})
    logits_PV = logits.reshape(-1, logits.shape[-1])
    each = logits_PV.shape[0] // len(rows.sample_id[batch])
    targets: Any = rows.targets.each(lambda array: array[batch]).flat()
    label_P = None if rows.label is None else rows.label[batch].reshape(-1)
    for block in blocks(logits_PV):
        stored_PK, fresh_PK = _log_probs(targets[block], logits_PV[block])
        counted_P = torch.ones(len(fresh_PK), dtype=torch.bool)
        if label_P is not None and rows.label is not None and rows.label.ndim > 1:
            counted_P = torch.from_numpy(label_P[block] != IGNORED)
        difference_PK = (stored_PK.exp() - fresh_PK.exp()).abs()[counted_P]
        if not len(difference_PK):
            continue
        found.sums.append(float(difference_PK.sum()))
        found.values += difference_PK.numel()
        found.positions += len(difference_PK)
        found.largest_log = max(found.largest_log, float((stored_PK - fresh_PK).abs()[counted_P].nan_to_num(0).max()))
        worst_P = difference_PK.amax(dim=1)
        # What is not a number is as far away as can be.
        worst = float(worst_P.nan_to_num(math.inf).max())
        if worst > found.largest or not found.at:
            place = int(torch.nonzero(counted_P)[int(worst_P.nan_to_num(math.inf).argmax())]) + block.start
            position = f", position {place % each}" if each > 1 else ""
            found.largest, found.at = worst, f"sample '{rows.sample_id[batch][place // each]}'{position}"


def _log_probs(targets: Targets, logits_PV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored and fresh log p at T = 1 of the kept classes, [P, K] or [P, V], on the CPU in float64.

    Where p is 0 both have the lowest finite number.
    """
    import torch

    def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
        return tensor(array).double() if array.dtype.kind == "f" else tensor(array)

    fresh_PV = torch.log_softmax(logits_PV.float(), dim=1)
    stored = targets.each(as_tensor)
    sparse = stored.sparse(1.0)
    if sparse is None:
        stored_PK = stored.log_probs(1.0)
    else:
        stored_PK, fresh_PV = sparse.log_probs_PK, fresh_PV.gather(1, sparse.ids_PK.to(fresh_PV.device))
    lowest = torch.finfo(torch.float64).min
    return stored_PK.clamp(min=lowest), fresh_PV.cpu().double().clamp(min=lowest)


def summary(answer: dict[str, Any]) -> str:
    """An audit's answer as a paragraph."""
    if "problem" in answer:
        return answer["problem"]
    spans = answer["spans"]
    verdict = "as they were" if answer["ok"] else "NOT what was stored"
    return (
        f"{spans['audited']} of {spans['total']} spans, {answer['positions']:,} positions: the teacher's answers are "
        f"{verdict}. Probabilities differ by {answer['mean']:.2g} on average and {answer['largest']:.2g} at most "
        f"({answer['largest_at']}); the tolerance is {answer['tolerance']:g}."
    )
