"""Merges a PEFT adapter into the model that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.hugging_face.model_files import ADAPTER_FILES
from storage.base.errors import ModelError
from teacher_infer.teachers.linked_folder import links_to


def merge_adapter(model: Any, adapter: Path, spec: HuggingFaceSpec) -> Any:
    """The model with a PEFT adapter's weights merged into its own, in its dtype."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"The adapter '{adapter}' is read by the package peft, which is not installed.",
            remedy="Install it with: pip install 'stillhouse[adapters]'",
        ) from None
    with links_to(adapter, ADAPTER_FILES) as folder:
        try:
            adapted = PeftModel.from_pretrained(model, folder, config=_adapter_config(folder, model))
            _refuse_other_names(adapted, folder)
            return adapted.merge_and_unload()
        except ModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).replace(folder, str(adapter)).split())[:300]
            raise ModelError(
                f"The adapter '{adapter}' does not fit {spec.architecture} in '{spec.folder}' "
                f"({type(error).__name__}: {reason}).",
                "It is one that was trained on this model.",
            ) from error


def _adapter_config(folder: str, model: Any) -> Any:
    """The adapter's settings. On the meta device without its way to draw initial weights, which needs real ones."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    if next(model.parameters()).is_meta and hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    return config


def _refuse_other_names(adapted: Any, folder: str) -> None:
    """Raises ModelError where the adapter's file lacks weights that its settings call for, or has others.

    peft leaves out what does not fit: the teacher would answer as if the adapter, or a part of it, were not there.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(Path(folder) / ADAPTER_FILES[1], framework="pt") as file:
        names = set(file.keys())
    # Embeddings that were saved beside the adapter have the names of the model's own.
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    missing, surplus = sorted(wanted - names), sorted(names - wanted - set(adapted.state_dict()))
    if missing or surplus:
        raise ModelError(
            f"The adapter does not fit the model: its file lacks {len(missing)} weights and has {len(surplus)} that "
            f"the model has no place for, as {(missing or surplus)[0]}.",
            f"{ADAPTER_FILES[1]} has each weight that {ADAPTER_FILES[0]} calls for on this model, and no other.",
            "Name the base model that the adapter was trained on in teacher.path.",
        )
