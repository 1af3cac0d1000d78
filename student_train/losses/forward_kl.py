"""Forward Kullback-Leibler divergence from the softened teacher to the softened student."""

from __future__ import annotations

import torch

from storage.targets import DenseTargets


def forward_kl(logits_PV: torch.Tensor, targets: DenseTargets, *, temperature: float) -> torch.Tensor:
    """KL(p^T || q^T) with p^T = softmax(z_teacher / T), q^T = softmax(z_student / T); [P] in nats.

    The stored logits are divided by their own T_c already, so T_c / T brings them to T
    (Hinton, Vinyals & Dean 2015, equation 1). Not multiplied by T^2; see `combine`.
    """
    z = logits_PV if logits_PV.dtype == torch.float64 else logits_PV.float()
    log_q = torch.log_softmax(z / temperature, dim=1)
    log_p = teacher_log_probs(targets, temperature).to(z.dtype)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def teacher_log_probs(targets: DenseTargets, temperature: float) -> torch.Tensor:
    """log p^T [P, V] of dense targets, in float32 or their own higher precision."""
    stored = targets.logits_PV if targets.logits_PV.dtype == torch.float64 else targets.logits_PV.float()
    return torch.log_softmax(stored * (targets.temperature_P[:, None] / temperature), dim=1)
