"""A logit of -inf is a probability of 0, in every encoding and in all that is derived, against float64 formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage.analysis.overview import view
from storage.encodings import Encoding
from storage.encodings.convert import convert
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import IGNORED, Targets
from storage.encodings.topk import TopK
from storage.samples import tensor_columns
from teacher_infer.soften import Softened, soften
from tests.teacher_infer.distributions import without_compiler

GRID = (0.5, 1.0, 2.0, 3.0)
Array = np.ndarray[Any, Any]


@pytest.fixture(params=["eager", "two passes"], autouse=True)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two passes":
        without_compiler(monkeypatch)


def masked(classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Class 0 is masked in all rows, others in some; rows 0 to 3 have 1 to 4 finite classes, and row 4 has ties."""
    z = torch.randn(24, classes, generator=torch.Generator().manual_seed(classes)) * 3
    z[torch.rand(z.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = -torch.inf
    for row in range(4):
        z[row] = -torch.inf
        z[row, classes - 1 - row :] = torch.arange(row + 1.0)
    z[4, 1:] = 1.0
    z[:, 0] = -torch.inf
    return z.to(dtype)


def log_softmax(z_PV: Array) -> Array:
    x = z_PV - z_PV.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def entropy(l_PV: Array) -> Array:
    return -(np.exp(l_PV) * np.where(np.isneginf(l_PV), 0, l_PV)).sum(axis=1)


def stored(softened: Softened, encoding: Encoding, classes: int) -> Targets:
    fields, arrays = encoding.fields(classes), encoding.encode(softened.targets)
    return encoding.decode({f.name: tensor_columns.unpack(a, f) for f, a in zip(fields, arrays, strict=True)}, classes)


def check_topk(targets: Any, z_PV: Array, label_P: Array, k: int) -> None:
    l_PV = log_softmax(z_PV)
    ids_PK = np.argsort(-l_PV, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(targets.ids_PK, ids_PK)
    close = {"rtol": 1e-3, "atol": 1e-6}
    np.testing.assert_allclose(targets.log_probs_PK, np.take_along_axis(l_PV, ids_PK, 1), **close)
    np.testing.assert_allclose(targets.label_log_prob_P, l_PV[np.arange(len(l_PV)), label_P], **close)
    for at, temperature in enumerate(GRID):
        l_T = log_softmax(z_PV / temperature)
        tail = np.exp(l_T)
        np.put_along_axis(tail, ids_PK, 0, axis=1)
        np.testing.assert_allclose(np.exp(targets.log_tail_PG[:, at]), tail.sum(axis=1), rtol=1e-2, atol=1e-9)
        np.testing.assert_allclose(targets.entropy_PG[:, at], entropy(l_T), rtol=1e-3, atol=1e-6)
        log_z = np.log(np.exp(l_PV / temperature).sum(axis=1))
        np.testing.assert_allclose(targets.log_z_PG[:, at], log_z, **close)


@pytest.mark.parametrize(
    "classes, k, dtype",
    [
        *((classes, k, torch.float32) for classes, k in ((7, 1), (7, 5), (40, 4), (64, 8), (1000, 32))),
        *((7, 5, dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
        (1000, 32, torch.bfloat16),
    ],
    ids=str,
)
def test_topk_keeps_what_float64_says(classes: int, k: int, dtype: torch.dtype) -> None:
    logits = masked(classes, dtype)
    label_P = np.random.default_rng(0).integers(0, classes, len(logits))
    label_P[:6] = 0  # a masked class
    encoding = TopK(k, GRID)
    softened = soften(logits, encoding, label_P)
    assert not softened.bad_R.any()
    z_PV = logits.double().numpy()
    np.testing.assert_allclose(softened.entropy_R, entropy(log_softmax(z_PV)), rtol=1e-5, atol=1e-7)
    check_topk(softened.targets, z_PV, label_P, k)
    targets: Any = stored(softened, encoding, classes)
    check_topk(targets, z_PV, label_P, k)
    assert np.isneginf(targets.label_log_prob_P[:6]).all()
    if k > 1:
        narrower = TopK(k - 1, GRID)
        check_topk(convert(targets, label_P, narrower), z_PV, label_P, k - 1)
    seen = view(targets, label_P)
    np.testing.assert_allclose(seen.entropy_P, entropy(log_softmax(z_PV)), rtol=1e-3, atol=1e-6)
    assert np.isfinite(seen.kept_P).all()


@pytest.mark.parametrize("stored_as", ["float16", "float32"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_dense_keeps_minus_infinity(temperature: float, stored_as: str) -> None:
    logits = masked(7)
    z_PV, label_P = logits.double().numpy(), np.zeros(len(logits), np.int64)
    softened = soften(logits, Dense(temperature, stored_as), label_P)
    assert not softened.bad_R.any()
    np.testing.assert_allclose(softened.entropy_R, entropy(log_softmax(z_PV)), rtol=1e-5, atol=1e-7)
    targets = stored(softened, Dense(temperature, stored_as), 7)
    assert isinstance(targets, DenseTargets)
    centred = (z_PV - z_PV.max(axis=1, keepdims=True)) / temperature
    np.testing.assert_allclose(targets.logits_PV, centred, rtol=1e-3, atol=1e-6)
    seen = view(targets, label_P)
    np.testing.assert_allclose(seen.entropy_P, entropy(log_softmax(z_PV)), rtol=1e-2, atol=1e-6)
    assert np.isneginf(seen.label_log_prob_P).all()
    if stored_as == "float32":
        for k in (1, 3, 5):
            check_topk(convert(targets, label_P, TopK(k, GRID)), z_PV, label_P, k)


@pytest.mark.parametrize("encoding", [Dense(2.0), TopK(2, (2.0,))], ids=str)
@pytest.mark.parametrize("row", [[np.nan, -np.inf, 0, 1], [np.inf, -np.inf, 0, 1], [-np.inf] * 4])
def test_other_values_that_are_not_finite_stay_errors(encoding: Encoding, row: list[float]) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0], row])
    assert soften(logits, encoding).bad_R.tolist() == [False, True]


@pytest.mark.parametrize("encoding", [Dense(1.0), TopK(2)], ids=str)
def test_a_finite_logit_that_overflows_is_no_masked_class(encoding: Encoding) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [-1e300, 1.0, 2.0], [-torch.inf, 1.0, 2.0]], dtype=torch.float64)
    assert soften(logits, encoding).bad_R.tolist() == [False, True, False]
    assert soften(torch.tensor([[0.0, -3e38]]), Dense(0.01)).bad_R.tolist() == [True]


def test_a_classified_sample_without_a_label_keeps_its_soft_targets() -> None:
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    label = np.array([1, IGNORED, 2])
    some, none = soften(logits, TopK(4, GRID), label).targets, soften(logits, TopK(4, GRID)).targets
    derived = convert(soften(logits, Dense(1.0, "float32")).targets, label, TopK(4, GRID))
    for name in ("ids_PK", "log_probs_PK", "log_z_PG", "log_tail_PG", "entropy_PG"):
        np.testing.assert_array_equal(getattr(some, name), getattr(none, name))
        np.testing.assert_allclose(getattr(derived, name), getattr(none, name), rtol=1e-4, atol=1e-6)
    for targets in (some, derived):
        assert np.isnan(targets.label_log_prob_P).tolist() == [False, True, False]
