"""Whether a model, its losses and its data fit each other, said before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from storage.errors import Mismatch, SourceError
from storage.shard import Rows
from storage.stream import RowGroups, head
from storage.torch import to_torch
from student_train.losses import LOSSES


def check_fit(model: torch.nn.Module, data: RowGroups, device: str, losses: Iterable[str] = ()) -> int:
    """Put one row of the data through the model, and give the model's number of classes.

    losses: names of those that are to be taken on the data. Raises Mismatch.
    """
    batch = to_torch(head(data, 1), device)
    for name in losses:
        if LOSSES[name].needs == "label" and batch.label is None:
            raise Mismatch(
                f"{data.where} has no labels.",
                f"The loss {name} needs them.",
                "Leave that loss out, or give data with labels.",
            )
    model.eval()
    try:
        with torch.inference_mode():
            logits_PV = model(*batch.inputs.values())
    except (TypeError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {list(value.shape[1:])} {value.dtype}" for name, value in batch.inputs.items())
        raise Mismatch(f"The model does not take the inputs of {data.where} ({shapes}): {error}.") from error
    if not isinstance(logits_PV, torch.Tensor) or logits_PV.ndim != 2:
        raise Mismatch(f"The model gave {type(logits_PV).__name__}.", "It gives logits [samples, classes].")
    classes = int(logits_PV.shape[1])
    if batch.targets is not None and classes != batch.targets.classes:
        raise Mismatch(
            f"The cache {data.where} was written for {batch.targets.classes} classes, this student has {classes}.",
            "Student and teacher tell the same classes apart.",
            "Give the student's factory the teacher's number of classes.",
        )
    return classes


def check_labels(rows: Rows, classes: int) -> None:
    """Raises SourceError, with the sample's id, for a label that is no class. The rows are a stream's, in numpy."""
    if rows.label is None:
        return
    outside = ((rows.label < 0) | (rows.label >= classes)).nonzero()[0]
    if len(outside):
        at = int(outside[0])
        raise SourceError(
            f"The sample '{rows.sample_id[at]}' has the label {rows.label[at]}.",
            f"The model has the classes 0 to {classes - 1}.",
        )
