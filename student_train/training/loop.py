"""The training loop: stream, student, losses, step. An ordinary function that is handed its rank and world."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from jobs.models.model_call import apply_model
from storage.base.digest import canonical_json, sha256_of
from storage.base.errors import JobError, RecipeError, VerificationError
from storage.format.rows import DecodedRows
from storage.rows.open import open_rows
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups, first_rows
from storage.rows.source_rows import SourceRows
from storage.sources import make_source
from storage.sources.settings import SourceSection
from storage.stream.stream import Stream, scan
from storage.stream.torch_tensors import to_torch
from student_train.losses import LOSSES, factor, loss_parts, needed
from student_train.losses.positions import indices, lead, mask_of
from student_train.training import checkpoint
from student_train.training.checkpoint import State
from student_train.training.config import CacheSection, LossSection, OptimizerSection, OrderSection, StudentRecipe
from student_train.training.count import Count
from student_train.training.evaluate import evaluate, rows_a_batch
from student_train.training.fit import check_fit, check_labels
from student_train.training.journal import Point
from student_train.training.means import Means


@dataclass(frozen=True)
class Place:
    """Which worker this is, and the device it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """A trained model, and what it is worth."""

    model: torch.nn.Module
    eval: dict[str, float]
    parameters: int
    init_digest: str
    data_digest: str
    resumed_from: int
    seconds: float


class Observer(Protocol):
    """Who is told how a run goes; every rank tells it the same things at the same steps."""

    def points(self, points: list[Point]) -> None:
        """Metrics since the last ones."""
        ...

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """A step at which the run can be resumed; `save` writes it into a folder."""
        ...


class Unobserved:
    """Nobody is told, and no checkpoint is kept."""

    def points(self, points: list[Point]) -> None:
        return

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        return


def open_data(recipe: StudentRecipe) -> RowGroups:
    """What a recipe learns from. Raises NoCache, CorruptShard, SourceError, RecipeError, UsageError."""
    section = recipe.source if recipe.cache is None else recipe.cache
    assert section is not None
    return _open(section)


def open_evaluation(recipe: StudentRecipe) -> RowGroups | None:
    return None if recipe.evaluate is None else _open(recipe.evaluate)


def _open(section: CacheSection | SourceSection) -> RowGroups:
    if isinstance(section, SourceSection):
        return SourceRows(make_source(section))
    return open_rows(section.url, where=section.where, inputs=section.inputs)


