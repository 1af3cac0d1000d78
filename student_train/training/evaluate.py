"""How good a student is on held-out rows: against the labels, and against the teacher that the cache remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from jobs.models.model_call import apply_model
from storage.encodings.targets import IGNORED, Targets
from storage.format.rows import DecodedRows
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups, first_rows
from storage.stream.scan import scan
from storage.stream.torch_tensors import to_torch
from student_train.losses import Output
from student_train.losses.chunked_logits import logits
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import kl_divergence
from student_train.losses.positions import indices, kept, lead, mask_of
from student_train.training.fit import check_labels

ECE_BINS = 15
# Rows of a batch, and the logits that they have at most: as float32, 256 MiB.
ROWS, LOGITS = 512, 1 << 26


def rows_a_batch(classes: int, positions: int) -> int:
    """How many rows of so many positions each are evaluated at once."""
    return max(1, min(ROWS, LOGITS // (classes * positions)))


class Calibration:
    """Expected calibration error over bins of confidence, 15 of equal width (Guo et al. 2017, equation 3)."""

    def __init__(self) -> None:
        self.count = torch.zeros(ECE_BINS, dtype=torch.float64)
        self.confidence = torch.zeros(ECE_BINS, dtype=torch.float64)
        self.correct = torch.zeros(ECE_BINS, dtype=torch.float64)

    def add(self, log_top_P: torch.Tensor, right_P: torch.Tensor) -> None:
        """log_top_P: the log probability of each guess; right_P: whether it was right."""
        top, right = log_top_P.double().exp().cpu(), right_P.double().cpu()
        # Bin b holds confidences in (b / 15, (b + 1) / 15].
        bins = (torch.ceil(top * ECE_BINS).long() - 1).clamp(0, ECE_BINS - 1)
        self.count.index_add_(0, bins, torch.ones_like(top))
        self.confidence.index_add_(0, bins, top)
        self.correct.index_add_(0, bins, right)

    def value(self) -> float:
        return float((self.confidence - self.correct).abs().sum() / self.count.sum())


def evaluate_rows(
    model: torch.nn.Module, held_out: RowGroups, classes: int, device: str, reading: Reading
) -> dict[str, float]:
    """What `evaluate` gives for a model, which is put into eval mode, on all held-out rows. Raises SourceError."""
    model.eval()

    def batches() -> Iterator[DecodedRows]:
        positions = math.prod(lead(first_rows(held_out, 1)))
        for rows in scan(held_out, rows_a_batch(classes, positions), reading):
            check_labels(rows, classes)
            yield to_torch(rows, device)

    return evaluate(lambda rows: apply_model(model, rows.inputs), batches())


def evaluate(logits_of: Callable[[DecodedRows], Output], batches: Iterable[DecodedRows]) -> dict[str, float]:
    """Means over all positions that count; what the rows cannot tell is left out.

    Over the positions with a label: accuracy, cross_entropy (nats), ece. Over those with a soft target: kl_to_teacher
    (nats, T = 1; of a teacher whose likeliest ids were kept, with all others as one class, which is no more than the
    whole), agreement_top1. Over those with both: teacher_accuracy, teacher_cross_entropy, teacher_ece.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    student_ece, teacher_ece = Calibration(), Calibration()

    def add(name: str, values_P: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(values_P.double().sum())
        counts[name] = counts.get(name, 0) + len(values_P)

    # Not inference_mode: a model that keeps tables of its first call could not be trained with them afterwards.
    with torch.no_grad():
        for logits_PV, label, targets in _pieces(logits_of, batches):
            guess = logits_PV.argmax(dim=1)
            labelled = slice(None) if label is None else indices(label != IGNORED)
            if label is not None:
                hard_PV, right = logits_PV[labelled], guess[labelled] == label[labelled]
                add("accuracy", right)
                add("cross_entropy", cross_entropy(hard_PV, label[labelled]))
                student_ece.add(-cross_entropy(hard_PV, guess[labelled]), right)
            if targets is not None:
                add("kl_to_teacher", kl_divergence(logits_PV, targets, temperature=1.0))
                top, log_top = (found_P1[:, 0] for found_P1 in targets.top(1))
                add("agreement_top1", guess == top)
                if label is not None:
                    right = top[labelled] == label[labelled]
                    add("teacher_accuracy", right)
                    add("teacher_cross_entropy", -targets.label_log_prob(label)[labelled])
                    teacher_ece.add(log_top[labelled], right)
    means = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    if "accuracy" in means:
        means["ece"] = student_ece.value()
    if "teacher_accuracy" in means:
        means["teacher_ece"] = teacher_ece.value()
    return means


def _pieces(
    logits_of: Callable[[DecodedRows], Output], batches: Iterable[DecodedRows]
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Targets | None]]:
    """Logits [C, V] of some positions that count, with their labels [C] and targets."""
    for rows in batches:
        at = indices(mask_of(rows, "label" if rows.targets is None else "targets"))
        of = kept(rows, at)
        for piece, logits_CV in logits(logits_of(rows), at):
            label: Any = None if of.label is None else of.label[piece].long()
            yield logits_CV, label, None if of.targets is None else of.targets.each(lambda a, piece=piece: a[piece])
