"""Whether a model, its losses and its data fit each other, said before anything is trained on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from jobs.failures.out_of_memory import is_out_of_memory
from jobs.models.model_call import apply_model
from storage.base.errors import SourceError, StillhouseError, UsageError
from storage.encodings.targets import IGNORED
from storage.format.rows import DecodedRows
from storage.rows.row_groups import RowGroups, first_rows
from storage.stream.torch_tensors import to_torch
from student_train.losses import LOSSES, Output, Weighted, terms_of
from student_train.losses.checks import output_shape
from student_train.losses.positions import kept, lead


def check_fit(
    model: torch.nn.Module, data: RowGroups, device: str, losses: Mapping[str, Weighted] | None = None
) -> int:
    """Put one row of the data through a copy of the model, and give the model's number of classes.

    losses: those that are to be taken on the data. Raises UsageError, and RecipeError for what the data's targets
    cannot serve: a temperature that they were not kept for, a tail where there is none.
    """
    batch, losses = to_torch(first_rows(data, 1), device), losses or {}
    for name in losses:
        if LOSSES[name].needs == "label" and batch.label is None:
            raise UsageError(
                f"{data.where} has no labels.",
                f"The loss {name} needs them.",
                "Leave that loss out, or give data with labels.",
            )
    found, classes = output_shape(_output(model, batch, data))
    if found != lead(batch):
        raise UsageError(
            f"The model gives logits for positions {list(found)} where the labels or targets of {data.where} "
            f"have {list(lead(batch))}.",
            "There is a logit for each class at each position: [R, V] of classified samples, [R, L, V] of sequences.",
        )
    if batch.targets is not None and classes != batch.targets.classes:
        raise _other_classes(data.where, batch.targets.classes, classes, sequences=len(found) > 1)
    some = torch.full((classes,), 1 / classes, device=device)
    terms_of(losses, kept(batch, slice(0, 1)), some)
    return classes


def _output(model: torch.nn.Module, batch: DecodedRows, data: RowGroups) -> Output:
    probe = _copy(model).eval()
    try:
        # Not inference_mode: what a model keeps of a call (tables, masks) would be of no use for training.
        with torch.no_grad():
            return apply_model(probe, batch.inputs)
    except StillhouseError:
        raise
    except Exception as error:  # whatever a model's own checks raise
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{name} {list(value.shape[1:])} {value.dtype}" for name, value in batch.inputs.items())
        raise UsageError(
            f"The model does not take the inputs of {data.where} ({shapes}): {type(error).__name__}: {error}."
        ) from error


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy, whose buffers and attributes the probe may change: training starts from the model as it was built.

    It is made before there are gradients and moments, so it takes no more memory than a step does.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return model  # it holds what Python cannot copy: a lock, a graph of autograd


def _other_classes(where: str, theirs: int, mine: int, sequences: bool) -> UsageError:
    if sequences:
        return UsageError(
            f"The cache {where} was written for {theirs:,} tokens, this student has {mine:,}.",
            "Student and teacher share a vocabulary.",
            "Give the student the teacher's tokenizer, and the vocabulary's size without padding.",
        )
    return UsageError(
        f"The cache {where} was written for {theirs} classes, this student has {mine}.",
        "Student and teacher tell the same classes apart.",
        "Give the student's factory the teacher's number of classes.",
    )


def check_labels(rows: DecodedRows, classes: int) -> None:
    """Raises SourceError, with the sample's id, for a label that is no class. rows: arrays or CPU tensors."""
    if rows.label is None:
        return
    # numpy's view of a tensor: it compares small arrays faster than torch.
    label = np.asarray(rows.label)
    outside = np.argwhere(((label < 0) & (label != IGNORED)) | (label >= classes))
    if len(outside):
        at = [int(axis) for axis in outside[0]]
        place, none = (f" at position {at[1]}", f"; {IGNORED} means that there is none") if len(at) > 1 else ("", "")
        raise SourceError(
            f"The sample '{rows.sample_id[at[0]]}' has the label {label[tuple(at)]}{place}.",
            f"The model has the classes 0 to {classes - 1}{none}.",
        )
