"""The optimiser of a recipe, and its learning rate at each step."""

from __future__ import annotations

import math

import torch

from student_train.training.config import OptimizerSection


def make_optimizer(section: OptimizerSection, model: torch.nn.Module) -> torch.optim.Optimizer:
    if section.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
    return torch.optim.AdamW(model.parameters(), lr=section.lr, weight_decay=section.weight_decay)


def learning_rate(optimizer: OptimizerSection, step: int, steps: int) -> float:
    """The rate of step `step` of `steps`, counted from 0: a pure function, so that resuming needs no scheduler."""
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    after = max(1, steps - optimizer.warmup_steps)
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * (step - optimizer.warmup_steps) / after))
