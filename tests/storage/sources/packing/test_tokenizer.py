"""Special tokens: which of them a tokenizer adds to packed documents, and what pack says otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.base.errors import SourceError
from storage.sources import make_source
from storage.sources.packing.packed_source import PackedSource
from storage.sources.packing.tokenizer import TokenizerFile
from tests.storage.sources.packing.test_packed_source import rows_of

WORDS = ["<unk>", "<bos>", "<eos>", "[CLS]", "[SEP]", "a", "b", "c"]
UNK, BOS, EOS, CLS, SEP, A, B, C = range(len(WORDS))
TEMPLATES = {"bos": "<bos> $A", "both": "<bos> $A <eos>", "bert": "[CLS] $A [SEP]", "eos": "$A <eos>"}


def save(folder: Path, template: str | None, config: Any = None) -> str:
    """A tokenizer of words whose post-processor follows a template, and the tokenizer_config.json beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(WORDS[1:5])
    if template is not None:
        special = [(word, WORDS.index(word)) for word in template.split() if word != "$A"]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


def tokens_of(folder: Path, texts: list[Any], **pack: Any) -> list[int]:
    """The tokens of all documents, without the padding."""
    source = packed(folder, texts, **pack)
    [file] = source.files()
    return source._block_of(file).tokens_N.tolist()


def packed(folder: Path, texts: list[Any], **pack: Any) -> PackedSource:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"jsonl": str(folder / "a.jsonl"), "pack": {"column": "text", "sequence_length": 64, **pack}}
    source = make_source(settings)
    assert isinstance(source, PackedSource)
    return source


@pytest.mark.parametrize(
    ("template", "pack", "expected"),
    [
        (None, {}, [A, B, C]),
        ("bos", {}, [BOS, A, B, BOS, C]),
        ("both", {}, [BOS, A, B, EOS, BOS, C, EOS]),
        ("bert", {}, [CLS, A, B, SEP, CLS, C, SEP]),
        ("bos", {"special_tokens": True}, [BOS, A, B, BOS, C]),
        ("both", {"special_tokens": False}, [A, B, C]),
        ("bos", {"end_token": "<eos>"}, [BOS, A, B, EOS, BOS, C, EOS]),
        (None, {"begin_token": "<bos>"}, [BOS, A, B, BOS, C]),
        (None, {"begin_token": "<bos>", "end_token": "<eos>"}, [BOS, A, B, EOS, BOS, C, EOS]),
        ("bos", {"begin_token": "<bos>"}, [BOS, A, B, BOS, C]),
        ("both", {"begin_token": "<bos>", "end_token": "<eos>"}, [BOS, A, B, EOS, BOS, C, EOS]),
        ("both", {"special_tokens": False, "begin_token": "[CLS]"}, [CLS, A, B, CLS, C]),
    ],
)
def test_the_post_processor_decides_unless_pack_does(
    tmp_path: Path, template: str | None, pack: dict[str, Any], expected: list[int]
) -> None:
    tokenizer = save(tmp_path / "t", None if template is None else TEMPLATES[template])
    assert tokens_of(tmp_path, ["a b", "c"], tokenizer=tokenizer, **pack) == expected


def test_token_ids_get_begin_and_end_where_they_have_none(tmp_path: Path) -> None:
    documents = [[A, B], [BOS, A], [A, EOS], [BOS, B, EOS], [BOS], [EOS]]
    found = tokens_of(tmp_path, documents, begin_token=BOS, end_token=EOS)
    whole = [[BOS, A, B, EOS], [BOS, A, EOS], [BOS, A, EOS], [BOS, B, EOS], [BOS, EOS], [BOS, EOS]]
    assert found == [token for document in whole for token in document]


def test_the_begin_token_is_a_position_of_its_document(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "t", TEMPLATES["bos"])
    [(name, ids, positions, labels)] = rows_of(packed(tmp_path, ["a b", "c"], tokenizer=tokenizer))
    assert (name, ids[:5], positions[:5]) == ("a.jsonl:0:0", [BOS, A, B, BOS, C], [0, 1, 2, 0, 1])
    assert labels[:5] == [A, B, -100, C, -100]


@pytest.mark.parametrize("pack", [{}, {"special_tokens": False, "begin_token": "<bos>"}])
def test_a_document_of_special_tokens_only_is_empty(tmp_path: Path, pack: dict[str, Any]) -> None:
    tokenizer = save(tmp_path / "t", TEMPLATES["both"])
    with pytest.raises(SourceError, match=r"'a\.jsonl:1' .* has no tokens"):
        packed(tmp_path, ["a", " "], tokenizer=tokenizer, **pack).files()


def test_special_tokens_count_in_the_key_by_name(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "t", TEMPLATES["both"])
    settings: list[dict[str, Any]] = [{}, {"special_tokens": False}, {"begin_token": "[CLS]"}, {"end_token": "[SEP]"}]
    facts = [packed(tmp_path, ["a"], tokenizer=tokenizer, **pack).preprocessing() for pack in settings]
    assert len({json.dumps(one) for one in facts}) == 4
    assert facts[0] is not None and facts[1] is not None
    assert facts[0]["special_tokens"] == {"before": ["<bos>"], "after": ["<eos>"]}
    assert facts[1]["special_tokens"] == {"before": [], "after": []}
    same = packed(tmp_path, ["a"], tokenizer=tokenizer, special_tokens=True).preprocessing()
    assert same == facts[0]


