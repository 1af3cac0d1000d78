"""Weights: tied, prefixed, in several files, and in forms that are not read."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from jobs.models.weights import INDEX_FILE, load_weights, weights_sha256
from storage.base.errors import ModelError
from storage.objectstore.folder import Folder

# Tied weights


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight


class Views(nn.Module):
    """A parameter that is a transposed view of another one, and one that is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(4, 4))
        self.turned = nn.Parameter(torch.empty(0))
        self.turned.data = self.whole.data.t()
        self.part = nn.Parameter(torch.empty(0))
        self.part.data = self.whole.data[:2]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_safetensors_save_model_writes_of_tied_weights_loads(tmp_path: Path) -> None:
    saved, model = Tied(), Tied()
    save_model(saved, str(tmp_path / "w.safetensors"))
    load_weights(model, str(tmp_path / "w.safetensors"))
    assert equal(model, saved)


def test_views_of_a_weight_that_is_there_may_be_missing(tmp_path: Path) -> None:
    saved, model = Views(), Views()
    save_file({"whole": values(saved)["whole"]}, tmp_path / "w")
    load_weights(model, str(tmp_path / "w"))
    assert equal(model, saved)


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_either_name_of_tied_weights_is_enough(kept: str, tmp_path: Path) -> None:
    saved, model = Tied(), Tied()
    state = {name: tensor for name, tensor in values(saved).items() if name in (kept, "norm.weight", "norm.bias")}
    save_file(state, tmp_path / "w")
    load_weights(model, str(tmp_path / "w"))
    assert equal(model, saved) and model.head.weight is model.embed.weight


@pytest.mark.parametrize("make", [Tied, Views])
def test_all_names_of_tied_weights_load_where_they_agree(make: Any, tmp_path: Path) -> None:
    saved, model = make(), make()
    save_file({name: tensor.contiguous() for name, tensor in values(saved).items()}, tmp_path / "w")
    load_weights(model, str(tmp_path / "w"))
    assert equal(model, saved)


def test_tied_weights_with_two_values_are_refused(tmp_path: Path) -> None:
    state = values(Tied())
    state["head.weight"] = state["head.weight"] + 1
    save_file(state, tmp_path / "w")
    model = Tied()
    before = values(model)
    with pytest.raises(ModelError, match=r"other values for 'embed\.weight' than for 'head\.weight'\. The model ties"):
        load_weights(model, str(tmp_path / "w"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_equal_weights_that_the_model_does_not_tie_are_missing(tmp_path: Path) -> None:
    model = Tied(tied=False)
    model.head.weight.data = model.embed.weight.data.clone()
    save_model(Tied(), str(tmp_path / "w"))
    with pytest.raises(ModelError, match=r"\(not in the file: head\.weight\)"):
        load_weights(model, str(tmp_path / "w"))


def test_a_part_does_not_stand_for_the_whole(tmp_path: Path) -> None:
    state = values(Views())
    save_file({"part": state["part"]}, tmp_path / "w")
    with pytest.raises(ModelError, match=r"\(not in the file: turned, whole\)"):
        load_weights(Views(), str(tmp_path / "w"))


def test_a_view_with_gaps_does_not_stand_for_what_lies_in_them(tmp_path: Path) -> None:
    model, memory = nn.Module(), torch.zeros(4, 4)
    model.left, model.right = nn.Parameter(memory[:, :2]), nn.Parameter(memory[0, 2:])
    save_file({"left": torch.ones(4, 2)}, tmp_path / "w")
    with pytest.raises(ModelError, match=r"\(not in the file: right\)"):
        load_weights(model, str(tmp_path / "w"))


# Prefixes


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in values(Tied()).items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."],
)
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path) -> None:
    state = prefixed(prefix)
    save_file(state, tmp_path / "w")
    model = Tied()
    load_weights(model, str(tmp_path / "w"))
    assert all(torch.equal(state[prefix + name], tensor) for name, tensor in model.state_dict().items())


