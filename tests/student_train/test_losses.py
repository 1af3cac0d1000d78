"""Every loss of the table keeps the promises of its room, and the numbers are those of the formulas."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from storage.encodings.dense import COLUMN, Dense
from storage.errors import RecipeError
from storage.shard import Rows
from storage.targets import IGNORED, DenseTargets
from student_train.losses import LOSSES, Unprojected, combine
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import TAILS, forward_kl, teacher_log_probs
from student_train.positions import counted
from tests.student_train.sparse import GRID, top_k

P, V = 12, 7
ROUNDING = 2.0**-11  # float16, relative
SOFT = [name for name, loss in LOSSES.items() if loss.needs == "targets"]

# Soft losses on whole targets, and on sparse ones with each tail: "forward_kl, bucket".
SPARSE = [f"{name}, {tail}" for name in SOFT for tail in TAILS]
CASES = [*LOSSES, *SPARSE]
# What stays a divergence of whole distributions: sparse ones are where the tail is kept in some way.
DIVERGENCES = [name for name, loss in LOSSES.items() if loss.zero_when_equal]
KEPT, UNIGRAM = 3, torch.softmax(torch.arange(V, dtype=torch.float64), dim=0)

all_losses = pytest.mark.parametrize("name", CASES)


def draw(seed: int, rows: int = P, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stored(logits_PV: torch.Tensor, temperature: float = 1.0) -> DenseTargets:
    """What a cache would hold of a teacher's logits, without its rounding."""
    softened = logits_PV / temperature
    return DenseTargets(
        softened - softened.amax(dim=1, keepdim=True), torch.full((len(logits_PV),), temperature, dtype=logits_PV.dtype)
    )


def kept(logits_PV: torch.Tensor, temperature: float) -> DenseTargets:
    """What a cache holds: through the encoding, rounded to float16."""
    encoding = Dense(temperature=temperature)
    column = encoding.encode(stored(logits_PV, temperature).each(lambda array: array.numpy().astype(np.float32)))[0]
    array = np.frombuffer(column.buffers()[1], np.float16).reshape(len(logits_PV), V)
    targets = encoding.decode({COLUMN: array}, V)
    return DenseTargets(torch.tensor(targets.logits_PV), torch.tensor(targets.temperature_P))


def reference(name: str, rows: int = P, seed: int = 100, dtype: torch.dtype = torch.float64) -> Any:
    """What a loss compares the student with: labels, or a teacher's soft targets."""
    if name in SPARSE:
        return top_k(draw(seed, rows, dtype), KEPT)
    if LOSSES[name].needs == "label":
        return torch.arange(rows) % V
    return stored(draw(seed, rows, dtype), 2.0)


def subset(values: Any, keep_P: torch.Tensor) -> Any:
    return values[keep_P] if isinstance(values, torch.Tensor) else values.each(lambda array: array[keep_P])


def apply(name: str, logits_PV: torch.Tensor, compared: Any, temperature: float = 2.0) -> torch.Tensor:
    name, _, tail = name.partition(", ")
    more: dict[str, Any] = {"temperature": temperature} if LOSSES[name].needs == "targets" else {}
    if tail:
        more |= {"tail": tail, "unigram": UNIGRAM}
    return LOSSES[name].function(logits_PV, compared, **more)


# The conformance test of the room: a new loss is tested by being in the table.

EXTREMES = {
    "random": draw(1, dtype=torch.float32),
    "equal": torch.zeros(P, V),
    "certain": 1e4 * torch.eye(V)[torch.arange(P) % V],
    "wrong": -1e4 * torch.eye(V)[torch.arange(P) % V],
    "huge": draw(2, dtype=torch.float32, scale=1e20),
    "half": draw(3, dtype=torch.float32).half(),
    "brain": draw(4, dtype=torch.float32).bfloat16(),
    "half at its end": 65504 * torch.eye(V)[torch.arange(P) % V].half(),
}


