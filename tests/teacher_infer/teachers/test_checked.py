"""A teacher's first answer is checked: logits of several classes that follow from their own row alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage.base.errors import ModelError
from teacher_infer.teachers.checked import CheckedTeacher

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
HEAD = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Made:
    """A teacher of one function, which notes how many rows each call had."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function, self.rows = function, list[int]()

    def logits(self, inputs: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
        self.rows.append(len(inputs["x"]))
        return self.function(torch.from_numpy(np.array(inputs["x"])))

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        return (1,)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ HEAD.to(x.dtype)


def ask(function: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray[Any, Any] = X, dtype: str = "float32") -> Made:
    made = Made(lambda x: function(x.to(getattr(torch, dtype))))
    CheckedTeacher(made, dtype).logits({"x": x})
    return made


def masked(x: torch.Tensor) -> torch.Tensor:
    z = linear(x)
    return torch.where(z > 1, -torch.inf, z)


FINE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": linear,
    "log-probabilities": lambda x: linear(x).log_softmax(-1),
    "zeros": lambda x: torch.zeros(len(x), 5, dtype=x.dtype),
    "uniform": lambda x: torch.full((len(x), 4), 0.25, dtype=x.dtype),
    "nearly constant": lambda x: 100 + 1e-6 * linear(x),
    "masked": masked,
    "far from zero": lambda x: linear(x) + 1000,
    "sequences": lambda x: linear(x)[:, None].repeat(1, 3, 1),
    "cosine less 1": lambda x: (linear(x).tanh() + 1) / 2 - 1,
}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize(
    "dtype, rows",
    [("float32", 16), ("float16", 16), ("bfloat16", 16), ("float32", 1), ("bfloat16", 2), ("bfloat16", 3)],
)
def test_logits_are_accepted(name: str, dtype: str, rows: int) -> None:
    made = ask(FINE[name], X[:rows], dtype)
    assert len(made.rows) == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["soft", "one-hot"])
@pytest.mark.parametrize("length", [0, 3])
def test_probabilities_are_refused(dtype: str, scale: float, length: int) -> None:
    def probabilities(x: torch.Tensor) -> torch.Tensor:
        p = (linear(x) * scale).softmax(-1)
        return p[:, None].repeat(1, length, 1) if length else p

    with pytest.raises(ModelError, match=r"gives probabilities.*before the softmax"):
        ask(probabilities, dtype=dtype)


def test_a_single_class_is_refused_before_and_while_it_runs() -> None:
    with pytest.raises(ModelError, match=r"one logit.*\[0, z\]"):
        ask(lambda x: x[:, :1])
    with pytest.raises(ModelError, match="one logit"):
        CheckedTeacher(Made(linear), "float32").answer_shape(pa.table({}))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_what_is_no_real_number_is_refused(kind: torch.dtype) -> None:
    with pytest.raises(ModelError, match=f"of the type {str(kind)[6:]}"):
        ask(lambda x: linear(x).to(kind))


DEPENDENT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "batch norm": lambda x: linear(torch.nn.functional.batch_norm(x, None, None, training=True)),
    "centred over the batch": lambda x: linear(x - x.mean(dim=0)),
    "softmax over the batch": lambda x: linear((3 * x).softmax(dim=0)),
    "position in the batch": lambda x: linear(x) * torch.arange(1, 1 + len(x))[:, None],
}


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize(
    "dtype, rows", [("float32", 16), ("float16", 16), ("bfloat16", 16), ("bfloat16", 2), ("float16", 3)]
)
def test_logits_that_follow_from_other_rows_are_refused(name: str, dtype: str, rows: int) -> None:
    with pytest.raises(ModelError, match=r"differ by .* of their spread.*BatchNorm"):
        ask(DEPENDENT[name], X[:rows], dtype)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_chance_is_refused(rows: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="differ by"):
        ask(lambda x: linear(torch.nn.functional.dropout(x, 0.5)), X[:rows])


def test_a_mask_that_follows_from_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="differ by inf"):
        ask(lambda x: linear(x).masked_fill(linear(x) < linear(x).mean(dim=0), -torch.inf))


def test_only_the_first_usable_answer_is_checked() -> None:
    made = Made(lambda x: linear(x) / (x[0, 0] != 0))  # NaN or infinite for a batch that begins with 0
    teacher = CheckedTeacher(made, "float32")
    teacher.logits({"x": np.zeros((4, 6), np.float32)})
    assert made.rows == [4]
    teacher.logits({"x": X})
    teacher.logits({"x": X})
    assert made.rows == [4, 16, 4, 16]


def test_an_error_in_the_second_run_is_raised_and_the_next_call_checks() -> None:
    calls = iter([False, True, False, False])

    def fails(x: torch.Tensor) -> torch.Tensor:
        if next(calls):
            raise MemoryError
        return linear(x)

    teacher = CheckedTeacher(Made(fails), "float32")
    with pytest.raises(MemoryError):
        teacher.logits({"x": X})
    teacher.logits({"x": X})
    assert next(calls, None) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sigmoids_are_refused_with_the_way_out(dtype: str) -> None:
    with pytest.raises(ModelError, match=r"lie between 0 and 1, as those of a sigmoid do.*return them less 1"):
        ask(lambda x: linear(x).sigmoid(), X, dtype)
    ask(lambda x: linear(x).sigmoid(), X[:4], dtype)  # so few may be chance


def test_the_same_logits_everywhere_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stillhouse.teacher"):
        ask(FINE["zeros"])
    assert "same logits" in caplog.text
