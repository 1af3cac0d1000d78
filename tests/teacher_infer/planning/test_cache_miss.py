"""A key moves with whatever decides the answer, and a plan that finds nothing to reuse says what moved."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from storage.cache.commits import read_commit, read_key
from storage.objectstore.folder import Folder
from teacher_infer.__main__ import main
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.prepare import Part, prepare
from tests.teacher_infer.without_ray import labelled

Make = Callable[..., dict[str, Any]]

NETS = """
from torch import nn

from {package}.layers import head


def build():
    return head()
"""
LAYERS = """
import torch
from torch import nn


def head():
    torch.manual_seed({seed})
    return nn.Linear(4, 3)
"""


@pytest.fixture
def own(tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """own(seed=): a recipe whose factory builds its own weights in a module that it imports, drawn from that seed."""
    package = f"own_{abs(hash(tmp_path))}"
    folder = tmp_path / "code" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(NETS.format(package=package))
    monkeypatch.syspath_prepend(str(folder.parent))

    def make(seed: int = 1, **replaced: Any) -> dict[str, Any]:
        (folder / "layers.py").write_text(LAYERS.format(seed=seed))
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        importlib.invalidate_caches()
        teacher = {"factory": f"{package}.nets:build", "dtype": "float32", "batch_size": 8}
        return recipe(**{"teacher": teacher, **replaced})

    return make


def planned(recipe: dict[str, Any]) -> Part:
    read = TeacherRecipe.model_validate(recipe)
    return prepare(read, Folder(read.store)).parts[0]


def miss(recipe: dict[str, Any]) -> list[str]:
    """What differs from the nearest cache; a plan that reuses something has no miss."""
    part = planned(recipe)
    assert part.counts["reused"] == 0 and part.miss is not None
    return part.miss.differs


def test_an_imported_module_and_weights_that_a_factory_makes_are_in_the_key(own: Make) -> None:
    labelled(own())
    assert planned(own()).counts["computed"] == 0 and planned(own()).miss is None
    differs = miss(own(seed=2))
    assert [part.rpartition(".")[2] for part in differs] == ["layers", "parameters"]
    # The same weights by other code: the code counts all the same.
    assert planned(own()).counts["computed"] == 0


def test_weights_that_come_from_elsewhere_are_in_the_key_without_a_word_of_code(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a factory that downloads them: its text stays, what it loads is another model."""
    name, weights = f"loads_{abs(hash(tmp_path))}", tmp_path / "downloaded.safetensors"
    (tmp_path / f"{name}.py").write_text(
        "from safetensors.torch import load_file\nfrom torch import nn\n\n\n"
        f"def build():\n    model = nn.Linear(4, 3)\n    model.load_state_dict(load_file({str(weights)!r}))\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = recipe(teacher={"factory": f"{name}:build", "dtype": "float32", "batch_size": 8})
    save_file(torch.nn.Linear(4, 3).state_dict(), weights)
    labelled(asked)
    assert planned(asked).counts["computed"] == 0
    save_file(torch.nn.Linear(4, 3).state_dict(), weights)
    assert miss(asked) == ["teacher.parameters"]


def test_a_seed_counts_by_what_it_draws(recipe: Make) -> None:
    asked = recipe()
    labelled(asked)
    assert planned({**asked, "seed": 5}).counts["computed"] == 0
    teacher = {name: value for name, value in asked["teacher"].items() if name != "weights"}
    untrained = recipe(teacher=teacher, name="untrained")
    labelled(untrained)
    assert planned(untrained).counts["computed"] == 0
    assert miss({**untrained, "seed": 5}) == ["teacher.parameters"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"targets": {"encoding": "topk", "k": 2}}, ["encoding.k: none -> 2"]),
        ({"span_rows": 7}, ["span_rows: 10 -> 7"]),
        ({"inputs": "referenced"}, ["inputs: stored -> referenced"]),
        ({"source": {"function": "stillhouse_toys:rows", "arguments": {"first": 1}}}, ["source rows"]),
    ],
)
def test_a_plan_names_the_nearest_cache_and_what_differs(
    recipe: Make, change: dict[str, Any], found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = labelled(recipe())
    differs = miss({**recipe(), **change})
    assert all(part in differs for part in found)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe(), **change}))
    assert main([str(path), "--plan"]) == 0
    assert f"nothing to reuse; of the nearest cache toy@{cache.key[:8]} differs: " in capsys.readouterr().out
    assert main([str(path), "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["miss"] == {"nearest": f"toy@{cache.key[:8]}", "differs": differs}


def test_the_nearest_is_the_one_with_the_fewest_differences(recipe: Make) -> None:
    labelled(recipe())
    near = labelled(recipe(targets={"encoding": "topk", "k": 2}))
    part = planned(recipe(targets={"encoding": "topk", "k": 1}))
    assert part.miss is not None and part.miss.nearest == f"toy@{near.key[:8]}"
    assert part.miss.differs == ["encoding.k: 2 -> 1"]


def test_an_empty_store_and_other_names_and_sources_explain_nothing(recipe: Make) -> None:
    assert planned(recipe()).miss is None
    labelled(recipe())
    other = {"function": "stillhouse_toys:rows", "arguments": {"first": 100}}
    assert planned(recipe(name="unlike", source=other)).miss is None


def test_a_commit_keeps_the_readable_parts_of_its_key_and_a_read_one_does_not(recipe: Make) -> None:
    cache, part = labelled(recipe()), planned(recipe())
    span = part.plan.spans[0]
    assert read_key(cache.store, span.shard_key) == {**part.key_parts.to_dict(), "span": span.digest}
    assert read_commit(cache.store, span.shard_key).key is None
