"""Forward Kullback-Leibler divergence from the softened teacher to the softened student."""

from __future__ import annotations

from typing import Any

import torch

from storage.base.errors import RecipeError
from storage.base.names import nearest
from storage.encodings.targets import Sparse, Targets
from student_train.losses.checks import check_targets
from student_train.losses.positions import indices, take
from student_train.losses.queries import Output, Query, QueryResult, Term
from student_train.losses.softmax_passes import outside
from student_train.losses.student_log_probs import single_loss

# The gradient of the KL divergence shrinks by 1 / T^2 (Hinton, Vinyals & Dean 2015, section 2).
TEMPERATURE_POWER = 2

TAILS = ("bucket", "unigram", "renormalise", "none")


def forward_kl(
    output: Output,
    targets: Targets,
    *,
    temperature: float,
    tail: str | None = None,
    unigram: torch.Tensor | None = None,
) -> torch.Tensor:
    """T^2 KL(p^T || q^T) with p^T = softmax(z_teacher / T), q^T = softmax(z_student / T); [P] in nats.

    The factor T^2 keeps the size of the gradient at every temperature; `kl_divergence` is the same without it.
    output: logits [R, V] or [R, L, V], or Unprojected; targets: of the same rows. P is R or R * L: of sequences the
    positions are one axis. The value is in float32 or the logits' higher precision. It is 0, without a gradient, where
    the targets' mask is False. Divide its sum by `count_positions(targets)` for a mean.
    tail: what is made of the mass tau that the teacher has outside its kept ids S; only where a teacher has ids:
      bucket (as None): all other classes are one,
        sum_S p (log p - log q) + tau (log tau - log tau_q);
        no more than the whole KL, by the data processing inequality.
      unigram: tau is spread over the others as `unigram` [V] is, a distribution of positive probabilities u,
        sum_S p (log p - log q) + tau (log tau + sum v log v - sum v log q), v_j = u_j / sum_outside u.
      renormalise: S is all there is, sum_S p/a (log p/a - log q) with a = sum_S p; the gradient is q - p/a.
      none: the others are left out, sum_S p (log p - log q); the gradient is a q - p. No divergence: less than 0 where
        a student has more of S than its teacher.
    A class that the teacher rules out (logit -inf) has p = 0 and adds nothing. One that only the student rules out
    makes the value infinite.
    Formulas: Hinton, Vinyals & Dean 2015, equation 1; of sparse targets `storage.encodings.targets` and w = p in
    dL/dy = (sum w) q - w. Raises UsageError for shapes and classes that do not fit, RecipeError for a tail that is not
    known or that the targets do not have, and for a temperature outside their grid.
    """
    more: dict[str, Any] = {"temperature": temperature, "tail": tail, "unigram": unigram}
    return temperature**TEMPERATURE_POWER * kl_divergence(output, targets, **more)


def kl_divergence(
    output: Output,
    targets: Targets,
    *,
    temperature: float = 1.0,
    tail: str | None = None,
    unigram: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(p^T || q^T) [P] in nats, as `forward_kl` without its factor T^2: what training and evaluation report."""
    check_targets(output, targets, temperature)
    at = indices(targets.mask_P)
    return single_loss(output, term(take(targets, at), temperature=temperature, tail=tail, unigram=unigram), at)


def term(targets: Targets, *, temperature: float, tail: str | None = None, unigram: torch.Tensor | None = None) -> Term:
    """The query of `kl_divergence`, and its value; of targets with one axis of positions. Raises RecipeError."""
    if tail is not None and tail not in TAILS:
        raise RecipeError(
            f"The tail '{tail}' is not known.{nearest(tail, TAILS)}", f"It is one of: {', '.join(TAILS)}."
        )
    sparse = targets.sparse(temperature)
    if sparse is not None:
        return _sparse(sparse, temperature, tail or "bucket", unigram)
    if tail is not None:
        raise RecipeError(
            f"forward_kl was given the tail '{tail}', and {targets.kind} targets have no tail.",
            "They hold every class.",
            "Leave tail out.",
        )
    query = Query(temperature, mean=lambda piece: targets[piece].log_probs(temperature))
    return Term(query, lambda result: result.mean_log_m_P - result.mean_log_q_P)


def _sparse(sparse: Sparse, temperature: float, tail: str, unigram: torch.Tensor | None) -> Term:
    ids_PK, log_p_PK, log_tau_P = sparse
    p_PK, tau_P = log_p_PK.exp(), log_tau_P.exp()
    weight_PK = p_PK

    def value(result: QueryResult) -> torch.Tensor:
        # A class of probability 0 adds nothing; 0 times -inf is no number.
        terms_PK = torch.where(weight_PK > 0, weight_PK * (log_p_PK - result.log_q_PK), 0.0)
        return terms_PK.sum(dim=1)

    def with_tail(log_rest_P: torch.Tensor) -> torch.Tensor:
        """tau (log tau - log_rest), and nothing where there is no tail: 0 times -inf is no number."""
        return torch.where(tau_P > 0, tau_P * (log_tau_P - log_rest_P), torch.zeros_like(log_rest_P))

    if tail == "bucket":
        query = Query(temperature, ids_PK, tail=True)
        return Term(query, lambda result: value(result) + with_tail(result.log_tail_P))
    if tail == "unigram":
        if unigram is None:
            raise RecipeError(
                "The tail 'unigram' was given no unigram.", "It is a distribution [V].", "Give the teacher's mean one."
            )
        # Sums in float64, as they are differences of large ones where the ids hold nearly all of u.
        u_V, u_PK = unigram.double(), unigram.double()[ids_PK]
        mass_P = outside(unigram, ids_PK).clamp(min=torch.finfo(torch.float64).tiny)
        spread_P = torch.xlogy(u_V, u_V).sum() - torch.xlogy(u_PK, u_PK).sum(dim=1)
        log_v_P = spread_P / mass_P - mass_P.log()

        def completed(result: QueryResult) -> torch.Tensor:
            mean_P = result.mean_log_q_P
            rest_P = (mean_P.double() / mass_P - log_v_P).to(mean_P.dtype)
            return value(result) + with_tail(rest_P)

        return Term(Query(temperature, ids_PK, mean=unigram), completed)
    if tail == "renormalise":
        log_p_PK = log_p_PK - torch.logsumexp(log_p_PK, dim=1, keepdim=True)
        weight_PK = log_p_PK.exp()
    return Term(Query(temperature, ids_PK), value)
