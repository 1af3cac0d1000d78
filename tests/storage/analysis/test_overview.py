"""What `storage show` says of a cache's teacher, against the logits that the cache was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.analysis.class_marginals import unigram
from storage.analysis.overview import overview
from storage.analysis.show import _position_line, lines, look
from storage.base.errors import UsageError
from storage.encodings import Encoding
from storage.encodings.dense import Dense
from storage.encodings.topk import TopK
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import first_rows
from tests import tiny_models
from tests.storage import sparse
from tests.storage.analysis.test_class_marginals import exact


@pytest.mark.parametrize("encoding", [Dense(dtype="float32"), TopK(5, (2.0,))], ids=str)
def test_the_overview_is_that_of_the_logits(tmp_path: Path, encoding: Encoding) -> None:
    facts, (p_PV, label_P) = overview(sparse.cache(Folder(str(tmp_path)), encoding)), exact()
    assert facts["positions"] == len(p_PV) == 32 and facts["masked"] == pytest.approx(1 / 3)
    entropy_P = -(p_PV * np.log(p_PV)).sum(axis=1)
    assert facts["entropy"]["mean"] == pytest.approx(entropy_P.mean(), rel=1e-3)
    assert sum(found["share"] for found in facts["entropy"]["histogram"]) == pytest.approx(1)
    for found in facts["entropy"]["histogram"]:
        inside = (entropy_P >= found["from"]) & (entropy_P < (found["to"] or np.inf))
        assert found["share"] == pytest.approx(inside.mean())
    assert facts["teacher_accuracy"] == pytest.approx((p_PV.argmax(axis=1) == label_P).mean())
    cross_entropy = -np.log(p_PV[np.arange(len(label_P)), label_P]).mean()
    assert facts["teacher_cross_entropy"] == pytest.approx(cross_entropy, rel=1e-3)
    if isinstance(encoding, TopK):
        kept_P = np.sort(p_PV, axis=1)[:, -5:].sum(axis=1)
        assert facts["mass_kept"]["mean"] == pytest.approx(kept_P.mean(), rel=1e-3)
        assert facts["mass_kept"]["lowest"] == pytest.approx(kept_P.min(), rel=1e-3)
    else:
        assert "mass_kept" not in facts


def test_tokens_are_shown_as_text_where_the_tokenizer_is_at_hand(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    words = ["<unk>", "<end>", *(f"w{n}" for n in range(38))]
    folder = tiny_models.save_tokenizer(tmp_path / "tokenizer", words)
    cache = sparse.cache(Folder(str(tmp_path / "store")), TopK(5))
    facts = look(cache, str(folder))
    position = facts["rows"][0]["positions"][0]
    assert position["text"] == words[position["token"]] and position["label_text"] == words[position["label"]]
    assert [c["text"] for c in position["top"]] == [words[c["class"]] for c in position["top"]]
    assert facts["rows"][0]["positions"][2]["label"] is None
    told = "\n".join(lines(facts))
    assert f"'{position['text']}' | next '{position['label_text']}'" in told and "no target" in told


@pytest.mark.parametrize("encoding", [Dense(), TopK(5)], ids=str)
def test_the_first_tokens_of_the_first_rows_are_shown(tmp_path: Path, encoding: Encoding) -> None:
    pytest.importorskip("tokenizers")
    words = ["<unk>", "<end>", *(f"w{n}" for n in range(38))]
    folder = tiny_models.save_tokenizer(tmp_path / "tokenizer", words)
    cache = sparse.cache(Folder(str(tmp_path / "store")), encoding)
    stored = first_rows(CacheRows(cache, ["inputs"]), 3).inputs["input_ids"]
    for tokenizer in (str(folder), None):
        facts = look(cache, tokenizer)
        assert [[one["token"] for one in row["tokens"]] for row in facts["rows"]] == stored[:3].tolist()
        told = "\n".join(lines(facts))
        for row in stored[:3].tolist():
            assert f"tokens  {' '.join(repr(words[one]) if tokenizer else str(one) for one in row)}" in told
        assert all(("text" in one) == bool(tokenizer) for row in facts["rows"] for one in row["tokens"])


def test_a_tokenizer_that_cannot_be_read_is_told_of_and_numbers_are_shown(tmp_path: Path) -> None:
    cache = sparse.cache(Folder(str(tmp_path / "store")), TopK(5))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    for folder in ("absent", "broken"):
        facts = look(cache, str(tmp_path / folder))
        assert facts["text"].startswith("Tokens are shown by number only: ")
        assert "text" not in facts["rows"][0]["positions"][0]


def test_where_inputs_lie_elsewhere_the_next_tokens_are_shown() -> None:
    position = {"label": 3, "top": [{"class": 3, "probability": 0.5}], "entropy": 1.0, "kept": 0.75}
    assert _position_line(position) == "next 3 | 3 0.5000; entropy 1.000 nats, kept 0.7500"
    assert _position_line({**position, "token": 7}).startswith("7 | next 3 | ")
    assert _position_line({**position, "label": None, "token": 7}) == "7 | no target"


@pytest.mark.parametrize("encoding", [Dense(), TopK(5)], ids=str)
def test_a_cache_without_rows_is_shown(tmp_path: Path, encoding: Encoding) -> None:
    """All its samples were left out."""
    cache = sparse.cache(Folder(str(tmp_path)), encoding, shards=1, rows=0)
    shown = look(cache)
    assert shown["overview"] == {"positions": 0, "masked": 0.0} and shown["rows"] == []
    assert lines(shown)
    with pytest.raises(UsageError, match="has no rows"):
        unigram(CacheRows(cache))
