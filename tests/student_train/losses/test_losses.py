"""Every loss of the table keeps the promises of its room, and the numbers are those of the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

from storage.base.errors import RecipeError, SourceError, UsageError
from storage.encodings.dense import COLUMN, Dense, DenseTargets
from storage.encodings.targets import IGNORED, Sparse, Targets, with_mask
from storage.format.rows import DecodedRows
from student_train.losses import LOSSES, Unprojected, count_positions, factor, loss_parts
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import TAILS, forward_kl, kl_divergence
from student_train.losses.positions import indices
from tests.storage.encodings.test_targets import factored
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
@pytest.mark.parametrize("kind", EXTREMES)
def test_finite_with_finite_gradients_one_value_a_position(name: str, kind: str) -> None:
    for temperature in (0.5, 1.0, 8.0):
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
    expected_P = temperature**2 * expected_P
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
    """Three sequences of 4 positions: their losses are those of the positions that count."""
    label = torch.arange(P) % V
    label[[1, 6, 11]] = IGNORED
    targets: Any = top_k(draw(41), KEPT) if kind == "topk" else stored(draw(41))
    keep = indices(label != IGNORED)
    shaped = targets.each(lambda array: array.reshape(3, 4, *array.shape[1:]))
    shaped = replace(shaped, mask_P=label.reshape(3, 4) != IGNORED)
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
        parts = loss_parts(sections, output, rows, at=some)
        total_P = objective(sections, parts)
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
    power = LOSSES[name].temperature_power
    assert ((first_P - second_P).abs() <= temperature**power * (1.1 * bound_P + 1e-6)).all()
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
    targets = targets_of(teacher, stored_at)
    assert float(kl_divergence(logits_PV, targets, temperature=temperature)[0]) == pytest.approx(expected, abs=1e-14)
    scaled = temperature**2 * expected
    assert float(forward_kl(logits_PV, targets, temperature=temperature)[0]) == pytest.approx(scaled, abs=1e-13)


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
    torch.testing.assert_close(found_P, temperature**2 * expected_P, rtol=1e-12, atol=1e-14)


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
        total_P = kept(draw(19), 2.0).log_probs(temperature).exp().sum(dim=1)
        torch.testing.assert_close(total_P, torch.ones(P))


# Another encoding.


def test_targets_that_give_logits_are_trained_from_as_dense_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, dense = (targets.each(torch.from_numpy) for targets in factored())
    student_PV = torch.randn(6, 11, generator=torch.Generator().manual_seed(80), dtype=torch.float64)
    for temperature in (1.0, 3.0):
        found, expected = (forward_kl(student_PV, targets, temperature=temperature) for targets in (mine, dense))
        assert (found > 0).all()
        torch.testing.assert_close(found, expected)
        with monkeypatch.context() as chunks_of_two:
            chunks_of_two.setattr("student_train.losses.chunked_logits.CPU_BYTES", 2 * 11 * 8)
            torch.testing.assert_close(forward_kl(student_PV, mine, temperature=temperature), expected)
    with pytest.raises(RecipeError, match="factored targets have no tail"):
        forward_kl(student_PV, mine, temperature=1.0, tail="bucket")


@dataclass(frozen=True)
class Drawn(Targets):
    """Weighted ids, for one temperature."""

    kind: ClassVar[str] = "drawn"
    ids_PK: Any
    log_weights_PK: Any
    classes: int
    mask_P: Any = None

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.ids_PK.shape[:-1])

    def sparse(self, temperature: float) -> Sparse:
        if temperature != 2.0:
            raise RecipeError("These ids were drawn at the temperature 2.")
        return Sparse(self.ids_PK, self.log_weights_PK, torch.full(self.lead, -torch.inf, dtype=torch.float64))


def test_targets_that_give_ids_and_weights_are_trained_from() -> None:
    ids_PK, weights_PK = torch.tensor([[0, 3], [5, 1]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    targets, student_PV = Drawn(ids_PK, weights_PK.log(), 7), draw(81, rows=2)
    log_q_PK = torch.log_softmax(student_PV / 2.0, dim=1).gather(1, ids_PK)
    expected = (weights_PK * (weights_PK.log() - log_q_PK)).sum(dim=1)
    for tail in (None, "bucket", "none"):
        torch.testing.assert_close(kl_divergence(student_PV, targets, temperature=2.0, tail=tail), expected)
    with pytest.raises(RecipeError, match="drawn at the temperature 2"):
        kl_divergence(student_PV, targets, temperature=1.0)


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


def rows_of(targets: DenseTargets | None, label_P: torch.Tensor | None) -> DecodedRows:
    return DecodedRows(np.arange(P), {}, label_P, targets)  # type: ignore[arg-type]


def both() -> tuple[torch.Tensor, DecodedRows, torch.Tensor, torch.Tensor]:
    """A student's logits, rows with targets and labels, and the two losses at T = 3."""
    logits_PV, targets, label_P = draw(21), stored(draw(22), 2.0), torch.arange(P) % V
    return (
        logits_PV,
        rows_of(targets, label_P),
        forward_kl(logits_PV, targets, temperature=3.0),
        cross_entropy(logits_PV, label_P),
    )


