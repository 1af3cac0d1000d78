"""Models by name and weights by file: built, refused in sentences, and digested by all that decides their answers."""

from __future__ import annotations

import json
import linecache
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jobs.models.model_spec import CONFIG_FILE, WEIGHTS_FILE, ModelSpec, load_weights, spec_from_folder
from storage.base.errors import ModelError, RecipeError

SOURCE = '''
"""A model small enough to be looked at."""
from torch import nn


def linear(features=3, classes=2, *, bias=True):
    return nn.Sequential(nn.Linear(features, classes, bias=bias), nn.BatchNorm1d(classes))


def no_model():
    return "a string"


def broken():
    return len(5)
'''

Write = Callable[[str], str]


@pytest.fixture
def spec(module: Write) -> ModelSpec:
    return ModelSpec(f"{module(SOURCE)}:linear")


@pytest.fixture
def weights(tmp_path: Path, spec: ModelSpec) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(spec.build(seed=1).state_dict(), path)
    return path


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Building


def test_a_model_is_built_with_its_weights(spec: ModelSpec, weights: Path) -> None:
    built = replace(spec, weights=str(weights)).build(seed=5)
    assert same(built, spec.build(seed=1))
    assert not same(built, spec.build(seed=5))


def test_weights_are_found_behind_a_url(spec: ModelSpec, weights: Path) -> None:
    assert same(replace(spec, weights=f"file://{weights}").build(), spec.build(seed=1))


def test_without_weights_the_seed_decides(spec: ModelSpec) -> None:
    assert same(spec.build(seed=3), spec.build(seed=3))
    assert not same(spec.build(seed=3), spec.build(seed=4))


def test_arguments_reach_the_factory(spec: ModelSpec) -> None:
    built = replace(spec, arguments={"features": 7, "bias": False}).build()
    assert {name: list(t.shape) for name, t in built.state_dict().items() if name.startswith("0.")} == {
        "0.weight": [2, 7]
    }


def test_a_factory_that_is_not_there_is_answered_with_the_nearest(spec: ModelSpec) -> None:
    with pytest.raises(RecipeError, match=r"has no function 'linaer'\. Did you mean 'linear'\?"):
        replace(spec, factory=spec.factory.replace("linear", "linaer")).build()
    with pytest.raises(RecipeError, match="cannot be imported"):
        ModelSpec("no_such_module:make").build()
    with pytest.raises(RecipeError, match=r"package\.module:function"):
        ModelSpec("linear").digest("float32")


@pytest.mark.parametrize("arguments", [{"feature": 3}, {"features": 3, "x": 1}])
def test_arguments_that_a_factory_does_not_take_are_refused_with_those_it_takes(
    spec: ModelSpec, arguments: dict[str, int]
) -> None:
    with pytest.raises(
        ModelError, match=r"linear refused its arguments: .* It takes \(features=3, classes=2, \*, bias=True\)"
    ):
        replace(spec, arguments=arguments).build()


def test_a_factory_that_fails_inside_is_named_with_its_failure(spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"broken failed \(TypeError: object of type 'int' has no len"):
        replace(spec, factory=spec.factory.replace("linear", "broken")).build()


def test_a_factory_that_gives_no_module_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"no_model gave str\. A factory returns a torch\.nn\.Module\."):
        replace(spec, factory=spec.factory.replace("linear", "no_model")).build()


# Weights


@pytest.mark.parametrize(
    "use", [lambda spec: spec.build(), lambda spec: spec.digest("float32"), lambda spec: spec.weights_sha256()]
)
def test_weights_that_are_not_there_are_named(
    spec: ModelSpec, tmp_path: Path, use: Callable[[ModelSpec], object]
) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(ModelError, match=rf"^The weights '{missing}' are not there\. .* Train the model first"):
        use(replace(spec, weights=str(missing)))


