"""Which classes of transformers are teachers, and what is said of the others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.models.hugging_face.architectures import is_language_model
from storage.base.errors import ModelError


@pytest.mark.parametrize(
    ("name", "causal"),
    [
        ("LlamaForCausalLM", True),
        ("GPT2LMHeadModel", True),
        ("BertForSequenceClassification", False),
        # Of transformers' mapping, with names of another form.
        ("BertGenerationDecoder", True),
        ("ReformerModelWithLMHead", True),
        ("Gemma3ForConditionalGeneration", True),
    ],
)
def test_language_models_and_classifiers(name: str, causal: bool) -> None:
    assert is_language_model(name, "here") == causal


def test_most_names_need_no_transformers() -> None:
    code = (
        "import sys; from jobs.models.hugging_face.architectures import is_language_model; "
        "is_language_model('LlamaForCausalLM', ''); is_language_model('BertForSequenceClassification', ''); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ViTForImageClassification", "a classifier of images"),
        ("BertForTokenClassification", "a classifier of tokens"),
        ("T5ForConditionalGeneration", "a model that generates text from another input"),
        ("BertForMaskedLM", "a masked language model"),
        ("GPT2DoubleHeadsModel", "another kind of model"),
        ("SomethingElse", "another kind of model"),
    ],
)
def test_models_of_another_kind_are_called_what_they_are(name: str, kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        is_language_model(name, "config.json in 'm'")
    said = str(caught.value)
    assert said.startswith(f"config.json in 'm' has the architecture {name}, {kind}. A teacher in Hugging Face's form")
    assert f"return transformers.{name}.from_pretrained(FOLDER)" in said
    assert "no logits" not in said


@pytest.mark.parametrize("name", ["LlamaModel", "ViTModel"])
def test_a_model_without_a_head_is_saved_with_it(name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name}, a model without a head\. .*Save the model with its head"):
        is_language_model(name, "here")


@pytest.mark.parametrize("odd", [None, 3, ["LlamaForCausalLM"]])
def test_no_name_is_no_architecture(odd: object) -> None:
    with pytest.raises(ModelError, match=r"^here names no architecture\."):
        is_language_model(odd, "here")
