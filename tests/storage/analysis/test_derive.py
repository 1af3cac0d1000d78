"""Caches from caches: what is derived is what the teacher's own softening would have kept, up to what was stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.__main__ import main
from storage.analysis.derive import derive, derived_encoding
from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.cache.catalog import verify
from storage.cache.commits import Quarantined
from storage.cache.gc import collect
from storage.cache.open import open_cache
from storage.encodings import Encoding
from storage.encodings.convert import convert
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.topk import TopK, TopKTargets
from storage.format.rows import DecodedRows
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.stream.scan import scan
from tests.storage import sparse


def rows_of(cache: Cache) -> DecodedRows:
    [rows] = scan(CacheRows(cache), cache.samples)
    return rows


def arrays(targets: Any) -> list[np.ndarray[Any, Any]]:
    held: list[np.ndarray[Any, Any]] = []
    targets.each(held.append)
    return held


def close(one: Any, other: Any, rtol: float) -> None:
    assert type(one) is type(other) and (one.temperatures, one.classes) == (other.temperatures, other.classes)
    np.testing.assert_array_equal(one.ids_PK, other.ids_PK)
    for a, b in zip(arrays(one)[1:], arrays(other)[1:], strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("parent", [Dense(2.0), Dense(dtype="float32"), TopK(9, (1.0, 2.0, 4.0))])
def test_a_derived_cache_holds_what_the_teachers_own_run_would_have(tmp_path: Path, parent: Encoding) -> None:
    store = Folder(str(tmp_path))
    wanted = TopK(4, (1.0, 2.0))
    before = sparse.cache(store, parent)
    cache = derive(before, wanted, "smaller")
    right = rows_of(sparse.cache(Folder(str(tmp_path / "other")), wanted))
    rows = rows_of(cache)
    np.testing.assert_array_equal(rows.sample_id, right.sample_id)
    np.testing.assert_array_equal(rows.label, right.label)
    for name, values in rows.inputs.items():
        np.testing.assert_array_equal(values, right.inputs[name])
    exact = parent == Dense(dtype="float32")
    if exact or isinstance(parent, TopK):
        close(rows.targets, right.targets, 1e-3)
    assert verify(cache)["ok"]
    assert (cache.samples, cache.positions, cache.classes) == (8, 48, 40)
    assert cache.encoding == wanted.to_dict()
    assert cache.lineage["derived_from"] == {
        "cache_key": before.key,
        "cache_digest": before.digest,
        "name": "corpus",
        "targets": before.encoding,
    }
    assert cache.lineage["teacher"] == before.lineage["teacher"] and cache.lineage["sealed_at"] != "then"
    # The plain columns are the parent's: what they say of the teacher's own distribution stays right.
    columns = CacheRows(cache, ["targets"], ["soft_entropy"])
    assert columns.table(0, ["soft_entropy"]).column(0).to_pylist()[:2] == [0.0, 1.0]


def test_deriving_again_computes_nothing_and_gc_takes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Folder(str(tmp_path))
    parent = sparse.cache(store, TopK(9))
    one = derive(parent, TopK(3), "small")
    paths = [shard.path for shard in one.shards]
    with monkeypatch.context() as patched:
        patched.setattr("storage.analysis.derive._derive_shard", None)
        again = derive(parent, TopK(3), "other-name")
    assert (again.key, again.digest) == (one.key, one.digest) and [s.path for s in again.shards] == paths
    collect(store, 0.0, dry_run=False)
    assert verify(open_cache(f"{store.url}/other-name"))["ok"]
    # A derived cache is a parent like any other.
    assert derive(one, TopK(2), "smaller").lineage["derived_from"]["cache_key"] == one.key


def test_samples_that_were_left_out_are_still_told_of(tmp_path: Path) -> None:
    bad = [Quarantined("d99:0", "its logits are NaN or infinite")]
    cache = derive(sparse.cache(Folder(str(tmp_path)), TopK(9), quarantined=bad), TopK(3), "small")
    assert cache.quarantined == 2 and all(list(shard.quarantined) == bad for shard in cache.shards)


def test_what_falls_out_of_the_ids_is_added_to_the_tail() -> None:
    z_RLV, label_RL = sparse.logits(3), sparse.labels(sparse.sequences(3))
    grid = (0.5, 1.0, 3.0)
    wide = sparse.targets_of(TopK(20, grid), z_RLV, label_RL)
    close(convert(wide, label_RL, TopK(5, (1.0, 3.0))), sparse.targets_of(TopK(5, (1.0, 3.0)), z_RLV, label_RL), 1e-9)


def test_dense_becomes_topk_as_softening_would_make_it() -> None:
    torch = pytest.importorskip("torch")
    from teacher_infer.soften import soften

    z_RLV, label_RL = sparse.logits(3), sparse.labels(sparse.sequences(3))
    z_RLV[0, 0, :] = np.round(z_RLV[0, 0, :])  # ties
    wanted = TopK(7, (1.0, 2.0, 5.0))
    found = sparse.targets_of(wanted, z_RLV, label_RL)
    close(found, soften(torch.from_numpy(z_RLV), wanted, label_RL).targets, 2e-6)
    assert isinstance(found, TopKTargets)


def test_what_was_not_kept_cannot_be_derived(tmp_path: Path) -> None:
    store = Folder(str(tmp_path))
    parent = sparse.cache(store, TopK(9, (2.0,)))
    before = sorted(path.name for path in tmp_path.rglob("*.parquet"))
    for encoding, words in (
        (TopK(10), "the 9 likeliest classes"),
        (TopK(4, (3.0,)), "for the temperatures 1, 2"),
        (Dense(), "Targets are not derived as dense"),
        (TopK(9, (2.0,)), "has these very targets"),
    ):
        with pytest.raises(RecipeError, match=words):
            derive(parent, encoding, "none")
    assert sorted(path.name for path in tmp_path.rglob("*.parquet")) == before
    assert not list((tmp_path / "jobs").glob("*"))
    with pytest.raises(RecipeError, match="the teacher has 40 classes"):
        derive(sparse.cache(store, Dense(), "dense"), TopK(40), "none")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("topk", TopK(64, (1.0, 2.0))),
        ("topk:k=16", TopK(16, (1.0, 2.0))),
        ("topk:temperatures=[1]", TopK(64)),
        ("topk:k=010,temperatures=[1e0, 0x2]", TopK(10, (1.0, 2.0))),
        ("topk: k=8, temperatures=[1, 0.5]", TopK(8, (0.5, 1.0))),
    ],
)
def test_what_is_not_said_is_as_the_parents(text: str, wanted: TopK) -> None:
    assert derived_encoding(text, TopK(64, (1.0, 2.0)).to_dict()) == wanted


@pytest.mark.parametrize(
    "text, words",
    [
        ("topk:16", "'16' in '--to topk:16' is no setting"),
        ("topkk:k=2", "Did you mean 'topk'"),
        ("topk:kk=2", "targets.kk is no setting of 'topk'"),
        ("topk:k=[", "is no setting"),
        ("topk:k=0", "targets.k is 0"),
    ],
)
def test_odd_encodings_are_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace("[", r"\[")):
        derived_encoding(text, {"encoding": "dense", "dtype": "float16", "temperature": 1.0})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparse.cache(Folder(str(tmp_path)), TopK(9, (1.0, 2.0)))
    assert main(["derive", f"{tmp_path}/corpus", "--to", "topk:k=4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["name"] == "corpus-topk4" and answer["encoding"]["k"] == 4
    assert answer["parent"]["cache_key"] == open_cache(f"{tmp_path}/corpus").key
    assert main(["derive", f"{tmp_path}/corpus", "--to", "topk:k=99"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["show", f"{tmp_path}/corpus-topk4"]) == 0
    assert "derived" in capsys.readouterr().out


def test_dense_targets_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    z_RLV, label_RL = sparse.logits(3), sparse.labels(sparse.sequences(3))
    dense = DenseTargets(z_RLV - z_RLV.max(axis=-1, keepdims=True), np.ones(z_RLV.shape[:-1], np.float32))
    whole = convert(dense, label_RL, TopK(5))
    monkeypatch.setattr("storage.encodings.convert._BLOCK_VALUES", 100)
    close(convert(dense, label_RL, TopK(5)), whole, 1e-15)
