"""Softening: the arithmetic between a teacher's logits and what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.encodings.dense import Dense
from storage.tensors import unpack
from teacher_infer.soften import not_finite, soften


def test_softened_logits_by_hand() -> None:
    logits_PV = torch.tensor([[2.0, 4.0, -6.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(soften(logits_PV, 2.0), [[-1.0, 0.0, -5.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("captured", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("wanted", [0.5, 1.0, 4.0])
def test_every_temperature_comes_back_from_what_was_stored(dtype: torch.dtype, captured: float, wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_PV = (torch.randn(50, 20, generator=generator) * 8 + 300).to(dtype)
    encoding = Dense(temperature=captured)
    field, column = encoding.fields(20)[0], encoding.encode(soften(logits_PV, captured))[0]
    targets = encoding.decode({"soft_logits": unpack(column, field)})
    stored = torch.from_numpy(targets.logits_PV.astype(np.float64)) * captured / wanted
    exact = logits_PV.double() / wanted
    error = (torch.log_softmax(stored, 1) - torch.log_softmax(exact, 1)).abs()
    # Each stored value is off by at most 2^-11 of itself, and log_softmax at most doubles the largest.
    bound = 2 * (exact - exact.amax(1, keepdim=True)).abs().amax(1, keepdim=True) * 2**-11 + 1e-6
    assert (error <= bound).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_positions_are_found_and_no_others(value: float) -> None:
    logits_PV = torch.zeros(5, 3)
    assert not_finite(soften(logits_PV, 2.0)).tolist() == [False] * 5
    logits_PV[4, 0] = value
    logits_PV[2, 1] = value
    assert not_finite(soften(logits_PV, 2.0)).tolist() == [False, False, True, False, True]


def test_a_temperature_that_makes_logits_overflow_is_seen() -> None:
    assert not_finite(soften(torch.tensor([[1.0, 0.0], [1e30, 2e30]]), 1e-30)).tolist() == [False, True]
