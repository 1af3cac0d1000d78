"""Softening on a GPU, compiled, gives what a CPU gives; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.dense import Dense
from storage.encodings.topk import TopK
from storage.targets import IGNORED
from teacher_infer.soften import soften
from tests.teacher_infer.distributions import KINDS, arrays, made

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # torch's compiler uses what torch itself has deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]


def same(logits: torch.Tensor, encoding: Any, label: Any = None) -> None:
    expected, found = soften(logits, encoding, label), soften(logits.cuda(), encoding, label)
    np.testing.assert_array_equal(found.bad_R, expected.bad_R)
    np.testing.assert_allclose(found.entropy_R, expected.entropy_R, rtol=1e-5, atol=1e-30)
    for one, other in zip(arrays(found.targets), arrays(expected.targets), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=3e-7)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one class"])
@pytest.mark.parametrize("encoding", [TopK(2, (0.5, 1.0, 2.0, 4.0)), TopK(1), Dense(2.0)], ids=str)
def test_of_every_kind(kind: str, encoding: Any) -> None:
    same(made(kind), encoding)


@pytest.mark.parametrize("classes", [1_000, 49_152, 131_073, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_every_vocabulary(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits_RLV = (torch.randn(3, 50, classes, generator=generator) * 4).to(dtype)
    label = np.random.default_rng(0).integers(0, classes, (3, 50)).astype(np.int32)
    label[0, 7] = label[2, 49] = IGNORED
    same(logits_RLV, TopK(64, (1.0, 1.5, 2.0)), label)
