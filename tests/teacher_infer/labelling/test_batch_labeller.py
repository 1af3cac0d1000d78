"""A batch that fails is halved until the samples that break are alone; the others are labelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.errors import DeviceLost
from storage.base.errors import JobError, SourceError, StoreLost
from storage.encodings.dense import Dense
from storage.encodings.topk import TopK
from storage.samples.samples import Columns, as_samples
from teacher_infer.labelling.batch_labeller import BatchLabeller


class Picky:
    """Logits that follow from x; raises for some values of x, gives NaN for others, and notes what it was asked."""

    def __init__(self, raises: tuple[int, ...] = (), nan: tuple[int, ...] = ()) -> None:
        self.raises, self.nan, self.asked = raises, nan, list[list[int]]()

    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
        x = inputs["x"][:, 0].astype(int).tolist()
        self.asked.append(x)
        if set(x) & set(self.raises):
            raise ValueError("the tokenizer met s3://key:planted-4711@bucket/file")
        logits = torch.stack([torch.tensor([value, 2.0 * value, 0.0]) for value in x]).float()
        for row, value in enumerate(x):
            if value in self.nan:
                logits[row, 1] = torch.nan
        return logits

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        return None


def samples(count: int) -> pa.Table:
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(count, dtype=np.float32)), 1)
    return as_samples(pa.table({"sample_id": [f"s{i}" for i in range(count)], "x": x}), Columns(), "made")


def entropy(z_PV: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    p_PV = np.exp(z_PV - z_PV.max(axis=1, keepdims=True))
    p_PV /= p_PV.sum(axis=1, keepdims=True)
    return -(p_PV * np.log(p_PV)).sum(axis=1)


def ask(teacher: Picky, count: int = 16, batch_size: int = 8, max_bad: int = 100) -> tuple[list[str], BatchLabeller]:
    labeller = BatchLabeller(teacher, batch_size, Dense(2.0), max_bad, "rows[0:16]")
    ids: list[str] = []
    for batch, softened in labeller.label(samples(count)):
        found = batch.column("sample_id").to_pylist()
        z = np.array([[int(i[1:]), 2 * int(i[1:]), 0] for i in found]) / 2
        np.testing.assert_allclose(softened.targets.logits_PV, z - z.max(axis=1, keepdims=True))
        # x and 2x: whoever gets another sample's summary is found out.
        assert softened.top1_R.tolist() == [int(i != "s0") for i in found]
        np.testing.assert_allclose(softened.entropy_R, entropy(2 * z), rtol=1e-5)
        ids += found
    return ids, labeller


@pytest.mark.parametrize("bad", [(0,), (7,), (8,), (15,), (3, 4), (0, 1, 2, 3, 4, 5, 6, 7), (2, 9, 14)])
@pytest.mark.parametrize("how", ["raises", "nan"])
def test_all_samples_but_the_bad_ones_are_labelled_in_their_order(how: str, bad: tuple[int, ...]) -> None:
    ids, labeller = ask(Picky(**{how: bad}))
    assert ids == [f"s{i}" for i in range(16) if i not in bad]
    assert [one.sample_id for one in labeller.quarantined] == [f"s{i}" for i in bad]


def test_a_batch_is_halved_and_nothing_else_is_asked_twice() -> None:
    teacher = Picky(raises=(5,))
    ask(teacher)
    assert teacher.asked == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [4],
        [5],
        [6, 7],
        [8, 9, 10, 11, 12, 13, 14, 15],
    ]


def test_what_is_asked_follows_from_span_and_batch_size_alone() -> None:
    first, second = Picky(raises=(2, 11)), Picky(raises=(2, 11))
    ask(first)
    ask(second)
    assert first.asked == second.asked


def test_a_teacher_that_gives_nan_is_asked_once() -> None:
    teacher = Picky(nan=(5,))
    _, labeller = ask(teacher)
    assert len(teacher.asked) == 2
    assert labeller.quarantined[0].reason == "its logits contain NaN"


def test_the_reason_says_what_was_raised_and_where_without_a_password() -> None:
    _, labeller = ask(Picky(raises=(5,)))
    [bad] = labeller.quarantined
    assert bad.reason.startswith(
        "the teacher raised ValueError: the tokenizer met s3://***@bucket/file (test_batch_labeller.py:"
    )
    assert "planted" not in bad.reason


@pytest.mark.parametrize(("bad", "allowed"), [((5,), 0), ((5, 6, 9), 2)])
@pytest.mark.parametrize("how", ["raises", "nan"])
def test_more_bad_samples_than_are_allowed_end_the_span_with_the_first_ones_id(
    how: str, bad: tuple[int, ...], allowed: int
) -> None:
    said = rf"cannot label the sample 's5' \(in rows\[0:16\]\): .*max_bad_samples lets a job leave out {allowed}\."
    with pytest.raises(JobError, match=said):
        ask(Picky(**{how: bad}), max_bad=allowed)


def test_as_many_as_are_allowed_do_not() -> None:
    assert len(ask(Picky(raises=(5, 6)), max_bad=2)[0]) == 14


def test_an_error_about_the_answers_shape_is_no_samples_fault() -> None:
    class Wrong(Picky):
        def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
            super().logits(inputs)
            raise JobError("The teacher gave shape [3].")

    teacher = Wrong()
    with pytest.raises(JobError, match="gave shape"):
        ask(teacher)
    assert len(teacher.asked) == 1


def caused_by(cause: Exception) -> Exception:
    error = ValueError("sample 5 failed")
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "told", "said"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost, "The teacher's device failed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLost, "The teacher's device failed"),
        (OutOfMemoryError("tried to allocate 2 GiB"), JobError, r"no memory for 8 samples .*Lower it"),
        (MemoryError(), JobError, r"no memory for 8 samples .*teacher\.batch_size is 8\."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), JobError, "no memory for 8 samples"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), JobError, "no memory for 8 samples"),
        (caused_by(RuntimeError("std::bad_alloc")), JobError, "no memory for 8 samples"),
        (caused_by(RuntimeError("CUDA error: unspecified launch failure")), DeviceLost, "device failed"),
    ],
    ids=["assert", "cudnn", "device memory", "memory", "cpu", "cublas", "cause", "device behind a cause"],
)
def test_what_a_machine_lacks_or_loses_quarantines_nobody(error: Exception, told: type[Exception], said: str) -> None:
    class Broken(Picky):
        def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
            super().logits(inputs)
            raise error

    teacher = Broken()
    with pytest.raises(told, match=said):
        ask(teacher)
    assert len(teacher.asked) == 1


class Fixed(Picky):
    """The same logits for every row."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.fixed = logits

    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
        return torch.tensor([self.fixed] * len(inputs["x"]))


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        ([0.0, np.nan, 1.0], "its logits contain NaN"),
        ([0.0, np.inf, 1.0], r"its logits contain \+inf"),
        ([-np.inf] * 3, "all its logits are -inf"),
        ([3e38, -3e38, 0.0], "its logits overflow"),
    ],
)
def test_the_reason_names_what_is_wrong_with_logits(logits: list[float], reason: str) -> None:
    with pytest.raises(JobError, match=reason):
        ask(Fixed(logits), max_bad=0)


