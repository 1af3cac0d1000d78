"""Documents that are null or have no tokens: an error, or left out and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from storage.base.errors import RecipeError, SourceError
from storage.encodings.targets import IGNORED
from storage.rows.row_groups import read_group
from storage.rows.source_rows import SourceRows
from storage.sources import Source, make_source
from storage.sources.settings import SourceSection
from tests.storage.helpers import documents_of
from tests.storage.sources.packing.test_packed_source import rows_of
from tests.tiny_models import WORDS, save_tokenizer

L = 8
END = WORDS.index("<end>")
Open = Callable[..., Source]


@pytest.fixture(params=["parquet", "jsonl", "function"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, module: Callable[[str], str]) -> Open:
    """`opened(columns, **pack)`: documents in the column `body`, by each kind of source."""

    def make(columns: dict[str, Any], **pack: Any) -> Source:
        where = documents_of(request.param, columns, tmp_path, module)
        return make_source({**where, "pack": {"column": "body", "sequence_length": L, **pack}})

    return make


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return str(save_tokenizer(tmp_path / "tokenizer"))


def skipped(source: Source) -> int:
    return sum(file.skipped_documents for file in source.files())


TOKENS = [[], [5, 6, 7], None, [8], [], [9, 10] * 5, []]
FULL = [place for place, document in enumerate(TOKENS) if document]


@pytest.mark.parametrize("what", ["text", "tokens"])
@pytest.mark.parametrize("end", [None, END])
def test_rows_are_those_of_the_other_documents(opened: Open, tokenizer: str, what: str, end: int | None) -> None:
    body: list[Any] = TOKENS
    pack: dict[str, Any] = {} if end is None else {"end_token": end}
    if what == "text":
        body = [None if document is None else " ".join(WORDS[token] for token in document) for document in TOKENS]
        pack = {"tokenizer": tokenizer} | ({} if end is None else {"end_token": "<end>"})
    ids = [f"d{place}" for place in range(len(TOKENS))]
    source = opened({"sample_id": ids, "body": body}, empty_documents="skip", **pack)
    found, count = rows_of(source), skipped(source)
    without = {"sample_id": [ids[place] for place in FULL], "body": [body[place] for place in FULL]}
    expected = rows_of(opened(without, **pack))
    assert (found, count) == (expected, 4)


def test_documents_without_ids_keep_the_numbers_of_their_rows(opened: Open) -> None:
    source = opened({"body": TOKENS}, empty_documents="skip", begin_token=3, sequence_length=2)
    assert [name.rpartition(":")[0].rpartition(":")[2] for name, *_ in rows_of(source)][:3] == ["1", "1", "3"]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_may_have_empty_documents_only(opened: Open, block: int) -> None:
    source = opened({"body": [[], [], [], [5, 6], [], None]}, empty_documents="skip", block_documents=block)
    assert (len(source.files()), skipped(source)) == (6 // block, 5)
    assert [row for _, row, *_ in rows_of(source)] == [[5, 6, *[0] * 6]]
    first = source.files()[0]
    assert (first.rows, source.read(first, 0, 1).num_rows, len(source.ids(first))) == (0, 0, 0)


def test_a_block_may_have_nulls_only(opened: Open, tokenizer: str) -> None:
    source = opened({"body": [None, None, "w1"]}, empty_documents="skip", block_documents=2, tokenizer=tokenizer)
    assert ([file.rows for file in source.files()], skipped(source)) == ([0, 1], 2)


def test_special_tokens_that_are_added_make_no_document(tmp_path: Path, opened: Open, tokenizer: str) -> None:
    made = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    made.post_processor = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", END)])
    made.save(str(tmp_path / "tokenizer.json"))
    body = ["", " \n", "w1", "<end>"]
    source = opened({"body": body}, empty_documents="skip", tokenizer=str(tmp_path))
    assert skipped(source) == 2
    assert skipped(opened({"body": [[END], [5]]}, empty_documents="skip")) == 0


@pytest.mark.parametrize("body", [[[], None], [None, None], [[], []]])
def test_a_source_of_empty_documents_only_is_refused(opened: Open, body: list[Any]) -> None:
    with pytest.raises(SourceError, match=r"All 2 documents in the column 'body' are empty, and were skipped\."):
        opened({"body": body}, empty_documents="skip").files()


@pytest.mark.parametrize("body", [[[5], []], [[5], None], [None, None]])
def test_without_the_setting_an_empty_document_is_refused(opened: Open, body: list[Any]) -> None:
    with pytest.raises(
        SourceError, match=r"(has no tokens|is null) \(empty: .* set source\.pack\.empty_documents=skip"
    ):
        opened({"body": body}).files()


def test_the_rows_count_in_the_key_and_the_setting_does_not(opened: Open, tokenizer: str) -> None:
    """So a corpus that gets its first empty document, and the setting for it, keeps its spans."""
    columns = {"body": ["w1"]}
    assert opened({"body": [[5]]}, empty_documents="skip").preprocessing() is None
    usual: Any = opened(columns, tokenizer=tokenizer).preprocessing()
    assert set(usual) == {"tokenizer", "special_tokens", "begin_token", "end_token"}
    assert opened(columns, tokenizer=tokenizer, empty_documents="skip").preprocessing() == usual


def test_labels_stay_beside_their_tokens(opened: Open) -> None:
    body = [[], [5, 6, 7], None, [8, 9], []]
    labels = [[], [IGNORED, 6, 7], None, [8, IGNORED], None]
    source = opened({"body": body, "labels": labels}, empty_documents="skip", end_token=2)
    [(_, tokens, _, label)] = rows_of(source)
    assert tokens == [5, 6, 7, 2, 8, 9, 2, 2]
    assert label == [6, 7, 2, IGNORED, IGNORED, 2, IGNORED, IGNORED]
    blocks = opened({"body": body, "labels": labels}, empty_documents="skip", block_documents=1)
    assert next(label for *_, label in rows_of(blocks))[:3] == [6, 7, IGNORED]


def test_labels_of_an_empty_document_are_refused(opened: Open) -> None:
    source = opened({"body": [[5], []], "labels": [[5], [6]]}, empty_documents="skip")
    with pytest.raises(SourceError, match="has 0 tokens and 1 labels in 'labels'"):
        source.files()


def test_who_learns_from_documents_is_told_how_many_were_skipped(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    rows = SourceRows(opened({"body": TOKENS}, empty_documents="skip"))
    assert "4 documents of " in caplog.text and "are empty, and were skipped." in caplog.text
    assert (
        np.concatenate([read_group(rows, group).inputs["input_ids"] for group in range(len(rows.rows))]).shape[1] == L
    )


def test_a_recipe_names_one_of_two_ways() -> None:
    pack = {"column": "text", "sequence_length": L, "empty_documents": "drop"}
    with pytest.raises(ValueError, match="'error' or 'skip'"):
        SourceSection.model_validate({"jsonl": "x", "pack": pack})
    with pytest.raises(RecipeError, match="'error' or 'skip'"):
        make_source({"jsonl": "x", "pack": pack})
