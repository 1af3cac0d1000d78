"""What a student is worth, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.dense import DenseTargets
from storage.encodings.topk import TopKTargets
from storage.format.rows import DecodedRows
from storage.stream.torch_tensors import to_torch
from student_train.losses import Unprojected
from student_train.training.evaluate import evaluate, rows_a_batch
from tests.storage.encodings.test_targets import LABEL, factored
from tests.student_train.sequences import SequenceRows

LABELLED = {"accuracy", "cross_entropy", "ece"}
SOFT = {"kl_to_teacher", "agreement_top1"}
BOTH = {"teacher_accuracy", "teacher_cross_entropy", "teacher_ece"}


def rows(
    student: list[list[float]],
    label: list[int] | None = None,
    teacher: list[list[float]] | None = None,
    temperature: float = 1.0,
) -> DecodedRows:
    """Rows whose input is what the student will say: probabilities; the teacher's, too, as a cache keeps them."""
    targets = None
    if teacher is not None:
        log_p = torch.tensor(teacher).log() / temperature
        targets = DenseTargets(
            log_p - log_p.amax(dim=1, keepdim=True), torch.full((len(teacher),), temperature, dtype=torch.float32)
        )
    labels: Any = None if label is None else torch.tensor(label)
    logits: Any = torch.tensor(student).log()
    return DecodedRows(np.arange(len(student)), {"logits": logits}, labels, targets)


def score(*batches: DecodedRows) -> dict[str, float]:
    return evaluate(lambda batch: batch.inputs["logits"], batches)  # type: ignore[arg-type,return-value]


STUDENT = [[0.8, 0.2], [0.4, 0.6]]
TEACHER = [[0.9, 0.1], [0.7, 0.3]]


def test_against_labels_by_hand() -> None:
    found = score(rows(STUDENT, label=[0, 0]))
    assert found == {
        "accuracy": 0.5,
        "cross_entropy": pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2, abs=1e-6),
        # 0.8 sure and right, 0.6 sure and wrong, in bins of their own.
        "ece": pytest.approx((0.2 + 0.6) / 2, abs=1e-6),
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_against_the_teacher_by_hand_whatever_the_cache_was_kept_at(temperature: float) -> None:
    kl = [
        0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2),
        0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6),
    ]
    found = score(rows(STUDENT, teacher=TEACHER, temperature=temperature))
    assert found == {"kl_to_teacher": pytest.approx(sum(kl) / 2, abs=1e-6), "agreement_top1": 0.5}


def test_the_teacher_against_labels_by_hand() -> None:
    found = score(rows(STUDENT, label=[0, 1], teacher=TEACHER, temperature=2.0))
    assert found["accuracy"] == 1.0
    assert found["teacher_accuracy"] == 0.5
    assert found["teacher_cross_entropy"] == pytest.approx(-(math.log(0.9) + math.log(0.3)) / 2, abs=1e-6)
    assert found["teacher_ece"] == pytest.approx((0.1 + 0.7) / 2, abs=1e-6)


def test_what_the_rows_cannot_tell_is_left_out() -> None:
    assert set(score(rows(STUDENT))) == set()
    assert set(score(rows(STUDENT, label=[0, 1]))) == LABELLED
    assert set(score(rows(STUDENT, teacher=TEACHER))) == SOFT
    assert set(score(rows(STUDENT, label=[0, 1], teacher=TEACHER))) == LABELLED | SOFT | BOTH


def test_a_student_that_is_the_teacher_agrees_with_it() -> None:
    found = score(rows(TEACHER, label=[0, 1], teacher=TEACHER, temperature=3.0))
    assert found["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert found["agreement_top1"] == 1.0
    for metric in ("accuracy", "cross_entropy", "ece"):
        assert found[metric] == pytest.approx(found[f"teacher_{metric}"], abs=1e-6)


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 33], [39, 1]])
def test_how_the_rows_are_cut_into_batches_does_not_matter(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.softmax(2 * torch.randn(40, 5, generator=generator), dim=1).tolist() for _ in range(2))
    label = [index % 5 for index in range(40)]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    pieces = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    whole = score(rows(student, label, teacher, 2.0))
    cut = score(*(rows(student[p], label[p], teacher[p], 2.0) for p in pieces))
    assert cut.keys() == whole.keys() == LABELLED | SOFT | BOTH
    assert cut == pytest.approx(whole, abs=1e-6)


def sure(confidence: float, right: int, wrong: int) -> tuple[list[list[float]], list[int]]:
    """Rows on which the student guesses class 0 with one confidence, and is right or wrong."""
    return [[confidence, 1 - confidence]] * (right + wrong), [0] * right + [1] * wrong


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        # As often right as it is sure.
        ([(0.8, 4, 1), (0.6, 6, 4)], 0.0),
        # 30 rows 0.9 sure and right 7 times in 10, 10 rows 0.6 sure and always right: (30 * 0.2 + 10 * 0.4) / 40.
        ([(0.9, 21, 9), (0.6, 10, 0)], 0.25),
        # 0.61 and 0.65 share the bin from 9/15 to 10/15: |(0.61 + 0.65) / 2 - 1/2|, not the mean of two gaps.
        ([(0.61, 1, 0), (0.65, 0, 1)], 0.13),
        # 0.9 lies in the last bin but one, 0.99 in the last.
        ([(0.9, 1, 0), (0.99, 0, 1)], 0.545),
        # Wholly sure and right: the last bin holds 1 itself.
        ([(1.0, 3, 0)], 0.0),
        ([(1.0, 1, 3)], 0.75),
    ],
)
def test_calibration_error_by_hand(groups: list[tuple[float, int, int]], expected: float) -> None:
    cut = [sure(*group) for group in groups]
    student = [row for found, _ in cut for row in found]
    label = [value for _, found in cut for value in found]
    # A probability of 0 has no finite logit.
    student = [[max(p, 1e-30) for p in row] for row in student]
    assert score(rows(student, label))["ece"] == pytest.approx(expected, abs=1e-6)


