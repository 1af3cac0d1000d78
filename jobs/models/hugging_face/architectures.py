"""Which classes of transformers can be teachers: causal language models and classifiers of sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from storage.base.errors import ModelError

_LANGUAGE_MODELS, _CLASSIFIERS = ("ForCausalLM", "LMHeadModel"), ("ForSequenceClassification",)

# What other classes are, by the ends of their names.
_OTHERS = {
    "ForMaskedLM": "a masked language model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMultipleChoice": "a model that chooses between several texts",
    "ForConditionalGeneration": "a model that generates text from another input",
    "ForImageClassification": "a classifier of images",
    "ForVideoClassification": "a classifier of videos",
    "ForAudioClassification": "a classifier of audio",
}


def is_language_model(architecture: Any, where: str) -> bool:
    """Whether a class of transformers is a causal language model; else it is a classifier of sequences.

    architecture: what config.json names. where: that file, for the message. Raises ModelError for any other class.
    """
    if isinstance(architecture, str):
        # Most names say it, and need no transformers.
        if architecture.endswith((*_LANGUAGE_MODELS, *_CLASSIFIERS)):
            return architecture.endswith(_LANGUAGE_MODELS)
        for is_causal in (True, False):
            if architecture in _mapped(is_causal):
                return is_causal
    raise _unsupported(architecture if isinstance(architecture, str) else None, where)


@functools.cache
def _mapped(is_causal: bool) -> frozenset[str]:
    """The classes behind AutoModelForCausalLM, or AutoModelForSequenceClassification; none without transformers."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return frozenset()
    names: Iterable[Any] = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if is_causal
        else modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    ).values()
    return frozenset(name for each in names for name in (each if isinstance(each, list | tuple) else (each,)))


def _unsupported(architecture: str | None, where: str) -> ModelError:
    expected = (
        "A teacher in Hugging Face's form is a causal language model (...ForCausalLM) or a classifier of sequences "
        "(...ForSequenceClassification): it takes token ids."
    )
    with_head = "Save the model with its head: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)."
    if architecture is None:
        return ModelError(f"{where} names no architecture.", expected, with_head)
    if architecture.endswith("Model") and "Head" not in architecture:
        return ModelError(f"{where} has the architecture {architecture}, a model without a head.", expected, with_head)
    kind = next((text for end, text in _OTHERS.items() if architecture.endswith(end)), "another kind of model")
    return ModelError(
        f"{where} has the architecture {architecture}, {kind}.",
        expected,
        "Write a factory that returns the model, and name it in teacher.factory, without teacher.path: "
        f"def build(): return transformers.{architecture}.from_pretrained(FOLDER). Its inputs are the source's columns "
        "by name, and its logits are [samples, classes] or [samples, positions, classes].",
    )
