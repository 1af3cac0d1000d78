"""Softening for topk, in the ways of a CPU and of a GPU, against extended precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.dense import Dense
from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK, TopKTargets
from teacher_infer.soften import blocks, soften
from tests.teacher_infer.distributions import KINDS, arrays, made, without_compiler


@pytest.fixture(params=["eager", "two passes"], autouse=True)
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's passes over the vocabulary, too, though not compiled here."""
    if request.param == "two passes":
        without_compiler(monkeypatch)


def reference(logits_PV: torch.Tensor, k: int, grid: Sequence[float]) -> dict[str, np.ndarray[Any, Any]]:
    """What topk keeps, from a stable sort and in extended precision, relative to the top."""
    ids_PK = torch.sort(logits_PV.float(), dim=1, descending=True, stable=True).indices[:, :k].numpy()
    x_PV = logits_PV.float().numpy().astype(np.longdouble)
    x_PV -= x_PV.max(axis=1, keepdims=True)
    np.put_along_axis(top := np.zeros(x_PV.shape, bool), ids_PK[:, :1], True, axis=1)
    np.put_along_axis(head := np.zeros(x_PV.shape, bool), ids_PK, True, axis=1)
    tail_top_P = np.where(head, -np.inf, x_PV).max(axis=1)
    log_z: dict[float, np.ndarray[Any, Any]] = {}
    found: dict[str, list[np.ndarray[Any, Any]]] = {"log_z": [], "log_tail": [], "entropy": []}
    for temperature in (1.0, *grid):
        y_PV = x_PV / temperature
        rest_PV = np.where(top, 0, np.exp(y_PV))  # beside the top, whose own is 1
        log_z[temperature] = np.log1p(rest_PV.sum(axis=1))
        tail_P = np.exp(np.where(head, -np.inf, y_PV - tail_top_P[:, None] / temperature)).sum(axis=1)
        weighted_P = (rest_PV * np.where(rest_PV > 0, y_PV, 0)).sum(axis=1)
        found["log_tail"].append(tail_top_P / temperature + np.log(tail_P) - log_z[temperature])
        found["entropy"].append(log_z[temperature] - weighted_P / (1 + rest_PV.sum(axis=1)))
        found["log_z"].append(log_z[temperature] - log_z[1.0] / temperature)
    log_probs = np.take_along_axis(x_PV, ids_PK, axis=1) - log_z[1.0][:, None]
    with np.errstate(over="ignore"):
        stacked = {name: np.stack(values[1:], axis=1).astype(np.float32) for name, values in found.items()}
    return {"ids": ids_PK, "log_probs": log_probs.astype(np.float64), **stacked}


FEW = [(1, (1.0,)), (2, (0.5, 1.0, 2.0, 4.0))]
MANY = (64, (1.0, 1.5, 3.0))