def test_half_precision_logits_are_scored_in_float32() -> None:
    batch = rows([[0.8, 0.2], [0.41, 0.59]], label=[0, 0], teacher=TEACHER)
    found = evaluate(lambda one: one.inputs["logits"].half(), [batch])  # type: ignore[attr-defined]
    expected = evaluate(lambda one: one.inputs["logits"].half().float(), [batch])  # type: ignore[attr-defined]
    assert found == expected


# Sequences, and teachers of whom the likeliest ids are known.


def test_against_a_teachers_likeliest_ids_by_hand() -> None:
    """Two positions of three classes, of which the teacher's likeliest is kept."""
    student, teacher = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]), [0.6, 0.5]
    log = torch.tensor(teacher).log()
    rest = torch.tensor([0.4, 0.5]).log()
    targets: Any = TopKTargets(
        *(torch.tensor([[0], [2]], dtype=torch.uint16), log[:, None], torch.tensor([0.6, 0.3]).log()),
        *(torch.zeros(2, 1), rest[:, None], torch.zeros(2, 1)),
        temperatures=(1.0,),
        classes=3,
    )
    label: Any = torch.tensor([0, 1], dtype=torch.int32)
    found = score(DecodedRows(np.arange(2), {"logits": student.log()}, label, targets))  # type: ignore[dict-item]
    kl = [0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5), 0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9)]
    assert found == {
        "accuracy": 1.0,
        "cross_entropy": pytest.approx(-(math.log(0.5) + math.log(0.7)) / 2, abs=1e-6),
        "ece": pytest.approx((0.5 + 0.3) / 2, abs=1e-6),
        "kl_to_teacher": pytest.approx(sum(kl) / 2, abs=1e-6),
        "agreement_top1": 0.5,
        "teacher_accuracy": 0.5,
        "teacher_cross_entropy": pytest.approx(-(math.log(0.6) + math.log(0.3)) / 2, abs=1e-6),
        "teacher_ece": pytest.approx((0.4 + 0.5) / 2, abs=1e-6),
    }


@pytest.mark.parametrize("kind", ["topk", "dense"])
def test_masked_sequences_are_scored_as_the_positions_that_count(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when logits are made of hidden states, a few positions at a time."""
    rows = to_torch(SequenceRows(7, kind).whole())
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 6, 4, generator=generator), torch.randn(13, 4, generator=generator)
    keep = rows.label.reshape(-1) >= 0  # type: ignore[union-attr]
    flat: Any = rows.targets.flat()  # type: ignore[union-attr]
    few = flat.each(lambda array: (array.long() if array.dtype == torch.uint16 else array)[keep])
    label: Any = rows.label.reshape(-1)[keep]  # type: ignore[union-attr]
    alone = DecodedRows(np.arange(int(keep.sum())), {}, label, few)
    expected = evaluate(lambda rows: hidden.reshape(-1, 4)[keep] @ weight.t(), [alone])
    assert 0 < len(alone) < 42 and expected.keys() == LABELLED | SOFT | BOTH
    monkeypatch.setattr("student_train.losses.chunked_logits.CPU_BYTES", 13 * 4 * 5)
    assert evaluate(lambda rows: hidden @ weight.t(), [rows]) == pytest.approx(expected, rel=1e-5)
    assert evaluate(lambda rows: Unprojected(hidden, weight), [rows]) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_of_another_encoding_is_scored_without_more_code() -> None:
    student: Any = np.random.default_rng(2).normal(size=(2, 3, 11))
    mine, dense = (DecodedRows(np.arange(2), {"logits": student}, LABEL, targets) for targets in factored())
    expected = score(to_torch(dense))
    assert expected.keys() == LABELLED | SOFT | BOTH
    assert score(to_torch(mine)) == pytest.approx(expected, rel=1e-9)


def test_as_many_rows_at_once_as_their_logits_allow() -> None:
    assert rows_a_batch(10, 1) == rows_a_batch(131_072, 1) == 512
    assert rows_a_batch(49_152, 128) == 10
    assert rows_a_batch(262_144, 4096) == 1


def test_what_a_model_keeps_of_an_evaluation_can_be_trained_with() -> None:
    kept: list[torch.Tensor] = []
    scale = torch.ones((), requires_grad=True)

    def logits_of(batch: DecodedRows) -> torch.Tensor:
        logits: Any = batch.inputs["logits"]
        if not kept:
            kept.append(torch.full_like(logits, 2.0))
        return logits * (kept[0] * scale)

    batch = rows(STUDENT, [0, 1])
    evaluate(logits_of, [batch])
    logits_of(batch).sum().backward()
    assert scale.grad is not None
