"""Cross entropy with the labels: what learning without a teacher minimises."""

from __future__ import annotations

import torch


def cross_entropy(logits_PV: torch.Tensor, label_P: torch.Tensor) -> torch.Tensor:
    """-log q(label), q = softmax(logits); [P] in nats. Computed in float32 or the logits' higher precision."""
    z = logits_PV if logits_PV.dtype == torch.float64 else logits_PV.float()
    return torch.logsumexp(z, dim=1) - z.gather(1, label_P[:, None])[:, 0]
