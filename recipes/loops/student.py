"""A small student for whatever a cache has, and what it minimises."""

from __future__ import annotations

import torch
from torch import nn

from storage import RowGroups, TorchBatch, first_rows, to_torch
from student_train import apply_model, count_positions, forward_kl


class Student(nn.Module):
    """All inputs [R, ...], of any shape, through one hidden layer to logits [R, V]."""

    def __init__(self, features: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([value.reshape(len(value), -1).float() for value in inputs], dim=1))


class TokenStudent(nn.Module):
    """Token ids [R, L] to logits [R, L, V]: each token and its place in its document, through one hidden layer."""

    def __init__(self, classes: int, positions: int, hidden: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(classes, hidden), nn.Embedding(positions, hidden)
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.tokens(input_ids.long()) + self.places(position_ids.long()))


def student(rows: RowGroups, seed: int = 0) -> nn.Module:
    """A student that fits a cache's inputs and classes; the same for the same seed."""
    first = to_torch(first_rows(rows, 1))
    assert first.targets is not None
    torch.manual_seed(seed)
    if len(first.targets.lead) > 1:
        return TokenStudent(first.targets.classes, first.targets.lead[1])
    return Student(sum(value[0].numel() for value in first.inputs.values()), first.targets.classes)


def soft_loss(model: nn.Module, batch: TorchBatch, temperature: float = 2.0) -> torch.Tensor:
    """How far a student is from its teacher at each position of a batch, [P]; 0 where there is no target."""
    assert batch.targets is not None
    return forward_kl(apply_model(model, batch.inputs), batch.targets, temperature=temperature)


def mean_loss(model: nn.Module, batch: TorchBatch, world: int = 1) -> torch.Tensor:
    """This rank's share of the mean over the positions of the global batch; averaged over ranks it is that mean."""
    assert batch.targets is not None
    return soft_loss(model, batch).sum() * world / count_positions(batch.targets)