def test_a_classified_sample_may_have_no_label_and_other_foreign_labels_are_refused() -> None:
    def labelled(labels: list[int]) -> list[int]:
        x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3, dtype=np.float32)), 1)
        table = pa.table({"sample_id": ["a", "b", "c"], "x": x, "label": labels})
        labeller = BatchLabeller(Picky(), 8, TopK(1), 0, "rows[0:3]")
        [(_, softened)] = labeller.label(as_samples(table, Columns(), "made"))
        return np.isnan(softened.targets.label_log_prob_P).tolist()

    assert labelled([0, -100, 2]) == [False, True, False]
    for foreign in (-1, 3, -101):
        with pytest.raises(SourceError, match=f"has the label {foreign}"):
            labelled([0, foreign, 2])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("reset by peer"), StoreLost),
        (TimeoutError("late"), StoreLost),
        (RuntimeError("NCCL communicator was aborted on rank 1"), DeviceLost),
    ],
)
def test_what_may_pass_is_no_samples_fault(error: Exception, kind: type[Exception]) -> None:
    class Lost(Picky):
        def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
            raise error

    labeller = BatchLabeller(Lost(), 8, Dense(2.0), 100, "rows[0:16]")
    with pytest.raises(kind):
        list(labeller.label(samples(16)))
    assert labeller.quarantined == []


def test_each_call_of_the_teacher_is_reported_also_when_it_raises() -> None:
    teacher, calls = Picky(raises=tuple(range(16))), list[int]()
    labeller = BatchLabeller(teacher, 8, Dense(2.0), 100, "rows[0:16]")
    labeller.on_call = lambda: calls.append(len(labeller.quarantined))
    assert list(labeller.label(samples(16))) == []
    assert len(calls) == len(teacher.asked) == 30
