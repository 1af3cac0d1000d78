"""Rows for a transformers model: inputs by name, masks and padding, refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import SourceError
from storage.samples.samples import Columns, as_samples
from teacher_infer.teachers import make_teacher
from tests.tiny_models import SIZE, save_model, save_tokenizer

PAD, END = 0, 1
TOKENS = [[3, 4, 5, 6], [7, 8, 9, 10]]
ONES = [[1, 1, 1, 1], [1, 1, 1, 1]]

Spec = Callable[..., HuggingFaceSpec]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    made: dict[str, HuggingFaceSpec] = {}

    def of(architecture: str = "LlamaForCausalLM", **config: Any) -> HuggingFaceSpec:
        name = f"{architecture}{sorted(config.items())}"
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            settings = {"pad_token_id": PAD, "eos_token_id": END, **config}
            made[name] = HuggingFaceSpec(str(save_model(folder, architecture, **settings)))
        return made[name]

    return of


BERT = "BertForSequenceClassification"


def refuse(spec: HuggingFaceSpec, **columns: Any) -> None:
    table = pa.table({"sample_id": ["a", "b"][: len(next(iter(columns.values())))], **columns})
    spec.refuse_rows(as_samples(table, Columns(label="label" if "label" in columns else None), "rows"), "rows")


@pytest.mark.parametrize(
    "columns",
    [
        {"input_ids": TOKENS},
        {"attention_mask": ONES, "input_ids": TOKENS},
        {"token_type_ids": [[0, 0, 1, 1]] * 2, "attention_mask": ONES, "input_ids": TOKENS},
        {"input_ids": TOKENS, "position_ids": [[0, 1, 2, 3]] * 2},
        {"input_ids": [[3, 4, 5, PAD]] * 2, "attention_mask": [[1, 1, 1, 0]] * 2},
        {"input_ids": [[PAD, 4, 5, 6]] * 2, "attention_mask": [[False, True, True, True]] * 2},
        {"input_ids": [[3, PAD, 5, 6]] * 2},
    ],
)
def test_a_classifier_takes_what_its_forward_knows_in_any_order(spec: Spec, columns: dict[str, Any]) -> None:
    refuse(spec(BERT), **columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"input_ids": TOKENS, "idx": [[1] * 4] * 2},
            r"takes no 'idx'.*takes input_ids, attention_mask, token_type_",
        ),
        ({"tokens": TOKENS}, r"takes no 'tokens'"),
        ({"attention_mask": ONES}, r"no input_ids"),
        ({"input_ids": TOKENS, "labels": TOKENS}, r"source\.columns\.label=labels"),
        ({"input_ids": TOKENS, "attention_mask": [[1, 1, 2, 1]] * 2}, r"sample 'a'.*other values than 0 and 1"),
        ({"input_ids": TOKENS, "attention_mask": [[1] * 4, [0] * 4]}, r"sample 'b'.*padding alone"),
        ({"input_ids": TOKENS, "attention_mask": [[1, 1]] * 2}, r"attention_mask has 2 values a row, input_ids 4"),
        ({"input_ids": TOKENS, "attention_mask": [[0.5] * 4] * 2}, r"attention_mask is attention_mask float64"),
        (
            {"input_ids": TOKENS, "token_type_ids": [[0, 0, 2, 0]] * 2},
            r"sample 'a'.*value 2 in token_type_ids\..*types 0 to 1",
        ),
        ({"input_ids": [[3, 4, 5, 6], [3, 4, 5, PAD]]}, r"sample 'b'.*padding id 0, and there is no attention_mask"),
        ({"input_ids": [[PAD, 4, 5, 6]] * 2}, r"sample 'a'.*begins or ends with the padding id 0"),
        (
            {"input_ids": [[3, 4, 5, 6], [3, 4, PAD, PAD]], "attention_mask": ONES},
            r"sample 'b'.*padding id 0, and its attention_mask is 1 there.*Correct the column",
        ),
        ({"input_ids": TOKENS, "position_ids": [[0, 1, 2, 64]] * 2}, r"value 64 in position_ids\..*positions 0 to 63"),
        ({"input_ids": TOKENS, "position_ids": [[-1, 0, 1, 2]] * 2}, r"value -1 in position_ids"),
    ],
)
def test_what_a_classifier_cannot_take_is_refused(spec: Spec, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        refuse(spec(BERT), **columns)


NONE = -100


@pytest.mark.parametrize(
    "columns",
    [
        {"input_ids": [[3, 4, 5, PAD]] * 2, "label": [[4, 5, NONE, NONE]] * 2},
        {"input_ids": [[3, 4, PAD, PAD]] * 2, "label": [[4, 5, NONE, NONE]] * 2, "attention_mask": [[1, 1, 0, 0]] * 2},
        {"input_ids": [[PAD, 4, 5, 6]] * 2, "label": [[NONE, 5, 6, NONE]] * 2, "attention_mask": [[0, 1, 1, 1]] * 2},
        {"input_ids": TOKENS, "attention_mask": ONES},
        {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": [[0, 1, 2, 3]] * 2},
        # Padding at the beginning, with positions as generate makes them.
        {
            "input_ids": [[PAD, PAD, 5, 6]] * 2,
            "label": [[NONE, NONE, 6, NONE]] * 2,
            "attention_mask": [[0, 0, 1, 1]] * 2,
            "position_ids": [[1, 1, 0, 1]] * 2,
        },
        # Without a mask the padding is a document of its own.
        {
            "input_ids": [[PAD, PAD, 5, 6]] * 2,
            "label": [[NONE, NONE, 6, NONE]] * 2,
            "position_ids": [[0, 1, 0, 1]] * 2,
        },
        # A single id of padding under a mask of 1 is a token that is meant.
        {"input_ids": [[PAD, 4, 5, 6]] * 2, "attention_mask": ONES},
        # Rows as our own packing makes them, the last filled up.
        {
            "input_ids": [[3, 4, 5, 6], [7, PAD, PAD, PAD]],
            "position_ids": [[0, 1, 0, 1], [0, 0, 0, 0]],
            "label": [[4, NONE, 6, 7], [NONE] * 4],
        },
    ],
)
def test_a_language_model_takes_padding_that_nobody_learns_from(spec: Spec, columns: dict[str, Any]) -> None:
    refuse(spec(), **columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"input_ids": [[PAD, 4, 5, 6]] * 2}, r"begins with the padding id 0, and there is no attention_mask"),
        ({"input_ids": [[3, 4, 5, PAD]] * 2}, r"has padding \(the padding id 0\) with no labels"),
        ({"input_ids": [[3, 4, 5, PAD]] * 2, "label": [[4, 5, PAD, PAD]] * 2}, r"labels other than -100"),
        (
            {"input_ids": [[3, 4, 5, PAD]] * 2, "attention_mask": [[1, 1, 1, 0]] * 2},
            r"mask 0\) with no labels",
        ),
        (
            {"input_ids": [[3, 4, 5, 9]] * 2, "attention_mask": [[1, 1, 1, 0]] * 2, "label": [[4, 5, 9, 9]] * 2},
            r"\(attention_mask 0\) with labels other than -100",
        ),
        (
            {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": [[0, 1, 0, 1]] * 2},
            r"attention_mask beside position_ids of several documents",
        ),
        ({"input_ids": TOKENS, "token_type_ids": [[0] * 4] * 2}, r"LlamaForCausalLM takes no 'token_type_ids'"),
        (
            {
                "input_ids": [[PAD, PAD, 5, 6]] * 2,
                "label": [[NONE, NONE, 6, NONE]] * 2,
                "position_ids": [[0, 1, 2, 3]] * 2,
            },
            r"begins with the padding id 0, and there is no attention_mask",
        ),
        ({"input_ids": TOKENS, "label": [[4, 5, 6]] * 2}, r"label has 3 values a row, input_ids 4"),
        (
            {"input_ids": [[3, 4, 5, PAD]] * 2, "label": [[4, 5, NONE]] * 2, "attention_mask": [[1, 1, 1, 0]] * 2},
            r"label has 3 values a row, input_ids 4",
        ),
        # The token before the padding has the padding as its label.
        (
            {"input_ids": [[3, 4, 5, PAD]] * 2, "label": [[4, 5, PAD, NONE]] * 2},
            r"has the padding id 0 as the label of position 2",
        ),
        (
            {
                "input_ids": [[3, 4, 5, PAD]] * 2,
                "label": [[4, 5, PAD, NONE]] * 2,
                "attention_mask": [[1, 1, 1, 0]] * 2,
            },
            r"has the padding id 0 as the label of position 2",
        ),
        (
            {"input_ids": [[3, 4, PAD, PAD]] * 2, "attention_mask": ONES},
            r"has padding \(the padding id 0\) with no labels",
        ),
    ],
)
def test_padding_that_would_be_read_or_learnt_is_refused(spec: Spec, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        refuse(spec(), **columns)


def test_an_end_of_text_that_is_also_the_padding_is_padding_only_where_it_is_repeated(spec: Spec) -> None:
    ends = spec(pad_token_id=END)
    refuse(ends, input_ids=[[3, 4, 5, END]] * 2)
    refuse(ends, input_ids=[[END, 4, 5, 6]] * 2)
    with pytest.raises(SourceError, match="padding id 1"):
        refuse(ends, input_ids=[[3, 4, END, END]] * 2)


def test_the_end_of_text_before_padding_of_the_same_id_may_have_a_label(spec: Spec) -> None:
    ends = spec(pad_token_id=END)
    refuse(ends, input_ids=[[3, 4, END, END]] * 2, label=[[4, END, 5, NONE]] * 2)
    masked = [[1, 1, 0, 0]] * 2
    refuse(ends, input_ids=[[3, 4, END, END]] * 2, label=[[4, END, NONE, NONE]] * 2, attention_mask=masked)
    with pytest.raises(SourceError, match="labels other than -100"):
        refuse(ends, input_ids=[[3, 4, END, END]] * 2, label=[[4, END, END, 5]] * 2)


@pytest.mark.parametrize("token", ["<unk>", {"content": "<unk>"}])
def test_the_padding_of_the_tokenizer_counts_where_the_config_names_none(tmp_path: Path, token: Any) -> None:
    of = HuggingFaceSpec(str(save_tokenizer(save_model(tmp_path, BERT, pad_token_id=None))))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    refuse(of, input_ids=TOKENS)
    with pytest.raises(SourceError, match="padding id 0, and there is no attention_mask"):
        refuse(of, input_ids=[[3, 4, PAD, PAD]] * 2)


@pytest.mark.parametrize(
    ("architecture", "config", "types", "said"),
    [
        ("GPT2LMHeadModel", {}, SIZE - 1, None),  # its types are tokens
        ("GPT2LMHeadModel", {}, SIZE, f"value {SIZE} in token_type_ids"),
        ("DebertaV2ForSequenceClassification", {"type_vocab_size": 0}, 1, None),  # it leaves them out
    ],
)
def test_models_without_types_of_their_own(
    spec: Spec, architecture: str, config: dict[str, Any], types: int, said: str | None
) -> None:
    columns = {"input_ids": TOKENS, "token_type_ids": [[0, 0, 0, types]] * 2}
    if said is None:
        refuse(spec(architecture, **config), **columns)
        return
    with pytest.raises(SourceError, match=said):
        refuse(spec(architecture, **config), **columns)


def test_packed_rows_are_refused_for_a_model_without_position_ids(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BloomForCausalLM"], "vocab_size": SIZE}))
    with pytest.raises(SourceError, match="BloomForCausalLM takes no 'position_ids'"):
        refuse(HuggingFaceSpec(str(tmp_path)), input_ids=TOKENS, position_ids=[[0, 1, 0, 1]] * 2)


def test_a_name_that_forward_would_leave_out_is_refused_when_it_is_answered_too(spec: Spec) -> None:
    teacher = make_teacher(spec(), dtype="float32", seed=0)
    with pytest.raises(SourceError, match="takes no 'token_type_ids'"):
        teacher.logits({"input_ids": np.array(TOKENS), "token_type_ids": np.ones((2, 4), np.int64)})


def test_answers_of_a_language_model_with_padding_ahead_are_those_of_the_text_alone(spec: Spec) -> None:
    teacher = make_teacher(spec(), dtype="float32", seed=0)
    padded = {
        "input_ids": np.array([[PAD, PAD, 5, 6], [3, 4, 5, 6]]),
        "attention_mask": np.array([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "position_ids": np.array([[1, 1, 0, 1], [0, 1, 2, 3]]),
    }
    found = teacher.logits(padded)[0, 2:]
    alone = teacher.logits({"input_ids": np.array([[5, 6]] * 2)})[0]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_model_without_a_padding_id_has_no_padding(spec: Spec) -> None:
    refuse(spec(pad_token_id=None), input_ids=[[PAD, PAD, PAD, PAD]] * 2)


def test_answers_with_mask_and_types_are_transformers_own(spec: Spec) -> None:
    import torch
    from transformers import BertForSequenceClassification

    random, rows = np.random.default_rng(0), 6
    ids = random.integers(2, SIZE, (rows, 8))
    mask, types = np.ones_like(ids), np.tile(np.arange(8) >= 4, (rows, 1)).astype(np.int64)
    ids[::2, 5:], mask[::2, 5:] = PAD, 0
    of = spec(BERT, initializer_range=0.5)
    given = {"attention_mask": mask, "token_type_ids": types, "input_ids": ids}
    found = make_teacher(of, dtype="float32", seed=0).logits(given)
    model = BertForSequenceClassification.from_pretrained(str(of.path)).eval()
    with torch.no_grad():
        expected = model(**{name: torch.tensor(array) for name, array in given.items()}).logits
        without = model(input_ids=torch.tensor(ids)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - without).abs().max() > 1e-2


def test_a_mask_beside_packed_documents_is_refused_when_they_are_answered_too(spec: Spec) -> None:
    teacher = make_teacher(spec(), dtype="float32", seed=0)
    packed = {"input_ids": np.array(TOKENS), "position_ids": np.array([[0, 1, 0, 1]] * 2)}
    assert teacher.logits(packed).shape == (2, 4, SIZE)
    with pytest.raises(SourceError, match="beside position_ids of several documents"):
        teacher.logits({**packed, "attention_mask": np.array(ONES)})


def test_the_folder_is_not_loaded_to_know(spec: Spec, tmp_path: Path) -> None:
    whole = Path(str(spec(BERT).path))
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    with pytest.raises(SourceError, match="takes no 'idx'"):
        refuse(HuggingFaceSpec(str(tmp_path)), input_ids=TOKENS, idx=[[1] * 4] * 2)
