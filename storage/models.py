"""Models by name: `package.module:function` with keyword arguments, weights as safetensors."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from storage.digest import sha256_file, sha256_of
from storage.errors import ModelError
from storage.folder import Folder, open_url
from storage.names import call, find_function, is_own_code

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

# Endings of weights that are not read, and what to do about them.
OTHER_WEIGHTS = (".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
SAVE_ANEW = "Load it with transformers where it comes from, and save it with save_pretrained(FOLDER)."


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model. factory: package.module:function; weights: a path or URL of safetensors, or None."""

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

    @property
    def trained(self) -> bool:
        """Whether its answers are decided without a seed."""
        return self.weights is not None

    def lineage(self) -> dict[str, Any]:
        """What a cache says of its teacher, besides its digests."""
        return {"factory": self.factory, "arguments": self.arguments, "weights": self.weights}

    def digest(self, dtype: str) -> str:
        """sha256 of everything that decides what the model answers: weights, the factory's source, arguments, dtype."""
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
        """sha256 of the weights file. Raises ModelError when it is not there."""
        if self.weights is None:
            return None
        with _open_weights(self.weights) as file:
            return sha256_file(file)


def spec_from_folder(url: str) -> ModelSpec:
    """The spec of a model folder that a training run wrote. Raises ModelError."""
    config = read_config(url)
    if "factory" not in config:
        raise ModelError(
            f"{CONFIG_FILE} in '{url}' names no factory.",
            "A model that a run wrote names a package.module:function; a Hugging Face folder is a teacher's only.",
        )
    if not isinstance(config.get("arguments"), dict):
        raise ModelError(f"{CONFIG_FILE} in '{url}' has no arguments.", "They are a mapping, which may be empty.")
    if not is_own_code(config["factory"]):
        raise ModelError(
            f"{CONFIG_FILE} in '{url}' names the factory {config['factory']}, which is no code of yours.",
            "A folder may name functions of the working directory only, since loading it calls them.",
            "Name factory, arguments and weights in the recipe instead.",
        )
    return ModelSpec(config["factory"], config["arguments"], Folder(url).url_of(WEIGHTS_FILE))


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
        raise ModelError(
            f"There is no {CONFIG_FILE} in '{url}'.", "A model folder holds it and model.safetensors."
        ) from None
    except ValueError:
        raise ModelError(f"{CONFIG_FILE} in '{url}' is no JSON.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{CONFIG_FILE} in '{url}' is no JSON object.", "It names the model's settings.")
    return config


def _open_weights(url: str) -> Any:
    try:
        return open_url(url)
    except FileNotFoundError:
        raise ModelError(
            f"The weights '{url}' are not there.",
            "They are a safetensors file at a path or an fsspec URL.",
            "Train the model first, or mend the path.",
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"The weights '{url}' cannot be read: {error}.") from None


def load_weights(model: Any, url: str) -> None:
    """Load safetensors into a torch module; every name and shape must fit. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with _open_weights(url) as file:
        data = file.read()
    try:
        state = load(data)
    except SafetensorError as error:
        raise ModelError(
            f"'{url}' is no safetensors file ({error}).", "Weights are safetensors; pickles are not opened."
        ) from None
    wanted = model.state_dict()
    missing, odd = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} is {list(state[name].shape)}, the model has {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    faults = [
        text
        for text, found in (
            (f"not in the file: {_few(missing)}", missing),
            (f"not in the model: {_few(odd)}", odd),
            (f"of another shape: {_few(shapes)}", shapes),
        )
        if found
    ]
    if faults:
        raise ModelError(
            f"The weights '{url}' do not fit the model ({'; '.join(faults)}).",
            "Every parameter and buffer is in the file, with its shape.",
            "Give the factory the arguments that the weights were trained with.",
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
