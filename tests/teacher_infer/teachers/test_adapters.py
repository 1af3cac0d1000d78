"""Adapters: used only when the recipe names one, counted in the key, and never picked up from a model's folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import ModelError, RecipeError
from teacher_infer.planning.config import TeacherSection
from teacher_infer.teachers import make_teacher, resolve
from tests.tiny_models import save_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = {"input_ids": np.arange(3, 15, dtype=np.int64)[None]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base: a model; adapter: one for it; both: the adapter's files beside the base's; merged: the two in one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("adapters")
    base = save_model(root / "base", initializer_range=0.3)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(root / "adapter")
    shutil.copytree(base, root / "both")
    for file in (root / "adapter").glob("adapter_*"):
        shutil.copy(file, root / "both")
    model.merge_and_unload().save_pretrained(root / "merged")
    return {name: root / name for name in ("base", "adapter", "both", "merged")}


def logits(**settings: Any) -> torch.Tensor:
    """As a job gets them: planned without weights, then loaded."""
    return make_teacher(resolve(HuggingFaceSpec(**settings), "float32"), dtype="float32", seed=0).logits(IDS)


def test_an_adapter_beside_a_model_is_not_used_and_is_said_to_lie_there(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    base, both = HuggingFaceSpec(str(folders["base"])), HuggingFaceSpec(str(folders["both"]))
    assert base.digest("float32") == both.digest("float32")
    with caplog.at_level(logging.WARNING, "stillhouse.teacher"):
        assert torch.equal(logits(path=str(folders["base"])), logits(path=str(folders["both"])))
    assert "holds an adapter beside the model" in caplog.text and base.notes() == []


def test_an_adapter_that_is_named_is_merged_and_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    base, adapter = str(folders["base"]), str(folders["adapter"])
    with_adapter = HuggingFaceSpec(base, adapter=adapter)
    found = logits(path=base, adapter=adapter)
    torch.testing.assert_close(found, logits(path=str(folders["merged"])), rtol=1e-5, atol=1e-5)
    assert (found - logits(path=base)).abs().max() > 0.01
    assert with_adapter.digest("float32") != HuggingFaceSpec(base).digest("float32")
    assert with_adapter.lineage()["adapter"] == adapter and with_adapter.notes() == []
    other = shutil.copytree(adapter, tmp_path / "other")
    config = Path(other) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 64', '"lora_alpha": 32'))
    assert HuggingFaceSpec(base, adapter=str(other)).digest("float32") != with_adapter.digest("float32")


def test_nothing_that_the_key_does_not_count_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["base"], tmp_path / "more"))
    for name in ("generation_config.json", "adapter_config.json", "modeling_other.py", "pytorch_model.bin"):
        (folder / name).write_text("this is read by nobody")
    assert torch.equal(logits(path=str(folder)), logits(path=str(folders["base"])))


def test_an_adapter_without_its_model_and_files_that_are_missing_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    section = {"dtype": "float32", "batch_size": 1}
    with pytest.raises(ModelError, match=r"holds an adapter .* without its model\..*teacher\.adapter="):
        TeacherSection.model_validate({**section, "path": str(folders["adapter"])}).spec()
    spec = HuggingFaceSpec(str(folders["base"]), adapter=str(tmp_path))
    with pytest.raises(ModelError, match=r"has no adapter_config\.json, adapter_model\.safetensors"):
        spec.digest("float32")
    other = save_model(tmp_path / "wide", hidden_size=64)
    spec = HuggingFaceSpec(str(other), adapter=str(folders["adapter"]))
    for attempt in (lambda: resolve(spec, "float32"), lambda: make_teacher(spec, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match="does not fit LlamaForCausalLM"):
            attempt()


def test_an_adapter_belongs_to_a_model_of_hugging_faces_form(folders: dict[str, Path], tmp_path: Path) -> None:
    section = {"dtype": "float32", "batch_size": 1, "adapter": str(folders["adapter"])}
    with pytest.raises(ValueError, match="adapter belongs to a model of path or hub"):
        TeacherSection.model_validate({**section, "factory": "nets:build"})
    (tmp_path / "config.json").write_text('{"factory": "nets:build", "arguments": {}}')
    with pytest.raises(RecipeError, match="is a model that a run wrote"):
        TeacherSection.model_validate({**section, "path": str(tmp_path)}).spec()


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda state: {name: v for name, v in state.items() if "layers.1" not in name}, "lacks 4 weights and has 0"),
        (lambda state: {**state, **{n.replace("layers.1", "layers.9"): v for n, v in state.items()}}, "has 4 that"),
        (lambda state: {n.replace("model.model", "model.body"): v for n, v in state.items()}, "lacks 8 .* has 8"),
        (lambda state: {}, "lacks 8"),
    ],
)
def test_an_adapter_of_which_a_part_would_be_left_out_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], counts: str
) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(folders["adapter"], tmp_path / "other"))
    file = other / "adapter_model.safetensors"
    state = change(load_file(file))
    save_file({name: value.clone() for name, value in state.items()}, file)
    spec = HuggingFaceSpec(str(folders["base"]), adapter=str(other))
    for attempt in (lambda: resolve(spec, "float32"), lambda: make_teacher(spec, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match=f"does not fit the model: its file .*{counts}"):
            attempt()


@pytest.mark.parametrize(
    "more", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"target_modules": "all-linear"}]
)
def test_adapters_of_other_settings_fit(folders: dict[str, Path], tmp_path: Path, more: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **more})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folders["base"]), config)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1)
    model.save_pretrained(tmp_path)
    expected = model.eval()(torch.from_numpy(IDS["input_ids"])).logits.detach()
    found = logits(path=str(folders["base"]), adapter=str(tmp_path))
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["pissa", "olora"])
def test_a_plan_takes_adapters_whose_first_weights_follow_from_the_models(
    folders: dict[str, Path], tmp_path: Path, way: str
) -> None:
    """Such weights cannot be drawn on the meta device, and are not needed there."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=way)  # type: ignore
    get_peft_model(AutoModelForCausalLM.from_pretrained(folders["base"]), config).save_pretrained(tmp_path)
    spec = HuggingFaceSpec(str(folders["base"]), adapter=str(tmp_path))
    assert resolve(spec, "float32").attention == "sdpa"


def test_an_adapter_names_no_module_to_import(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft imports the module that megatron_core names."""
    other = Path(shutil.copytree(folders["adapter"], tmp_path / "other"))
    config, mark = other / "adapter_config.json", tmp_path / "imported"
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "__init__.py").write_text("")
    (tmp_path / "megatron" / "core_of_a_test.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"megatron_config": {"size": 1}, "megatron_core": "megatron.core_of_a_test"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    with pytest.raises(ModelError, match=r"peft imports the module 'megatron\.core_of_a_test'"):
        logits(path=str(folders["base"]), adapter=str(other))
    assert not mark.exists()
    config.write_text("[")
    with pytest.raises(ModelError, match="is no JSON object"):
        HuggingFaceSpec(str(folders["base"]), adapter=str(other)).digest("float32")
