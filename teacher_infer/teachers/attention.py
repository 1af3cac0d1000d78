"""The implementation of attention that a transformers model is loaded with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import ModelError

META = "meta"

# What transformers chooses between by itself, by the model's class alone.
_CHOSEN = ("sdpa", "eager")


def attention_of(model: Any) -> str:
    """What a loaded model uses; of one with several, all of them."""
    from transformers import PreTrainedModel

    used = {part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)}
    return "+".join(sorted(str(name) for name in used))


def flash_version(attention: str) -> int | None:
    found = re.fullmatch(r"flash_attention_(\d)", attention)
    return None if found is None else int(found[1])


def refuse_attention(spec: HuggingFaceSpec, kind: Any, dtype: str, device: str) -> None:
    """Raises ModelError for flash attention where it would not run, or where transformers would fetch other kernels."""
    import transformers

    version = None if spec.attention is None else flash_version(spec.attention)
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


def refuse_chosen_by_config(config: Any, spec: HuggingFaceSpec) -> None:
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
