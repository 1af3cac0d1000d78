"""What losses are made of: values and gradients against dense definitions, however the logits are given and cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from student_train.losses import Unprojected
from student_train.losses.forward_kl import TAILS, kl_divergence
from student_train.losses.queries import Query, QueryResult
from student_train.losses.student_log_probs import query_student
from tests.student_train.sparse import GRID, dense_definition, top_k

P, V, D, K = 5, 11, 4, 3
F64 = torch.float64


def normal(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def distribution(seed: int, classes: int) -> torch.Tensor:
    return torch.softmax(normal(seed, classes, scale=2.0), dim=0)


ROWS = torch.log_softmax(normal(3, P, V), dim=1)
IDS = normal(4, P, V).argsort(dim=1)[:, :K]
UNIGRAM = distribution(5, V)

QUERIES = {
    "ids": lambda at: Query(3.0, IDS[at, :2]),
    "tail": lambda at: Query(2.0, IDS[at], tail=True),
    "label": lambda at: Query(1.0, IDS[at, :1]),
    "mean outside": lambda at: Query(2.0, IDS[at], mean=UNIGRAM),
    "mean": lambda at: Query(1.0, mean=UNIGRAM),
    "rows": lambda at: Query(2.0, mean=lambda piece: ROWS[at][piece].clone()),
    "all of it": lambda at: Query(1.0, IDS[at], tail=True, mean=UNIGRAM),
}
SETS = [*([name] for name in QUERIES), list(QUERIES), ["tail", "label"], ["label", "all of it", "mean"]]


def by_hand(query: Query, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    log_q = torch.log_softmax(z / query.temperature, dim=1)
    outside = torch.ones_like(log_q, dtype=torch.bool)
    none = log_q.new_zeros(0)
    ids, tail, mean = log_q[:, :0], none, none
    if query.ids_PK is not None:
        ids, outside = log_q.gather(1, query.ids_PK), outside.scatter(1, query.ids_PK, False)
    if query.tail:
        tail = torch.log((log_q.exp() * outside).sum(dim=1))
    if isinstance(query.mean, torch.Tensor):
        mean = (query.mean * outside * log_q).sum(dim=1)
    elif query.mean is not None:
        mean = (query.mean(slice(None)).exp() * log_q).sum(dim=1)
    return ids, tail, mean


def parts(found: list[QueryResult]) -> tuple[torch.Tensor, ...]:
    return tuple(part for one in found for part in (one.log_q_PK, one.log_tail_P, one.mean_log_q_P))


@pytest.mark.parametrize("names", SETS, ids=" + ".join)
@pytest.mark.parametrize(
    ("at", "bias"), [(slice(None), False), (torch.tensor([0, 2, 3]), True)], ids=["whole", "some, with a bias"]
)
def test_values_and_gradients_of_whatever_is_asked_together(names: list[str], at: Any, bias: bool) -> None:
    hidden, weight = normal(0, P, D).requires_grad_(), normal(1, V, D).requires_grad_()
    given = (hidden, weight, *([normal(2, V).requires_grad_()] if bias else []))
    queries = [QUERIES[name](at) for name in names]

    def fused(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Chunks of two positions.
        return parts(query_student(Unprojected(*given), queries, at, chunk_bytes=2 * V * 8))

    def naive(z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return parts(query_student(z, queries, at, chunk_bytes=2 * V * 8))

    z = (hidden @ weight.t() + (given[2] if bias else 0.0)).detach().requires_grad_()
    expected = tuple(part for query in queries for part in by_hand(query, z[at]))
    torch.testing.assert_close(fused(*given), expected)
    torch.testing.assert_close(naive(z), expected)
    assert torch.autograd.gradcheck(fused, given, fast_mode=True)
    assert torch.autograd.gradcheck(naive, (z,), fast_mode=True)


def test_a_teachers_rows_tell_their_entropy_too() -> None:
    (found,) = query_student(normal(0, P, V), [QUERIES["rows"](slice(None))])
    torch.testing.assert_close(found.mean_log_m_P, (ROWS.exp() * ROWS).sum(dim=1))
    assert not found.mean_log_m_P.requires_grad


@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_what_was_given_is_not_changed_and_may_need_no_gradient(kind: str) -> None:
    z, hidden, weight = normal(0, P, V), normal(1, P, D), normal(2, V, D).requires_grad_()
    queries = [QUERIES["tail"](slice(None)), QUERIES["label"](slice(None))]
    given = z if kind == "logits" else Unprojected(hidden, weight)
    before = [part.clone() for part in ([z] if kind == "logits" else [hidden, weight])]
    found = query_student(given, queries)
    if kind == "hidden":
        sum(part.sum() for part in parts(found)).backward()  # type: ignore[union-attr]
        assert hidden.grad is None and weight.grad is not None
    torch.testing.assert_close([z] if kind == "logits" else [hidden, weight], before, rtol=0, atol=0)


def test_sequences_are_one_axis_of_positions() -> None:
    z = normal(0, 2, 3, V).requires_grad_()
    ids = normal(1, 6, V).argsort(dim=1)[:, :2]
    (found,) = query_student(z, [Query(1.0, ids[[1, 5]], tail=True)], torch.tensor([1, 5]))
    (same,) = query_student(z.reshape(6, V)[[1, 5]], [Query(1.0, ids[[1, 5]], tail=True)])
    torch.testing.assert_close(found.log_tail_P, same.log_tail_P)


@pytest.mark.parametrize("query", [Query(tail=True), Query(1.0, IDS, mean=lambda piece: ROWS[piece])])
def test_what_makes_no_question_is_refused(query: Query) -> None:
    with pytest.raises(ValueError, match=r"outside ids|no ids"):
        query_student(normal(0, P, V), [query])


# The sparse losses against their dense definitions.

LARGE = 1000


def sharp(seed: int) -> torch.Tensor:
    """One class of each position far above the others: a tail of some 1e-26."""
    z = normal(seed, 6, LARGE)
    return z + 60 * torch.eye(LARGE, dtype=F64)[torch.arange(6) * 7]


def tied(seed: int) -> torch.Tensor:
    return normal(seed, 6, LARGE).round()


KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "random": lambda seed: normal(seed, 6, LARGE, scale=3.0),
    "sharp": sharp,
    "ties": tied,
    "equal": lambda seed: torch.zeros(6, LARGE, dtype=F64),
    "one-hot": lambda seed: torch.full((6, LARGE), -torch.inf, dtype=F64).index_fill_(1, torch.tensor([3]), 0.0),
}
STUDENTS = ("random", "sharp", "ties", "equal")


TEACHERS = [("one-hot", 1), *((teacher, k) for teacher in STUDENTS for k in (1, 20, LARGE - 1))]


# Every teacher and k with every tail; of their temperatures one each, such that both see all.
@pytest.mark.parametrize(
    ("tail", "teacher", "k", "temperature"),
    [(tail, *kept, GRID[index % len(GRID)]) for index, (tail, kept) in enumerate(itertools.product(TAILS, TEACHERS))],
)
def test_sparse_losses_and_their_gradients_are_the_dense_definitions(
    tail: str, teacher: str, k: int, temperature: float
) -> None:
    targets, unigram = top_k(KINDS[teacher](10), k), distribution(12, LARGE)
    for student in STUDENTS:
        z = KINDS[student](11).requires_grad_()
        found = kl_divergence(z, targets, temperature=temperature, tail=tail, unigram=unigram)
        expected = dense_definition(z, targets, temperature, tail, unigram)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        (mine,), (theirs,) = (torch.autograd.grad(loss.sum(), z) for loss in (found, expected))
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


def test_a_tail_of_the_student_that_is_less_than_any_float_is_told() -> None:
    """By subtraction it would be 0 in float32, and its log no number."""
    z = torch.zeros(1, LARGE)
    z[0, 0] = 500.0
    targets = top_k(normal(0, 1, LARGE), 1)
    targets = targets.each(lambda array: array.float() if array.is_floating_point() else torch.zeros_like(array))
    (found,) = query_student(z, [Query(1.0, targets.ids_PK, tail=True)])
    assert float(found.log_tail_P) == pytest.approx(-500 + torch.log(torch.tensor(LARGE - 1.0)).item(), rel=1e-6)
    z.requires_grad_()
    kl_divergence(z, targets, temperature=1.0).sum().backward()
    tau = float(targets.log_tail_PG[0, GRID.index(1.0)].exp())
    # q - p at the id, and the teacher's tail spread as the student's is.
    assert z.grad is not None
    torch.testing.assert_close(z.grad[0, 1:], torch.full((LARGE - 1,), -tau / (LARGE - 1)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("classes", [49_152, 131_073, 262_144])
def test_large_vocabularies_in_float32_are_those_of_float64(classes: int) -> None:
    hidden, weight, teacher = normal(0, 3, 16), normal(1, classes, 16, scale=0.5), normal(2, 3, classes, scale=2.0)
    targets, unigram = top_k(teacher, 16), torch.softmax(weight[:, 0], dim=0)
    half = targets.each(lambda array: array.float() if array.is_floating_point() else array.to(torch.uint32))
    for tail in TAILS:
        exact = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        (dense_definition(exact[0] @ exact[1].t(), targets, 2.0, tail, unigram)).sum().backward()
        given = [hidden.float().requires_grad_(), weight.float().requires_grad_()]
        kl_divergence(Unprojected(*given), half, temperature=2.0, tail=tail, unigram=unigram.float()).sum().backward()
        for mine, theirs in zip(given, exact, strict=True):
            assert mine.grad is not None and theirs.grad is not None
            assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) < 3e-4


# However it is given and cut.


def losses(output: Any, tail: str, chunk_bytes: int | None = None, monkeypatch: Any = None) -> torch.Tensor:
    if chunk_bytes is not None:
        monkeypatch.setattr("student_train.losses.chunked_logits.CPU_BYTES", chunk_bytes)
    targets, unigram = top_k(normal(20, 6, LARGE), 20), distribution(21, LARGE)
    return kl_divergence(output, targets, temperature=2.0, tail=tail, unigram=unigram)


@pytest.mark.parametrize("tail", TAILS)
def test_chunks_change_nothing_and_hidden_states_are_as_good_as_logits(
    tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for fused, chunk_bytes in ((False, 1 << 30), (False, 1), (True, 1 << 30), (True, 3 * LARGE * 8)):
        hidden, weight = normal(22, 6, 8).requires_grad_(), normal(23, LARGE, 8).requires_grad_()
        output = Unprojected(hidden, weight) if fused else hidden @ weight.t()
        loss_P = losses(output, tail, chunk_bytes, monkeypatch)
        (loss_P * torch.arange(1.0, 7.0)).sum().backward()
        found.append((loss_P.detach(), hidden.grad, weight.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-13)


def test_low_precision_is_multiplied_up() -> None:
    """Hidden states and a head in bfloat16: the logits are float32, the gradients as theirs."""
    hidden, weight = normal(24, 6, 8).bfloat16().requires_grad_(), normal(25, LARGE, 8).bfloat16().requires_grad_()
    loss_P = losses(Unprojected(hidden, weight), "bucket")
    loss_P.sum().backward()
    wide = [hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
    expected_P = losses(Unprojected(*wide), "bucket")
    expected_P.sum().backward()
    torch.testing.assert_close(loss_P, expected_P, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip((hidden, weight), wide, strict=True):
        assert mine.grad is not None and mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.float(), theirs.grad, rtol=2**-8, atol=1e-6)


def test_autocast_does_not_round_what_is_summed() -> None:
    hidden, weight = normal(26, 6, 8).float().requires_grad_(), normal(27, LARGE, 8).float().requires_grad_()
    query = Query(2.0, torch.arange(18).reshape(6, 3), tail=True)
    (plain,) = query_student(Unprojected(hidden, weight), [query])
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = query_student(Unprojected(hidden, weight), [query])
    assert cast.log_tail_P.dtype == torch.float32
    torch.testing.assert_close(parts([cast]), parts([plain]))
