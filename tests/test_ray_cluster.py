"""The cluster file is one that Ray takes, and keeps what Ray's own validator does not look at."""

from __future__ import annotations

import copy
import re
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from jobs.cluster.submission import Job, prepare
from jobs.recipe import read_recipe
from student_train.training.config import StudentRecipe
from teacher_infer.planning.config import TeacherRecipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ray_cluster.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)

Config = dict[str, Any]


def with_defaults(config: Config) -> Config:
    """The config as Ray completes it from its defaults for the cloud, after Ray's own validation.

    The one place that knows Ray's private modules. Warnings of Ray's and its imports are Ray's affair.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    return prepared


def ray_version() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
    return ray.__version__


# What Ray does not look at. Each check gives the sentences that it has to say.


def check_worker_counts(config: Config) -> Iterator[str]:
    if "min_workers" in config:
        yield "min_workers stands at the top, where Ray drops it without a word; it belongs to a node type."
    for name, kind in config["available_node_types"].items():
        if kind.get("min_workers", 0) > kind.get("max_workers", config["max_workers"]):
            yield f"{name} has min_workers above max_workers."


def check_idle_cluster_costs_its_head_only(config: Config) -> Iterator[str]:
    for name, kind in config["available_node_types"].items():
        if kind.get("min_workers", 0):
            yield f"{name} keeps {kind['min_workers']} machines without work."
    if not 10 <= config.get("idle_timeout_minutes", 0) <= 60:
        yield "idle_timeout_minutes is shorter than a machine's start, or an hour of GPUs for nothing."
    if "max_workers" not in config:
        yield "max_workers is left to Ray's default."
    if config["provider"].get("cache_stopped_nodes", True):
        yield "Machines are stopped and not terminated; their disks cost on."


def check_head_runs_no_work(config: Config) -> Iterator[str]:
    resources = config["available_node_types"][config["head_node_type"]]["resources"]
    for name in ("CPU", "GPU"):
        if resources.get(name) != 0:
            yield f"The head offers {resources.get(name, 'whatever it has')} {name}."


def check_gpu_groups(config: Config) -> Iterator[str]:
    kinds = config["available_node_types"]
    for role in ("teacher", "student"):
        if kinds.get(f"{role}_gpu", {}).get("labels", {}).get("role") != role:
            yield f"There is no group {role}_gpu with the label role={role}."
    for name, kind in kinds.items():
        if name.endswith("_gpu") and kind["resources"].get("GPU", 0) < 1:
            yield f"{name} has no GPU."
    market = kinds.get("teacher_gpu", {}).get("node_config", {}).get("InstanceMarketOptions", {}).get("MarketType")
    if market != "spot":
        yield "Teachers do not run on spot machines."


def check_image(config: Config) -> Iterator[str]:
    found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py3(\d+)-gpu", config["docker"]["image"])
    if found is None:
        yield f"The image {config['docker']['image']} is not pinned as rayproject/ray:VERSION-pyXY-gpu."
        return
    version, minor = found.group(1), int(found.group(2))
    if version != ray_version():
        yield f"The image has Ray {version}, this environment {ray_version()}."
    if f"ray=={version}" not in (ROOT / "constraints.txt").read_text().split():
        yield f"constraints.txt does not pin Ray {version}."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if not SpecifierSet(project["requires-python"]).contains(f"3.{minor}"):
        yield f"The image has Python 3.{minor}, the project needs {project['requires-python']}."
    # constraints.txt was made with Python 3.11; other Pythons may run these tests, but submit no jobs.
    if sys.version_info[:2] == (3, 11) and minor != 11:
        yield f"The image has Python 3.{minor}, this environment 3.11."


def start_commands(config: Config) -> list[str]:
    prepared = with_defaults(config)
    commands = [*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def check_dashboard_is_local(config: Config) -> Iterator[str]:
    for command in start_commands(config):
        if "--head" in command and "--dashboard-host=127.0.0.1" not in command.split():
            yield "The dashboard is not bound to 127.0.0.1."
        if "0.0.0.0" in command:
            yield "A command listens on every address."


def check_token(config: Config) -> Iterator[str]:
    for command in start_commands(config):
        if not re.search(r"export RAY_AUTH_MODE=token\b.*ray start", command, re.DOTALL):
            yield f"'{command[:40]}...' starts Ray without RAY_AUTH_MODE=token."
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        yield "The token is not carried to the machines."


def check_no_other_ray_is_installed(config: Config) -> Iterator[str]:
    prepared = with_defaults(config)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        for command in prepared[key]:
            if re.search(r"""ray-wheels|install\b.*[\s"']ray\b(?!\[?[\w,]*\]?==)""", command, re.DOTALL):
                yield f"{key} installs a Ray that need not be the image's: {command[:60]}"


