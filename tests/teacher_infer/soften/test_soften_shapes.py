"""Softening works on blocks of one shape, so that a position's targets do not depend on its batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from storage.encodings.dense import Dense
from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK
from teacher_infer.soften import Softened, blocks, compiled, passes, soften, wide
from tests.teacher_infer.distributions import arrays, small_blocks, without_compiler

# torch's compiler uses what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")

ROWS = 8
GRID = (1.0, 1.5, 2.0)


@pytest.fixture(autouse=True)
def compiled_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU takes the way of a GPU: `torch.compile`, with whatever backend a test chooses."""
    monkeypatch.setattr(compiled, "DEVICES", {"cpu"})
    small_blocks(monkeypatch, ROWS)
    cached = compiled.compiled_passes
    torch._dynamo.reset()
    cached.cache_clear()
    yield
    torch._dynamo.reset()
    cached.cache_clear()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> torch._dynamo.testing.CompileCounter:
    """Counts what is compiled; runs it as it is."""
    counter = torch._dynamo.testing.CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    return counter


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """For each pass everything about its tensors that compiled code may be specialised on."""
    seen: dict[str, set[Any]] = {}

    def recorded(one: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            facts = tuple((x.shape, x.stride(), x.dtype, x.is_inference(), x.data_ptr() % 16) for x in tensors)
            seen.setdefault(one.__name__, set()).add(facts)
            return one(*args)

        return call

    recording = compiled.Passes(*map(recorded, (passes.maxima_pass, passes.tails_pass, passes.moments)))
    monkeypatch.setattr(compiled, "compiled_passes", lambda *_: recording)
    return seen


def logits(rows: int, classes: int, dtype: torch.dtype = torch.float32, inference: bool = True) -> torch.Tensor:
    with torch.inference_mode(inference):
        return (torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows)) * 4).to(dtype)