def objective(sections: dict[str, Any], parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The objective [P] where all positions count for all losses."""
    return torch.stack([factor(name, sections[name]) * part for name, part in parts.items()]).sum(dim=0)


@pytest.mark.parametrize("hard", [0.3, 0.0, None])
def test_the_power_of_the_temperature_applies_whatever_stands_beside_a_loss(hard: float | None) -> None:
    logits_PV, rows, soft_P, hard_P = both()
    sections = {"forward_kl": Weight(0.7, 3.0), **({} if hard is None else {"cross_entropy": Weight(hard)})}
    parts = loss_parts(sections, logits_PV, rows)
    torch.testing.assert_close(objective(sections, parts), 0.7 * soft_P + (hard or 0.0) * hard_P)
    # What is reported is the divergence itself.
    torch.testing.assert_close(parts["forward_kl"], soft_P / 9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_declares_the_power_of_the_temperature_that_keeps_its_gradients_size(name: str) -> None:
    loss, logits_PV = LOSSES[name], draw(50)
    if loss.needs == "label":
        assert loss.temperature_power == 0
        return
    rows = rows_of(stored(draw(51)), None)
    for temperature in (0.5, 1.0, 2.0, 4.0):
        part_P = loss_parts({name: Weight(1.0, temperature)}, logits_PV, rows)[name]
        function_P = loss.function(logits_PV, rows.targets, temperature=temperature)
        torch.testing.assert_close(function_P, temperature**loss.temperature_power * part_P)
    sizes = []
    for temperature in (300.0, 3000.0):
        student_PV = draw(52).requires_grad_()
        loss.function(student_PV, stored(draw(53)), temperature=temperature).sum().backward()
        assert student_PV.grad is not None
        sizes.append(float(student_PV.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_hard_loss_alone_needs_no_targets() -> None:
    logits_PV, rows, _, hard_P = both()
    sections = {"cross_entropy": Weight(2.0)}
    parts = loss_parts(sections, logits_PV, rows_of(None, rows.label))  # type: ignore[arg-type]
    torch.testing.assert_close(objective(sections, parts), 2.0 * hard_P)


def test_a_weight_of_zero_gives_no_gradient() -> None:
    logits_PV, rows, _, _ = both()
    logits_PV.requires_grad_()
    sections = {"forward_kl": Weight(0.0, 3.0), "cross_entropy": Weight(1.0)}
    total_P = objective(sections, loss_parts(sections, logits_PV, rows))
    (found,) = torch.autograd.grad(total_P.sum(), logits_PV)
    (alone,) = torch.autograd.grad(cross_entropy(logits_PV, rows.label).sum(), logits_PV)  # type: ignore[arg-type]
    torch.testing.assert_close(found, alone)


def test_the_squared_temperature_keeps_the_soft_gradient_from_shrinking() -> None:
    """Hinton, Vinyals & Dean 2015, equation 4: at high T the gradient of T^2 KL tends to (z - z_teacher) / V."""
    student_PV, teacher_PV = draw(23, scale=0.5), draw(24, scale=0.5)
    student_PV, teacher_PV = (z - z.mean(dim=1, keepdim=True) for z in (student_PV, teacher_PV))
    student_PV.requires_grad_()
    rows = rows_of(stored(teacher_PV), torch.zeros(P, dtype=torch.int64))
    sections = {"forward_kl": Weight(1.0, 1000.0), "cross_entropy": Weight(0.0)}
    total_P = objective(sections, loss_parts(sections, student_PV, rows))
    (found,) = torch.autograd.grad(total_P.sum(), student_PV)
    torch.testing.assert_close(found, (student_PV - teacher_PV).detach() / V, rtol=0, atol=1e-3)


# Positions that count, shapes, and classes that are ruled out.


def sequences(kind: str = "stored") -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Logits [3, 4, V], targets and labels of three sequences of 4 positions; three positions have no label."""
    label = (torch.arange(P) % V).reshape(3, 4)
    label[0, 1] = label[1, 2] = label[2, 3] = IGNORED
    targets: Any = stored(draw(61)) if kind == "stored" else top_k(draw(61), KEPT)
    shaped = targets.each(lambda array: array.reshape(3, 4, *array.shape[1:]))
    # As a shard holds a position without a target: zeros, which read as "k copies of class 0, each with p = 1".
    zeroed = shaped.each(lambda array: array.masked_fill((label == IGNORED).view(3, 4, *[1] * (array.ndim - 2)), 0))
    return draw(62).reshape(3, 4, V), with_mask(zeroed, label), label


@pytest.mark.parametrize("kind", ["stored", "topk"])
@pytest.mark.parametrize("flat", [True, False])
def test_public_losses_give_0_and_no_gradient_where_there_is_no_target(kind: str, flat: bool) -> None:
    logits_RLV, targets, label = sequences(kind)
    given = (logits_RLV.reshape(P, V) if flat else logits_RLV).clone().requires_grad_()
    soft_P = forward_kl(given, targets, temperature=2.0)
    hard_P = cross_entropy(given, label)
    none_P = (label == IGNORED).reshape(-1)
    whole: Any = stored(draw(61)) if kind == "stored" else top_k(draw(61), KEPT)
    expected_P = forward_kl(logits_RLV.reshape(P, V), whole, temperature=2.0)
    torch.testing.assert_close(soft_P, expected_P.masked_fill(none_P, 0))
    torch.testing.assert_close(
        hard_P, torch.nn.functional.cross_entropy(logits_RLV.reshape(P, V), label.reshape(-1), reduction="none")
    )
    for loss_P in (soft_P, hard_P):
        (grad,) = torch.autograd.grad(loss_P.sum(), given)
        counts_P = grad.reshape(P, V).abs().sum(dim=1) > 0
        assert torch.equal(counts_P, ~none_P)
    assert int(count_positions(targets)) == int(count_positions(label)) == P - 3


def test_a_classified_sample_without_a_label_keeps_its_soft_target() -> None:
    label = torch.arange(P) % V
    label[:5] = IGNORED
    targets: Any = with_mask(stored(draw(63)), label)  # type: ignore[arg-type]
    logits_PV = draw(64)
    assert (forward_kl(logits_PV, targets.each(torch.as_tensor), temperature=2.0) > 0).all()
    assert torch.equal(cross_entropy(logits_PV, label) == 0, label == IGNORED)
    assert int(count_positions(targets)) == P and int(count_positions(label)) == P - 5
    rows = rows_of(targets.each(torch.as_tensor), label)
    parts = loss_parts({"forward_kl": Weight(1.0, 2.0), "cross_entropy": Weight()}, logits_PV, rows)
    torch.testing.assert_close(4 * parts["forward_kl"], forward_kl(logits_PV, rows.targets, temperature=2.0))  # type: ignore[arg-type]
    torch.testing.assert_close(parts["cross_entropy"], cross_entropy(logits_PV, label))


def test_where_nothing_counts_the_loss_is_0_and_the_count_can_be_divided_by() -> None:
    logits_RLV, targets, label = sequences()
    logits_RLV.requires_grad_()
    none = with_mask(targets, torch.full_like(label, IGNORED))  # type: ignore[arg-type]
    loss = forward_kl(logits_RLV, none, temperature=1.0).sum() / count_positions(none)
    loss.backward()
    assert float(loss.detach()) == 0 and logits_RLV.grad is not None and not logits_RLV.grad.any()


@pytest.mark.parametrize("kind", ["stored", "topk"])
def test_a_slice_of_a_batch_has_the_losses_of_its_rows(kind: str) -> None:
    logits_RLV, targets, _ = sequences(kind)
    whole_P = forward_kl(logits_RLV, targets, temperature=2.0).reshape(3, 4)
    for rows in (slice(0, 1), slice(1, 3)):
        torch.testing.assert_close(
            forward_kl(logits_RLV[rows], targets[rows], temperature=2.0).reshape(-1, 4), whole_P[rows]
        )
    with pytest.raises(TypeError, match=r"targets are sliced"):
        targets[0]


@pytest.mark.parametrize("kind", ["stored", "topk"])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 4, V), r"logits are \[2, 4, 7\], the targets are for positions \[3, 4\].*batch\[8:16\]"),
        ((4, 3, V), r"logits are \[4, 3, 7\], the targets are for positions \[3, 4\]"),
        ((8, V), r"logits are \[8, 7\], the targets are for positions \[3, 4\]"),
        ((3, 4, V + 1), r"have 8 classes, the targets 7"),
        ((3, 4, V - 1), r"have 6 classes, the targets 7"),
        ((3, 4, 1), r"logits for 1 class"),
        ((V,), r"gave a tensor \[7\]"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused_with_their_numbers(
    kind: str, shape: tuple[int, ...], said: str
) -> None:
    _, targets, label = sequences(kind)
    with pytest.raises(UsageError, match=said):
        forward_kl(torch.zeros(shape), targets, temperature=2.0)
    if "classes" not in said:
        with pytest.raises(UsageError, match=said.replace("targets", "labels")):
            cross_entropy(torch.zeros(shape), label)


def test_a_micro_batch_is_not_compared_with_the_first_rows() -> None:
    targets = stored(draw(65))
    with pytest.raises(UsageError, match=r"logits are \[4, 7\], the targets are for positions \[12\]"):
        forward_kl(draw(66)[8:], targets, temperature=1.0)


def test_a_head_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"hidden states \[12, 5\] with a weight \[7, 4\]"):
        forward_kl(Unprojected(torch.zeros(P, 5), torch.zeros(V, 4)), stored(draw(67)), temperature=1.0)


