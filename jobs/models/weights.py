"""Weights as safetensors: one file, or an index of several; digested, and loaded into a torch module."""

from __future__ import annotations

import json
import posixpath
import shlex
from typing import Any

from jobs.models.weight_names import faults, few, refuse_disagreement, rename_to_model
from storage.base.digest import sha256_file, sha256_of
from storage.base.errors import ModelError
from storage.objectstore.folder import open_url

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

# Endings of weights that are not read; torch.save writes the first ones.
PICKLED_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_WEIGHTS = (*PICKLED_WEIGHTS, ".gguf", ".h5", ".msgpack")
# How files of torch.save begin: a zip archive, or in old versions a number of their own.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j")

_CONVERT = (
    'import torch, safetensors.torch as st; d = torch.load({source}, map_location="cpu", weights_only=True); '
    'd = d.get("state_dict", d.get("model", d)); '
    "st.save_file({{k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}}, {target})"
)


def weights_sha256(url: str) -> str:
    """sha256 of the weights file; of an index, of the names and hashes of the index and of its files.

    Raises ModelError when one of them is not there, and for one that torch.save wrote.
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
    state = rename_to_model(state, wanted, url)
    refuse_disagreement(state, wanted, url)
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
            differ = faults(named - found.keys(), found.keys() - named, [], path, url)
            raise ModelError(
                f"The index '{url}' and its file '{path}' do not agree ({differ}).",
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