def check_packages(config: Config) -> Iterator[str]:
    """What the project imports, but for Ray, which the image brings; s3fs for stores in a bucket."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]} - {"ray"}
    installed = {word for command in with_defaults(config)["setup_commands"] for word in shlex.split(command)}
    for name in sorted((needed | {"s3fs"}) - installed):
        yield f"setup_commands do not install {name}."


def check_mounted_files_exist(config: Config) -> Iterator[str]:
    for local in config.get("file_mounts", {}).values():
        if not local.startswith("~") and not (ROOT / local).exists():
            yield f"The file {local} is not in the repository."


SECRETS = (
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    r"-----BEGIN",
    r"\b(ghp|gho|hf|sk|glpat)[_-][A-Za-z0-9]{16,}",
    r"""(?i)(password|passwd|secret|token|api_?key)\w*["']?\s*[:=]\s*["']?[^\s"'~/;]{8,}""",
    r"\b[0-9a-fA-F]{32,}\b",
    r"://[^/\s:]+:[^/\s@]+@",
)


def secrets_in(text: str) -> Iterator[str]:
    for pattern in SECRETS:
        if re.search(pattern, text):
            yield f"Something looks like a secret (it matches {pattern})."


def check_no_secrets(config: Config) -> Iterator[str]:
    yield from secrets_in(yaml.safe_dump(config, width=10_000))


CHECKS: list[Callable[[Config], Iterator[str]]] = [
    check_worker_counts,
    check_idle_cluster_costs_its_head_only,
    check_head_runs_no_work,
    check_gpu_groups,
    check_image,
    check_dashboard_is_local,
    check_token,
    check_no_other_ray_is_installed,
    check_packages,
    check_mounted_files_exist,
    check_no_secrets,
]


def test_ray_takes_the_file() -> None:
    prepared = with_defaults(CONFIG)
    assert prepared["cluster_name"] == "stillhouse"
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_file_keeps_what_ray_does_not_look_at(check: Callable[[Config], Iterator[str]]) -> None:
    assert list(check(CONFIG)) == []


def test_no_comment_holds_a_secret() -> None:
    assert list(secrets_in(TEXT)) == []


# That each of these can fail.

TAKEN_OUT = object()


def broken(path: str, value: Any) -> Config:
    """A copy of the config with another value at a path of keys; TAKEN_OUT removes the key."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    part = config
    for key in parents:
        part = part[key]
    if value is TAKEN_OUT:
        del part[last]
    else:
        part[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("min_wrokers", 1),
        ("head_node_type", "haed"),
        ("provider", TAKEN_OUT),
        ("docker.container_name", TAKEN_OUT),
        ("available_node_types.teacher_gpu.node_config", TAKEN_OUT),
        ("available_node_types.teacher_gpu.resources.GPU", 0.5),
        ("available_node_types.teacher_gpu.setup_commands", []),
        ("available_node_types.student_gpu.min_workers", 99),
    ],
)
def test_a_file_that_ray_does_not_take_is_seen(path: str, value: Any) -> None:
    from jsonschema import ValidationError

    with pytest.raises((ValidationError, ValueError, KeyError, AssertionError)):
        with_defaults(broken(path, value))


IMAGE = CONFIG["docker"]["image"]
START = "ulimit -n 65536; ray start --head --port=6379"


