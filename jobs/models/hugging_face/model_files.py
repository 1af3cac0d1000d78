"""The files that a model's folder and an adapter's folder have to hold."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from jobs.models.model_spec import ADAPTER_CONFIG, SAVE_ANEW
from jobs.models.weight_names import few
from jobs.models.weights import INDEX_FILE, OTHER_WEIGHTS, WEIGHTS_FILE, read_weight_map
from storage.base.digest import sha256_file
from storage.base.errors import ModelError
from storage.objectstore.folder import Folder
from storage.sources.packing.tokenizer import TOKENIZER_FILE

# What PEFT's save_pretrained writes.
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_file(file)


def weights_files(folder: Path, architecture: Callable[[], str]) -> list[str]:
    """The safetensors files of a model, sorted. Raises ModelError when there are none, or not all.

    architecture: gives the class in transformers, for advice on weights in another form.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ModelError(f"The model folder '{folder}' cannot be read: {error.strerror}.") from None
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    if INDEX_FILE not in names:
        others = sorted(name for name in names if name.endswith(OTHER_WEIGHTS))
        found = f"has its weights in {few(others)}" if others else "has no weights"
        # The names that transformers itself reads.
        pickled = any(name.startswith("pytorch_model") and name.endswith(".bin") for name in others)
        raise ModelError(
            f"'{folder}' {found}.",
            f"Weights are safetensors ({WEIGHTS_FILE}, or several files with {INDEX_FILE}); pickles are not "
            "opened, since loading one runs its code, and GGUF is not read.",
            _convert(folder, architecture()) if pickled else SAVE_ANEW,
        )
    index = (folder / INDEX_FILE).read_bytes()
    files = sorted(set(read_weight_map(index, f"{INDEX_FILE} in '{folder}'").values()))
    missing = [name for name in files if name not in names or not name.endswith(".safetensors")]
    if missing or not files:
        raise ModelError(
            f"'{folder}' lacks {few(missing) or 'every file of weights'}.",
            f"{INDEX_FILE} names {len(files)} safetensors files.",
            "Copy the whole folder.",
        )
    return files


def _convert(folder: Path, architecture: str) -> str:
    """How pickled weights are saved as safetensors."""
    source, target = str(folder), f"{folder}-safetensors"
    program = (
        f"import transformers; transformers.{architecture}.from_pretrained({json.dumps(source)})"
        f".save_pretrained({json.dumps(target)})"
    )
    return (
        f"Save it anew: python -c {shlex.quote(program)}, copy the tokenizer's files ({TOKENIZER_FILE}, "
        f"tokenizer_config.json) to {target}, and name that folder."
    )


def adapter_folder(adapter: str) -> Path:
    """The folder of a PEFT adapter on this machine. Raises ModelError for one that lacks its files."""
    folder = Folder(adapter)
    missing = [name for name in ADAPTER_FILES if not folder.is_local or not (Path(folder.url) / name).exists()]
    if missing:
        raise ModelError(
            f"The adapter '{adapter}' has no {few(missing)}.",
            f"teacher.adapter is a folder of this machine's disks that holds {' and '.join(ADAPTER_FILES)}.",
            "Save it with PeftModel.save_pretrained(FOLDER, safe_serialization=True).",
        )
    _refuse_adapter_config(Path(folder.url) / ADAPTER_FILES[0])
    return Path(folder.url)


def _refuse_adapter_config(path: Path) -> None:
    """Raises ModelError for an adapter_config.json that is no JSON object, or that names a module to import."""
    try:
        config = json.loads(path.read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' is no JSON object.", "It has the settings of an adapter.", "Copy the whole folder.")
    # With megatron_config peft imports the module that megatron_core names, and older versions import any.
    if config.get("megatron_config"):
        raise ModelError(
            f"'{path}' sets megatron_config, with which peft imports the module '{config.get('megatron_core')}'.",
            "A name that is read from a file is never imported.",
            "Merge the adapter where it was trained: PeftModel.merge_and_unload().save_pretrained(FOLDER).",
        )