def learning_rate(optimizer: OptimizerSection, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`, counted from 0: a pure function, so that resuming needs no scheduler."""
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    after = max(1, steps - optimizer.warmup_steps)
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * (step - optimizer.warmup_steps) / after))


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's random numbers (dropout): a resumed run draws what an unbroken one would have."""
    return int(sha256_of([seed, step, rank])[:15], 16)


def _refuse_changed(groups: Sequence[RowGroups | None], expected: Sequence[str | None]) -> None:
    for rows, digest in zip(groups, expected, strict=True):
        if rows is not None and rows.digest != digest:
            raise VerificationError(
                f"The data that this worker reads from {rows.where} has the digest {rows.digest[:16]}.",
                f"The driver read {str(digest)[:16]}.",
                "Leave a source alone while a job reads it; a function gives the same rows at every call.",
            )


def train(
    recipe: StudentRecipe,
    place: Place,
    *,
    restored: Path | None = None,
    observer: Observer | None = None,
    expected: Sequence[str | None] | None = None,
) -> Outcome:
    """Train a recipe's model to its last step, from a checkpoint folder if one is given.

    expected: the digests of the data and of the held-out data that the driver read. Raises UsageError, SourceError,
    VerificationError, JobError.
    """
    started, observer = time.monotonic(), observer or Unobserved()
    if isinstance(recipe.seed, list):
        raise RecipeError("A run has one seed.")
    data, held_out, seed = open_data(recipe), open_evaluation(recipe), recipe.seed
    if expected is not None:
        _refuse_changed([data, held_out], expected)
    model = recipe.student.spec().build(seed).to(place.device)
    init_digest = parameters_digest(model)
    sections = recipe.loss_sections()
    classes = check_fit(model, data, place.device, sections)
    if held_out is not None:
        check_fit(model, held_out, place.device)
    optimizer = _optimizer(recipe.optimizer, model)
    stream, reading = _stream(recipe, data, place, seed), recipe.reading
    first = 0
    if restored is not None:
        state = checkpoint.restore(restored, model, optimizer, recipe_digest=recipe.digest(), data_digest=data.digest)
        stream.load_state_dict(state.stream)
        first = state.step
    wrapped = model
    if place.world > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)

    model.train()
    unigram = _unigram(sections, data, place.device)
    factors = {name: factor(name, section) for name, section in sections.items()}
    means = Means(factors)
    for step, batch in zip(range(first, recipe.steps), stream.endless(), strict=False):
        torch.manual_seed(step_seed(seed, step, place.rank))
        # Where masks still are on the CPU, so that a GPU is not waited for.
        at = indices(mask_of(batch.rows, needed(sections)))
        count = Count(batch, place.world, place.device)
        rows = to_torch(batch.rows, place.device)
        at = at if isinstance(at, slice) else at.to(place.device, non_blocking=True)
        output = apply_model(wrapped, rows.inputs)
        check_labels(batch.rows, classes)
        parts = loss_parts(sections, output, rows, at=at, unigram=unigram)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, step, recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks whatever their share of the batch; the scale makes it the batch's mean.
        loss = torch.stack(
            [factors[name] * part.sum() * count.scale(LOSSES[name].needs) for name, part in parts.items()]
        ).sum()
        loss.backward()
        optimizer.step()
        means.add(parts, {name: count.of(LOSSES[name].needs) for name in parts}, batch.global_size)
        done, last = step + 1, step + 1 == recipe.steps
        resumable = done % recipe.checkpoint_every == 0 or last
        # A checkpoint closes a log window too, so that a resumed run logs the same means.
        if done % recipe.log_every == 0 or resumable:
            observer.points(means.take(done, optimizer.param_groups[0]["lr"]))
        if resumable:
            _check_finite(model, done)
            state = State(done, recipe.digest(), data.digest, stream.state_dict())
            observer.checkpoint(done, partial(checkpoint.save, model=model, optimizer=optimizer, state=state))
    # What was fetched ahead is not needed any more, and evaluating fetches its own.
    stream.close()
    scores = {} if held_out is None or place.rank else _evaluate(model, held_out, classes, place, reading)
    return Outcome(
        model,
        scores,
        sum(p.numel() for p in model.parameters()),
        init_digest,
        data.digest,
        first,
        time.monotonic() - started,
    )


def _stream(recipe: StudentRecipe, data: RowGroups, place: Place, seed: int) -> Stream:
    order = recipe.order or OrderSection()
    return Stream(
        data,
        batch_size=recipe.batch_size,
        seed=seed,
        rank=place.rank,
        world=place.world,
        lanes=order.lanes,
        window=order.window,
        reading=recipe.reading,
    )


def _unigram(sections: Mapping[str, LossSection], data: RowGroups, device: str) -> torch.Tensor | None:
    """The teacher's mean distribution [V], where a loss spreads a tail by it."""
    if all(section.tail != "unigram" for section in sections.values()):
        return None
    from storage.analysis.class_marginals import unigram

    return torch.as_tensor(unigram(data), device=device)


def _check_finite(model: torch.nn.Module, step: int) -> None:
    # A step can break the weights after its own loss was fine; such a checkpoint would replace a good one.
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise JobError(
                f"The parameter {name} is not finite after step {step}.",
                "Weights are finite numbers.",
                "Lower optimizer.lr; the checkpoint before this step is kept.",
            )


def _optimizer(section: OptimizerSection, model: torch.nn.Module) -> torch.optim.Optimizer:
    if section.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(model.parameters(), lr=section.lr, weight_decay=section.weight_decay)


def _evaluate(
    model: torch.nn.Module, held_out: RowGroups, classes: int, place: Place, reading: Reading
) -> dict[str, float]:
    model.eval()

    def batches() -> Iterator[DecodedRows]:
        positions = math.prod(lead(first_rows(held_out, 1)))
        for rows in scan(held_out, rows_a_batch(classes, positions), reading):
            check_labels(rows, classes)
            yield to_torch(rows, place.device)

    return evaluate(lambda rows: apply_model(model, rows.inputs), batches())


def parameters_digest(model: torch.nn.Module) -> str:
    """sha256 of a model's parameters and buffers: two students that start alike have the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]))
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
