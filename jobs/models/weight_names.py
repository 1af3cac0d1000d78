"""Whether a file's tensors are those of a torch module: names, prefixes of wrappers, shapes, shared memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from storage.base.errors import ModelError

# Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def rename_to_model(state: dict[str, Any], wanted: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The tensors by the model's own names. Raises ModelError where they do not fit, or fit in several ways.

    The same wrappers' names are taken out of the file's names and of the model's, and each choice of wrappers is tried:
    a module of the model itself may be called `module`.
    """
    parts = {part for name in (*state, *wanted) for part in name.split(".")}
    found = [wrapper for wrapper in _WRAPPERS if wrapper in parts]
    fitting: list[dict[str, str]] = []
    nearest: tuple[int, str, bool] | None = None
    for number in range(len(found) + 1):
        for wrappers in itertools.combinations(found, number):
            of_model, of_file = _bare_names(wanted, wrappers), _bare_names(state, wrappers)
            if of_model is None or of_file is None:
                continue
            names = {name: of_model.get(bare, bare) for bare, name in of_file.items()}
            renamed = {names[name]: tensor for name, tensor in state.items()}
            missing = wanted.keys() - renamed.keys() - _tied(renamed, wanted)
            extra = renamed.keys() - wanted.keys()
            shapes = _other_shapes(renamed, wanted)
            count = len(missing) + len(extra) + len(shapes)
            if not count:
                fitting.append(names)
            if nearest is None or count < nearest[0]:
                nearest = count, faults(missing, extra, shapes, "the file", "the model"), bool(missing)
    if not fitting:
        assert nearest is not None
        raise ModelError(
            f"The weights '{url}' do not fit the model ({nearest[1]}).",
            "Every parameter and buffer is in the file, with its shape"
            + ("; a tied one may be missing where the model has it in the memory of another." if nearest[2] else "."),
            "Give the factory the arguments that the weights were trained with.",
        )
    for other in fitting[1:]:
        changed = sorted(name for name in other if other[name] != fitting[0][name])
        if changed:
            name = changed[0]
            raise ModelError(
                f"The weights '{url}' fit the model in two ways: '{name}' is '{fitting[0][name]}' or '{other[name]}'.",
                f"Without the prefixes of wrappers ({', '.join(_WRAPPERS)}) each weight is one of the model's.",
                "Save the state_dict of the unwrapped model.",
            )
    return {fitting[0][name]: tensor for name, tensor in state.items()}


def _bare_names(names: Iterable[str], wrappers: tuple[str, ...]) -> dict[str, str] | None:
    """The names by what they are without these parts; None where two are the same then."""
    names = list(names)
    bare = {".".join(part for part in name.split(".") if part not in wrappers): name for name in names}
    return bare if len(bare) == len(names) else None


def faults(missing: Iterable[str], extra: Iterable[str], shapes: list[str], one: str, other: str) -> str:
    """In which names and shapes two sets of weights differ, in words. one, other: what each set is called."""
    texts = (
        (f"not in {one}", sorted(missing)),
        (f"not in {other}", sorted(extra)),
        ("of another shape", shapes),
    )
    return "; ".join(f"{text}: {few(found)}" for text, found in texts if found)


def _other_shapes(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {list(state[name].shape)}, the model has {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if _has_values(wanted[name]) and state[name].shape != wanted[name].shape
    ]


def _tied(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """Names of the model that lie in the memory of a tensor that the file has, so that loading it sets them."""
    filled: dict[int, list[tuple[int, int]]] = {}
    for name in wanted.keys() & state.keys():
        if not _has_values(wanted[name]):
            continue
        start, stop = _extent(wanted[name])
        # One with gaps does not fill what it spans.
        if stop - start == wanted[name].numel() * wanted[name].element_size():
            filled.setdefault(_memory(wanted[name]), []).append((start, stop))
    tied: set[str] = set()
    for name in wanted.keys() - state.keys():
        if not _has_values(wanted[name]):
            continue
        start, stop = _extent(wanted[name])
        spans = filled.get(_memory(wanted[name]), [])
        if any(first <= start and stop <= last for first, last in spans):
            tied.add(name)
    return tied


def _has_values(value: Any) -> bool:
    """False for the state of a module that is no tensor or no dense one, and for a lazy parameter."""
    import torch

    lazy = isinstance(value, torch.nn.parameter.UninitializedTensorMixin)
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not lazy


def _memory(tensor: Any) -> int:
    """A number for the storage of a tensor; an empty one, or one of the meta device, has its own."""
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _extent(tensor: Any) -> tuple[int, int]:
    """The bytes [start, stop) of its storage that a tensor spans."""
    size, start = tensor.element_size(), tensor.storage_offset()
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start * size, (start + last + 1) * size if tensor.numel() else start * size


def refuse_disagreement(state: Mapping[str, Any], wanted: Mapping[str, Any], url: str) -> None:
    """Raises ModelError where the file has other values for two names that the model keeps in one memory."""
    import torch

    sharing: dict[int, list[str]] = {}
    for name in sorted(name for name in state if _has_values(wanted[name])):
        sharing.setdefault(_memory(wanted[name]), []).append(name)
    for names in (names for names in sharing.values() if len(names) > 1 and not wanted[names[0]].is_meta):
        # What loading would do, in a copy of the memory.
        memory = wanted[names[0]].untyped_storage().clone()
        views: dict[str, Any] = {}
        for name in names:
            tensor = wanted[name].detach()
            place = (memory, tensor.storage_offset(), tensor.shape, tensor.stride())
            views[name] = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*place)
            views[name].copy_(state[name])
        for name, view in views.items():
            if not torch.equal(_bytes(view), _bytes(state[name].to(view))):
                other = next(each for each in reversed(names) if each != name)
                raise ModelError(
                    f"The weights '{url}' have other values for '{name}' than for '{other}'.",
                    "The model ties the two: they are one tensor.",
                    "Give the factory the arguments that the weights were trained with, or save the model again.",
                )


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def few(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
