"""Loads a model in Hugging Face's form: with its weights, or on the meta device to see that it would load."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.models.hugging_face import ADAPTER_FILES, HuggingFaceSpec
from jobs.models.weight_names import few
from storage.base.errors import ModelError, TeacherError

log = logging.getLogger("stillhouse.teacher")

META = "meta"

# What transformers chooses between by itself, by the model's class alone.
_CHOSEN = ("sdpa", "eager")


def resolve_attention(spec: HuggingFaceSpec, dtype: str) -> HuggingFaceSpec:
    """The spec with the implementation of attention that it is loaded with, after everything but the values is checked.

    The model is loaded on the meta device: its class, its settings, and the names and shapes of its weights and of its
    adapter's count, and no weights are read. Needs no GPU. Raises ModelError.
    """
    model = load(spec, dtype, META)
    return spec if spec.attention is not None else replace(spec, attention=_attention(model))


def load(spec: HuggingFaceSpec, dtype: str, device: str) -> Any:
    """The model in eval mode. device: cpu, cuda, meta, or auto, which lays it over all that this process sees.

    Raises ModelError, and TeacherError where the GPUs do not hold it.
    """
    import torch

    kind = _kind(spec)
    _refuse_attention(spec, kind, dtype, device)
    with _links_to(spec.folder, spec.counted_files()) as folder:
        try:
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
            _refuse_chosen_by_config(config, spec)
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
    if spec.attention is not None and device != META and _attention(model) != spec.attention:
        raise ModelError(
            f"transformers loads {spec.architecture} with the attention {_attention(model)} on this machine.",
            f"The job counts {spec.attention} in its key.",
            "Give all machines the same versions of transformers, torch and the kernels.",
        )
    if spec.adapter_folder is not None:
        model = _merged(model, spec.adapter_folder, spec)
    if device != META:
        for note in spec.notes():
            log.warning(note)
    if device == "auto":
        # Absent where all of it found room on one device.
        placed_on = getattr(model, "hf_device_map", {})
        elsewhere = {str(place) for place in placed_on.values()} & {"cpu", "disk"}
        if elsewhere and torch.cuda.is_available():
            raise TeacherError(
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
    flash = spec.attention is not None and _flash_version(spec.attention) is not None
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


def _attention(model: Any) -> str:
    """What a loaded model uses; of one with several, all of them."""
    from transformers import PreTrainedModel

    used = {part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)}
    return "+".join(sorted(str(name) for name in used))


def _flash_version(attention: str) -> int | None:
    found = re.fullmatch(r"flash_attention_(\d)", attention)
    return None if found is None else int(found[1])


def _refuse_attention(spec: HuggingFaceSpec, kind: Any, dtype: str, device: str) -> None:
    """Raises ModelError for flash attention where it would not run, or where transformers would fetch other kernels."""
    import transformers

    version = None if spec.attention is None else _flash_version(spec.attention)
    if version is None:
        return
    compatible = getattr(kind, "_compatible_flash_implementations", None)
    if not getattr(kind, "_supports_flash_attn", False) or (compatible and spec.attention not in compatible):
        raise ModelError(
            f"{spec.architecture} has no {spec.attention}.",
            "teacher.attention is one that the model's class in transformers has.",
            "Leave teacher.attention out: transformers then chooses.",
        )
    if dtype == "float32":
        raise ModelError(
            f"teacher.attention is {spec.attention}, and teacher.dtype float32.",
            "Flash attention computes in float16 or bfloat16.",
            "Name one of these, or leave teacher.attention out.",
        )
    available = getattr(transformers.utils, f"is_flash_attn_{version}_available", None)
    if device != META and (device == "cpu" or available is None or not available()):
        raise ModelError(
            f"teacher.attention is {spec.attention}, which cannot run on this machine.",
            "Flash attention needs a GPU (ray.gpus_per_actor) and its package (flash-attn); transformers would fetch "
            "kernels from the hub in its place, which are not run.",
            "Install it on every machine of the job, or leave teacher.attention out.",
        )


def _refuse_chosen_by_config(config: Any, spec: HuggingFaceSpec) -> None:
    """Raises ModelError where config.json names kernels, since it depends on the machine what stands for them."""
    for part in _configs(config):
        name = getattr(part, "_attn_implementation", None)
        if spec.attention is None and name is not None and name not in _CHOSEN:
            raise ModelError(
                f"config.json in '{spec.folder}' names the attention {name}.",
                f"Without teacher.attention it is {' or '.join(_CHOSEN)}, which every machine has.",
                "Name it in the recipe (teacher.attention), or take it out of config.json.",
            )


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None:
            yield from _configs(inner)


@contextmanager
def _links_to(folder: Path, names: Sequence[str]) -> Generator[str]:
    """A temporary folder of links to these files alone: so loading reads nothing that the key does not count.

    transformers applies an adapter that lies beside a model without being asked to.
    """
    with tempfile.TemporaryDirectory() as linked:
        for name in names:
            (Path(linked) / name).symlink_to((folder / name).absolute())
        yield linked


def _merged(model: Any, adapter: Path, spec: HuggingFaceSpec) -> Any:
    """The model with a PEFT adapter's weights merged into its own, in its dtype."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"The adapter '{adapter}' is read by the package peft, which is not installed.",
            remedy="Install it with: pip install 'stillhouse[adapters]'",
        ) from None
    with _links_to(adapter, ADAPTER_FILES) as folder:
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
