"""A student on a GPU learns, and goes on, as one on a CPU does; skipped where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.targets import IGNORED
from storage.format.rows import DecodedRows
from student_train.losses import Unprojected, factor, loss_parts
from student_train.losses.positions import indices
from student_train.training import checkpoint, loop
from student_train.training.config import LossSection, StudentRecipe
from student_train.training.loop import Outcome, Place, train
from tests.student_train.sequences import SequenceRows
from tests.student_train.sparse import top_k

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

POSITIONS, CLASSES, WIDTH = 400, 50_000, 16


class Keeper:
    """An observer that keeps the loss of every window, and a checkpoint where it was given a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.losses = folder, list[float]()

    def points(self, points: list[Any]) -> None:
        self.losses += [value for name, value, _, _ in points if name == "train/loss"]

    def checkpoint(self, step: int, save: Any) -> None:
        if self.folder is not None:
            save(self.folder / f"step-{step}")


def on(device: str, recipe: StudentRecipe, **settings: Any) -> tuple[Outcome, list[float]]:
    kept = Keeper()
    return train(recipe, Place(device=device), observer=kept, **settings), kept.losses


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return checkpoint.cpu_tensors(outcome.model.state_dict())


@pytest.mark.parametrize("tail", ["bucket", "unigram", "renormalise", "none", None])
@pytest.mark.parametrize("fused", [True, False])
def test_losses_and_gradients_are_those_of_a_cpu(tail: Any, fused: bool) -> None:
    """tail: of sparse targets; None: cross entropy from labels alone. Several chunks of positions, some not counted."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator)
    weight = torch.randn(CLASSES, WIDTH, generator=generator) / 2
    label = torch.randint(CLASSES, (POSITIONS,), generator=generator)
    label[::7] = IGNORED
    targets = top_k(3 * torch.randn(POSITIONS, CLASSES, generator=generator), 32, label)
    losses = {"cross_entropy": LossSection(weight=0.5)}
    if tail is not None:
        losses["forward_kl"] = LossSection(temperature=2.0, tail=tail)
    unigram = torch.rand(CLASSES, generator=generator) / CLASSES
    found = []
    for device in ("cpu", "cuda"):
        h, w = (value.clone().to(device).requires_grad_() for value in (hidden, weight))
        soft = None if tail is None else targets.each(lambda array, to=device: array.to(to))
        rows: Any = DecodedRows(np.arange(POSITIONS), {}, label.to(device), soft)  # type: ignore[arg-type]
        output = Unprojected(h, w) if fused else h @ w.t()
        at: Any = indices(label != IGNORED)
        parts = loss_parts(losses, output, rows, at=at.to(device), unigram=unigram.to(device))
        total = sum(factor(name, losses[name]) * part.sum() for name, part in parts.items())
        assert isinstance(total, torch.Tensor) and total.device.type == device
        total.backward()
        assert h.grad is not None and w.grad is not None
        found.append([total.detach().cpu(), *(part.detach().cpu() for part in parts.values()), h.grad, w.grad])
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4 * float(cpu.abs().max()))


def test_a_student_of_a_cache_learns_what_it_learns_on_a_cpu(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache(rows=100)
    losses = {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.1}}
    recipe = make_recipe(cache=cache, evaluate=cache, steps=60, losses=losses, log_every=1)
    (one, curve), (other, expected) = on("cuda", recipe), on("cpu", recipe)
    assert next(one.model.parameters()).is_cuda and one.init_digest == other.init_digest
    assert curve[-1] < curve[0] / 2
    np.testing.assert_allclose(curve, expected, rtol=1e-3)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-3, atol=1e-4)
    assert one.eval == pytest.approx(other.eval, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["topk", "dense"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_student_of_sequences_does_so_too(
    kind: str, fused: bool, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_data", lambda recipe: SequenceRows(12, kind))
    monkeypatch.setattr(loop, "open_evaluation", lambda recipe: SequenceRows(5, kind, seed=1))
    losses = {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.1}}
    recipe = make_recipe(
        cache="unread", factory="language", arguments={"fused": fused}, losses=losses, steps=30, batch_size=5
    )
    (one, curve), (other, expected) = on("cuda", recipe), on("cpu", recipe)
    np.testing.assert_allclose(curve, expected, rtol=1e-3)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-2, atol=1e-3)
    assert one.eval == pytest.approx(other.eval, rel=1e-2)


def test_a_resumed_run_ends_as_an_unbroken_one(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    """With dropout and batch norm; also from a GPU's checkpoint on a CPU, whose random numbers are others."""
    recipe = make_recipe(cache=make_cache(), factory="noisy", steps=13, batch_size=7, checkpoint_every=1)
    unbroken = train(recipe, Place(device="cuda"), observer=Keeper(tmp_path))
    for step in (1, 6, 12, 13):
        torch.manual_seed(step)
        outcome, _ = on("cuda", recipe, restored=tmp_path / f"step-{step}")
        assert outcome.resumed_from == step
        torch.testing.assert_close(weights(outcome), weights(unbroken), rtol=1e-5, atol=1e-6)
    moved, _ = on("cpu", recipe, restored=tmp_path / "step-6")
    assert moved.resumed_from == 6 and not next(moved.model.parameters()).is_cuda
