"""How good a student is on held-out rows: against the labels, and against the teacher that the cache remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from storage.shard import Rows
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import forward_kl, teacher_log_probs

ECE_BINS = 15


class Calibration:
    """Expected calibration error over bins of confidence, 15 of equal width (Guo et al. 2017, equation 3)."""

    def __init__(self) -> None:
        self.count = torch.zeros(ECE_BINS, dtype=torch.float64)
        self.confidence = torch.zeros(ECE_BINS, dtype=torch.float64)
        self.correct = torch.zeros(ECE_BINS, dtype=torch.float64)

    def add(self, log_probs_PV: torch.Tensor, label_P: torch.Tensor) -> None:
        top, guess = log_probs_PV.double().exp().max(dim=1)
        top, right = top.cpu(), (guess == label_P).double().cpu()
        # Bin b holds confidences in (b / 15, (b + 1) / 15].
        bins = (torch.ceil(top * ECE_BINS).long() - 1).clamp(0, ECE_BINS - 1)
        self.count.index_add_(0, bins, torch.ones_like(top))
        self.confidence.index_add_(0, bins, top)
        self.correct.index_add_(0, bins, right)

    def value(self) -> float:
        return float((self.confidence - self.correct).abs().sum() / self.count.sum())


def evaluate(logits_of: Callable[[Rows], torch.Tensor], batches: Iterable[Rows]) -> dict[str, float]:
    """Means over all rows; what the rows cannot tell is left out.

    With labels: accuracy, cross_entropy (nats), ece. With soft targets: kl_to_teacher (nats, T = 1),
    agreement_top1. With both: teacher_accuracy, teacher_cross_entropy, teacher_ece.
    """
    sums: dict[str, float] = {}
    student_ece, teacher_ece = Calibration(), Calibration()
    seen = 0

    def add(name: str, values_P: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + float(values_P.double().sum())

    with torch.inference_mode():
        for rows in batches:
            logits_PV = logits_of(rows).float()
            seen += len(logits_PV)
            targets: Any = rows.targets
            label: Any = rows.label
            guess = logits_PV.argmax(dim=1)
            if label is not None:
                add("accuracy", guess == label)
                add("cross_entropy", cross_entropy(logits_PV, label))
                student_ece.add(torch.log_softmax(logits_PV, dim=1), label)
            if targets is not None:
                log_p = teacher_log_probs(targets, 1.0)
                add("kl_to_teacher", forward_kl(logits_PV, targets, temperature=1.0))
                add("agreement_top1", guess == log_p.argmax(dim=1))
                if label is not None:
                    add("teacher_accuracy", log_p.argmax(dim=1) == label)
                    add("teacher_cross_entropy", -log_p.gather(1, label[:, None])[:, 0])
                    teacher_ece.add(log_p, label)
    means = {name: total / seen for name, total in sums.items()}
    if "accuracy" in means:
        means["ece"] = student_ece.value()
    if "teacher_accuracy" in means:
        means["teacher_ece"] = teacher_ece.value()
    return means
