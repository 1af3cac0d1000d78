"""What the tests share: a quiet environment, and one Ray for all of those that need it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import textwrap
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import NOBODY, Proxy, environment, lead_to, make_bucket, seaweed

# Before anything imports Ray or MLflow: no token file in HOME, no usage reports, no wait for a server that is down.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
os.environ["RAY_metrics_report_interval_ms"] = "500"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "2"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
# Before anything imports torch: the tests' tensors are small, and several processes may share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has SIGINT ignored in what it starts in the background, and so would be what a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files whose tests fork first, then those that use Ray.

    A fork of a process that has Ray's threads may abort: it copies what they hold, and not the threads. The files with
    Ray take the longest, and short files fill the other processes at the end.
    """
    with_ray = {item.path for item in items if {"ray_session", "head"} & set(getattr(item, "fixturenames", ()))}
    forking = {path for path in {item.path for item in items} if "dataloader" in path.read_text().lower()} - with_ray
    items.sort(key=lambda item: 0 if item.path in forking else 1 if item.path in with_ray else 2)


# A module that Ray's workers import too; so its folder is on their path when they start.
TOYS = """
    '''Small teachers, students and sources for the tests.'''

    import os
    import time
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    import torch
    from torch import nn

    # While this file is there every forward pass takes its time, so that a test can stop a job in the middle.
    SLOW = Path(__file__).with_name("slow")


    class Linear(nn.Module):
        def __init__(self, features, classes, calls=None, bad=None, raises=None, dies=None, survives=None,
                     device=None, hangs=None, hung=None, driver=None, loaded=None):
            super().__init__()
            if loaded is not None and os.getpid() != driver and not Path(loaded).exists():
                Path(loaded).touch()
                time.sleep(600)
            self.hangs, self.hung = hangs, hung
            self.linear, self.device = nn.Linear(features, classes), device
            self.calls, self.bad, self.raises, self.dies, self.survives = calls, bad, raises, dies, survives

        def forward(self, x):
            if self.calls is not None and x.device.type != "meta":
                with open(self.calls, "a") as file:
                    file.write(f"{len(x)}\\n")
            if SLOW.exists():
                time.sleep(0.7)
            logits = self.linear(x.float())
            if self.raises is not None and (x[:, 0] == self.raises).any():
                raise ValueError("this sample breaks the teacher")
            if self.dies is not None and (x[:, 0] == self.dies).any() and not Path(self.survives).exists():
                # As the kernel ends a process that takes too much memory; only once where `survives` is made.
                Path(self.survives + ".died").touch()
                os.kill(os.getpid(), 9)
            if self.hangs is not None and (x[:, 0] == self.hangs).any() and not Path(self.hung).exists():
                Path(self.hung).touch()
                time.sleep(600)
            if self.device is not None and x.device.type != "meta" and not Path(self.device).exists():
                Path(self.device).touch()
                raise RuntimeError("CUDA error: an assert in https://bob:planted-hunter2@host/kernel")
            if self.bad is not None:
                logits = torch.where((x[:, :1] == self.bad), torch.nan, logits)
            return logits


    def linear(features=4, classes=3, **settings):
        return Linear(features, classes, **settings)


    def rows(count=40, first=0, classes=3, label=True, bad_label=None, same_id=False, features=4, drops=None,
             driver=None):
        if drops is not None and os.getpid() != driver and not Path(drops).exists():
            Path(drops).touch()
            raise ConnectionResetError(104, "Connection reset by peer")
        values = np.arange(first, first + count, dtype=np.float32)
        x = np.stack([values / 10 + i for i in range(features)], axis=1).astype(np.float32)
        columns = {
            "sample_id": pa.array([f"s{0 if same_id else int(v)}" for v in values]),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), features),
        }
        if label:
            labels = values.astype(np.int64) % classes
            if bad_label is not None:
                labels[-1] = bad_label
            columns["label"] = pa.array(labels)
        return pa.table(columns)
"""


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of `stillhouse_toys`, a module that this process and Ray's workers can import."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "stillhouse_toys.py").write_text(textwrap.dedent(TOYS))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def line() -> Iterator[Proxy]:
    """What the environment of the session's Ray leads S3 clients to; to nobody until a test sets its `upstream`."""
    proxy = Proxy(NOBODY)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def ray_session(toys: Path, line: Proxy) -> Iterator[dict[str, str]]:
    """One embedded Ray of two CPUs for the whole session; gives its addresses and folders."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        import logging

        import ray

        # Ray's workers have for good what is in the environment now.
        for name, value in environment(line.endpoint).items():
            patch.setenv(name, value)
        started = ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    yield started.address_info
    ray.shutdown()


@pytest.fixture(scope="session")
def one_ray(ray_session: dict[str, str]) -> str:
    """The address of the session's Ray."""
    return ray_session["gcs_address"]


@pytest.fixture(scope="session")
def ray_logs(ray_session: dict[str, str]) -> Path:
    """Where the workers of the session's Ray write what they print."""
    return Path(ray_session["session_dir"]) / "logs"


@pytest.fixture(scope="session")
def seaweed_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS S3 server for the whole session, with a bucket named 'bucket'."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint:
        make_bucket(endpoint, "bucket")
        yield endpoint


@pytest.fixture
def bucket(seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a bucket on SeaweedFS, which this process's environment leads to."""
    lead_to(seaweed_endpoint, monkeypatch)
    return "bucket"


@pytest.fixture
def shadowing(tmp_path: Path) -> Path:
    """A working directory whose modules have the names of our packages."""
    folder = tmp_path / "shadowing"
    for file in ("storage.py", "jobs/__init__.py", "teacher_infer.py", "student_train/__init__.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise RuntimeError('a module of the working directory was imported')")
    return folder


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., str]:
    """Write a recipe under tmp_path and give its path."""
    import yaml

    def write(file: str = "recipe.yaml", **recipe: object) -> str:
        path = tmp_path / file
        path.write_text(yaml.safe_dump(recipe))
        return str(path)

    return write


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """`module(text)`: the name of a new module that can be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made: list[str] = []

    def write(text: str) -> str:
        name = f"written_{uuid.uuid4().hex}"
        (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)
