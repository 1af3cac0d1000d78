"""Softening: the arithmetic between a teacher's logits and what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.topk import TopK
from storage.format.position_columns import ENTROPY, TOP1
from storage.samples.tensor_columns import unpack
from teacher_infer.soften import blocks, soften
from tests.teacher_infer.distributions import KINDS, arrays, made


def test_softened_logits_by_hand() -> None:
    logits_PV = torch.tensor([[2.0, 4.0, -6.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(soften(logits_PV, Dense(2.0)).targets.logits_PV, [[-1.0, 0.0, -5.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("captured, wanted", [(1.0, 1.0), (2.0, 0.5), (5.0, 4.0)])
def test_every_temperature_comes_back_from_what_was_stored(dtype: torch.dtype, captured: float, wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_PV = (torch.randn(50, 20, generator=generator) * 8 + 300).to(dtype)
    encoding = Dense(temperature=captured)
    field, column = encoding.fields(20)[0], encoding.encode(soften(logits_PV, encoding).targets)[0]
    targets = encoding.decode({"soft_logits": unpack(column, field)}, 20)
    stored = torch.from_numpy(targets.logits_PV.astype(np.float64)) * captured / wanted
    exact = logits_PV.double() / wanted
    error = (torch.log_softmax(stored, 1) - torch.log_softmax(exact, 1)).abs()
    # Each stored value is off by at most 2^-11 of itself, and log_softmax at most doubles the largest.
    bound = 2 * (exact - exact.amax(1, keepdim=True)).abs().amax(1, keepdim=True) * 2**-11 + 1e-6
    assert (error <= bound).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_positions_are_found_and_no_others(value: float) -> None:
    logits_PV = torch.zeros(5, 3)
    assert soften(logits_PV, Dense(2.0)).bad_R.tolist() == [False] * 5
    logits_PV[4, 0] = value
    logits_PV[2, 1] = value
    assert soften(logits_PV, Dense(2.0)).bad_R.tolist() == [False, False, True, False, True]


def test_a_temperature_that_makes_logits_overflow_is_seen() -> None:
    softened = soften(torch.tensor([[1.0, 0.0], [1e37, 2e37]]), Dense(1e-3))
    assert softened.bad_R.tolist() == [False, True]


def test_a_teachers_own_logits_stay_as_they_were() -> None:
    logits_PV = torch.randn(4, 6)
    before = logits_PV.clone()
    softened = soften(logits_PV, Dense(3.0))
    softened.targets.logits_PV[:] = 7
    assert torch.equal(logits_PV, before)


# The summary of each position


def exact(logits_PV: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The summary of float32 logits, by the reference, in float64."""
    z_PV = logits_PV.float().numpy()
    targets = DenseTargets(z_PV, np.ones(len(z_PV), np.float32))
    return {ENTROPY: targets.entropy().astype(np.float32), TOP1: targets.top(1)[0][:, 0].astype(np.int32)}


@pytest.mark.parametrize(
    "kind, temperature",
    [*((kind, 7.0) for kind in KINDS), *((kind, other) for kind in ("usual", "sharp") for other in (1.0, 0.5))],
)
def test_the_summary_is_that_of_the_teachers_own_distribution(kind: str, temperature: float) -> None:
    logits_PV = made(kind)
    softened, expected = soften(logits_PV, Dense(temperature)), exact(logits_PV)
    assert (softened.entropy_R.dtype, softened.top1_R.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(softened.top1_R, expected[TOP1])
    np.testing.assert_allclose(softened.entropy_R, expected[ENTROPY], rtol=4e-6, atol=1e-14)
    assert (softened.entropy_R >= 0).all()


@pytest.mark.parametrize("lead", [5.0, 15.0, 25.0, 60.0, 80.0])
def test_of_a_sharp_distribution_the_entropy_is_right_to_its_own_size(lead: float) -> None:
    """1 + 1e-9 is 1 in float32: what is far below it must not be worked out from it."""
    logits_PV = torch.tensor([[0.0, lead, 0.0, -3.0]])
    tail = np.exp(-lead) * (2 + np.exp(-3.0))
    expected = np.log1p(tail) + np.exp(-lead) * (2 * lead + np.exp(-3.0) * (lead + 3)) / (1 + tail)
    np.testing.assert_allclose(soften(logits_PV, Dense(1.0)).entropy_R, [expected], rtol=2e-6)


def test_of_classes_that_are_alike_the_first_is_the_top_one() -> None:
    assert soften(made("ties"), Dense(2.0)).top1_R.tolist() == [1, 0, 2]


@pytest.mark.parametrize("block", [1, 50, 175, 1 << 30])
def test_the_blocks_in_which_entropies_are_summed_leave_no_mark(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    logits_PV = made("usual")
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 4 * block)
    np.testing.assert_allclose(soften(logits_PV, Dense(2.0)).entropy_R, exact(logits_PV)[ENTROPY], rtol=4e-6)


def test_no_position_has_no_summary() -> None:
    softened = soften(torch.zeros(0, 4), Dense(2.0))
    assert (softened.targets.logits_PV.shape, softened.entropy_R.shape, softened.top1_R.shape) == ((0, 4), (0,), (0,))


def test_what_is_left_out_is_left_out_of_all() -> None:
    kept = np.arange(64) % 3 == 1
    for encoding in (Dense(2.0), TopK(3, (2.0,))):
        only = soften(made("usual"), encoding).each(lambda array: array[kept])
        expected = soften(made("usual")[torch.from_numpy(kept)], encoding)
        for name in ("entropy_R", "top1_R", "bad_R"):
            np.testing.assert_array_equal(getattr(only, name), getattr(expected, name))
        for one, other in zip(arrays(only.targets), arrays(expected.targets), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