def test_what_is_no_tensor_is_refused_by_its_name() -> None:
    from types import SimpleNamespace

    numbers: Any = stored(draw(68)).each(lambda array: array.numpy())
    with pytest.raises(UsageError, match=r"targets are numpy arrays.*to_torch"):
        forward_kl(draw(69), numbers, temperature=1.0)
    wrapped: Any = SimpleNamespace(logits=draw(69))
    with pytest.raises(UsageError, match=r"gave SimpleNamespace.*Give its `logits`"):
        forward_kl(wrapped, stored(draw(68)), temperature=1.0)
    with pytest.raises(UsageError, match=r"labels are torch.float64"):
        cross_entropy(draw(69), draw(69)[:, 0])


@pytest.mark.parametrize("odd", [-1, V])
def test_a_label_that_is_no_class_is_refused(odd: int) -> None:
    label = torch.arange(P) % V
    label[3] = odd
    with pytest.raises(SourceError, match=rf"the label {odd}.*classes 0 to 6; -100"):
        cross_entropy(draw(70), label)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_0(temperature: float) -> None:
    with pytest.raises(RecipeError, match="a finite number above 0"):
        forward_kl(draw(71), stored(draw(72)), temperature=temperature)


def ruled_out(logits_PV: torch.Tensor, classes: tuple[int, ...]) -> torch.Tensor:
    masked = logits_PV.clone()
    masked[:, list(classes)] = -torch.inf
    return masked


