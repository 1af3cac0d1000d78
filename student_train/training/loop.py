"""The training loop: batches, steps, reports, checkpoints. An ordinary function that is handed its rank and world."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from storage.base.digest import canonical_json
from storage.base.errors import JobError, RecipeError
from student_train.training import checkpoint
from student_train.training.checkpoint import State
from student_train.training.config import StudentRecipe
from student_train.training.data import make_batches, open_data, open_evaluation, refuse_changed
from student_train.training.evaluate import evaluate_rows
from student_train.training.fit import check_fit
from student_train.training.journal import Point
from student_train.training.optimizer import make_optimizer
from student_train.training.place import Place
from student_train.training.step import TrainingStep


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
        refuse_changed([data, held_out], expected)
    model = recipe.student.spec().build(seed).to(place.device)
    init_digest = parameters_digest(model)
    classes = check_fit(model, data, place.device, recipe.loss_sections())
    if held_out is not None:
        check_fit(model, held_out, place.device)
    optimizer = make_optimizer(recipe.optimizer, model)
    batches, first = make_batches(recipe, data, seed, place), 0
    if restored is not None:
        state = checkpoint.restore(restored, model, optimizer, recipe_digest=recipe.digest(), data_digest=data.digest)
        batches.load_state_dict(state.stream)
        first = state.step
    model.train()
    take_step = TrainingStep(recipe, model, optimizer, data, classes, seed, place)
    # Closed before the evaluation, which reads with threads and memory of its own.
    with closing(batches):
        for step, batch in zip(range(first, recipe.steps), batches.endless(), strict=False):
            take_step(step, batch)
            done = step + 1
            resumable = done % recipe.checkpoint_every == 0 or done == recipe.steps
            # A checkpoint closes a log window too, so that a resumed run logs the same means.
            if done % recipe.log_every == 0 or resumable:
                observer.points(take_step.means.take(done, optimizer.param_groups[0]["lr"]))
            if resumable:
                _check_finite(model, done)
                state = State(done, recipe.digest(), data.digest, batches.state_dict())
                observer.checkpoint(done, partial(checkpoint.save, model=model, optimizer=optimizer, state=state))
    scores = {}
    if held_out is not None and not place.rank:
        scores = evaluate_rows(model, held_out, classes, place.device, recipe.reading)
    return Outcome(
        model,
        scores,
        sum(p.numel() for p in model.parameters()),
        init_digest,
        data.digest,
        first,
        time.monotonic() - started,
    )


def _check_finite(model: torch.nn.Module, step: int) -> None:
    # A step can break the weights after its own loss was fine; such a checkpoint would replace a good one.
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise JobError(
                f"The parameter {name} is not finite after step {step}.",
                "Weights are finite numbers.",
                "Lower optimizer.lr; the checkpoint before this step is kept.",
            )


def parameters_digest(model: torch.nn.Module) -> str:
    """sha256 of a model's parameters and buffers: two students that start alike have the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]))
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
