"""Weights as safetensors: one file, or an index of several; digested, and loaded into a torch module."""

from __future__ import annotations

import itertools
import json
import posixpath
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from storage.digest import sha256_file, sha256_of
from storage.errors import ModelError
from storage.folder import open_url

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

# Endings of weights that are not read; torch.save writes the first ones.
PICKLED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_WEIGHTS = (*PICKLED_WEIGHTS, ".gguf", ".h5", ".msgpack")
# How files of torch.save begin: a zip archive, or in old versions a number of their own.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j")

# Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

_CONVERT = (
    'import torch, safetensors.torch as st; d = torch.load({source}, map_location="cpu", weights_only=True); '
    'd = d.get("state_dict", d.get("model", d)); '
    "st.save_file({{k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}}, {target})"
)


def weights_sha256(url: str) -> str:
    """sha256 of the weights file; of an index, of the names and hashes of the index and of its files.

    Raises ModelError when one of them is not there, and for a file that is no safetensors by its name.
    """
    hashes: dict[str, str] = {}
    for each in [url, *_files_of(url)] if _is_index(url) else [url]:
        with open_weights(each) as file:
            hashes[posixpath.basename(each)] = sha256_file(file)
    return sha256_of(hashes) if _is_index(url) else hashes[posixpath.basename(url)]


def load_weights(model: Any, url: str) -> None:
    """Load safetensors into a torch module, whole: every name and shape must fit, and nothing is left out.

    Names may have the prefixes of DistributedDataParallel, torch.compile, FSDP or activation checkpointing, where the
    file fits without them. A name may be missing where the model keeps it in the memory of one that is there (tied
    weights). Raises ModelError, and leaves the model as it was then.
    """
    state = _read(url)
    wanted = dict(model.state_dict())
    state = _renamed(state, wanted, url)
    _refuse_disagreement(state, wanted, url)
    model.load_state_dict(state, strict=state.keys() == wanted.keys())


def read_weight_map(data: bytes, where: str) -> dict[str, str]:
    """The file of each weight, as an index names them. Raises ModelError."""
    try:
        files = json.loads(data)["weight_map"]
        if not all(isinstance(name, str) for name in files.values()):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{where} has no weight_map of names of files.", remedy="Copy the whole folder.") from None
    return files


def open_weights(url: str) -> Any:
    """A file of weights, opened for reading. Raises ModelError."""
    try:
        file = open_url(url)
        _refuse_pickle(url, file)
        return file
    except FileNotFoundError:
        raise ModelError(
            f"The weights '{url}' are not there.",
            "They are a safetensors file, or the index of several, at a path or an fsspec URL.",
            "Train the model first, or mend the path.",
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The weights '{url}' cannot be read: {error}.") from None


def few(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_index(url: str) -> bool:
    return url.endswith(".json")


def _weight_map(url: str) -> dict[str, str]:
    """Of an index the file of each weight: files beside it. Raises ModelError."""
    with open_weights(url) as file:
        files = read_weight_map(file.read(), f"'{url}'")
    odd = sorted({name for name in files.values() if posixpath.basename(name) != name or _is_index(name)})
    if odd or not files:
        raise ModelError(
            f"The index '{url}' names {few(odd) or 'no files'}.", "It names safetensors files that lie beside it."
        )
    return files


def _files_of(url: str) -> list[str]:
    """The URLs of an index's files, sorted. Raises ModelError."""
    return [posixpath.join(posixpath.dirname(url), name) for name in sorted(set(_weight_map(url).values()))]


def _read(url: str) -> dict[str, Any]:
    """All tensors of a file or of an index by their names. Raises ModelError."""
    if not _is_index(url):
        return _read_file(url)
    files, state = _weight_map(url), dict[str, Any]()
    for path in _files_of(url):
        found = _read_file(path)
        named = {name for name, file in files.items() if file == posixpath.basename(path)}
        if found.keys() != named:
            faults = _faults(named - found.keys(), found.keys() - named, [], path, url)
            raise ModelError(
                f"The index '{url}' and its file '{path}' do not agree ({faults}).",
                "Each file has the weights that the index names for it, and no others.",
                "Copy the whole folder, or save the model again.",
            )
        state |= found
    return state


def _read_file(url: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open_weights(url) as file:
        data = file.read()
    try:
        return load(data)
    except SafetensorError as error:
        if data.startswith(_TORCH_STARTS) or url.lower().endswith(PICKLED_WEIGHTS):
            raise _pickled(url) from None
        raise ModelError(
            f"'{url}' is no safetensors file ({error}).", "Weights are safetensors; pickles are not opened."
        ) from None


def _refuse_pickle(url: str, file: Any) -> None:
    """Raises ModelError for a file that torch.save wrote, by its first bytes: its name may be that of either form."""
    if not url.lower().endswith(PICKLED_WEIGHTS):
        return
    start = file.read(max(map(len, _TORCH_STARTS)))
    file.seek(0)
    if start.startswith(_TORCH_STARTS):
        file.close()
        raise _pickled(url)


def _pickled(url: str) -> ModelError:
    source = url.removeprefix("file://")
    if "://" in source:
        source = posixpath.basename(source)
    stem = source.removesuffix(next((end for end in PICKLED_WEIGHTS if source.lower().endswith(end)), ""))
    target = f"{stem}.safetensors"
    program = _CONVERT.format(source=json.dumps(source), target=json.dumps(target))
    return ModelError(
        f"'{url}' is no safetensors file; by its form torch.save wrote it.",
        "Weights are safetensors; pickles are not opened, since loading one can run its code.",
        f"Convert it, and name {target}: python -c {shlex.quote(program)}",
    )


def _renamed(state: dict[str, Any], wanted: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The tensors by the model's own names. Raises ModelError where they do not fit, or fit in several ways.

    The same wrappers' names are taken out of the file's names and of the model's, and each choice of wrappers is tried:
    a module of the model itself may be called `module`.
    """
    parts = {part for name in (*state, *wanted) for part in name.split(".")}
    found = [wrapper for wrapper in _WRAPPERS if wrapper in parts]
    fitting: list[dict[str, str]] = []
    nearest: tuple[int, str, bool] | None = None
    for count in range(len(found) + 1):
        for wrappers in itertools.combinations(found, count):
            of_model, of_file = _bare_names(wanted, wrappers), _bare_names(state, wrappers)
            if of_model is None or of_file is None:
                continue
            names = {name: of_model.get(bare, bare) for bare, name in of_file.items()}
            renamed = {names[name]: tensor for name, tensor in state.items()}
            missing = wanted.keys() - renamed.keys() - _tied(renamed, wanted)
            extra = renamed.keys() - wanted.keys()
            shapes = _other_shapes(renamed, wanted)
            faults = len(missing) + len(extra) + len(shapes)
            if not faults:
                fitting.append(names)
            if nearest is None or faults < nearest[0]:
                nearest = faults, _faults(missing, extra, shapes, "the file", "the model"), bool(missing)
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


def _faults(missing: Iterable[str], extra: Iterable[str], shapes: list[str], one: str, other: str) -> str:
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


def _refuse_disagreement(state: Mapping[str, Any], wanted: Mapping[str, Any], url: str) -> None:
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
