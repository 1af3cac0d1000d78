"""Softening on a GPU, compiled, gives what a CPU gives; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.utils

from storage.encodings.dense import Dense
from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK
from teacher_infer.soften import compiled, soften, wide
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


# More than torch compiles of one function before it stops.
SIZES = (1, 2, 3, 5, 8, 13, 21, 34, 55, 300, 511, 512, 513, 1_200)


@pytest.mark.parametrize("classes", [10, 1_000, 50_257, 152_064])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoding", [TopK(8, (1.0, 2.0)), Dense(2.0)], ids=str)
def test_a_rows_bits_do_not_depend_on_its_batch(classes: int, dtype: torch.dtype, encoding: Any) -> None:
    with torch.inference_mode():
        whole = torch.randn(1_200, classes, device="cuda", dtype=dtype) * 4
    expected = soften(whole, encoding)
    sequences = soften(whole.view(40, 30, classes), encoding)
    for size in SIZES:
        found = soften(whole[-size:], encoding)
        np.testing.assert_array_equal(found.entropy_R, expected.entropy_R[-size:])
        for one, other in zip(arrays(found.targets), arrays(expected.targets), strict=True):
            np.testing.assert_array_equal(one, other[-size:])
        rows = min(size, 40)
        found = soften(whole.view(40, 30, classes)[-rows:], encoding)
        np.testing.assert_array_equal(found.entropy_R, sequences.entropy_R[-rows:])


def test_batches_of_many_sizes_stay_compiled_and_within_a_blocks_memory() -> None:
    with torch.inference_mode():
        whole = torch.randn(1_200, 152_064, device="cuda", dtype=torch.bfloat16)
    soften(whole, TopK(8, (1.0, 2.0)))
    kernels = dict(torch._dynamo.utils.counters["stats"])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for size in SIZES:
        soften(whole[-size:], TopK(8, (1.0, 2.0)))
    assert isinstance(wide.wide(whole, 8, (1.0, 2.0)), compiled.Compiled)
    assert dict(torch._dynamo.utils.counters["stats"]) == kernels
    # A block is 156 MB. Uncompiled, 1,200 positions take 730 MB of float32 for each temporary value.
    assert torch.cuda.max_memory_allocated() - before < 600 << 20