@all_losses
@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("kind", EXTREMES)
def test_finite_with_finite_gradients_one_value_a_position(name: str, kind: str, temperature: float) -> None:
    logits_PV = EXTREMES[kind].clone().requires_grad_()
    loss_P = apply(name, logits_PV, reference(name, dtype=torch.float32), temperature)
    assert loss_P.shape == (P,)
    assert torch.isfinite(loss_P).all()
    loss_P.sum().backward()
    assert logits_PV.grad is not None and torch.isfinite(logits_PV.grad).all()


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("low", [-20.0, -65504.0])
def test_finite_for_classes_that_the_teacher_rules_out(name: str, low: float) -> None:
    logits_PV = torch.full((P, V), low)
    logits_PV[:, 0] = 0.0
    targets = DenseTargets(logits_PV.half(), torch.full((P,), 4.0))
    assert torch.isfinite(apply(name, draw(5, dtype=torch.float32), targets, 0.5)).all()


@all_losses
def test_masking_equals_dropping(name: str) -> None:
    logits_PV, compared = draw(6), reference(name)
    keep_P = torch.arange(P) % 3 != 1
    whole_P = apply(name, logits_PV, compared)
    dropped_P = apply(name, logits_PV[keep_P], subset(compared, keep_P))
    assert len(dropped_P) == int(keep_P.sum()) < P
    torch.testing.assert_close(whole_P[keep_P], dropped_P, rtol=1e-14, atol=1e-14)


@all_losses
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    logits_PV = draw(7, rows=4).requires_grad_()
    compared = reference(name, rows=4)
    assert torch.autograd.gradcheck(lambda z: apply(name, z, compared, 8.0), (logits_PV,))


@all_losses
def test_the_same_for_logits_that_differ_by_a_constant_a_row(name: str) -> None:
    logits_PV, compared = draw(8), reference(name)
    moved = logits_PV + torch.linspace(-50, 50, P, dtype=torch.float64)[:, None]
    torch.testing.assert_close(apply(name, moved, compared), apply(name, logits_PV, compared), rtol=1e-9, atol=1e-11)


@all_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_logits_are_counted_in_float32(name: str, dtype: torch.dtype) -> None:
    logits_PV = draw(9, dtype=torch.float32).to(dtype)
    loss_P = apply(name, logits_PV, reference(name, dtype=torch.float32))
    assert loss_P.dtype == torch.float32
    torch.testing.assert_close(loss_P, apply(name, logits_PV.float(), reference(name, dtype=torch.float32)))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("stored_at", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_a_divergence_vanishes_where_student_and_teacher_agree_and_only_there(
    name: str, stored_at: float, temperature: float
) -> None:
    teacher_PV = draw(10, scale=1.0)
    targets = stored(teacher_PV, stored_at)
    shift_P1 = torch.arange(P, dtype=torch.float64)[:, None]
    assert apply(name, teacher_PV + shift_P1, targets, temperature).abs().max() < 1e-12
    other_PV = teacher_PV.clone()
    other_PV[:, 3] += 0.5
    assert (apply(name, other_PV, targets, temperature) > 1e-6).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", GRID)
def test_of_sparse_losses_those_with_a_tail_vanish_where_student_and_teacher_agree(
    tail: str, temperature: float
) -> None:
    """The bucket for a teacher of any tail, unigram for one whose tail has its form; the others at no other place."""
    teacher_PV = draw(10, scale=1.0)
    ids_PK = teacher_PV.argsort(dim=1, descending=True)[:, :KEPT]
    # A teacher whose tail at this temperature is as the unigram has it, below its ids.
    formed_PV = (temperature * UNIGRAM.log())[None] - 20 + torch.zeros_like(teacher_PV)
    formed_PV = formed_PV.scatter(1, ids_PK, teacher_PV.gather(1, ids_PK))
    loss_P = apply(f"forward_kl, {tail}", formed_PV, top_k(formed_PV, KEPT), temperature)
    tau_P = top_k(formed_PV, KEPT).log_tail_PG[:, GRID.index(temperature)].exp()
    # renormalise: KL(p / a || p) = -log a; none: the terms are 0 one by one.
    expected_P = -torch.log1p(-tau_P) if tail == "renormalise" else torch.zeros(P, dtype=torch.float64)
    torch.testing.assert_close(loss_P, expected_P, rtol=1e-9, atol=1e-12)
    other_PV = formed_PV.clone()
    other_PV.scatter_add_(1, ids_PK[:, :1], torch.full((P, 1), -0.5, dtype=torch.float64))
    if tail != "none":
        assert (apply(f"forward_kl, {tail}", other_PV, top_k(formed_PV, KEPT), temperature) > expected_P + 1e-6).all()


def test_a_bucket_is_no_more_than_the_whole_divergence_and_none_may_be_negative() -> None:
    student_PV, teacher_PV = draw(30), draw(31)
    whole_P = forward_kl(student_PV, stored(teacher_PV), temperature=2.0)
    found = {tail: apply(f"forward_kl, {tail}", student_PV, top_k(teacher_PV, KEPT)) for tail in TAILS}
    assert (found["bucket"] <= whole_P + 1e-12).all() and (found["bucket"] > 0).all()
    assert (apply("forward_kl, none", 5 * teacher_PV, top_k(teacher_PV, KEPT)) < 0).any()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"temperature": 3.0}, r"temperature 3 is not in the grid.*0.5, 1, 2, 8"),
        ({"temperature": 2.0, "tail": "buket"}, "The tail 'buket' is not known. Did you mean 'bucket'.*renormalise"),
        ({"temperature": 2.0, "tail": "unigram"}, "was given no unigram"),
    ],
)
def test_what_sparse_targets_cannot_serve_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        forward_kl(draw(1), top_k(draw(2), KEPT), **keys)


