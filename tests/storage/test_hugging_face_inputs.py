"""Rows for a transformers model: inputs by name, masks and padding, refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import SourceError
from storage.hugging_face import HuggingFaceSpec
from storage.samples import Columns, as_samples
from teacher_infer.teachers import make_teacher
from tests.tiny_models import SIZE, save_model

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
        ({"input_ids": TOKENS, "token_type_ids": [[0, 0, 2, 0]] * 2}, r"sample 'a'.*types 0 to 1"),
        ({"input_ids": [[3, 4, 5, 6], [3, 4, 5, PAD]]}, r"sample 'b'.*padding id 0, and there is no attention_mask"),
        ({"input_ids": [[PAD, 4, 5, 6]] * 2}, r"sample 'a'.*begins or ends with the padding id 0"),
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
