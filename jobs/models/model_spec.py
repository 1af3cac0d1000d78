"""Models by name: `package.module:function` with keyword arguments, weights as safetensors."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs.models.built_model import parameters_digest, structure_digest
from jobs.models.code_digest import code_digests
from jobs.models.own_code import is_in_working_directory
from jobs.models.weights import INDEX_FILE, OTHER_WEIGHTS, WEIGHTS_FILE, load_weights, weights_sha256
from storage.base.digest import sha256_of
from storage.base.errors import ModelError
from storage.base.functions import call, find_function
from storage.objectstore.folder import Folder

CONFIG_FILE, ADAPTER_CONFIG = "config.json", "adapter_config.json"

# How float32 products and convolutions are made: never as TF32. Of 16 bits, as the device makes them.
PRECISION = {"float32": "ieee", "float16": "default", "bfloat16": "default"}

SAVE_ANEW = "Load it with transformers where it comes from, and save it with save_pretrained(FOLDER)."


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model. factory: package.module:function; weights: a path or URL of safetensors, or of the index of
    several such files, or None."""

    kind: ClassVar[str] = "module"

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: str | None = None

    def build(self, seed: int = 0) -> Any:
        """The torch module, its weights loaded if there are any, otherwise drawn from the seed.

        Raises RecipeError when the factory is not there, ModelError when it or the weights do not fit.
        """
        import torch

        factory = find_function(self.factory, "factory")
        torch.manual_seed(seed)
        model = call(factory, self.arguments, self.factory, ModelError)
        if not isinstance(model, torch.nn.Module):
            raise ModelError(f"{self.factory} gave {type(model).__name__}.", "A factory returns a torch.nn.Module.")
        if self.weights is not None:
            load_weights(model, self.weights)
        return model

    def lineage(self) -> dict[str, Any]:
        """What a cache says of its teacher, besides its digests."""
        return {"factory": self.factory, "arguments": self.arguments, "weights": self.weights}

    def key_parts(self, dtype: str, model: Any = None) -> dict[str, Any]:
        """Everything that decides what it answers as a teacher, readable.

        model: what `build` gave, where no weights file is given: its numbers and its modules' settings count instead.
        """
        if self.weights is None and model is None:
            raise ValueError("the key of a model without a weights file needs the built model")
        return {
            "kind": self.kind,
            "factory": self.factory,
            "arguments": self.arguments,
            "code": code_digests(self.factory),
            "weights": self.weights_sha256() if model is None else None,
            **({} if model is None else {"parameters": parameters_digest(model), "structure": structure_digest(model)}),
            "dtype": dtype,
            "precision": PRECISION[dtype],
        }

    def digest(self, dtype: str) -> str:
        """sha256 of weights, the factory's source, arguments and dtype: what a student's run is known by."""
        function = find_function(self.factory, "factory")
        try:
            source = inspect.getsource(inspect.getmodule(function) or function)
        except (OSError, TypeError):
            raise ModelError(
                f"The source of {self.factory} cannot be read.", "A factory is a function in a Python file."
            ) from None
        weights = self.weights_sha256()
        return sha256_of(
            {"factory": self.factory, "source": source, "arguments": self.arguments, "weights": weights, "dtype": dtype}
        )

    def weights_sha256(self) -> str | None:
        """`jobs.models.weights.weights_sha256` of the weights, or None."""
        return None if self.weights is None else weights_sha256(self.weights)


def spec_from_folder(url: str, factory: str | None = None) -> ModelSpec:
    """The spec of a model folder that a training run wrote. Raises ModelError.

    factory: the one that the recipe names beside the folder. Loading a model calls its factory: so the folder's is one
    defined in a file below the working directory, or the one that the recipe names.
    """
    config = read_config(url)
    if "factory" not in config:
        raise ModelError(
            f"{CONFIG_FILE} in '{url}' names no factory.",
            "A model that a run wrote names a package.module:function; a Hugging Face folder is a teacher's only.",
        )
    if not isinstance(config.get("arguments"), dict):
        raise ModelError(f"{CONFIG_FILE} in '{url}' has no arguments.", "They are a mapping, which may be empty.")
    named = config["factory"]
    if not isinstance(named, str) or (factory is not None and factory != named):
        raise ModelError(
            f"{CONFIG_FILE} in '{url}' names the factory {named!r}, the recipe {factory}.",
            "Beside teacher.path, teacher.factory is the folder's own, which it allows to be called.",
            "Name the folder's factory in the recipe if you trust it, or factory, arguments and weights without path.",
        )
    if factory is None and not is_in_working_directory(named):
        raise ModelError(
            f"{CONFIG_FILE} in '{url}' names the factory {named}, which is no code of the working directory.",
            "Loading a folder calls the function that it names: one that a def or class in a file below the working "
            "directory defines, or one that the recipe names too.",
            f"If you trust it, name it in the recipe: teacher.factory={named}",
        )
    folder = Folder(url)
    file = INDEX_FILE if not folder.exists(WEIGHTS_FILE) and folder.exists(INDEX_FILE) else WEIGHTS_FILE
    return ModelSpec(config["factory"], config["arguments"], folder.url_of(file))


def read_config(url: str) -> dict[str, Any]:
    """The config.json of a model folder, a run's or Hugging Face's. Raises ModelError."""
    if url.lower().endswith(OTHER_WEIGHTS):
        raise ModelError(
            f"'{url}' is a file of another form.",
            f"teacher.path is a folder that holds {CONFIG_FILE} and safetensors; GGUF and pickles are not read.",
            SAVE_ANEW,
        )
    try:
        config = json.loads(Folder(url).read(CONFIG_FILE))
    except (FileNotFoundError, NotADirectoryError):
        if ADAPTER_CONFIG in Folder(url).names():
            raise ModelError(
                f"'{url}' holds an adapter ({ADAPTER_CONFIG}) without its model.",
                f"teacher.path is the folder of a whole model, with {CONFIG_FILE}.",
                f"Name the base model's folder in teacher.path and this one in teacher.adapter={url}, or merge them: "
                "PeftModel.merge_and_unload().save_pretrained(FOLDER).",
            ) from None
        raise ModelError(
            f"There is no {CONFIG_FILE} in '{url}'.", "A model folder holds it and model.safetensors."
        ) from None
    except ValueError:
        raise ModelError(f"{CONFIG_FILE} in '{url}' is no JSON.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{CONFIG_FILE} in '{url}' is no JSON object.", "It names the model's settings.")
    return config
