"""Offline equals online: a student of a cache learns as one beside the living teacher does, up to rounding."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from jobs.models.model_spec import ModelSpec
from storage.encodings.dense import DenseTargets
from storage.rows.open import open_rows
from storage.stream.stream import Stream
from storage.stream.torch_tensors import to_torch
from student_train.losses.forward_kl import forward_kl
from student_train.training.config import StudentRecipe
from student_train.training.loop import Place, train
from student_train.training.optimizer import learning_rate

STEPS, BATCH, TEMPERATURE = 40, 8, 2.0


class Curve:
    """An observer that keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def points(self, points: list[Any]) -> None:
        self.values += [value for name, value, _, _ in points if name == "train/loss_forward_kl"]

    def checkpoint(self, step: int, save: Any) -> None:
        return


def offline(recipe: StudentRecipe) -> np.ndarray[Any, Any]:
    curve = Curve()
    train(recipe, Place(), observer=curve)
    return np.array(curve.values)


def online(recipe: StudentRecipe, nets: str, skip: int = 0) -> np.ndarray[Any, Any]:
    """The same order, seed and steps in a plain loop; the targets are the teacher's, asked in each step."""
    assert recipe.cache is not None and isinstance(recipe.seed, int)
    teacher = ModelSpec(f"{nets}:teacher", {"classes": 3}).build(0).eval()
    student = recipe.student.spec().build(recipe.seed).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.optimizer.lr, weight_decay=0.01)
    stream = Stream(open_rows(recipe.cache.url), batch_size=BATCH, seed=recipe.seed)
    losses: list[float] = []
    for step, batch in enumerate(islice(stream.endless(), skip, STEPS + skip)):
        x = to_torch(batch.rows).inputs["x"]
        with torch.no_grad():
            targets = DenseTargets(teacher(x), torch.ones(len(x)))
        loss = forward_kl(student(x), targets, temperature=TEMPERATURE).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(recipe.optimizer, step, STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / TEMPERATURE**2)  # the divergence itself is what a run reports
    stream.close()
    return np.array(losses)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float16", 2e-3)])
def test_the_curves_are_equal(make_cache: Any, make_recipe: Any, nets: str, dtype: str, rtol: float) -> None:
    recipe = make_recipe(
        cache=make_cache(rows=100, dtype=dtype, temperature=4.0),
        steps=STEPS,
        batch_size=BATCH,
        losses={"forward_kl": {"temperature": TEMPERATURE}},
        log_every=1,
    )
    cached, live = offline(recipe), online(recipe, nets)
    assert len(cached) == len(live) == STEPS and live[-1] < live[0] / 2
    np.testing.assert_allclose(cached, live, rtol=rtol, atol=rtol / 100)
    # Equal because they see the same rows: one batch further they are not.
    assert np.abs(cached / online(recipe, nets, skip=1) - 1).max() > 0.05
