"""Cross entropy with the labels: what learning without a teacher minimises."""

from __future__ import annotations

import torch

from student_train.losses.asks import Ask, Output, Term
from student_train.losses.picks import alone


def term(label_P: torch.Tensor) -> Term:
    """-log q(label), q = softmax(logits); [P] in nats."""
    return Term(Ask(ids_PK=label_P[:, None]), lambda picked: -picked.log_q_PK[:, 0])


def cross_entropy(output: Output, label_P: torch.Tensor) -> torch.Tensor:
    """-log q(label), q = softmax(logits); [P] in nats, in float32 or the logits' higher precision.

    output: logits [P, V], or Unprojected; of [R, L, V] the positions are one axis of R L. label_P: as many classes.
    """
    return alone(output, term(label_P.reshape(-1)))
