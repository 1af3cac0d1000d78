"""Loading models of Hugging Face's form: the implementation of attention, and what is refused without weights."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import ModelError, RecipeError
from teacher_infer.planning.config import TeacherSection
from teacher_infer.teachers import make_spec, make_teacher, resolve, spec_settings
from teacher_infer.teachers.loading import META, load, resolve_attention
from teacher_infer.teachers.transformers import TransformersTeacher
from tests.tiny_models import SIZE, save_model

# Architectures, what is set in their configs, and the attention that transformers chooses.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", {}, "sdpa"),
    "mistral": ("MistralForCausalLM", {"sliding_window": 4}, "sdpa"),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 2}, "sdpa"),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}, "eager"),
    "gpt-oss": ("GptOssForCausalLM", {"head_dim": 8, "num_local_experts": 4}, "eager"),
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 4}, "eager"),
    "xglm": ("XGLMForCausalLM", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}, "eager"),
    "mamba": ("MambaForCausalLM", {"state_size": 8}, "eager"),
    "deberta": ("DebertaV2ForSequenceClassification", {"num_labels": 3}, "eager"),
    "mpnet": ("MPNetForSequenceClassification", {"num_labels": 3}, "eager"),
    "bart": ("BartForSequenceClassification", {"d_model": 32, "num_labels": 3}, "sdpa"),
    "reformer": (
        "ReformerModelWithLMHead",
        {
            "is_decoder": True,
            "attention_head_size": 8,
            "axial_pos_embds": False,
            "feed_forward_size": 64,
            "attn_layers": ["local", "local"],
            "local_attn_chunk_length": 64,
        },
        "eager",
    ),
}

Save = Callable[..., str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """`saved(name)`: the folder of one of MODELS; nobody writes to it."""

    @functools.cache
    def folder(name: str = "llama") -> str:
        architecture, config, _ = MODELS[name]
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return str(save_model(tmp_path_factory.mktemp("model"), architecture, **{**tokens, **config}))

    return folder


@pytest.fixture
def own(saved: Save, tmp_path: Path) -> Save:
    """The same, to be written to; with what is to change in its config."""

    def folder(name: str = "llama", **changed: Any) -> str:
        copy = Path(shutil.copytree(saved(name), tmp_path / "own", dirs_exist_ok=True))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **changed}))
        return str(copy)

    return folder


# The implementation of attention


@pytest.mark.parametrize("name", MODELS)
def test_transformers_chooses_the_attention(saved: Save, name: str) -> None:
    spec = HuggingFaceSpec(saved(name))
    planned = resolve(spec, "float32")
    assert isinstance(planned, HuggingFaceSpec)
    assert planned == replace(spec, attention=MODELS[name][2])
    ids = np.array([[5, 6, 7, 8, 9, 10, 11, 2]] * 2)
    logits = make_teacher(planned, dtype="float32", seed=0).logits({"input_ids": ids})
    assert tuple(logits.shape) == ((2, 8, SIZE) if planned.is_language_model else (2, 3))


def test_the_key_counts_the_attention(saved: Save) -> None:
    llama, gemma = HuggingFaceSpec(saved()), HuggingFaceSpec(saved("gemma2"))
    chosen = resolve(llama, "float32")
    assert "attention" not in chosen.key_parts("float32")
    assert resolve(gemma, "float32").key_parts("float32")["attention"] == "eager"
    named = resolve(replace(llama, attention="eager"), "float32")
    assert named.digest("float32") != chosen.digest("float32")
    # What transformers chooses itself may be named.
    assert resolve(replace(llama, attention="sdpa"), "float32").digest("float32") == chosen.digest("float32")
    # Before it is known there is no key that a cache could have.
    assert llama.digest("float32") not in (chosen.digest("float32"), named.digest("float32"))
    assert named.lineage()["attention"] == "eager" and chosen.lineage()["attention"] == "sdpa"


def test_an_actor_loads_the_attention_that_was_planned(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = make_spec(json.loads(json.dumps(spec_settings(resolve(HuggingFaceSpec(saved()), "float32")))))
    assert planned.attention == "sdpa"
    real = transformers.LlamaForCausalLM.from_pretrained

    def other(*given: Any, **settings: Any) -> Any:
        return real(*given, **{**settings, "attn_implementation": "eager"})

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", other)
    with pytest.raises(ModelError, match=r"with the attention eager on this machine\. The job counts sdpa in its key"):
        make_teacher(planned, dtype="float32", seed=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral"])
def test_packed_documents_are_answered_alike_by_sdpa_and_eager(saved: Save, name: str) -> None:
    ids = np.random.default_rng(0).integers(3, SIZE, (2, 12))
    places = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1]])
    logits = {}
    for attention in ("sdpa", "eager"):
        teacher = make_teacher(HuggingFaceSpec(saved(name), attention=attention), dtype="float32", seed=0)
        logits[attention] = teacher.logits({"input_ids": ids, "position_ids": places})
        alone = teacher.logits({"input_ids": ids[:1, 5:]})
        torch.testing.assert_close(logits[attention][:1, 5:], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=0, atol=1e-5)


def test_gemma_2_keeps_packed_documents_apart(saved: Save) -> None:
    teacher = make_teacher(HuggingFaceSpec(saved("gemma2")), dtype="float32", seed=0)
    ids, places = np.array([[3, 4, 5, 6, 7, 8, 9, 10]]), np.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    packed = teacher.logits({"input_ids": ids, "position_ids": places})
    torch.testing.assert_close(packed[:, 3:], teacher.logits({"input_ids": ids[:, 3:]}), rtol=0, atol=1e-5)


def test_attention_that_a_model_does_not_have_is_refused(saved: Save) -> None:
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM does not support .*Without teacher\.attention"):
        resolve(HuggingFaceSpec(saved("gemma2"), attention="sdpa"), "float32")
    with pytest.raises(ModelError, match=r"^DebertaV2ForSequenceClassification has no flash_attention_2\."):
        resolve(HuggingFaceSpec(saved("deberta"), attention="flash_attention_2"), "bfloat16")


def test_flash_attention_is_planned_without_a_gpu_and_not_replaced_where_it_cannot_run(saved: Save) -> None:
    spec = HuggingFaceSpec(saved(), attention="flash_attention_2")
    assert resolve(spec, "bfloat16") == spec
    assert spec.key_parts("bfloat16")["attention"] == "flash_attention_2"
    with pytest.raises(ModelError, match=r"flash_attention_2, and teacher\.dtype float32\."):
        resolve(spec, "float32")
    with pytest.raises(ModelError, match=r"cannot run on this machine\. .*fetch kernels from the hub"):
        make_teacher(spec, dtype="bfloat16", seed=0)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_names_no_kernels(own: Save, key: str) -> None:
    spec = HuggingFaceSpec(own(**{key: "kernels-community/flash-attn2"}))
    for attempt in (lambda: resolve(spec, "bfloat16"), lambda: load(spec, "bfloat16", "cpu")):
        with pytest.raises(ModelError, match=r"names the attention kernels-community/flash-attn2\."):
            attempt()
    assert resolve(replace(spec, attention="eager"), "bfloat16").attention == "eager"
    assert resolve(HuggingFaceSpec(own(**{key: "eager"})), "bfloat16").attention == "eager"


SECTION = {"dtype": "float32", "batch_size": 2}


def test_a_recipe_may_name_the_attention(saved: Save) -> None:
    assert TeacherSection(path=saved(), attention="eager", **SECTION).spec() == HuggingFaceSpec(
        saved(), attention="eager"
    )
    with pytest.raises(RecipeError, match="attention belongs to a model of path or hub"):
        TeacherSection(factory="a:b", attention="eager", **SECTION)
    with pytest.raises(RecipeError, match="attention"):
        TeacherSection(path=saved(), attention="fast", **SECTION)


def test_a_model_that_a_run_wrote_has_its_own_attention(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"factory": "a:b", "arguments": {}}')
    with pytest.raises(RecipeError, match=r"^teacher\.attention is eager, and .* that a run wrote"):
        TeacherSection(path=str(tmp_path), attention="eager", **SECTION).spec()


# What is refused without weights


def test_no_weights_are_read(saved: Save) -> None:
    model = load(HuggingFaceSpec(saved()), "float32", META)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def cut_head(folder: Path, state: dict[str, torch.Tensor]) -> None:
    del state["lm_head.weight"]


def change_shape(folder: Path, state: dict[str, torch.Tensor]) -> None:
    state["model.norm.weight"] = torch.ones(7)


def own_code(folder: Path, state: dict[str, torch.Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))


def quantise(folder: Path, state: dict[str, torch.Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {}}
    (folder / "config.json").write_text(json.dumps(config))


def misshape(folder: Path, state: dict[str, torch.Tensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (cut_head, r"do not have lm_head\.weight as LlamaForCausalLM has\."),
        (change_shape, r"are of another shape: model\.norm\.weight is \[7\], the model has \[32\]\."),
        (own_code, r"transformers .* has no OwnForCausalLM\. The code that .* is not run"),
        (quantise, r"transformers cannot load .*ImportError: compressed-tensors"),
        (misshape, r"transformers cannot load|do not have"),
    ],
)
def test_a_plan_refuses_what_loading_refuses(own: Save, spoil: Any, found: str) -> None:
    folder = Path(own())
    state = load_file(folder / "model.safetensors")
    spoil(folder, state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    spec = HuggingFaceSpec(str(folder))
    said = []
    for attempt in (lambda: resolve(spec, "float32"), lambda: make_teacher(spec, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match=found) as caught:
            attempt()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_plan_refuses_truncated_weights(own: Save) -> None:
    file = Path(own()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="transformers cannot load"):
        resolve(HuggingFaceSpec(str(file.parent)), "float32")


def test_tied_weights_are_no_missing_ones(tmp_path: Path) -> None:
    spec = HuggingFaceSpec(str(save_model(tmp_path, tie_word_embeddings=True)))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert resolve(spec, "float32").attention == "sdpa"


# Classifiers


def test_a_classifier_that_needs_an_end_of_text_is_a_teacher(saved: Save) -> None:
    """Encoder-decoders take the answer from where the text ends."""
    teacher = TransformersTeacher(HuggingFaceSpec(saved("bart")), dtype="float32", seed=0, device="cpu")
    assert teacher.logits({"input_ids": np.array([[5, 6, 2], [7, 8, 2]])}).shape == (2, 3)


def test_a_model_that_takes_more_than_token_ids_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path, "XmodForCausalLM", is_decoder=True, languages=["en_XX", "de_DE"]))
    with pytest.raises(ModelError, match=r"^XmodForCausalLM does not take token ids alone \(ValueError: Input"):
        TransformersTeacher(HuggingFaceSpec(folder), dtype="float32", seed=0, device="cpu")


def test_models_of_another_kind_are_teachers_by_a_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Save
) -> None:
    """What the message says to do."""
    from jobs.models.model_spec import ModelSpec

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"ViTForImageClassification, a classifier of images\..*def build\(\): return"):
        resolve_attention(HuggingFaceSpec(str(tmp_path / "vit")), "float32")
    (tmp_path / "vit_factory.py").write_text(
        "import transformers\n\n\ndef build():\n"
        f"    return transformers.ViTForImageClassification.from_pretrained({str(tmp_path / 'vit')!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    teacher = make_teacher(ModelSpec("vit_factory:build"), dtype="float32", seed=0)
    pixels = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    assert teacher.logits({"pixel_values": pixels}).shape == (4, 2)
