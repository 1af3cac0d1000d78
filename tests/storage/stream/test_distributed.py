"""Which rank of how many this process is: as torch.distributed says, else as a launcher says, else the only one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from storage.base.errors import RecipeError
from storage.stream.distributed import world


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def told(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_one_process_is_a_world() -> None:
    assert world() == {"rank": 0, "world": 1}


def test_a_launcher_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, RANK="3", WORLD_SIZE="4")
    assert world() == {"rank": 3, "world": 4}


def test_what_is_initialised_knows_better(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told(monkeypatch, RANK="3", WORLD_SIZE="4")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert world() == {"rank": 0, "world": 1}
    finally:
        torch.distributed.destroy_process_group()
    assert world() == {"rank": 3, "world": 4}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "0"}, "RANK=0 and no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "no RANK and WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK=first"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
    ids=str,
)
def test_half_a_world_is_refused(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: str) -> None:
    told(monkeypatch, **environment)
    with pytest.raises(RecipeError, match=f"The environment has .*{found}.*torchrun"):
        world()


def test_it_brings_no_torch() -> None:
    code = "import sys, storage.stream.distributed as w; assert w.world()['world'] == 1 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
