"""Cross entropy with the labels: what learning without a teacher minimises."""

from __future__ import annotations

import torch

from storage.encodings.targets import IGNORED
from student_train.losses.checks import check_label
from student_train.losses.positions import indices
from student_train.losses.queries import Output, Query, Term
from student_train.losses.student_log_probs import single_loss

# Cross entropy has no temperature.
TEMPERATURE_POWER = 0


def term(label_P: torch.Tensor) -> Term:
    """-log q(label), q = softmax(logits); [P] in nats, and 0 where the label is IGNORED."""
    counts_P = label_P != IGNORED
    query = Query(ids_PK=label_P.clamp(min=0)[:, None])
    return Term(query, lambda result: torch.where(counts_P, -result.log_q_PK[:, 0], 0.0))


def cross_entropy(output: Output, label: torch.Tensor) -> torch.Tensor:
    """-log q(label), q = softmax(logits); [P] in nats, in float32 or the logits' higher precision.

    output: logits [R, V] or [R, L, V], or Unprojected; label: integers [R] or [R, L]. P is R or R * L: of sequences
    the positions are one axis. The value is 0, without a gradient, where the label is -100, as in
    torch.nn.functional.cross_entropy. Divide its sum by `count_positions(label)` for a mean.
    Raises UsageError for shapes that do not fit, SourceError for a label that is no class.
    """
    check_label(output, label)
    label_P = label.reshape(-1)
    at = indices(label_P != IGNORED)
    return single_loss(output, term(label_P[at]), at)
