"""Labels beside a packed column: which tokens are targets, or what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError
from storage.encodings.targets import IGNORED
from storage.sources import Source, make_source
from storage.sources.settings import SourceSection
from tests.storage.helpers import documents_of
from tests.storage.sources.packing.test_packed_source import rows_of
from tests.tiny_models import save_tokenizer

L = 8
IDS = [[5, 6, 7], [8, 9]]
LABELS = [[IGNORED, IGNORED, 7], [8, IGNORED]]
Open = Callable[..., Source]


@pytest.fixture(params=["parquet", "jsonl", "function"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, module: Callable[[str], str]) -> Open:
    """`opened(columns, label, **pack)`: documents with other columns beside them, by each kind of source."""

    def make(columns: dict[str, Any], label: Any = None, **pack: Any) -> Source:
        where = documents_of(request.param, columns, tmp_path, module)
        settings = {**where, "columns": {"label": label}, "pack": {"column": "doc", "sequence_length": L, **pack}}
        return make_source(SourceSection.model_validate(settings).settings())

    return make


def labels_of(source: Source) -> list[int]:
    again = make_source(json.loads(json.dumps(source.to_dict())))
    [(*_, labels)] = rows_of(again)
    assert [labels] == [row[-1] for row in rows_of(source)]
    return labels


@pytest.mark.parametrize(("name", "label"), [("label", None), ("labels", None), ("counts", "counts")])
def test_a_position_has_a_target_where_the_next_tokens_label_is_one(opened: Open, name: str, label: Any) -> None:
    found = labels_of(opened({"doc": IDS, name: LABELS}, label))
    assert found == [IGNORED, 7, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED]


def test_labels_can_be_left_out(opened: Open) -> None:
    found = labels_of(opened({"doc": IDS, "label": LABELS, "labels": LABELS}, False))
    assert found == [6, 7, IGNORED, 9, IGNORED, IGNORED, IGNORED, IGNORED]


def test_an_end_token_is_a_target_and_begin_tokens_have_that_of_the_first_token(opened: Open) -> None:
    source = opened({"doc": IDS, "labels": LABELS}, begin_token=1, end_token=2)
    [first, second] = rows_of(source)
    assert first[1] + second[1][:1] == [1, 5, 6, 7, 2, 1, 8, 9, 2]
    assert first[3] == [IGNORED, IGNORED, 7, 2, IGNORED, 8, IGNORED, 2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"labels": [[6, 7, IGNORED], [9, IGNORED]]}, "has the token 5 at 0, and its label in 'labels' is 6"),
        ({"labels": [[5, 6, 7], [8, 3]]}, "has the token 9 at 1, and its label in 'labels' is 3"),
        ({"label": [[5, 6, 7], [8]]}, "has 2 tokens and 1 labels in 'label'"),
        ({"label": [0, 1]}, "the labels in 'label' are of type int64"),
        ({"label": [[5, 6, 7], None]}, "with nulls"),
        ({"label": [[5, 6, None], [8, 9]]}, "with nulls"),
        ({"label": LABELS, "labels": LABELS}, "has the columns 'label' and 'labels'"),
        ({"attention_mask": [[1, 1, 0], [1, 1]]}, "has padding: a 0 at 2 in 'attention_mask'"),
    ],
)
def test_what_is_no_mask_of_targets_is_refused(opened: Open, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError) as caught:
        opened({"doc": IDS, **columns}).files()
    assert said in str(caught.value)


def test_a_label_column_that_is_missing_is_refused(opened: Open) -> None:
    with pytest.raises(SourceError, match="has no column 'targets'"):
        opened({"doc": IDS}, "targets").files()


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_beside_text_are_refused(opened: Open, tmp_path: Path, name: str) -> None:
    tokenizer = str(save_tokenizer(tmp_path / "tokenizer"))
    columns = {"doc": ["w1 w2", "w3"], name: [0, 1]}
    with pytest.raises(SourceError, match=rf"'{name}' beside documents of text.*source\.columns\.label=false"):
        opened(columns, tokenizer=tokenizer).files()
    assert len(rows_of(opened(columns, False, tokenizer=tokenizer))) == 1


def test_a_document_column_may_be_named_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": IDS}), tmp_path / "a.parquet")
    source = make_source({"parquet": str(tmp_path), "pack": {"column": "label", "sequence_length": L}})
    assert rows_of(source)[0][3][:5] == [6, 7, IGNORED, 9, IGNORED]


def test_columns_that_pack_does_not_take_are_said(opened: Open) -> None:
    source = opened({"doc": IDS, "labels": LABELS, "url": ["u", "v"], "attention_mask": [[1, 1, 1], [1, 1]]})
    source.files()
    assert list(source.left_out()) == ["url", "attention_mask"]
    assert set(source.left_out().values()) == {"pack takes 'doc' alone"}
