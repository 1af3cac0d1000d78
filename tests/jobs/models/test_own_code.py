"""Whose code a module is, decided by where its file lies and without running any of it."""

from __future__ import annotations

import importlib
import site
import sys
import sysconfig
from pathlib import Path

import pytest

from jobs.models import own_code
from jobs.models.own_code import is_in_working_directory, is_own_code, is_own_file, module_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `mine_<n>` in the working directory that leaves a file when it is imported."""
    name = f"mine_{abs(hash(tmp_path))}"
    folder = tmp_path / name
    (folder / "inner").mkdir(parents=True)
    for file in ("__init__.py", "inner/__init__.py", "inner/nets.py"):
        (folder / file).write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__)\n\ndef build(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_a_dotted_name_is_found_without_importing_its_parents(package: Path, tmp_path: Path) -> None:
    name = f"{package.name}.inner.nets"
    assert module_file(name) == package / "inner" / "nets.py"
    assert module_file(f"{package.name}.inner") == package / "inner" / "__init__.py"
    assert is_own_code(f"{name}:build") and is_in_working_directory(f"{name}:build")
    for odd in (f"{package.name}.no.such", f"{package.name}..nets", "no_such_module_at_all", "json.no_such"):
        assert module_file(odd) is None
    assert not (tmp_path / "imported").exists() and package.name not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        "/home/me/.local/lib/python3.12/site-packages/torchvision/models.py",
        "/usr/lib/python3/dist-packages/yaml/__init__.py",
        "/opt/conda/envs/other/lib/python3.9/site-packages/nets.py",
        "/srv/bundle/site-packages/nets.py",
        "/usr/lib/python3.9/json/__init__.py",
        "/opt/python/lib/python3.14t/json/__init__.py",
        "/opt/python/lib/pypy3.9/json/__init__.py",
        "/home/me/project/.venv/lib/python3.11/site-packages/timm/nets.py",
        f"{site.getusersitepackages()}/nets.py",
        f"{sysconfig.get_paths()['stdlib']}/subprocess.py",
        f"{sysconfig.get_paths()['purelib']}/torch/nn/__init__.py",
    ],
)
def test_installed_code_of_any_python_is_not_the_users(path: str) -> None:
    assert not is_own_file(Path(path))


@pytest.mark.parametrize(
    "path", ["/usr/src/app/nets.py", "/usr/local/app/nets.py", "/home/me/library/nets.py", "/app/n.py"]
)
def test_code_elsewhere_is_the_users_also_under_a_systems_python(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {
        **{name: "/usr/lib/python3.11" for name in ("stdlib", "platstdlib")},
        **{name: "/usr/local/lib/python3.11/dist-packages" for name in ("purelib", "platlib")},
        "data": "/usr",
        "scripts": "/usr/bin",
        "include": "/usr/include",
    }
    monkeypatch.setattr(own_code.sysconfig, "get_paths", lambda: systems)
    assert is_own_file(Path(path))


def test_only_files_below_the_working_directory_are_in_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{package.name}.inner.nets:build"
    monkeypatch.chdir(package)
    assert is_in_working_directory(name)
    monkeypatch.chdir("/")
    for odd in ("subprocess:getoutput", "os:system", "torch.nn:Linear", "builtins:print", "no_such:build"):
        assert not is_in_working_directory(odd)
    elsewhere = package.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert is_own_code(name) and not is_in_working_directory(name)


def test_an_environment_below_the_working_directory_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_for_a_test.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(packages))
    assert module_file("installed_for_a_test") is not None
    assert not is_own_code("installed_for_a_test:f") and not is_in_working_directory("installed_for_a_test:f")


def test_a_package_without_init_is_looked_into_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"spread_{abs(hash(tmp_path))}"
    for part, file in (("one", "a.py"), ("two", "b.py")):
        (tmp_path / part / name / "inner").mkdir(parents=True)
        (tmp_path / part / name / "inner" / file).write_text("def build(): ...\n")
        monkeypatch.syspath_prepend(str(tmp_path / part))
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    for part, module in (("one", "a"), ("two", "b")):
        assert module_file(f"{name}.inner.{module}") == tmp_path / part / name / "inner" / f"{module}.py"
        assert is_in_working_directory(f"{name}.inner.{module}:build")
    assert module_file(f"{name}.inner") is None and module_file(f"{name}.inner.c") is None
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("text", "is_own"),
    [
        ("def f(): ...", True),
        ("class f: ...", True),
        ("from .inner.nets import build as f", True),
        ("from subprocess import getoutput as f", False),
        ("def f(): ...\nfrom subprocess import getoutput as f", False),
        ("def f(): ...\nif True:\n    from subprocess import getoutput as f", False),
        ("import subprocess\nf = subprocess.getoutput", False),
        ("from subprocess import *", False),
        ("from . import f", False),
        ("from .....nowhere import f", False),
        ("this is no Python", False),
    ],
)
def test_a_function_belongs_to_the_file_that_defines_it(package: Path, text: str, is_own: bool) -> None:
    (package / "__init__.py").write_text(text)
    assert is_in_working_directory(f"{package.name}:f") is is_own


def test_a_checkout_in_an_environments_folder_is_not_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "env" / "src" / "nets"
    source.mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (source / "checkout_for_a_test.py").write_text("def f(): ...\n")
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.chdir(tmp_path)
    assert not is_in_working_directory("checkout_for_a_test:f")
    monkeypatch.chdir(tmp_path / "env")  # a project may lie in the folder of its environment
    assert is_in_working_directory("checkout_for_a_test:f")


@pytest.mark.parametrize("statement", ["from subprocess import *", "if True:\n    from subprocess import *"])
def test_after_a_star_import_no_name_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    name = f"starred_{abs(hash((tmp_path, statement)))}"
    (tmp_path / f"{name}.py").write_text(f"def run():\n    pass\n\n\n{statement}\n\n\ndef build():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_in_working_directory(f"{name}:run") and is_in_working_directory(f"{name}:build")
