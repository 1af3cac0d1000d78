"""What is said to be shipped is what Ray packs."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from jobs.cluster.shipped import Shipped, shipped
from storage.base.errors import UsageError


def lay(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)


@pytest.fixture
def tree(work: Path) -> Path:
    lay(work, "a.py", "runs/store/x.parquet", "data/keep.csv", "data/drop.csv", "data/deep/drop.csv", ".git/config")
    lay(work, ".venv/lib.py", "code/__pycache__/m.pyc", "code/m.py", "secret.txt", "tracked.bin", "elsewhere.txt")
    (work / ".gitignore").write_text("runs/\ntracked.bin\n*.csv\n!keep.csv\n")
    (work / "data" / ".gitignore").write_text("deep/\n")
    (work / ".rayignore").write_text("secret.txt\n")
    (work / "link.txt").symlink_to(work / "elsewhere.txt")
    (work / "broken.txt").symlink_to(work / "nothing")
    return work


def packed(folder: Path, target: Path, *, include_gitignore: bool = True) -> set[str]:
    """The files of the package that Ray makes."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    excludes = get_runtime_env_default_excludes()
    create_package(str(folder), target, include_gitignore=include_gitignore, excludes=excludes)
    with ZipFile(target) as package:
        return {entry.filename for entry in package.infolist() if not entry.is_dir()}


def test_it_is_what_ray_packs(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shipped(tree)
    assert set(found.files) == packed(tree, tmp_path / "a.zip")
    assert set(found.files) >= {"a.py", "data/keep.csv", "code/m.py", "link.txt", ".gitignore"}
    assert not set(found.files) & {"runs/store/x.parquet", "data/drop.csv", "tracked.bin", "secret.txt", ".git/config"}
    assert found.files["a.py"] == 4 and found.bytes == sum(found.files.values())
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert set(shipped(tree).files) == packed(tree, tmp_path / "b.zip", include_gitignore=False)
    assert "tracked.bin" in shipped(tree).files and "secret.txt" not in shipped(tree).files


def test_a_place_is_inside_or_outside_and_shipped_or_not(work: Path, tmp_path: Path) -> None:
    found = Shipped(work, {"a.py": 1, "data/x/y.csv": 1, "..odd": 1})
    assert found.inside("a.py") == found.inside(f"{work}/a.py") == found.inside("./data/../a.py") == "a.py"
    assert found.inside("..odd") == "..odd"
    assert found.inside("../a.py") is None and found.inside(f"{work}x/a.py") is None and found.inside("/") is None
    (tmp_path / "alias").symlink_to(work)
    assert found.inside(f"{tmp_path}/alias/a.py") == "a.py"
    assert all(found.holds(path) for path in ("a.py", "data", "data/x", "data/x/y.csv"))
    assert not any(found.holds(path) for path in ("a", "dat", "data/x/y", "data/x/z.csv"))


def test_a_package_that_is_too_large_names_its_largest_files(work: Path) -> None:
    for name, size in (("small.bin", 1), ("large.bin", 70 * 2**20), ("larger.bin", 80 * 2**20)):
        with open(work / name, "wb") as file:
            file.truncate(size)
    with pytest.raises(UsageError) as caught:
        shipped(work)
    said = str(caught.value)
    assert "has 150.0 MiB in 3 files to ship. The largest: larger.bin (80.0 MiB), large.bin (70.0 MiB), small" in said
    assert "Ray takes less than 100.0 MiB." in said and ".rayignore" in said
    (work / ".rayignore").write_text("larger.bin\n")
    assert shipped(work).bytes < 71 * 2**20


def test_a_folder_that_cannot_be_read_is_a_sentence(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(UsageError, match=r"cannot be read \(.*Permission denied.*\)\. All of it goes"):
        shipped(work)
