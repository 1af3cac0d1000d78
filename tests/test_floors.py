"""The house's arrows, read from the imports: which floor may look at which, and no circle anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("storage", "cluster", "teacher_infer", "student_train")
BELOW = {
    "storage": (),
    "cluster": ("storage",),
    "teacher_infer": ("storage", "cluster"),
    "student_train": ("storage", "cluster"),
}
MODULES = sorted(path.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


# Where the ground floor meets torch.
TORCH_FILES = (
    "storage/torch.py",
    "storage/built_model.py",
    "storage/models.py",
    "storage/weight_names.py",
    "storage/stream/dataset.py",
)
MLFLOW_FILES = ("storage/mlflow_client.py", "storage/mlflow_caches.py", "storage/mlflow_lineage.py")


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module is not None
            yield node.module
            # `from storage import cache` imports storage.cache.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(path: Path) -> set[str]:
    return set(imported(ast.parse((ROOT / path).read_text())))


def faults(path: Path, names: set[str]) -> list[str]:
    """What is wrong with a file's imports, in words."""
    floor, file = path.parts[0], path.as_posix()
    roots = {name.split(".")[0] for name in names}
    said: list[str] = []
    for other in FLOORS:
        if other in roots and other not in (floor, *BELOW[floor]):
            said.append(
                f"{file} imports {other}: storage is the ground floor, cluster stands on it alone, "
                "and the two jobs, on both, never meet"
            )
    if "ray" in roots and floor != "cluster" and file not in ("teacher_infer/job.py", "student_train/job.py"):
        said.append(f"{file} imports ray: Ray appears in cluster and in the two job.py files only")
    if "mlflow" in roots and file not in MLFLOW_FILES:
        said.append(f"{file} imports mlflow: it lies behind {', '.join(MLFLOW_FILES)}")
    if "torch" in roots and floor == "cluster":
        said.append(f"{file} imports torch: what brings a job to Ray knows nothing of models")
    if "torch" in roots and floor == "storage" and file not in TORCH_FILES:
        said.append(f"{file} imports torch: storage reads without it, but for its adapters and the models")
    behind = {file.removesuffix(".py").replace("/", ".") for file in MLFLOW_FILES}
    if floor == "storage" and file not in MLFLOW_FILES and behind & names:
        said.append(f"{file} imports {min(behind & names)}: nothing on the ground floor does")
    return said


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_arrow_points_the_right_way(path: Path) -> None:
    assert faults(path, arrows(path)) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("storage/cache.py", "ray"),
        ("storage/cache.py", "torch"),
        ("storage/cache.py", "mlflow"),
        ("storage/cache.py", "storage.mlflow_lineage"),
        ("storage/cache.py", "storage.mlflow_client"),
        ("storage/cache.py", "teacher_infer.plan"),
        ("storage/cache.py", "cluster.connect"),
        ("cluster/connect.py", "teacher_infer.job"),
        ("cluster/connect.py", "student_train.job"),
        ("cluster/connect.py", "torch"),
        ("cluster/connect.py", "mlflow"),
        ("teacher_infer/label.py", "ray"),
        ("teacher_infer/label.py", "student_train.loop"),
        ("student_train/loop.py", "teacher_infer.soften"),
        ("student_train/tracking.py", "mlflow"),
    ],
)
def test_an_arrow_drawn_the_wrong_way_is_told(file: str, name: str) -> None:
    assert len(faults(Path(file), {name})) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cluster/connect.py", "ray"),
        ("cluster/submit.py", "storage.console"),
        ("teacher_infer/job.py", "cluster.connect"),
        ("student_train/job.py", "ray.train"),
    ],
)
def test_an_arrow_downwards_is_let_be(file: str, name: str) -> None:
    assert faults(Path(file), {name}) == []


def test_no_file_imports_itself_by_a_detour() -> None:
    known = {module_name(path): path for path in MODULES}
    graph = {
        name: {other for other in arrows(path) if other in known and other != name} for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=str)
def test_every_door_has_a_label(path: Path) -> None:
    label = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    assert label.split("\n\n")[0].endswith(".")
