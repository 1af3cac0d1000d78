"""The digests of a factory's code: every module of the user's own that it imports, and no other."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from jobs.models.code_digest import code_digests, own_files
from storage.base.errors import ModelError, RecipeError

FILES = {
    "__init__.py": "from {name}.names import NAME\n",
    "names.py": "NAME = 'n'\n",
    "models.py": (
        "import json\nimport torch\nfrom storage.base.digest import sha256_of\n"
        "from .layers import head\nfrom . import scales\n\n"
        "def build():\n    from {name}.late import late\n    return late\n"
    ),
    "layers/__init__.py": "",
    "layers/head.py": "from ..scales import SCALE\n",
    "scales.py": "import importlib\nSCALE = importlib.import_module('{name}.dynamic').SCALE\n",
    "dynamic.py": "SCALE = 2\n",
    "late.py": "late = 1\n",
    "unused.py": "unused = 1\n",
    "broken.py": "def (:\n",
}
COUNTED = ["", ".dynamic", ".late", ".layers", ".layers.head", ".models", ".names", ".scales"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of FILES, a new one for each test."""
    name = f"counted_{abs(hash(tmp_path))}"
    for file, text in FILES.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{name}", name))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


def test_what_a_factory_imports_counts_transitively(package: str) -> None:
    assert list(code_digests(f"{package}.models:build")) == [f"{package}{module}" for module in COUNTED]


@pytest.mark.parametrize("module", [m for m in FILES if m not in ("models.py", "broken.py")])
def test_a_module_that_is_edited_moves_its_own_digest_alone(package: str, module: str, tmp_path: Path) -> None:
    before = code_digests(f"{package}.models:build")
    path = tmp_path / package / module
    path.write_text(path.read_text() + "# edited\n")
    after = code_digests(f"{package}.models:build")
    name = ".".join([package, *module.removesuffix(".py").removesuffix("__init__").strip("/").split("/")]).rstrip(".")
    moved = [one for one in before if before[one] != after[one]]
    assert moved == ([] if module == "unused.py" else [name]) and before.keys() == after.keys()


def test_a_function_that_another_module_defines_counts_with_that_module(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "shown.py").write_text(f"from {package}.models import build\n")
    assert f"{package}.models" in code_digests(f"{package}.shown:build")


def test_a_factory_of_an_installed_package_counts_with_its_own_module_alone() -> None:
    assert list(code_digests("torch.nn.modules.linear:Linear")) == ["torch.nn.modules.linear"]
    assert list(code_digests("recipes.digits.teacher_net:build")) == ["recipes.digits.teacher_net"]


def test_a_file_that_is_no_python_counts_and_imports_nothing(package: str) -> None:
    assert list(own_files([f"{package}.broken"])) == [f"{package}.broken"]


def test_a_factory_without_a_file_is_refused() -> None:
    with pytest.raises(ModelError, match=r"The source of builtins:dict cannot be read"):
        code_digests("builtins:dict")
    with pytest.raises(RecipeError, match="cannot be imported"):
        code_digests("no_such_module:build")


@pytest.mark.parametrize(
    "call",
    [
        'importlib.import_module(f"{name}.zoo.{net}")',
        'importlib.import_module("{name}.zoo." + net)',
        'importlib.import_module("{name}.zoo.%s" % net)',
        'importlib.import_module("{name}.zoo.{}".format(net))',
        'importlib.import_module(f".zoo.{net}", __package__)',
    ],
)
def test_of_a_computed_name_every_module_of_its_package_counts(package: str, tmp_path: Path, call: str) -> None:
    zoo = tmp_path / package / "zoo"
    zoo.mkdir()
    for file in ("__init__.py", "small.py", "large.py"):
        (zoo / file).write_text("")
    line = call.replace("{name}", package)
    (tmp_path / package / "registry.py").write_text(f"import importlib\n\ndef build(net):\n    return {line}\n")
    found = code_digests(f"{package}.registry:build")
    assert {f"{package}.zoo.small", f"{package}.zoo.large"} <= found.keys()
    assert f"{package}.unused" not in found


def test_modules_that_a_package_walks_over_count(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "walk.py").write_text(
        "import pkgutil\nimport types\n\ndef build():\n    return list(pkgutil.iter_modules(['.']))\n"
    )
    assert f"{package}.unused" in code_digests(f"{package}.walk:build")


@pytest.mark.parametrize(
    "text",
    [
        "import importlib\n\ndef build():\n    return importlib.import_module(name='{name}.unused')\n",
        "from importlib import import_module as load\n\ndef build():\n    return load('{name}.unused')\n",
        "import importlib\nNAME = '{name}.unused'\n\ndef build():\n    return importlib.import_module(NAME)\n",
        "import pkgutil\n\ndef build():\n    return pkgutil.resolve_name('{name}.unused:unused')\n",
    ],
    ids=["keyword", "alias", "constant", "resolve_name"],
)
def test_other_ways_to_import_count(package: str, tmp_path: Path, text: str) -> None:
    (tmp_path / package / "ways.py").write_text(text.replace("{name}", package))
    assert f"{package}.unused" in code_digests(f"{package}.ways:build")
