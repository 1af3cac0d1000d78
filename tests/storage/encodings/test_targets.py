"""The mask of targets, set where rows are decoded, and slices of targets, rows and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.encodings.dense import DenseTargets
from storage.encodings.targets import IGNORED, with_mask
from storage.rows.open import open_rows
from storage.rows.row_groups import first_rows
from storage.stream.stream import Batch, Stream, scan
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
