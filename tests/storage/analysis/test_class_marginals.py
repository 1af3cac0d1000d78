"""The teacher's mean distribution, worked out again in float64 from the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.analysis.class_marginals import _Counted, unigram
from storage.base.errors import UsageError
from storage.encodings import Encoding
from storage.encodings.convert import convert
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import IGNORED
from storage.encodings.topk import TopK
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.stream.scan import scan
from tests.storage import sparse


def exact() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """p [P, V] of the positions with a target of `sparse.cache`, and their labels."""
    z = np.concatenate([sparse.logits(4, first) for first in (0, 4)]).astype(np.float64)
    label = np.concatenate([sparse.labels(sparse.sequences(4, first)) for first in (0, 4)])
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True))[label != IGNORED], label[label != IGNORED]


def of(tmp_path: Path, encoding: Encoding) -> np.ndarray[Any, Any]:
    return unigram(CacheRows(sparse.cache(Folder(str(tmp_path)), encoding)))


def test_of_dense_targets_it_is_their_mean(tmp_path: Path) -> None:
    found, (p_PV, _) = of(tmp_path, Dense(dtype="float32")), exact()
    assert found.dtype == np.float32 and (found > 0).all()
    np.testing.assert_allclose(found, p_PV.mean(axis=0), rtol=1e-5)


def test_of_topk_the_tail_is_spread_as_the_labels_are(tmp_path: Path) -> None:
    found, (p_PV, label_P) = of(tmp_path, TopK(5)), exact()
    head = np.argsort(-p_PV, axis=1, kind="stable")[:, :5]
    kept_PV = np.zeros_like(p_PV)
    np.put_along_axis(kept_PV, head, np.take_along_axis(p_PV, head, axis=1), axis=1)
    counts_V = np.bincount(label_P, minlength=sparse.CLASSES) + 1
    expected = kept_PV.sum(axis=0) + (1 - kept_PV.sum(axis=1)).sum() * counts_V / counts_V.sum()
    np.testing.assert_allclose(found, expected / len(p_PV), rtol=2e-3)
    assert abs(found.sum() - 1) < 1e-6 and (found > 0).all()


def test_rows_without_targets_have_none(tmp_path: Path) -> None:
    cache = sparse.cache(Folder(str(tmp_path)), TopK(5))
    with pytest.raises(UsageError, match="has no soft targets"):
        unigram(CacheRows(cache, ["inputs"]))
    assert next(iter(scan(CacheRows(cache), 8))).targets is not None


@pytest.mark.parametrize("encoding", [Dense(), TopK(2)], ids=str)
def test_of_classified_samples_those_without_a_label_count(encoding: Encoding) -> None:
    z_PV = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32))
    dense = DenseTargets(z_PV - z_PV.max(axis=1, keepdims=True), np.ones(2, np.float32))
    label = np.array([0, IGNORED])
    counted = _Counted()
    counted.add(dense if isinstance(encoding, Dense) else convert(dense, label, encoding), label)
    assert counted._head_V[1] == pytest.approx(0.75, rel=1e-3)
    assert counted._labels_V.tolist() == [2, 1, 1]