@pytest.mark.parametrize(
    ("template", "config", "said"),
    [
        (None, {"add_bos_token": True, "bos_token": "<bos>"}, "does not add '<bos>'"),
        (None, {"add_bos_token": True, "bos_token": {"content": "<bos>"}}, "begin_token='<bos>' to add it"),
        ("bos", {"add_bos_token": False, "bos_token": "<bos>"}, "adds '<bos>'"),
        ("bos", {"add_eos_token": True, "eos_token": "<eos>"}, "does not add '<eos>'"),
        ("both", {"add_eos_token": False, "eos_token": "<eos>"}, "add_eos_token: false"),
    ],
)
def test_a_config_that_disagrees_is_refused(tmp_path: Path, template: str | None, config: Any, said: str) -> None:
    tokenizer = save(tmp_path / "t", None if template is None else TEMPLATES[template], config)
    for url in (tokenizer, f"{tokenizer}/tokenizer.json"):
        with pytest.raises(SourceError) as caught:
            packed(tmp_path, ["a"], tokenizer=url).files()
        assert said in str(caught.value) and "source.pack.special_tokens=true" in str(caught.value)
    expected = [WORDS.index(word) if word != "$A" else A for word in TEMPLATES.get(template or "", "$A").split()]
    assert tokens_of(tmp_path, ["a"], tokenizer=tokenizer, special_tokens=True) == expected
    assert tokens_of(tmp_path, ["a"], tokenizer=tokenizer, special_tokens=False) == [A]


@pytest.mark.parametrize(
    ("template", "config"),
    [
        ("bos", {"add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>"}),
        ("bos", {"bos_token": "<bos>"}),
        (None, {"add_bos_token": True, "bos_token": None}),
        (None, {"add_bos_token": False, "bos_token": "<bos>"}),
    ],
)
def test_a_config_that_agrees_or_says_nothing_is_accepted(tmp_path: Path, template: str | None, config: Any) -> None:
    tokenizer = save(tmp_path / "t", None if template is None else TEMPLATES[template], config)
    assert tokens_of(tmp_path, ["a"], tokenizer=tokenizer) == ([BOS, A] if template else [A])


def test_a_begin_token_settles_a_config_that_wants_one(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "t", None, {"add_bos_token": True, "bos_token": "<bos>"})
    assert tokens_of(tmp_path, ["a"], tokenizer=tokenizer, begin_token="<bos>") == [BOS, A]


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "t", None, [1])
    with pytest.raises(SourceError, match="is no JSON object"):
        packed(tmp_path, ["a"], tokenizer=tokenizer).files()


def test_encoding_is_what_the_tokenizer_does(tmp_path: Path) -> None:
    file = TokenizerFile.read(save(tmp_path / "t", TEMPLATES["bert"]))
    assert file.special_tokens == (["[CLS]"], ["[SEP]"])
    assert [ids.tolist() for ids in file.encode(["a", ""])] == [[CLS, A, SEP], []]
    assert [ids.tolist() for ids in file.encode(["a"], special_tokens=False)] == [[A]]


@pytest.mark.parametrize(("token", "named"), [("[SEP]", 40), ("<bos>", A), ("new", 40)])
def test_a_tokens_id_is_the_one_that_encoding_gives(tmp_path: Path, token: str, named: int) -> None:
    """Whatever id tokenizer.json names for an added token: the package gives the model's, or the next."""
    path = Path(save(tmp_path / "t", None)) / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["added_tokens"] = [one for one in facts["added_tokens"] if one["content"] != token] + [
        {**facts["added_tokens"][0], "content": token, "id": named}
    ]
    path.write_text(json.dumps(facts))
    file = TokenizerFile.read(str(path))
    known = [*WORDS, token] if token == "new" else WORDS
    assert file.vocabulary == {word: at for at, word in enumerate(known)} and file.size == len(known)
    assert [file.id_of(token, "key")] == file.encode([token], special_tokens=False)[0].tolist()


def test_without_the_package_there_is_no_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TokenizerFile.read(save(tmp_path / "t", None))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SourceError, match=r"not installed\. .*pip install 'stillhouse\[lm\]'"):
        file.size  # noqa: B018


@pytest.mark.parametrize("text", ["a", "<bos> a", "a <eos>", "<bos> a <eos>"])
@pytest.mark.parametrize("pack", [{}, {"special_tokens": True}, {"begin_token": "<bos>", "end_token": "<eos>"}])
def test_a_text_that_has_its_special_tokens_gets_no_second_ones(
    tmp_path: Path, text: str, pack: dict[str, Any]
) -> None:
    tokenizer = save(tmp_path / "t", TEMPLATES["both"])
    assert tokens_of(tmp_path, [text], tokenizer=tokenizer, **pack) == [BOS, A, EOS]
