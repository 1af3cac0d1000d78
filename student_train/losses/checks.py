"""Checks that a student's output, its soft targets and its labels belong to the same rows and classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from storage.base.errors import RecipeError, SourceError, UsageError
from storage.encodings.targets import IGNORED, Targets
from student_train.losses.queries import Output, Unprojected

_SHAPES = "logits are [R, V] for targets [R], and [R, L, V] or [R * L, V] for targets [R, L]"


def check_targets(output: Output, targets: Targets, temperature: float) -> None:
    """Raises UsageError where output and targets differ in positions or classes, RecipeError for the temperature."""
    lead, classes = output_shape(output)
    if any(isinstance(value, np.ndarray) for value in vars(targets).values()):
        raise UsageError(
            "The targets are numpy arrays.",
            "A loss takes torch tensors.",
            "Use StreamDataset, or storage.stream.torch_tensors.to_torch.",
        )
    _check_lead(lead, targets.lead, "targets", classes)
    if classes != targets.classes:
        raise UsageError(
            f"The student's logits have {classes:,} classes, the targets {targets.classes:,}.",
            "Student and teacher tell the same classes apart.",
            "Give the student the teacher's number of classes, without padding of the vocabulary.",
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise RecipeError(f"The temperature is {temperature!r}.", "It is a finite number above 0.")


def check_label(output: Output, label: torch.Tensor) -> None:
    """Raises UsageError where output and labels differ in positions, SourceError for a label that is no class."""
    lead, classes = output_shape(output)
    if not isinstance(label, torch.Tensor) or label.is_floating_point():
        found = label.dtype if isinstance(label, torch.Tensor) else type(label).__name__
        raise UsageError(f"The labels are {found}.", "Labels are a tensor of integers.")
    _check_lead(lead, tuple(label.shape), "labels", classes)
    outside = (label != IGNORED) & ((label < 0) | (label >= classes))
    if outside.any():
        raise SourceError(
            f"There is the label {int(label[outside][0])}.",
            f"The student has the classes 0 to {classes - 1}; {IGNORED} means that there is none.",
        )


def output_shape(output: Any) -> tuple[tuple[int, ...], int]:
    """The axes of positions and the number of classes of a student's output. Raises UsageError where it is none."""
    if isinstance(output, Unprojected):
        _check_head(output)
        lead, classes = output.lead, output.classes
    elif isinstance(output, torch.Tensor) and output.ndim in (2, 3):
        lead, classes = tuple(output.shape[:-1]), int(output.shape[-1])
    else:
        found = f"a tensor {list(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        more = "Give its `logits`." if hasattr(output, "logits") else ""
        raise UsageError(
            f"The student gave {found}.",
            "It gives logits [samples, classes] or [samples, positions, classes], or student_train.losses.Unprojected.",
            more,
        )
    if classes < 2:
        raise UsageError(
            f"The student gave logits for {classes} class.",
            "The softmax of a single number is 1, whatever the number is.",
            "A student that tells two classes apart gives two logits; for a single one z they are 0 and z.",
        )
    return lead, classes


def _check_head(output: Unprojected) -> None:
    weight = tuple(output.weight.shape)
    bias = () if output.bias is None else tuple(output.bias.shape)
    if len(weight) != 2 or weight[1] != output.hidden.shape[-1] or bias not in ((), weight[:1]):
        raise UsageError(
            f"The student gave hidden states {list(output.hidden.shape)} with a weight {list(weight)}"
            f"{f' and a bias {list(bias)}' if bias else ''}.",
            "Hidden states [..., d] go with a weight [classes, d] and a bias [classes].",
        )


def _check_lead(found: tuple[int, ...], wanted: tuple[int, ...], what: str, classes: int) -> None:
    flat = len(found) == 1 or len(wanted) == 1
    if found != wanted and not (flat and math.prod(found) == math.prod(wanted)):
        raise UsageError(
            f"The student's logits are {[*found, classes]}, the {what} are for positions {list(wanted)}.",
            f"Both are of the same rows: {_SHAPES}.",
            "Slice both alike, as in batch[8:16].",
        )
