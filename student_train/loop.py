"""The training loop: stream, student, losses, step. An ordinary function that is handed its rank and world."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from storage.cache import open_cache
from storage.digest import sha256_of
from storage.errors import RecipeError, TrainingError
from storage.recipes import SourceSection
from storage.sources import make_source
from storage.stream import CacheRows, RowGroups, SourceRows, Stream, scan
from storage.torch import to_torch
from student_train import checkpoint
from student_train.checkpoint import Point, State
from student_train.config import OptimizerSection, StudentRecipe
from student_train.evaluate import evaluate
from student_train.fit import check_fit, check_labels
from student_train.losses import combine


@dataclass(frozen=True)
class Place:
    """Which worker this is, and the device it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """A trained model, what it is worth, and the metrics that no tracker was told yet."""

    model: torch.nn.Module
    eval: dict[str, float]
    parameters: int
    init_digest: str
    data_digest: str
    resumed_from: int
    seconds: float
    points: list[Point]


# Called with the step, the metrics gathered so far and a function that writes a checkpoint into a
# folder; gives back the metrics that are still to be told. Every rank calls it at the same steps.
Report = Callable[[int, list[Point], Callable[[Path, list[Point]], None]], list[Point]]


def open_data(recipe: StudentRecipe) -> RowGroups:
    """What a recipe learns from. Raises NoCache, CorruptShard, SourceError."""
    if recipe.cache is not None:
        return CacheRows(open_cache(recipe.cache))
    assert recipe.source is not None
    return SourceRows(make_source(recipe.source.settings()))


def open_evaluation(recipe: StudentRecipe) -> RowGroups | None:
    if recipe.evaluate is None:
        return None
    if isinstance(recipe.evaluate, SourceSection):
        return SourceRows(make_source(recipe.evaluate.settings()))
    return CacheRows(open_cache(recipe.evaluate))


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


def train(
    recipe: StudentRecipe, place: Place, *, restored: Path | None = None, report: Report | None = None
) -> Outcome:
    """Train a recipe's model to its last step, from a checkpoint folder if one is given.

    Raises Mismatch, SourceError, TrainingError, CorruptShard, ForeignState.
    """
    started = time.monotonic()
    if isinstance(recipe.seed, list):
        raise RecipeError("A run has one seed.")
    data, held_out, seed = open_data(recipe), open_evaluation(recipe), recipe.seed
    model = recipe.student.spec().build(seed).to(place.device)
    init_digest = parameters_digest(model)
    check_fit(recipe, model, data, place.device)
    optimizer = _optimizer(recipe.optimizer, model)
    stream = Stream(data, batch_size=recipe.batch_size, seed=seed, rank=place.rank, world=place.world)
    first, points = 0, list[Point]()
    if restored is not None:
        state = checkpoint.restore(restored, model, optimizer, recipe_digest=recipe.digest(), data_digest=data.digest)
        stream.load_state_dict(state.stream)
        first, points = state.step, list(state.points)
    wrapped = model
    if place.world > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)

    model.train()
    sections = recipe.loss_sections()
    means = Means()
    for step, batch in zip(range(first, recipe.steps), stream, strict=False):
        torch.manual_seed(step_seed(seed, step, place.rank))
        rows = to_torch(batch.rows, place.device)
        logits_PV = wrapped(*rows.inputs.values())
        check_labels(batch.rows, logits_PV.shape[1])
        total_P, parts = combine(sections, logits_PV, rows)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, step, recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks whatever their share of the batch; this makes it the batch's mean.
        (total_P.sum() * (place.world / batch.global_size)).backward()
        optimizer.step()
        means.add({"loss": total_P, **{f"loss_{name}": part for name, part in parts.items()}})
        done, last = step + 1, step + 1 == recipe.steps
        if done % recipe.log_every == 0 or last:
            points += means.take(done, optimizer.param_groups[0]["lr"], batch.global_size)
        if report is not None and (done % recipe.checkpoint_every == 0 or last):
            saved = State(done, recipe.digest(), data.digest, stream.state_dict(), points)
            points = report(done, points, _saver(model, optimizer, saved))
    scores = {} if held_out is None or place.rank else _evaluate(model, held_out, place)
    return Outcome(
        model,
        scores,
        sum(p.numel() for p in model.parameters()),
        init_digest,
        data.digest,
        first,
        time.monotonic() - started,
        points,
    )


def _saver(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> Callable[[Path, list[Point]], None]:
    return lambda folder, points: checkpoint.save(folder, model, optimizer, replace(state, points=points))


class Means:
    """Means of what the steps since the last `take` gave; they stay on the device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._steps, self._since = 0, time.monotonic()

    def add(self, values: dict[str, torch.Tensor]) -> None:
        self._steps += 1
        for name, value_P in values.items():
            mean = value_P.detach().mean()
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean

    def take(self, step: int, lr: float, batch_size: int) -> list[Point]:
        """One point a metric, and begin anew. Raises TrainingError for what is not a number."""
        now, seconds = int(time.time() * 1000), max(time.monotonic() - self._since, 1e-9)
        values = {f"train/{name}": float(total) / self._steps for name, total in self._sums.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} at step {step}.",
                    "A loss is a finite number.",
                    "Lower optimizer.lr, or look at the inputs.",
                )
        values |= {"train/lr": lr, "train/samples_per_s": self._steps * batch_size / seconds}
        self._sums, self._steps, self._since = {}, 0, time.monotonic()
        return [(name, value, step, now) for name, value in values.items()]


def _optimizer(section: OptimizerSection, model: torch.nn.Module) -> torch.optim.Optimizer:
    if section.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(model.parameters(), lr=section.lr, weight_decay=section.weight_decay)


def _evaluate(model: torch.nn.Module, held_out: RowGroups, place: Place) -> dict[str, float]:
    model.eval()
    batches = (to_torch(rows, place.device) for rows in scan(held_out, 512))
    return evaluate(lambda rows: model(*rows.inputs.values()), batches)


def parameters_digest(model: torch.nn.Module) -> str:
    """sha256 of a model's parameters and buffers: two students that start alike have the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode()
        )
    return digest.hexdigest()