@pytest.mark.parametrize(
    "kind, k, grid",
    [
        (kind, *kept)
        for kind in KINDS
        for kept in ([MANY] if kind.startswith("many classes") else [*FEW, MANY])
        if kind != "one class"
    ],
)
def test_topk_keeps_what_float64_says(kind: str, k: int, grid: tuple[float, ...]) -> None:
    logits_PV = made(kind)
    k = min(k, logits_PV.shape[1] - 1)
    targets, expected = soften(logits_PV, TopK(k, grid)).targets, reference(logits_PV, k, grid)
    assert isinstance(targets, TopKTargets) and (targets.temperatures, targets.classes) == (grid, logits_PV.shape[1])
    np.testing.assert_array_equal(targets.ids_PK, expected["ids"])
    np.testing.assert_allclose(targets.log_probs_PK, expected["log_probs"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(targets.log_z_PG, expected["log_z"], rtol=1e-4, atol=2e-7)
    np.testing.assert_allclose(targets.log_tail_PG, expected["log_tail"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(targets.entropy_PG, expected["entropy"], rtol=1e-4, atol=1e-30)
    assert (targets.log_z_PG[:, grid.index(1.0)] == 0).all()
    assert np.isnan(targets.label_log_prob_P).all()


@pytest.mark.parametrize(
    "classes, scale",
    [
        *((1_000, scale) for scale in (0.0, 0.01, 1.0, 3.0, 30.0)),
        *((49_152, 1.0), (131_073, 0.0), (131_073, 30.0), (262_144, 0.01), (262_144, 3.0)),
    ],
)
def test_topk_is_right_for_vocabularies_of_every_size_sharp_and_flat(classes: int, scale: float) -> None:
    """Relative errors below 1e-4 of what is stored, as of tail masses that are far below 1e-6."""
    generator = torch.Generator().manual_seed(classes)
    logits_PV = torch.randn(3, classes, generator=generator) * scale
    logits_PV[1, 7] += 20 * scale  # sharp
    grid = (1.0, 1.5, 2.0, 4.0)
    targets, expected = soften(logits_PV, TopK(16, grid)).targets, reference(logits_PV, 16, grid)
    if scale:
        np.testing.assert_array_equal(targets.ids_PK, expected["ids"])
    else:
        np.testing.assert_array_equal(targets.ids_PK, np.broadcast_to(np.arange(16), (3, 16)))
    for name, found in (
        ("log_z", targets.log_z_PG),
        ("log_tail", targets.log_tail_PG),
        ("entropy", targets.entropy_PG),
    ):
        normal = np.abs(expected[name]) > 1e-30  # below it float32 itself has few digits left
        np.testing.assert_allclose(found[normal], expected[name][normal], rtol=1e-4, err_msg=name)
    assert scale < 30 or (expected["log_tail"] < np.log(1e-6)).any()


def test_of_equal_logits_the_lowest_ids_are_kept_first() -> None:
    """Where the last that is kept ties with the first that is not; half-precision teachers have many such."""
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.zeros(4, 1000, dtype=dtype)
        z[0, [900, 31, 32, 500]] = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=dtype)
        z[1, 999] = 1
        z[2, ::2] = -0.0  # the same number
        z[3] = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(2).to(dtype)
        ids = soften(z, TopK(3)).targets.ids_PK
        assert ids[:3].tolist() == [[900, 31, 32], [999, 0, 1], [0, 1, 2]]
        wide = soften(z, TopK(99)).targets.ids_PK[3]
        order = torch.sort(z[3].float(), descending=True, stable=True).indices[:99]
        assert wide.tolist() == order.tolist()


def test_the_labels_own_log_probability_is_kept_whether_or_not_it_is_among_the_likeliest() -> None:
    logits_RLV = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)) * 3
    label = np.array([[3, 39, 0, 7, IGNORED], [IGNORED, 1, 2, 3, 4]], np.int32)
    softened = soften(logits_RLV, TopK(4, (2.0,)), label)
    targets: Any = softened.targets
    assert (softened.positions, softened.top1_R) == (5, None)
    assert [a.shape for a in arrays(targets)] == [(2, 5, 4), (2, 5, 4), (2, 5), (2, 5, 2), (2, 5, 2), (2, 5, 2)]
    l_RLV = torch.log_softmax(logits_RLV.double(), dim=-1).numpy()
    for row in range(2):
        for at in range(5):
            if label[row, at] == IGNORED:
                assert np.isnan(targets.label_log_prob_P[row, at])
                zeros = [array[row, at] for array in arrays(targets) if array is not targets.label_log_prob_P]
                assert not any(np.any(values) for values in zeros)
            else:
                expected = l_RLV[row, at, label[row, at]]
                np.testing.assert_allclose(targets.label_log_prob_P[row, at], expected, rtol=1e-5)
    counted = label != IGNORED
    entropy = np.where(counted, -(np.exp(l_RLV) * l_RLV).sum(-1), 0).sum(1) / counted.sum(1)
    np.testing.assert_allclose(softened.entropy_R, entropy, rtol=1e-5)


@pytest.mark.parametrize("encoding", [Dense(2.0), TopK(4, (2.0,))])
def test_positions_of_sequences_are_softened_as_if_each_were_a_row(encoding: Dense | TopK) -> None:
    logits_RLV = torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(0)) * 3
    rows, flat = soften(logits_RLV, encoding), soften(logits_RLV.reshape(21, 40), encoding)
    for one, other in zip(arrays(rows.targets), arrays(flat.targets), strict=True):
        np.testing.assert_array_equal(one.reshape(other.shape), other)
    np.testing.assert_allclose(rows.entropy_R, flat.entropy_R.reshape(3, 7).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_topk_finds_bad_rows_and_no_others(value: float) -> None:
    logits_PV = torch.randn(5, 70)
    assert not soften(logits_PV, TopK(3)).bad_R.any()
    logits_PV[4, 0] = value
    logits_PV[2, 69] = value
    assert soften(logits_PV, TopK(3)).bad_R.tolist() == [False, False, True, False, True]
    sequences = torch.randn(3, 4, 70)
    sequences[1, 2, 5] = value
    assert soften(sequences, TopK(3)).bad_R.tolist() == [False, True, False]
    assert soften(sequences, Dense(3)).bad_R.tolist() == [False, True, False]


@pytest.mark.parametrize("block", [1, 50, 175, 1 << 30])
def test_the_blocks_of_topk_leave_no_mark(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    logits_PV = made("usual")
    whole = soften(logits_PV, TopK(5, (2.0,)))
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 4 * block)
    cut = soften(logits_PV, TopK(5, (2.0,)))
    for one, other in zip(arrays(whole.targets), arrays(cut.targets), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_topk_leaves_a_teachers_logits_as_they_were() -> None:
    logits_PV = torch.randn(4, 64)
    before = logits_PV.clone()
    soften(logits_PV, TopK(3))
    assert torch.equal(logits_PV, before)