@pytest.mark.parametrize(
    ("check", "path", "value"),
    [
        (check_worker_counts, "min_workers", 1),
        (check_worker_counts, "available_node_types.teacher_gpu.min_workers", 7),
        (check_idle_cluster_costs_its_head_only, "available_node_types.student_gpu.min_workers", 1),
        (check_idle_cluster_costs_its_head_only, "idle_timeout_minutes", 1),
        (check_idle_cluster_costs_its_head_only, "idle_timeout_minutes", TAKEN_OUT),
        (check_idle_cluster_costs_its_head_only, "max_workers", TAKEN_OUT),
        (check_idle_cluster_costs_its_head_only, "provider.cache_stopped_nodes", TAKEN_OUT),
        (check_head_runs_no_work, "available_node_types.head.resources", {}),
        (check_head_runs_no_work, "available_node_types.head.resources.CPU", 8),
        (check_head_runs_no_work, "available_node_types.head.resources.GPU", 1),
        (check_gpu_groups, "available_node_types.teacher_gpu.resources", {"CPU": 8}),
        (check_gpu_groups, "available_node_types.student_gpu.resources.GPU", 0),
        (check_gpu_groups, "available_node_types.teacher_gpu.labels.role", "student"),
        (check_gpu_groups, "available_node_types.student_gpu", TAKEN_OUT),
        (check_gpu_groups, "available_node_types.teacher_gpu.node_config.InstanceMarketOptions", TAKEN_OUT),
        (check_image, "docker.image", "rayproject/ray:latest-gpu"),
        (check_image, "docker.image", "rayproject/ray:2.0.0-py311-gpu"),
        (check_image, "docker.image", IMAGE.replace("py311", "py310")),
        (check_image, "docker.image", IMAGE.removesuffix("-gpu")),
        (check_dashboard_is_local, "head_start_ray_commands", TAKEN_OUT),
        (check_dashboard_is_local, "head_start_ray_commands", [f"{START} --dashboard-host=0.0.0.0"]),
        (check_dashboard_is_local, "head_start_ray_commands", [START]),
        (check_dashboard_is_local, "worker_start_ray_commands", ["ray start --node-ip-address=0.0.0.0"]),
        (check_token, "head_start_ray_commands", [START]),
        (check_token, "worker_start_ray_commands", TAKEN_OUT),
        (check_token, "worker_start_ray_commands", ["ray start; export RAY_AUTH_MODE=token"]),
        (check_token, "file_mounts", {}),
        (check_no_other_ray_is_installed, "setup_commands", TAKEN_OUT),
        (check_no_other_ray_is_installed, "setup_commands", ["pip install -U 'ray[default]' torch"]),
        (check_no_other_ray_is_installed, "worker_setup_commands", ["pip install torch ray"]),
        (check_packages, "setup_commands", [CONFIG["setup_commands"][0].replace(" s3fs", "")]),
        (check_packages, "setup_commands", [CONFIG["setup_commands"][0].replace(" xxhash", "")]),
        (check_mounted_files_exist, "file_mounts.~/x", "constraint.txt"),
        (check_no_secrets, "metadata.key", "AKIA" + 16 * "X"),
        (check_no_secrets, "metadata.key", "hf_" + 30 * "x"),
        (check_no_secrets, "metadata.key", 16 * "0a1b"),
        (check_no_secrets, "metadata.api_key", "correct-horse"),
        (check_no_secrets, "setup_commands", ["export MLFLOW_TRACKING_PASSWORD=correct-horse"]),
        (check_no_secrets, "head_start_ray_commands", ["export RAY_AUTH_TOKEN=correct-horse; ray start --head"]),
        (check_no_secrets, "setup_commands", ["pip install --index-url https://me:horse@example.com/simple torch"]),
    ],
    ids=lambda value: value.__name__.removeprefix("check_") if callable(value) else None,
)
def test_a_file_that_breaks_a_rule_is_seen(check: Callable[[Config], Iterator[str]], path: str, value: Any) -> None:
    assert list(check(broken(path, value)))


def test_a_pinned_ray_may_be_installed() -> None:
    config = broken("setup_commands", ["pip install 'ray[default,train]==2.60.0' array-api torch"])
    assert list(check_no_other_ray_is_installed(config)) == []


# The commands of its comments.


def commands() -> list[list[str]]:
    """The `submit` lines at the head of the file, their $S put in, as words."""
    head = TEXT.split("\n\n")[0].replace("\\\n", " ").replace("# ", " ").splitlines()
    folder = next(line.strip().removeprefix("S=") for line in head if line.strip().startswith("S="))
    lines = [line for line in head if re.match(r" *(teacher-infer|student-train) ", line)]
    return [shlex.split(line.replace("$S", folder)) for line in lines]


def test_the_head_of_the_file_says_how_it_is_used() -> None:
    for command in (
        "ray get-auth-token",
        "chmod 600",
        "ray up",
        "ray dashboard",
        "RAY_ADDRESS=http://",
        "--address http://",
        "ray down",
    ):
        assert command in TEXT.split("\n\n")[0]
    assert [words[:2] for words in commands()] == [
        ["student-train", "submit"],
        ["teacher-infer", "submit"],
        ["student-train", "submit"],
    ]


@pytest.mark.parametrize("words", commands(), ids=lambda words: Path(words[2]).stem)
def test_its_commands_are_recipes_that_can_be_submitted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kind = {"student-train": StudentRecipe, "teacher-infer": TeacherRecipe}[words[0]]
    assert prepare(Job(words[0], words[0], kind), words[2], words[3:]).notes == ()
    recipe: Any = read_recipe(words[2], words[3:], kind, on_cluster=True)
    assert recipe.tracking.resolved_uri() is None
    # Wherever the job writes or reads, every machine sees it.
    shared = [recipe.output] if words[0] == "student-train" else [recipe.store, recipe.teacher.path]
    shared += [
        url for url in (getattr(recipe, "cache", None), getattr(recipe, "evaluate", None)) if isinstance(url, str)
    ]
    mount = next(option for option in CONFIG["docker"]["run_options"] if option.startswith("-v")).rpartition(":")[2]
    assert all(url.startswith(f"{mount}/") for url in shared)


def test_by_default_both_jobs_wait_longer_for_machines_than_machines_wait_for_work() -> None:
    """An idle timeout is longer than a machine takes to start, as the file says."""
    from student_train.training.config import RaySection as StudentRay
    from teacher_infer.planning.config import RaySection as TeacherRay

    idle_s = 60 * CONFIG["idle_timeout_minutes"]
    assert TeacherRay().capacity_timeout_s > idle_s
    assert StudentRay().start_timeout_s > idle_s