def test_a_prefix_and_a_tied_name_that_is_missing_go_together(tmp_path: Path) -> None:
    state = prefixed("module.")
    del state["module.head.weight"]
    save_file(state, tmp_path / "w")
    model = Tied()
    load_weights(model, str(tmp_path / "w"))
    assert torch.equal(model.head.weight, state["module.embed.weight"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_submodules_may_have_been_compiled(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 2))
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 2))
    saved[0] = torch.compile(saved[0])
    assert "0._orig_mod.0.weight" in saved.state_dict()
    save_file(saved.state_dict(), tmp_path / "w")
    load_weights(model, str(tmp_path / "w"))
    assert [t.tolist() for t in model.state_dict().values()] == [t.tolist() for t in saved.state_dict().values()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_weights_load_into_a_compiled_model(tmp_path: Path) -> None:
    saved = nn.Linear(2, 3)
    save_file(saved.state_dict(), tmp_path / "w")
    model: Any = torch.compile(nn.Linear(2, 3))
    load_weights(model, str(tmp_path / "w"))
    assert torch.equal(model._orig_mod.weight, saved.weight)


class Own(nn.Module):
    """A model whose own modules are called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.module = nn.ModuleDict({"fc": nn.Linear(2, 2)})


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_models_own_module_is_no_prefix(prefix: str, tmp_path: Path) -> None:
    saved, model = Own(), Own()
    save_file({prefix + name: tensor for name, tensor in saved.state_dict().items()}, tmp_path / "w")
    load_weights(model, str(tmp_path / "w"))
    assert equal(model, saved)


def test_a_prefix_of_a_part_of_a_file_is_not_removed(tmp_path: Path) -> None:
    state = prefixed("module.") | {"n_averaged": torch.tensor(3)}
    save_file(state, tmp_path / "w")
    with pytest.raises(ModelError, match=r"\(not in the model: n_averaged\)"):
        load_weights(Tied(), str(tmp_path / "w"))
    save_file(prefixed("module.") | prefixed(""), tmp_path / "both")
    found = r"\(not in the model: module\.embed\.weight, module\.head\.weight, module\.norm\.bias and 1 more\)"
    with pytest.raises(ModelError, match=found):
        load_weights(Tied(), str(tmp_path / "both"))


def test_weights_that_fit_in_two_ways_are_refused(tmp_path: Path) -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("module", "_orig_mod")})
    save_file({f"{name}weight": torch.ones(1, 1) for name in ("", "module._orig_mod.")}, tmp_path / "w")
    found = r"in two ways: '.*weight' is '_orig_mod\.weight' or 'module\.weight'\..*of the unwrapped model"
    with pytest.raises(ModelError, match=found):
        load_weights(model, str(tmp_path / "w"))


# An index


def save_index(folder: Path, files: dict[str, dict[str, torch.Tensor]], **moved: str) -> Path:
    folder.mkdir(exist_ok=True)
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    where = {name: file for file, tensors in files.items() for name in tensors}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {**where, **moved}}))
    return folder / INDEX_FILE


def halves(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    state = nn.Linear(3, 2).state_dict()
    return {"m-1.safetensors": {"weight": state["weight"]}, "m-2.safetensors": {"bias": state["bias"]}}


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_an_index_is_a_file_of_weights(prefix: str, tmp_path: Path) -> None:
    files = halves()
    model = nn.Linear(3, 2)
    load_weights(model, f"{prefix}{save_index(tmp_path, files)}")
    assert torch.equal(model.weight, files["m-1.safetensors"]["weight"])
    assert torch.equal(model.bias, files["m-2.safetensors"]["bias"])


def test_an_index_is_digested_by_the_content_of_all_its_files(tmp_path: Path) -> None:
    index = save_index(tmp_path / "a", halves())
    asked = weights_sha256(str(index))
    assert weights_sha256(str(save_index(tmp_path / "b", halves()))) == asked
    for file in ("m-1.safetensors", "m-2.safetensors"):
        other = save_index(tmp_path / file, {**halves(), file: halves(seed=1)[file]})
        assert weights_sha256(str(other)) != asked
    index.write_text(index.read_text() + " ")
    assert weights_sha256(str(index)) != asked


def test_an_index_and_its_files_agree(tmp_path: Path) -> None:
    index = save_index(tmp_path, halves(), more="m-2.safetensors")
    with pytest.raises(ModelError, match=r"'.*m-2\.safetensors' do not agree \(not in .*m-2\.safetensors: more\)"):
        load_weights(nn.Linear(3, 2), str(index))
    files = halves()
    save_index(tmp_path, files)
    save_file(files["m-1.safetensors"] | {"bias": torch.zeros(2)}, tmp_path / "m-1.safetensors")
    with pytest.raises(ModelError, match=r"m-1\.safetensors' do not agree \(not in .*index\.json: bias\)"):
        load_weights(nn.Linear(3, 2), str(index))


@pytest.mark.parametrize("use", [weights_sha256, lambda url: load_weights(nn.Linear(3, 2), url)])
def test_a_file_of_an_index_that_is_not_there_is_named(tmp_path: Path, use: Any) -> None:
    index = save_index(tmp_path, halves())
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"^The weights '.*m-2\.safetensors' are not there\."):
        use(str(index))


@pytest.mark.parametrize("text", ["{}", "junk", "[]", '{"weight_map": {"a": 1}}'])
def test_an_index_of_no_names_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"has no weight_map of names of files"):
        weights_sha256(str(tmp_path / INDEX_FILE))


@pytest.mark.parametrize("odd", ["../m-1.safetensors", "/m-1.safetensors", INDEX_FILE])
def test_an_index_names_files_beside_it(tmp_path: Path, odd: str) -> None:
    with pytest.raises(ModelError, match=r"It names safetensors files that lie beside it"):
        weights_sha256(str(save_index(tmp_path, halves(), weight=odd)))


# Other forms


@pytest.mark.parametrize(
    ("name", "inside"), [("m.pt", None), ("last.ckpt", "state_dict"), ("it's m.pt", "model"), ("no ending", None)]
)
def test_a_file_of_torch_save_says_how_to_convert_it(tmp_path: Path, name: str, inside: str | None) -> None:
    saved, path = Tied(), tmp_path / name
    state = saved.state_dict()
    torch.save(state if inside is None else {inside: state, "step": 3}, path)
    with pytest.raises(ModelError, match=r"torch\.save wrote it") as caught:
        load_weights(Tied(), str(path))
    said = str(caught.value)
    # The command as somebody pastes it into a shell.
    command = said[said.index("python -c") :].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(command, shell=True, check=True)
    model = Tied()
    load_weights(model, str(path.with_suffix(".safetensors")))
    assert equal(model, saved)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "pytorch_model.bin", "last.ckpt"])
def test_a_file_of_torch_save_is_refused_when_it_is_digested(tmp_path: Path, name: str) -> None:
    torch.save(Tied().state_dict(), tmp_path / name)
    with pytest.raises(ModelError, match=r"torch\.save wrote it"):
        weights_sha256(str(tmp_path / name))
    remote = Folder(f"memory://{tmp_path.name}")
    remote.write("m.pt", (tmp_path / name).read_bytes())
    with pytest.raises(ModelError, match=r"Convert it, and name m\.safetensors: python -c '.*load\(\"m\.pt\""):
        weights_sha256(remote.url_of("m.pt"))


@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_safetensors_may_have_another_ending(tmp_path: Path, name: str) -> None:
    saved, model = Tied(), Tied()
    save_model(saved, str(tmp_path / name))
    assert weights_sha256(str(tmp_path / name)) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    load_weights(model, str(tmp_path / name))
    assert equal(model, saved)


def test_a_model_may_have_a_state_dict_of_its_own(tmp_path: Path) -> None:
    class Own(torch.nn.Linear):
        def state_dict(self) -> Any:  # type: ignore[override]
            return super().state_dict()

    saved, model = Own(3, 2), Own(3, 2)
    save_file(dict(saved.state_dict()), tmp_path / "own.safetensors")
    load_weights(model, str(tmp_path / "own.safetensors"))
    assert torch.equal(model.weight, saved.weight)


def test_a_lazy_module_takes_its_shapes_from_the_file(tmp_path: Path) -> None:
    saved, model = nn.Linear(3, 2), nn.LazyLinear(2)
    save_file(saved.state_dict(), tmp_path / "lazy.safetensors")
    load_weights(model, str(tmp_path / "lazy.safetensors"))
    assert torch.equal(model.weight, saved.weight)


def test_a_sparse_buffer_that_is_missing_is_named(tmp_path: Path) -> None:
    class Graph(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("adjacency", torch.eye(3).to_sparse())

    save_file(dict(torch.nn.Linear(3, 2).state_dict()), tmp_path / "graph.safetensors")
    with pytest.raises(ModelError, match=r"not in the file: adjacency"):
        load_weights(Graph(), str(tmp_path / "graph.safetensors"))