def test_weights_that_are_a_folder_or_behind_no_known_protocol_are_named(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        replace(spec, weights=str(tmp_path)).build()
    with pytest.raises(ModelError, match="nonsense://x"):
        replace(spec, weights="nonsense://x/model.safetensors").build()


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps({"0.weight": [1.0]}), b"\xff" * 100])
def test_what_is_no_safetensors_file_is_not_opened(spec: ModelSpec, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights").write_bytes(data)
    with pytest.raises(ModelError, match=r"weights' is no safetensors file .*pickles are not opened"):
        replace(spec, weights=str(tmp_path / "weights")).build()


def test_a_truncated_safetensors_file_is_refused(spec: ModelSpec, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelError, match="is no safetensors file"):
        replace(spec, weights=str(weights)).build()


def test_names_and_shapes_that_do_not_fit_are_told_together(spec: ModelSpec, tmp_path: Path) -> None:
    state = spec.build().state_dict()
    state["0.weight"] = torch.zeros(2, 9)
    state["head.weight"] = state.pop("0.bias")
    save_file(state, tmp_path / "odd")
    with pytest.raises(ModelError) as caught:
        load_weights(spec.build(), str(tmp_path / "odd"))
    text = str(caught.value)
    assert "not in the file: 0.bias; not in the model: head.weight; " in text
    assert "of another shape: 0.weight is [2, 9], the model has [2, 3])" in text
    assert "Give the factory the arguments that the weights were trained with." in text


def test_a_buffer_that_is_missing_is_named_too(spec: ModelSpec, tmp_path: Path) -> None:
    state = spec.build().state_dict()
    del state["1.running_mean"]
    save_file(state, tmp_path / "odd")
    with pytest.raises(ModelError, match=r"not in the file: 1\.running_mean\)"):
        load_weights(spec.build(), str(tmp_path / "odd"))


def test_of_many_names_a_few_are_told(spec: ModelSpec, tmp_path: Path) -> None:
    save_file({f"x{i}": torch.zeros(1) for i in range(9)}, tmp_path / "odd")
    with pytest.raises(ModelError, match=r"not in the model: x0, x1, x2 and 6 more\)"):
        load_weights(spec.build(), str(tmp_path / "odd"))


def test_a_model_whose_weights_do_not_fit_is_left_as_it_was(spec: ModelSpec, tmp_path: Path) -> None:
    model = spec.build(seed=1)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    del state["0.bias"]
    save_file(state, tmp_path / "odd")
    with pytest.raises(ModelError):
        load_weights(model, str(tmp_path / "odd"))
    assert same(model, spec.build(seed=1))


# Digest


def test_the_digest_is_the_same_for_the_same_model(spec: ModelSpec, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(weights.read_bytes())
    one, other = replace(spec, weights=str(weights)), replace(spec, weights=f"file://{tmp_path}/copy")
    assert one.digest("float32") == one.digest("float32") == other.digest("float32")


def test_weights_arguments_and_dtype_change_the_digest(spec: ModelSpec, weights: Path, tmp_path: Path) -> None:
    save_file(spec.build(seed=2).state_dict(), tmp_path / "other")
    digests = {
        "no weights": spec.digest("float32"),
        "weights": replace(spec, weights=str(weights)).digest("float32"),
        "other weights": replace(spec, weights=str(tmp_path / "other")).digest("float32"),
        "dtype": spec.digest("bfloat16"),
        "arguments": replace(spec, arguments={"features": 3}).digest("float32"),
        "another function": replace(spec, factory=spec.factory.replace("linear", "no_model")).digest("float32"),
    }
    assert len(set(digests.values())) == len(digests)


def test_a_changed_line_in_the_factorys_file_changes_the_digest(spec: ModelSpec) -> None:
    before = spec.digest("float32")
    name = spec.factory.partition(":")[0]
    file = Path(str(sys.modules[name].__file__))
    file.write_text(SOURCE.replace("return nn.Sequential", "# another answer\n    return nn.Sequential"))
    sys.modules.pop(name)
    linecache.clearcache()
    assert spec.digest("float32") != before
    file.write_text(SOURCE)
    sys.modules.pop(name)
    linecache.clearcache()
    assert spec.digest("float32") == before


def test_a_factory_without_a_source_file_has_no_digest() -> None:
    with pytest.raises(ModelError, match=r"The source of math:sqrt cannot be read"):
        ModelSpec("math:sqrt").digest("float32")


# Folders


def test_a_model_folder_is_a_spec(spec: ModelSpec, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps({"factory": spec.factory, "arguments": {"classes": 2}, "more": 1}))
    (folder / WEIGHTS_FILE).write_bytes(weights.read_bytes())
    read = spec_from_folder(str(folder), spec.factory)
    assert read == ModelSpec(spec.factory, {"classes": 2}, str(folder / WEIGHTS_FILE))
    assert same(read.build(), spec.build(seed=1))


@pytest.mark.parametrize(
    "text, found",
    [
        (None, r"^There is no config\.json in '.*'\. A model folder holds it and model\.safetensors\."),
        ("not JSON", r"^config\.json in '.*' is no JSON"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": 576}', r"names no factory\..*Hugging Face"),
        ("[]", "config.json"),
        ("3", "config.json"),
        ('{"factory": "a:b"}', "config.json"),
    ],
)
def test_a_folder_that_is_no_model_folder_is_refused(tmp_path: Path, text: str | None, found: str) -> None:
    if text is not None:
        (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(ModelError, match=found):
        spec_from_folder(str(tmp_path))


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("not a folder")
    with pytest.raises(ModelError, match=r"config\.json in '.*model'"):
        spec_from_folder(str(tmp_path / "model"))


@pytest.mark.parametrize("factory", ["subprocess:getoutput", "os:system", "torch.nn:Linear", "builtins:print"])
def test_a_folder_names_no_code_but_the_users_own(tmp_path: Path, factory: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(f'{{"factory": "{factory}", "arguments": {{}}}}')
    with pytest.raises(ModelError, match="which is no code of the working directory"):
        spec_from_folder(str(tmp_path))


def test_a_teachers_key_has_weights_or_the_built_numbers(spec: ModelSpec, weights: Path) -> None:
    with_file = replace(spec, weights=str(weights)).key_parts("float32")
    assert with_file["weights"] and "parameters" not in with_file and with_file["precision"] == "ieee"
    built = spec.key_parts("float32", spec.build(0))
    assert built["weights"] is None and built == spec.key_parts("float32", spec.build(0))
    assert built["parameters"] != spec.key_parts("float32", spec.build(1))["parameters"]
    with pytest.raises(ValueError, match="needs the built model"):
        spec.key_parts("float32")


def test_a_folder_may_name_code_of_the_working_directory(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("import torch\n\ndef build():\n    return torch.nn.Linear(1, 2)\n")
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"factory": f"{name}:build", "arguments": {}}))
    monkeypatch.chdir(tmp_path)
    assert spec_from_folder(str(tmp_path)).factory == f"{name}:build"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ModelError, match=rf"name it in the recipe: teacher\.factory={name}:build"):
        spec_from_folder(str(tmp_path))
    assert spec_from_folder(str(tmp_path), f"{name}:build").factory == f"{name}:build"
    with pytest.raises(ModelError, match=rf"names the factory '{name}:build', the recipe other:build"):
        spec_from_folder(str(tmp_path), "other:build")


def test_deciding_whose_code_a_folder_names_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib's own look at a dotted name imports its parents."""
    mark, name = tmp_path / "mark", f"parent_{abs(hash(tmp_path))}"
    elsewhere = tmp_path / "elsewhere" / name
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (elsewhere / "nets.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"factory": f"{name}.nets:build", "arguments": {}}))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ModelError, match="which is no code of the working directory"):
        spec_from_folder(str(tmp_path))
    assert not mark.exists()


def test_a_folder_does_not_name_what_a_file_of_the_working_directory_imports(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("from subprocess import getoutput\n")
    (tmp_path / CONFIG_FILE).write_text(
        json.dumps({"factory": f"{name}:getoutput", "arguments": {"cmd": "touch called"}})
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="which is no code of the working directory"):
        spec_from_folder(str(tmp_path)).build()
    assert not (tmp_path / "called").exists()