@pytest.mark.parametrize(
    ("temperature", "dtype"), [(0.5, torch.float32), (1.0, torch.float64), (8.0, torch.float32)], ids=str
)
@pytest.mark.parametrize(
    ("kind", "student_too"),
    # A unigram gives every class a share, which a student may not rule out.
    [(kind, too) for kind in ("stored", *TAILS) for too in (True, False) if not (kind == "unigram" and too)],
)
def test_a_class_that_the_teacher_rules_out_has_probability_0(
    kind: str, temperature: float, dtype: torch.dtype, student_too: bool
) -> None:
    """The value is that of the remaining classes; the student's other logits have the gradient that they have there."""
    out, left = (1, 4), [0, 2, 3, 5, 6]
    teacher_PV = draw(73).to(dtype)
    student_PV = draw(74).to(dtype)
    whole_PV = ruled_out(student_PV, out) if student_too else student_PV
    whole_PV.requires_grad_()
    if kind == "stored":
        targets: Any = stored(ruled_out(teacher_PV, out), 2.0)
        found_P = kl_divergence(whole_PV, targets, temperature=temperature)
    else:
        # K = 6 of 7 classes: one of the ids has probability 0, and so has the tail.
        targets = top_k(ruled_out(teacher_PV, out), 6)
        assert torch.isneginf(targets.log_probs_PK).any()
        found_P = kl_divergence(whole_PV, targets, temperature=temperature, tail=kind, unigram=UNIGRAM.to(dtype))
    log_p = torch.log_softmax(teacher_PV[:, left] / temperature, dim=1)
    log_q = torch.log_softmax(whole_PV / temperature, dim=1)[:, left]
    expected_P = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    torch.testing.assert_close(found_P, expected_P, rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(found_P.sum(), whole_PV)
    (expected,) = torch.autograd.grad(expected_P.sum(), whole_PV)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["stored", "bucket"])
def test_a_class_that_only_the_student_rules_out_makes_the_loss_infinite(kind: str) -> None:
    student_PV = ruled_out(draw(75), (2,))
    targets: Any = stored(draw(76)) if kind == "stored" else top_k(draw(76), 6)
    found_P = forward_kl(student_PV, targets, temperature=1.0)
    likely_P = torch.ones(P, dtype=torch.bool) if kind == "stored" else (targets.ids_PK == 2).any(dim=1)
    assert torch.isposinf(found_P[likely_P]).all() and likely_P.any()