def halves(whole: torch.Tensor) -> Iterator[torch.Tensor]:
    yield whole
    if len(whole) > 1:
        yield from halves(whole[: len(whole) // 2])
        yield from halves(whole[len(whole) // 2 :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inference", [True, False])
def test_batches_of_every_size_give_the_passes_one_shape(
    shapes: dict[str, set[Any]], dtype: torch.dtype, inference: bool
) -> None:
    classes, whole = 77, logits(3 * ROWS + 1, 77, dtype, inference)
    for rows in range(1, len(whole) + 1):
        soften(whole[:rows], TopK(3, GRID), np.zeros(rows, np.int64))
    for part in halves(whole):
        soften(part, TopK(3, GRID))
    for lead in ((1, 1), (1, ROWS), (2, 5), (5, 5)):
        soften(whole[: lead[0] * lead[1]].view(*lead, classes), TopK(3, GRID), np.zeros(lead, np.int64))
    with torch.inference_mode(inference):
        alike = torch.zeros_like(whole)
    soften(alike, TopK(3, GRID))  # ties are searched in another way
    assert {name: len(found) for name, found in shapes.items()} == {"maxima_pass": 1, "tails_pass": 1, "moments": 1}


@pytest.mark.parametrize("classes", [77, 80])
def test_logits_that_begin_or_lie_otherwise_have_one_shape_too(shapes: dict[str, set[Any]], classes: int) -> None:
    """Without a row before them, transposed, or of a padded head that was cut."""
    whole, padded = logits(2 * ROWS + 1, classes), logits(2 * ROWS, classes + 3)
    with torch.inference_mode():
        transposed = whole.t().contiguous().t()
    for part in (whole, whole[1:], whole[3 : 3 + ROWS], transposed, padded[:, :classes], padded[:1, :classes]):
        soften(part, TopK(3, GRID))
    soften(padded.view(2, ROWS, -1)[..., :classes], TopK(3, GRID))
    assert {len(found) for found in shapes.values()} == {1}


def test_full_blocks_are_not_copied() -> None:
    whole = logits(3 * ROWS, 80)
    layout = compiled.Layout.of(whole)
    assert layout.block(whole[ROWS : 2 * ROWS]).data_ptr() == whole[ROWS].data_ptr()
    rest = layout.block(whole[-3:])
    assert torch.equal(rest[:3], whole[-3:]) and rest[3:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_finite_and_in_float32_without_ties(dtype: torch.dtype) -> None:
    padding = blocks.padding(torch.empty(1, 262_144))
    assert padding.to(dtype).isfinite().all() and len(padding.unique()) == 262_144


@pytest.mark.parametrize("classes", [2, 1_000, 50_257, 152_064, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_a_gpu_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch, classes: int, dtype: torch.dtype) -> None:
    monkeypatch.undo()
    rows = compiled.Layout.of(torch.empty(1, classes, dtype=dtype)).rows
    assert 512 <= rows <= 4096 and rows * classes * dtype.itemsize <= (512 << 20) + (50 << 20)
    assert rows & (rows - 1) == 0


def test_each_pass_is_compiled_once(kernels: torch._dynamo.testing.CompileCounter) -> None:
    whole = logits(3 * ROWS, 77)
    for rows in range(1, len(whole) + 1):
        soften(whole[:rows], TopK(3, GRID))
        assert kernels.frame_count == 3
    for part in halves(whole):
        soften(part, TopK(3, GRID))
    assert kernels.frame_count == 3


def test_more_vocabularies_than_torch_allows_kernels_are_all_compiled(
    kernels: torch._dynamo.testing.CompileCounter,
) -> None:
    limit = torch._dynamo.config.recompile_limit
    for count in range(1, limit + 3):
        for dtype in (torch.float32, torch.bfloat16):
            soften(logits(5, 64 + count, dtype), TopK(3, GRID))
        # The last pass does not see how many classes there are.
        assert kernels.frame_count == 2 * 2 * count + 1
    assert torch._dynamo.config.recompile_limit == limit


def test_where_nothing_is_compiled_small_blocks_are_used_from_the_first_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Any] = []

    def no_compiler(graph: Any, inputs: Any) -> Any:
        tried.append(graph)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    whole = logits(3 * ROWS, 77)
    found = [soften(whole[:rows], TopK(3, GRID)) for rows in (3 * ROWS, 5)]
    assert isinstance(wide.wide(whole, 3, GRID), wide.Eager)
    assert len(tried) == 1
    [record] = [record for record in caplog.records if record.name == "stillhouse.soften"]
    assert "Softening for 77 classes is not compiled" in record.message and "C compiler" in record.message
    monkeypatch.setattr(compiled, "DEVICES", set[str]())
    same(found[0], soften(whole, TopK(3, GRID)), slice(None))


def test_a_compiler_that_is_switched_off_is_not_taken_for_one(caplog: pytest.LogCaptureFixture) -> None:
    """The passes, uncompiled, would take a block's logits several times over in float32."""
    with torch.compiler.set_stance("force_eager"):
        assert isinstance(wide.wide(logits(5, 77), 3, GRID), wide.Eager)
    assert "torch.compile is switched off" in caplog.text


def test_a_lack_of_memory_is_no_lack_of_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(graph: Any, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_memory))
    with pytest.raises(Exception, match="out of memory"):
        soften(logits(5, 77), TopK(3, GRID))


# Dense targets are made one way whether or not passes are compiled.
@pytest.mark.parametrize(
    "encoding, way", [(TopK(3, GRID), "eager"), (TopK(3, GRID), "two passes"), (Dense(2.0), "eager")], ids=str
)
@pytest.mark.parametrize("classes", [77, 50_257])
def test_a_rows_bits_do_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch, way: str, encoding: Any, classes: int
) -> None:
    if way == "eager":
        monkeypatch.setattr(compiled, "DEVICES", set[str]())
    else:
        without_compiler(monkeypatch)
    count, length = 7, 5
    z_RLV = logits(count * length, classes).view(count, length, classes)
    label_RL = np.random.default_rng(0).integers(0, classes, (count, length))
    label_RL[2, 1:] = IGNORED
    whole = soften(z_RLV, encoding, label_RL)
    rows = soften(z_RLV[:, 0], encoding, label_RL[:, 0])
    for size in (1, 2, 3):
        for start in range(0, count, size):
            part = slice(start, start + size)
            same(soften(z_RLV[part], encoding, label_RL[part]), whole, part)
            same(soften(z_RLV[part, 0], encoding, label_RL[part, 0]), rows, part)


def same(one: Softened, other: Softened, part: slice) -> None:
    np.testing.assert_array_equal(one.entropy_R, other.entropy_R[part])
    np.testing.assert_array_equal(one.bad_R, other.bad_R[part])
    for mine, theirs in zip(arrays(one.targets), arrays(other.targets), strict=True):
        np.testing.assert_array_equal(mine, theirs[part])