def test_dense_targets_have_no_tail() -> None:
    with pytest.raises(RecipeError, match=r"'none', and dense targets have no tail.*Leave tail out"):
        forward_kl(draw(1), stored(draw(2)), temperature=1.0, tail="none")


@pytest.mark.parametrize("kind", ["topk", "dense"])
@pytest.mark.parametrize("fused", [True, False])
def test_positions_without_a_label_are_left_out_of_every_loss_and_gradient(kind: str, fused: bool) -> None:
    """Sequences of 4 positions, three of them: what `combine` makes is what it makes of the positions that count."""
    label = torch.arange(P) % V
    label[[1, 6, 11]] = IGNORED
    targets: Any = top_k(draw(41), KEPT) if kind == "topk" else stored(draw(41))
    keep = counted(label)
    shaped = targets.each(lambda array: array.reshape(3, 4, *array.shape[1:]))
    sections = {"forward_kl": Weight(0.7, 2.0), "cross_entropy": Weight(0.3)}
    gradients = []
    for rows, some in (
        (rows_of(shaped, label.reshape(3, 4)), None),
        (rows_of(shaped, label.reshape(3, 4)), keep),
        (rows_of(subset(targets, keep), label[keep]), slice(None)),
    ):
        hidden, weight = draw(42)[:, :5].clone().requires_grad_(), draw(43, V)[:, :5].clone().requires_grad_()
        given = hidden.reshape(3, 4, 5) if len(rows.label.shape) == 2 else hidden[keep]  # type: ignore[union-attr]
        output = Unprojected(given, weight) if fused else given @ weight.t()
        total_P, parts = combine(sections, output, rows, at=some)
        assert total_P.shape == parts["cross_entropy"].shape == (P - 3,)
        total_P.sum().backward()
        assert hidden.grad is not None and (hidden.grad[[1, 6, 11]] == 0).all()
        gradients.append((total_P.detach(), hidden.grad, weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("stored_at", [0.7, 2.0, 3.0])
def test_the_temperature_of_storage_moves_the_loss_by_rounding_only(name: str, stored_at: float) -> None:
    teacher_PV, student_PV, temperature = draw(11), draw(12), 3.0
    first_P = apply(name, student_PV, kept(teacher_PV, 1.0), temperature)
    second_P = apply(name, student_PV, kept(teacher_PV, stored_at), temperature)
    # A teacher logit z is kept to |z - max| * 2^-11 whatever T_c is, and d KL / d(z_i / T) = p_i (log p_i / q_i - KL).
    log_p = torch.log_softmax(teacher_PV / temperature, dim=1)
    log_q = torch.log_softmax(student_PV / temperature, dim=1)
    kl_P1 = (log_p.exp() * (log_p - log_q)).sum(dim=1, keepdim=True)
    kept_to = ROUNDING * (teacher_PV - teacher_PV.amax(dim=1, keepdim=True)).abs() / temperature
    bound_P = 2 * (log_p.exp() * (log_p - log_q - kl_P1).abs() * kept_to).sum(dim=1)
    assert ((first_P - second_P).abs() <= 1.1 * bound_P + 1e-6).all()
    assert first_P.min() > 0.01


# Forward KL.


def targets_of(probabilities: list[float], temperature: float = 1.0) -> DenseTargets:
    log_p = torch.tensor([probabilities], dtype=torch.float64).log()
    return DenseTargets(log_p - log_p.max(), torch.tensor([temperature], dtype=torch.float64))


@pytest.mark.parametrize(
    ("teacher", "stored_at", "student", "temperature", "expected"),
    [
        # 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = 1/2 ln(4/3)
        ([0.5, 0.5], 1.0, [0.25, 0.75], 1.0, 0.5 * math.log(4 / 3)),
        # (9/10, 1/10) at T = 1 is (3/4, 1/4) at T = 2; so is the student's: against (1/2, 1/2) ...
        ([0.9, 0.1], 1.0, [0.5, 0.5], 2.0, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        # ... and kept at T_c = 2 as (3/4, 1/4), it is (9/10, 1/10) again at T = 1.
        ([0.75, 0.25], 2.0, [0.5, 0.5], 1.0, 0.9 * math.log(1.8) + 0.1 * math.log(0.2)),
        ([0.75, 0.25], 2.0, [0.9, 0.1], 1.0, 0.0),
    ],
)
def test_forward_kl_by_hand(
    teacher: list[float], stored_at: float, student: list[float], temperature: float, expected: float
) -> None:
    logits_PV = torch.tensor([student], dtype=torch.float64).log() + 4.0
    loss_P = forward_kl(logits_PV, targets_of(teacher, stored_at), temperature=temperature)
    assert float(loss_P[0]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_forward_kl_is_torchs(temperature: float) -> None:
    student_PV, teacher_PV = draw(13), draw(14)
    expected_P = torch.nn.functional.kl_div(
        torch.log_softmax(student_PV / temperature, dim=1),
        torch.log_softmax(teacher_PV / temperature, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    found_P = forward_kl(student_PV, stored(teacher_PV, 2.0), temperature=temperature)
    torch.testing.assert_close(found_P, expected_P, rtol=1e-12, atol=1e-14)


def test_forward_kl_reads_each_positions_own_storage_temperature() -> None:
    teacher_PV, student_PV = draw(15, rows=2), draw(16, rows=2)
    one, two = stored(teacher_PV[:1], 1.0), stored(teacher_PV[1:], 4.0)
    both = DenseTargets(torch.cat([one.logits_PV, two.logits_PV]), torch.cat([one.temperature_P, two.temperature_P]))
    torch.testing.assert_close(
        forward_kl(student_PV, both, temperature=3.0), forward_kl(student_PV, stored(teacher_PV), temperature=3.0)
    )


def test_forward_kl_gives_the_teacher_no_gradient_it_did_not_ask_for() -> None:
    targets = stored(draw(17))
    forward_kl(draw(18).requires_grad_(), targets, temperature=2.0).sum().backward()
    assert targets.logits_PV.grad is None


def test_teacher_log_probs_sum_to_one_at_every_temperature() -> None:
    for temperature in (0.5, 1.0, 3.0):
        total_P = teacher_log_probs(kept(draw(19), 2.0), temperature).exp().sum(dim=1)
        torch.testing.assert_close(total_P, torch.ones(P))


# Cross entropy.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_torchs(dtype: torch.dtype) -> None:
    logits_PV, label_P = draw(20, dtype=dtype), torch.arange(P) % V
    expected_P = torch.nn.functional.cross_entropy(logits_PV, label_P, reduction="none")
    torch.testing.assert_close(cross_entropy(logits_PV, label_P), expected_P)


def test_cross_entropy_by_hand() -> None:
    logits_PV = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64).log()
    found = cross_entropy(logits_PV, torch.tensor([0, 1])).tolist()
    assert found == pytest.approx([math.log(5), math.log(2)], abs=1e-14)


# Their sum.


class Weight(NamedTuple):
    weight: float = 1.0
    temperature: float = 1.0
    tail: str | None = None


def rows_of(targets: DenseTargets | None, label_P: torch.Tensor | None) -> Rows:
    return Rows(np.arange(P), {}, label_P, targets)  # type: ignore[arg-type]


def both() -> tuple[torch.Tensor, Rows, torch.Tensor, torch.Tensor]:
    """A student's logits, rows with targets and labels, and the two losses at T = 3."""
    logits_PV, targets, label_P = draw(21), stored(draw(22), 2.0), torch.arange(P) % V
    return (
        logits_PV,
        rows_of(targets, label_P),
        forward_kl(logits_PV, targets, temperature=3.0),
        cross_entropy(logits_PV, label_P),
    )


def test_soft_losses_mixed_with_hard_ones_are_multiplied_by_the_squared_temperature() -> None:
    logits_PV, rows, soft_P, hard_P = both()
    total_P, _ = combine({"forward_kl": Weight(0.7, 3.0), "cross_entropy": Weight(0.3)}, logits_PV, rows)
    torch.testing.assert_close(total_P, 0.7 * 9 * soft_P + 0.3 * hard_P)


def test_a_soft_loss_alone_is_not_multiplied() -> None:
    logits_PV, rows, soft_P, _ = both()
    total_P, parts = combine({"forward_kl": Weight(0.7, 3.0)}, logits_PV, rows)
    torch.testing.assert_close(total_P, 0.7 * soft_P)
    assert list(parts) == ["forward_kl"]


def test_a_hard_loss_alone_needs_no_targets() -> None:
    logits_PV, rows, _, hard_P = both()
    total_P, _ = combine({"cross_entropy": Weight(2.0)}, logits_PV, rows_of(None, rows.label))  # type: ignore[arg-type]
    torch.testing.assert_close(total_P, 2.0 * hard_P)


def test_parts_are_the_losses_unweighted() -> None:
    logits_PV, rows, soft_P, hard_P = both()
    _, parts = combine({"forward_kl": Weight(0.7, 3.0), "cross_entropy": Weight(0.0)}, logits_PV, rows)
    torch.testing.assert_close(parts["forward_kl"], soft_P)
    torch.testing.assert_close(parts["cross_entropy"], hard_P)


def test_a_weight_of_zero_gives_no_gradient() -> None:
    logits_PV, rows, _, _ = both()
    logits_PV.requires_grad_()
    total_P, _ = combine({"forward_kl": Weight(0.0, 3.0), "cross_entropy": Weight(1.0)}, logits_PV, rows)
    (found,) = torch.autograd.grad(total_P.sum(), logits_PV)
    (alone,) = torch.autograd.grad(cross_entropy(logits_PV, rows.label).sum(), logits_PV)  # type: ignore[arg-type]
    torch.testing.assert_close(found, alone)


def test_the_squared_temperature_keeps_the_soft_gradient_from_shrinking() -> None:
    """Hinton, Vinyals & Dean 2015, equation 4: at high T the gradient of T^2 KL tends to (z - z_teacher) / V."""
    student_PV, teacher_PV = draw(23, scale=0.5), draw(24, scale=0.5)
    student_PV, teacher_PV = (z - z.mean(dim=1, keepdim=True) for z in (student_PV, teacher_PV))
    student_PV.requires_grad_()
    rows = rows_of(stored(teacher_PV), torch.zeros(P, dtype=torch.int64))
    total_P, _ = combine({"forward_kl": Weight(1.0, 1000.0), "cross_entropy": Weight(0.0)}, student_PV, rows)
    (found,) = torch.autograd.grad(total_P.sum(), student_PV)
    torch.testing.assert_close(found, (student_PV - teacher_PV).detach() / V, rtol=0, atol=1e-3)
