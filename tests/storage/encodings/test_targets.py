"""Targets: their mask, slices of them, and what they say of the teacher's distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from storage.analysis.class_marginals import _Counted
from storage.analysis.overview import view
from storage.base.errors import RecipeError
from storage.encodings.arrays import widen
from storage.encodings.convert import convert
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import IGNORED, Targets, with_mask
from storage.encodings.topk import TopK
from storage.rows.open import open_rows
from storage.rows.row_groups import first_rows
from storage.stream.scan import scan
from storage.stream.stream import Batch, Stream
from storage.stream.torch_dataset import StreamDataset, TorchBatch
from tests.small_caches import image_cache, packed_cache


def dense(*lead: int) -> DenseTargets:
    return DenseTargets(np.zeros((*lead, 3), np.float32), np.ones(lead, np.float32))


def test_sequences_have_a_target_where_they_have_a_label() -> None:
    label = np.array([[1, IGNORED], [IGNORED, 0]])
    assert with_mask(dense(2, 2), label).mask_P.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("lead", "label"), [((2,), np.array([1, IGNORED])), ((2,), None), ((2, 2), None), ((0,), np.zeros(0, int))]
)
def test_every_classified_sample_and_every_unlabelled_position_has_a_target(lead: Any, label: Any) -> None:
    mask = with_mask(dense(*lead), label).mask_P
    assert mask.shape == lead and mask.dtype == np.bool_ and mask.all()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_cache(tmp_path_factory.mktemp("packed"))


def test_a_cache_gives_targets_with_their_mask_however_it_is_read(packed: str) -> None:
    rows = open_rows(packed)
    batch = next(iter(Stream(rows, batch_size=6)))
    tensors = next(iter(StreamDataset(Stream(rows, batch_size=6))))
    for read in (
        first_rows(rows, 3),
        *scan(rows, 5),
        batch,
        tensors,
        first_rows(open_rows(packed, parts=["targets"]), 3),
    ):
        targets: Any = read.targets
        assert targets.mask_P.shape == read.label.shape
        assert bool((targets.mask_P == (read.label != IGNORED)).all())
    assert isinstance(tensors.targets.mask_P, torch.Tensor)  # type: ignore[union-attr]
    masks = np.concatenate([read.targets.mask_P for read in scan(rows, 5)])  # type: ignore[union-attr]
    assert masks.any() and not masks.all()


def test_a_classified_cache_counts_every_row(tmp_path: Path) -> None:
    for read in scan(open_rows(image_cache(tmp_path)), 8):
        assert read.targets is not None and read.targets.mask_P.shape == (len(read),) and read.targets.mask_P.all()


def arrays(batch: Batch) -> list[Any]:
    targets: Any = batch.targets
    held: list[Any] = [batch.places, batch.sample_id, batch.label, *batch.inputs.values()]
    targets.each(held.append)
    return held


@pytest.mark.parametrize("cut", [slice(0, 2), slice(2, 6), slice(None), slice(4, 99), slice(3, 3)])
def test_a_batch_is_sliced_row_by_row(packed: str, cut: slice) -> None:
    rows = open_rows(packed)
    for batch in (next(iter(Stream(rows, batch_size=6))), next(iter(StreamDataset(Stream(rows, batch_size=6))))):
        part = batch[cut]
        assert type(part) is type(batch) and len(part) == len(range(6)[cut])
        assert (part.first, part.global_size) == (batch.first, batch.global_size)
        for whole, some in zip(arrays(batch), arrays(part), strict=True):
            np.testing.assert_array_equal(np.asarray(whole)[cut], np.asarray(some))
        assert isinstance(part, TorchBatch) == isinstance(batch, TorchBatch)


def test_a_batch_is_not_indexed_by_a_number(packed: str) -> None:
    batch: Any = next(iter(Stream(open_rows(packed), batch_size=6)))
    with pytest.raises(TypeError, match=r"rows are sliced, as in rows\[8:16\]"):
        batch[3]


# What analysis and losses ask of targets, against the distribution itself in float64.

LIBRARIES: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {"numpy": lambda array: array, "torch": torch.from_numpy}


def logits() -> np.ndarray[Any, np.dtype[np.float64]]:
    """[2, 3, 11], with classes that are equally likely."""
    return np.round(np.random.default_rng(0).normal(size=(2, 3, 11)) * 3)


def log_p(temperature: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    z = logits() / temperature
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


LABEL = np.array([[0, IGNORED, 3], [10, 4, IGNORED]])


def stored(kind: str, dtype: str = "float32") -> Targets:
    """Of `logits`, kept at T_c = 2, or with k = 4 for the temperatures 1 and 2."""
    z = logits() / 2.0
    dense = DenseTargets((z - z.max(axis=-1, keepdims=True)).astype(dtype), np.full((2, 3), 2.0, dtype))
    return dense if kind == "dense" else convert(dense, LABEL, TopK(4, (2.0,)))


@pytest.mark.parametrize("kind", ["dense", "topk"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_targets_describe_the_teachers_distribution(kind: str, library: str) -> None:
    as_array = LIBRARIES[library]
    targets = stored(kind).each(as_array)
    assert (targets.kind, targets.lead, targets.classes) == (kind, (2, 3), 11)
    counted = LABEL != IGNORED
    order = np.argsort(-logits(), axis=-1, kind="stable")

    def check(found: Any, expected: np.ndarray[Any, Any]) -> None:
        assert isinstance(found, np.ndarray if library == "numpy" else torch.Tensor)
        np.testing.assert_allclose(np.asarray(found)[counted], expected[counted], rtol=2e-6, atol=1e-6)

    for count in (1, 3):
        ids, log_probs = targets.top(count)
        assert np.asarray(ids).dtype == np.int64
        check(ids, order[..., :count])
        check(log_probs, np.take_along_axis(log_p(), order[..., :count], axis=-1))
    check(targets.entropy(), -(np.exp(log_p()) * log_p()).sum(axis=-1))
    label_log_prob = targets.label_log_prob(as_array(LABEL))
    check(label_log_prob, np.take_along_axis(log_p(), LABEL.clip(min=0)[..., None], axis=-1)[..., 0])
    assert np.isnan(np.asarray(label_log_prob)[~counted]).all()
    for temperature in (1.0, 2.0):
        sparse = targets.sparse(temperature)
        if sparse is None:
            assert kind == "dense"
            check(targets.log_probs(temperature), log_p(temperature))
        else:
            check(sparse.ids_PK, order[..., :4])
            check(sparse.log_probs_PK, np.take_along_axis(log_p(temperature), order[..., :4], axis=-1))
            tail = np.take_along_axis(np.exp(log_p(temperature)), order[..., 4:], axis=-1).sum(axis=-1)
            check(sparse.log_tail_P, np.log(tail))


def test_topk_gives_no_more_classes_than_it_has() -> None:
    assert stored("topk").top(9)[0].shape == (2, 3, 4)


@pytest.mark.parametrize("kind", ["dense", "topk"])
def test_results_are_float64_in_numpy_and_float32_in_torch_unless_the_tensor_is_wider(kind: str) -> None:
    def results(targets: Targets) -> list[Any]:
        sparse = targets.sparse(1.0)
        whole = [targets.log_probs(3.0)] if sparse is None else [sparse.log_probs_PK, sparse.log_tail_P]
        return [targets.top(1)[1], targets.top(2)[1], targets.entropy(), *whole]

    assert {found.dtype for found in results(stored(kind, "float16"))} == {np.dtype(np.float64)}
    for dtype in (torch.float32, torch.float64):
        tensors = stored(kind).each(torch.from_numpy).each(lambda a, d=dtype: a.to(d) if a.is_floating_point() else a)
        assert {found.dtype for found in results(tensors)} == {dtype}


def test_a_class_of_probability_0_adds_no_entropy_and_is_finite_in_torch() -> None:
    targets = DenseTargets(np.array([[0.0, 0.0, -np.inf]], np.float32), np.ones(1, np.float32))
    assert targets.entropy() == pytest.approx(np.log(2)) and np.isneginf(targets.log_probs(1.0)[0, 2])
    tensors = targets.each(torch.from_numpy)
    assert tensors.entropy().item() == pytest.approx(np.log(2))
    assert tensors.log_probs(1.0)[0, 2] == torch.finfo(torch.float32).min


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_classes_that_are_alike_the_lowest_is_the_likeliest(dtype: str) -> None:
    targets = DenseTargets(np.array([[-1, 0, 0], [0, 0, 0], [-2, -1, 0]], dtype), np.ones(3, np.float32))
    for found in (targets, targets.each(torch.from_numpy)):
        assert found.top(1)[0].tolist() == [[1], [0], [2]]
        assert found.top(3)[0].tolist() == [[1, 2, 0], [0, 1, 2], [2, 1, 0]]


def test_what_the_targets_do_not_hold_is_refused_by_name() -> None:
    targets = stored("topk")
    with pytest.raises(RecipeError, match=r"The targets are topk: they hold some of the 11 classes\."):
        targets.log_probs(1.0)
    with pytest.raises(RecipeError, match=r"The temperature 3 is not in the grid of these targets\..*1, 2"):
        targets.sparse(3.0)


def test_positions_without_a_target_are_written_over_where_the_encoding_says_so() -> None:
    ignored = np.array([[True, False, False], [False, False, True]])
    for as_array in LIBRARIES.values():
        given = stored("topk").each(np.copy)
        found = given.each(as_array).cleared(as_array(ignored))
        held: list[Any] = []
        found.each(held.append)
        for array in held:
            assert not np.asarray(array)[ignored].any() or np.isnan(np.asarray(array)[ignored]).all()
            assert np.asarray(array)[~ignored].any()
        assert np.isnan(np.asarray(found.label_log_prob_P)[ignored]).all()
    dense = stored("dense")
    assert dense.cleared(ignored) is dense


def test_an_index_that_is_no_slice_is_refused() -> None:
    targets: Any = stored("dense")
    with pytest.raises(TypeError, match=r"targets are sliced, as in targets\[8:16\]"):
        targets[0]


# Another encoding adds a class, and every consumer takes it.


@dataclass(frozen=True)
class Factored(Targets):
    """Logits as coefficients of a basis, which all positions share."""

    kind: ClassVar[str] = "factored"
    coefficients_Pr: Any
    basis: tuple[tuple[float, ...], ...]
    mask_P: Any = None

    @property
    def classes(self) -> int:
        return len(self.basis[0])

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.coefficients_Pr.shape[:-1])

    def logits(self, temperature: float) -> Any:
        basis: Any = np.array(self.basis)
        if isinstance(self.coefficients_Pr, torch.Tensor):
            basis = torch.from_numpy(basis).to(self.coefficients_Pr.dtype)
        return widen(self.coefficients_Pr @ basis) / temperature


def factored() -> tuple[Factored, DenseTargets]:
    """[2, 3] positions in both encodings."""
    random = np.random.default_rng(1)
    coefficients, basis = random.normal(size=(2, 3, 4)), random.normal(size=(4, 11))
    z = coefficients @ basis
    dense = DenseTargets(z - z.max(axis=-1, keepdims=True), np.ones((2, 3)))
    return Factored(coefficients, tuple(map(tuple, basis.tolist()))), dense


def test_another_encoding_is_analysed_and_derived_without_more_code() -> None:
    mine, dense = factored()
    for count in (1, 3):
        found, expected = (view(targets.flat(), LABEL.reshape(-1), count) for targets in (mine, dense))
        for name, value in vars(expected).items():
            if value is None:
                assert getattr(found, name) is None
            else:
                np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12)
    means = list[Any]()
    for targets in (mine, dense):
        counted = _Counted()
        counted.add(targets.flat(), LABEL)
        means.append(counted.mean())
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6)
    found, expected = (convert(targets, LABEL, TopK(3, (2.0,))) for targets in (mine, dense))
    np.testing.assert_array_equal(found.sparse(2.0).ids_PK, expected.sparse(2.0).ids_PK)  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"Targets are not derived as dense\."):
        convert(mine, LABEL, Dense())
