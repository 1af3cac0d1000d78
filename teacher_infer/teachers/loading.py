"""Loads a model in Hugging Face's form: with its weights, or on the meta device to see that it would load."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.weight_names import few
from storage.base.errors import JobError, ModelError
from teacher_infer.teachers.adapter import merge_adapter
from teacher_infer.teachers.attention import (
    META,
    attention_of,
    flash_version,
    refuse_attention,
    refuse_chosen_by_config,
)
from teacher_infer.teachers.linked_folder import links_to

log = logging.getLogger("stillhouse.teacher")


def resolve_attention(spec: HuggingFaceSpec, dtype: str) -> HuggingFaceSpec:
    """The spec with the implementation of attention that it is loaded with, after everything but the values is checked.

    The model is loaded on the meta device: its class, its settings, and the names and shapes of its weights and of its
    adapter's count, and no weights are read. Needs no GPU. Raises ModelError.
    """
    model = load(spec, dtype, META)
    return spec if spec.attention is not None else replace(spec, attention=attention_of(model))


def load(spec: HuggingFaceSpec, dtype: str, device: str) -> Any:
    """The model in eval mode. device: cpu, cuda, meta, or auto, which lays it over all that this process sees.

    Raises ModelError, and JobError where the GPUs do not hold it.
    """
    import torch

    kind = _kind(spec)
    refuse_attention(spec, kind, dtype, device)
    with links_to(spec.folder, spec.counted_files()) as folder:
        try:
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
            refuse_chosen_by_config(config, spec)
            model, found = _from_pretrained(kind, folder, config, spec, getattr(torch, dtype), device)
        except ModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).replace(folder, str(spec.folder)).split())[:300]
            raise ModelError(
                f"transformers cannot load '{spec.folder}' as {spec.architecture} ({type(error).__name__}: {reason}).",
                remedy="" if spec.attention is None else "Without teacher.attention transformers chooses it.",
            ) from error
    missing = sorted(found["missing_keys"])
    shapes = sorted(
        f"{name} is {list(stored)}, the model has {list(built)}" for name, stored, built in found["mismatched_keys"]
    )
    if missing or shapes:
        lack = f"do not have {few(missing)} as {spec.architecture} has" if missing else ""
        others = f"{'; ' if missing else 'are '}of another shape: {few(shapes)}" if shapes else ""
        raise ModelError(
            f"The weights in '{spec.folder}' {lack}{others}.",
            "A teacher brings all its weights; transformers would draw these at random.",
            "Name the folder of the whole model, with its head.",
        )
    # On the meta device kernels of GPUs are not asked for.
    if spec.attention is not None and device != META and attention_of(model) != spec.attention:
        raise ModelError(
            f"transformers loads {spec.architecture} with the attention {attention_of(model)} on this machine.",
            f"The job counts {spec.attention} in its key.",
            "Give all machines the same versions of transformers, torch and the kernels.",
        )
    if spec.adapter_folder is not None:
        model = merge_adapter(model, spec.adapter_folder, spec)
    if device != META:
        for note in spec.notes():
            log.warning(note)
    if device == "auto":
        # Absent where all of it found room on one device.
        placed_on = getattr(model, "hf_device_map", {})
        elsewhere = {str(place) for place in placed_on.values()} & {"cpu", "disk"}
        if elsewhere and torch.cuda.is_available():
            raise JobError(
                f"The teacher does not fit into the GPUs of an actor: a part of it would lie on {elsewhere.pop()}.",
                "All of it lies on GPUs.",
                "Raise ray.gpus_per_actor.",
            )
    return model.eval() if device in ("auto", META) else model.to(device).eval()


def _kind(spec: HuggingFaceSpec) -> Any:
    """The class of transformers. Raises ModelError."""
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "Hugging Face's models are loaded by the package transformers, which is not installed.",
            remedy="Install it with: pip install 'stillhouse[lm]'",
        ) from None
    kind = getattr(transformers, spec.architecture, None)
    if kind is None:
        raise ModelError(
            f"transformers {transformers.__version__} has no {spec.architecture}.",
            "The code that a folder brings along is not run.",
            "Take a version of transformers that knows the model.",
        )
    transformers.utils.logging.disable_progress_bar()
    return kind


def _from_pretrained(
    kind: Any, folder: str, config: Any, spec: HuggingFaceSpec, dtype: Any, device: str
) -> tuple[Any, dict[str, Any]]:
    """The model, and which weights it did not find."""
    flash = spec.attention is not None and flash_version(spec.attention) is not None
    placed: dict[str, Any] = {"auto": {"device_map": "auto"}, META: {"device_map": {"": META}}}.get(device, {})
    # Several implementations in one model are transformers' own choice, which cannot be asked for by one name.
    if spec.attention is not None and "+" not in spec.attention and not (flash and device == META):
        placed["attn_implementation"] = spec.attention
    try:
        return kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by `load`, by name
            **placed,
        )
    except Exception as error:
        # Some kinds of quantised weights are only laid out on a GPU. A package that is missing is missing there, too.
        if device != META or getattr(config, "quantization_config", None) is None or isinstance(error, ImportError):
            raise
        log.warning("Whether the quantised weights in '%s' fit shows only where they are loaded.", spec.folder)
        import torch

        with torch.device(META):
            return kind(config), {"missing_keys": [], "mismatched_keys": []}
