"""What a built torch module is: digests of the numbers that it holds, and of its modules' classes and settings."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jobs.models.own_code import is_own_code
from storage.base.digest import canonical_json, sha256_of
from storage.base.errors import ModelError

# How deep lists and mappings are looked into: an object may hold itself.
_DEPTH = 16
# Of a config: where it was loaded from, and by which version.
_NOT_SETTINGS = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


def parameters_digest(model: Any) -> str:
    """sha256 of all numbers that a torch module holds, as they are on the CPU before a dtype or device is set.

    Parameters, buffers (those that are not persistent as well), and tensors and arrays among the modules' attributes,
    also in lists, tuples and mappings. Raises ModelError for numbers that are not there yet: lazy or meta ones.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_numbers(model), key=lambda item: item[0]):
        for part, array in _arrays(name, value):
            digest.update(canonical_json([part, array.dtype.str, list(array.shape)]))
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def structure_digest(model: Any) -> str:
    """sha256 of the class of each module inside a torch module, and of its settings.

    Settings are attributes that are plain values, also in lists, tuples and mappings, functions by their names, and
    configs of transformers. Absolute paths are left out, since they differ between machines.
    """
    return sha256_of([[name, _class(module), _settings(module)] for name, module in model.named_modules()])


def _numbers(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, value in _attributes(module):
            yield from _numbers_in(value, f"{path}.{name}" if path else name)


def _numbers_in(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        yield name, value
    elif depth > _DEPTH:
        return
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers_in(inner, f"{name}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _numbers_in(inner, f"{name}.{number}", depth + 1)


def _arrays(name: str, value: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """A tensor or array as little-endian arrays: itself, or of a sparse or quantised one its parts."""
    import torch

    if isinstance(value, np.ndarray):
        yield name, value.astype(value.dtype.newbyteorder("<"), copy=False)
        return
    if isinstance(value, torch.nn.parameter.UninitializedTensorMixin) or value.is_meta:
        raise ModelError(
            f"The factory gave a model whose '{name}' has no values yet ({'meta' if value.is_meta else 'lazy'}).",
            "A teacher without a weights file is known by the numbers that its factory makes.",
            "Build it with its values: give lazy modules their sizes, and load meta modules' weights in the factory.",
        )
    try:
        value = value.detach().cpu()
        if value.is_quantized:
            yield f"{name}:quantised", value.int_repr().numpy()
            value = value.dequantize()
        if value.layout != torch.strided:
            value = value.to_dense()
        value = value.resolve_conj().resolve_neg().contiguous()
        yield f"{name}:{value.dtype}:{list(value.shape)}", value.reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The numbers of '{name}' ({type(value).__name__}) cannot be read on the CPU: {error}.",
            "A teacher without a weights file is known by the numbers that its factory makes.",
            "Name a weights file (teacher.weights), or convert that tensor in the factory.",
        ) from error


def _attributes(module: Any) -> Iterable[tuple[str, Any]]:
    """What a module's class has set. Of a class of a library names with an underscore are its own bookkeeping."""
    kept_by_torch, own = _kept_by_torch(), _is_own(type(module).__module__)
    for name, value in vars(module).items():
        if name not in kept_by_torch and (own or not name.startswith("_")):
            yield name, value


@functools.cache
def _kept_by_torch() -> frozenset[str]:
    """The attributes of every module; parameters, buffers and modules are looked at by themselves."""
    import torch

    return frozenset(vars(torch.nn.Module()))


@functools.cache
def _is_own(module: str) -> bool:
    return is_own_code(f"{module}:")


def _settings(module: Any) -> dict[str, Any]:
    found = {name: _plain(value) for name, value in _attributes(module)}
    return {name: value for name, value in found.items() if value is not _SKIPPED}


_SKIPPED = object()


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON that is the same in every process; _SKIPPED for what has none, as an object's address."""
    import torch

    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _SKIPPED if os.path.isabs(value) else value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, torch.dtype | torch.Size | complex | bytes):
        return str(value)
    if isinstance(value, enum.Enum):
        return [_class(value), value.name]
    if isinstance(value, torch.Tensor | np.ndarray | torch.nn.Module):
        return _SKIPPED  # counted as numbers, or by itself
    if depth > _DEPTH:
        return _class(value)
    if isinstance(value, Mapping):
        return sorted(([str(key), inner] for key, inner in _kept(value.items(), depth)), key=canonical_json)
    if isinstance(value, list | tuple):
        return [inner for _, inner in _kept(enumerate(value), depth)]
    if isinstance(value, set | frozenset):
        return sorted(canonical_json(inner).decode() for _, inner in _kept(enumerate(value), depth))
    return _named(value, depth)


def _named(value: Any, depth: int) -> Any:
    """A function by its name, a config by its settings, anything else by its class."""
    if isinstance(value, functools.partial):
        return [_named(value.func, depth), _plain(value.args, depth + 1), _plain(value.keywords, depth + 1)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    read = getattr(value, "to_diff_dict", None) or getattr(value, "to_dict", None)
    if callable(read):
        settings: Any = read()
        if isinstance(settings, Mapping):
            return [_class(value), _plain({k: v for k, v in settings.items() if k not in _NOT_SETTINGS}, depth + 1)]
    return _class(value)


def _kept(items: Iterable[tuple[Any, Any]], depth: int) -> Iterator[tuple[Any, Any]]:
    for key, value in items:
        plain = _plain(value, depth + 1)
        if plain is not _SKIPPED:
            yield key, plain


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
