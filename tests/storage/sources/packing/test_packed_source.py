"""Documents of every kind of source as rows of one length: what a loop would make of them, whatever is asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.errors import RecipeError, SourceError
from storage.encodings.targets import IGNORED
from storage.rows.row_groups import read_group
from storage.rows.source_rows import SourceRows
from storage.samples import tensor_columns
from storage.samples.columns import Columns
from storage.samples.inputs_digest import inputs_digests
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import kept_columns
from storage.sources import Source, make_source
from storage.sources.packing.pack import Pack
from storage.sources.packing.packed_rows import packed_rows
from storage.sources.packing.packed_source import PackedSource
from storage.sources.settings import SourceSection
from tests.storage.helpers import race
from tests.tiny_models import WORDS, save_tokenizer

L = 8
END = WORDS.index("<end>")
TOKENS = [
    np.random.default_rng(n).integers(2, len(WORDS), size).tolist()
    for n, size in enumerate([3, 1, 30, 8, 2, 2, 17, 1, 5, 16, 7])
]
TEXTS = [" ".join(WORDS[token] for token in document) for document in TOKENS]
IDS = [f"doc{n}" for n in range(len(TOKENS))]


def by_a_loop(
    documents: list[list[int]], ids: list[str], end: int | None, padding: int
) -> list[tuple[str, list[int], list[int], list[int]]]:
    """Rows (id, input_ids, position_ids, label) of one block, token by token, as the contract says."""
    stream = []
    for name, document in zip(ids, documents, strict=True):
        tokens = document if end is None else [*document, end]
        for at, token in enumerate(tokens):
            stream.append((name, at, token, tokens[at + 1] if at + 1 < len(tokens) else IGNORED))
    rows = []
    for start in range(0, len(stream), L):
        place, places, last = 0, [], None
        for name, *_ in stream[start : start + L]:
            place = place + 1 if name == last else 0
            places.append(place)
            last = name
        row = stream[start : start + L]
        gap = L - len(row)
        rows.append(
            (
                f"{row[0][0]}:{row[0][1]}",
                [token for _, _, token, _ in row] + gap * [padding],
                places + gap * [0],
                [label for *_, label in row] + gap * [IGNORED],
            )
        )
    return rows


def rows_of(source: Source, *, slices: int = 1000) -> list[tuple[str, list[int], list[int], list[int]]]:
    """All rows of a source, read in slices."""
    found = []
    for file in source.files():
        for start in range(0, file.rows, slices):
            table = source.read(file, start, min(start + slices, file.rows))
            arrays = [arrays_of(table)[name].tolist() for name in ("input_ids", "position_ids", "label")]
            found += zip(table.column("sample_id").to_pylist(), *arrays, strict=True)
    return found


def arrays_of(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: tensor_columns.unpack(table.column(name), table.schema.field(name)) for name in table.schema.names}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


KINDS = ["parquet text", "parquet ids", "jsonl text", "jsonl ids", "function text", "function ids"]
Open = Callable[..., PackedSource]


@pytest.fixture(params=KINDS)
def packed(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, module: Callable[[str], str]) -> Open:
    """`packed(count, named)`: the first documents, with ids of their own or without, by each way in."""
    kind, what = request.param.split()

    def make(count: int = len(TOKENS), named: bool = True, **pack: Any) -> PackedSource:
        columns: dict[str, Any] = {"sample_id": IDS[:count]} if named else {}
        columns |= {"body": (TEXTS if what == "text" else TOKENS)[:count], "other": [None] * count}
        if kind == "parquet":
            pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=4)
            settings: dict[str, Any] = {"parquet": str(tmp_path)}
        elif kind == "jsonl":
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
            settings = {"jsonl": str(tmp_path)}
        else:
            name = module(f"import pyarrow as pa\ndef rows(): return pa.table({columns!r})")
            settings = {"function": f"{name}:rows"}
        if what == "text":
            pack["tokenizer"] = tokenizer
            if "end_token" in pack:
                pack["end_token"] = WORDS[pack["end_token"]]
        source = make_source({**settings, "pack": {"column": "body", "sequence_length": L, **pack}})
        assert isinstance(source, PackedSource)
        return source

    return make


@pytest.mark.parametrize("block, end", [(1, END), (3, None), (4, END), (1024, None)])
def test_rows_are_what_a_loop_makes_of_them(packed: Open, block: int, end: int | None) -> None:
    source = packed(block_documents=block, **({} if end is None else {"end_token": end}))
    expected = []
    for start in range(0, len(TOKENS), block):
        part = slice(start, start + block)
        expected += by_a_loop(TOKENS[part], IDS[part], end, padding=end or 0)
    for slices in (1, 3, 1000):
        assert rows_of(source, slices=slices) == expected


def test_every_token_but_each_documents_first_is_predicted_once(packed: Open) -> None:
    labels = [label for *_, row in rows_of(packed(block_documents=3)) for label in row if label != IGNORED]
    assert labels == [token for document in TOKENS for token in document[1:]]


def test_samples_are_tensors_of_int32(packed: Open) -> None:
    source = packed()
    [file] = source.files()
    table = source.read(file, 1, 3)
    assert table.schema.names == ["sample_id", "input_ids", "position_ids", "label"]
    for name in table.schema.names[1:]:
        assert tensor_columns.form(table.schema.field(name)) == (np.dtype(np.int32), (L,))
    assert kept_columns(table.schema, "referenced").names == ["sample_id", "label"]
    assert len(inputs_digests(table)) == 2


def test_ids_are_those_of_the_rows_and_differ(packed: Open) -> None:
    source = packed(block_documents=4)
    found = [name for file in source.files() for name in source.ids(file).to_pylist()]
    assert found == [name for name, *_ in rows_of(source)]
    assert len(set(found)) == len(found)


def test_documents_without_ids_are_named_by_file_and_row(packed: Open) -> None:
    source = packed(named=False, block_documents=4)
    place = {"parquet": "a.parquet", "jsonl": "a.jsonl"}.get(next(iter(source.documents.to_dict())))
    place = place or source.documents.to_dict()["function"]
    assert rows_of(source)[0][0] == f"{place}:0:0"
    assert rows_of(source)[1][0] == f"{place}:2:4"
    assert len({name for name, *_ in rows_of(source)}) == len(rows_of(source))


def test_appended_documents_change_the_last_block_only(packed: Open) -> None:
    before = packed(9, block_documents=4)
    names = [file.name.rpartition("#")[2] for file in before.files()]
    digests = [rows_digest(before.read(file, 0, file.rows)) for file in before.files()]
    after = packed(11, block_documents=4)
    assert [file.name.rpartition("#")[2] for file in after.files()] == [*names[:2], "8-11"]
    found = [rows_digest(after.read(file, 0, file.rows)) for file in after.files()]
    assert found[:2] == digests[:2]
    assert found[2] != digests[2]


def test_a_source_says_what_it_is_and_comes_back_from_that(packed: Open) -> None:
    source = packed(end_token=END)
    again = make_source(json.loads(json.dumps(source.to_dict())))
    assert again == source
    assert rows_of(again) == rows_of(source)


def test_the_same_again_elsewhere_and_without_what_was_kept(packed: Open) -> None:
    source = packed()
    before = rows_of(source)
    copied = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 20_000
    assert rows_of(copied) == before


def test_blocks_are_made_once_and_forgotten_beyond_a_limit(packed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = PackedSource._make
    monkeypatch.setattr(PackedSource, "_make", lambda self, *a: made.append(a[1]) or real(self, *a))
    source = packed(block_documents=4)
    files = source.files()
    assert made == [0, 4, 8]
    source, made[:] = pickle.loads(pickle.dumps(source)), []
    assert not [
        error for error in race(9, lambda n: source.read(files[n % 3], 0, 1)) if not isinstance(error, pa.Table)
    ]
    assert sorted(made) == [0, 4, 8]
    source._blocks._limit = 1
    for file in [*files, *files]:
        source.read(file, 0, 1)
    assert len(source._blocks._kept) == 1
    assert len(made) > 6


def test_students_rows_are_arrays_of_positions(packed: Open) -> None:
    source = packed(block_documents=4)
    groups = SourceRows(source)
    rows = [read_group(groups, group) for group in range(len(groups.rows))]
    found = [
        (name, *(a.tolist() for a in arrays))
        for part in rows
        for name, *arrays in zip(
            part.sample_id, part.inputs["input_ids"], part.inputs["position_ids"], part.label, strict=True
        )
    ]
    assert found == rows_of(source)


@pytest.mark.parametrize("lengths", [[1], [5], [8], [9], [1] * 20, [16, 16], [7, 9, 1, 40, 3]])
def test_any_rows_are_those_of_the_whole_block(lengths: list[int]) -> None:
    tokens = np.arange(sum(lengths), dtype=np.int32) + 10
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    count = -(-len(tokens) // L)
    whole = packed_rows(tokens, starts, L, 0, count, padding=1)
    for start in range(count):
        for stop in range(start + 1, count + 1):
            part = packed_rows(tokens, starts, L, start, stop, padding=1)
            for name in ("input_ids_RL", "position_ids_RL", "label_RL", "document_R", "offset_R"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[start:stop]), (name, start, stop)


# Tokenizers


def test_what_a_tokenizer_would_cut_off_or_fill_up_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    pack = {"column": "text", "sequence_length": L}
    settings = {"jsonl": str(tmp_path / "a.jsonl")}
    trimming = save_tokenizer(tmp_path / "trims", to=4)
    source = make_source({**settings, "pack": {**pack, "tokenizer": f"{trimming}/tokenizer.json"}})
    names = [f"a.jsonl:{n}" for n in range(len(TOKENS))]
    assert rows_of(source) == by_a_loop(TOKENS, names, None, padding=0)


def test_a_tokenizer_counts_in_the_preprocessing_by_its_content(tmp_path: Path, tokenizer: str) -> None:
    pack = {"column": "text", "sequence_length": L}
    sources: dict[str, Source] = {
        "one": make_source({"jsonl": "x", "pack": {**pack, "tokenizer": tokenizer}}),
        "same": make_source({"jsonl": "x", "pack": {**pack, "tokenizer": str(save_tokenizer(tmp_path / "copy"))}}),
        "end": make_source({"jsonl": "x", "pack": {**pack, "tokenizer": tokenizer, "end_token": "<end>"}}),
        "other": make_source(
            {"jsonl": "x", "pack": {**pack, "tokenizer": str(save_tokenizer(tmp_path / "other", WORDS[:20]))}}
        ),
    }
    found = {name: json.dumps(source.preprocessing()) for name, source in sources.items()}
    assert found["one"] == found["same"]
    assert len(set(found.values())) == 3
    assert make_source({"jsonl": "x", "pack": pack}).preprocessing() is None
    assert make_source({"jsonl": "x"}).preprocessing() is None


# Bad input


def refused(folder: Path, rows: list[dict[str, Any]], **pack: Any) -> str:
    path = folder / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SourceError) as caught:
        make_source({"jsonl": str(path), "pack": {"column": "text", "sequence_length": L, **pack}}).files()
    return str(caught.value)


def test_an_empty_document_is_named(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"sample_id": "full", "text": "w1"}, {"sample_id": "void", "text": " "}, {"sample_id": "nil", "text": ""}]
    said = refused(tmp_path, rows, tokenizer=tokenizer, end_token="<end>")
    assert said.startswith("The document 'void' (in ") and "has no tokens (empty: 2 of 3 documents" in said
    assert "Drop empty documents" in said and "source.pack.empty_documents=skip" in said
    assert "The document 'bad.jsonl:1' (in " in refused(tmp_path, [{"text": [4]}, {"text": []}])


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([[3, 4], [5, -1]], "The document 'bad.jsonl:1' .* holds the token id -1. Token ids are integers from 0 on"),
        ([[3], [1 << 31]], "The document 'bad.jsonl:1' .* holds the token id 2147483648"),
        ([[0.5]], "lists of token ids, which are integers"),
        ([3, 4], "are of type int64. Without source.pack.tokenizer they are lists of token ids"),
        (["w1"], "are of type string. Without .*Name a tokenizer where the column holds text"),
        ([[1, None]], "holds nulls"),
        ([[1], None], "The document 'bad.jsonl:1' .* is null"),
    ],
)
def test_what_is_no_token_id_is_refused(tmp_path: Path, tokens: Any, found: str) -> None:
    import re

    assert re.search(found, refused(tmp_path, [{"text": value} for value in tokens]))


def test_token_ids_given_to_a_tokenizer_are_refused(tmp_path: Path, tokenizer: str) -> None:
    assert "Leave the tokenizer out" in refused(tmp_path, [{"text": [1, 2]}], tokenizer=tokenizer)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    said = refused(tmp_path, [{"sample_id": 1, "tekst": "w1"}])
    assert "has no column 'text' (asked for as source.pack.column)." in said


def test_an_id_column_that_was_asked_for_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": [1]}\n')
    pack = {"column": "text", "sequence_length": L}
    with pytest.raises(SourceError, match=r"no column 'url' .*source\.columns\.sample_id"):
        make_source({"jsonl": str(tmp_path), "columns": {"sample_id": "url"}, "pack": pack}).files()


@pytest.mark.parametrize("content", [None, "{}", "no JSON", '{"model": {"vocab": {"a": 0}}}'])
def test_a_tokenizer_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    said = refused(tmp_path, [{"text": "w1"}], tokenizer=str(folder))
    assert str(folder) in said
    if content is None:
        assert "There is no tokenizer at" in said and "a folder that holds one" in said


def test_an_end_token_that_is_none_is_answered_with_the_nearest(tmp_path: Path, tokenizer: str) -> None:
    said = refused(tmp_path, [{"text": "w1"}], tokenizer=tokenizer, end_token="<eend>")
    assert "source.pack.end_token is '<eend>', which is no token" in said and "Did you mean '<end>'?" in said


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'stillhouse[lm]'" in refused(tmp_path, [{"text": "w1"}], tokenizer=tokenizer)


def test_inputs_are_packs_own() -> None:
    with pytest.raises(
        RecipeError, match=r"^source: with pack, the inputs are its own; columns says sample_id and label only\.$"
    ):
        make_source({"jsonl": "x", "columns": {"inputs": ["text"]}, "pack": {"column": "text", "sequence_length": 8}})


@pytest.mark.parametrize(
    ("pack", "found"),
    [
        ({"end_token": "<end>"}, "there is no tokenizer; give its id"),
        ({"end_token": 1, "tokenizer": "/t"}, "only without one it is an id"),
        ({"end_token": -1}, "from 0 on"),
        ({"end_token": True}, "valid string"),
        ({"begin_token": "<begin>"}, "begin_token is a text, and there is no tokenizer; give its id"),
        ({"begin_token": 1, "tokenizer": "/t"}, "only without one it is an id"),
        ({"begin_token": -1}, "from 0 on"),
        ({"special_tokens": False}, "special_tokens are those of a tokenizer"),
        ({"sequence_length": 1}, "greater than 1"),
        ({"block_documents": 0}, "greater than 0"),
    ],
)
def test_a_recipes_pack_is_checked(pack: dict[str, Any], found: str) -> None:
    settings: dict[str, Any] = {"jsonl": "x", "pack": {"column": "text", "sequence_length": 8, **pack}}
    with pytest.raises(ValueError, match=found):
        SourceSection.model_validate(settings)
    with pytest.raises(RecipeError, match=rf"^source\.pack.*{found}"):
        make_source(settings)
    with pytest.raises(RecipeError, match=rf"^Pack.*{found}"):
        Pack(**settings["pack"])


def test_a_recipes_source_with_pack_is_made(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "w1 w2", "url": "u"}\n')
    pack = {"column": "body", "sequence_length": L, "tokenizer": tokenizer}
    section = SourceSection.model_validate({"jsonl": str(tmp_path), "columns": {"sample_id": "url"}, "pack": pack})
    source = make_source(section)
    assert rows_of(source)[0][0] == "u:0"
    assert source == make_source(section.settings()) == make_source(source.to_dict())
    assert source.columns == Columns()
    with pytest.raises(ValueError, match="with pack, the inputs are its own"):
        SourceSection.model_validate({"jsonl": "x", "columns": {"inputs": ["y"]}, "pack": pack})
