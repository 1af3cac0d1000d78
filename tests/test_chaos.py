"""A few runs of benchmarks/chaos.py: kills of workers, nodes and drivers, and store faults, on a Ray of three nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos.py"


def test_whatever_dies_the_cache_is_the_same_and_nothing_committed_is_computed_again() -> None:
    command = [sys.executable, str(BENCHMARK), "--runs", "5", "--seed", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout)
    assert answer["runs"] == 5
    assert (answer["digest_mismatches"], answer["recomputed_committed"], answer["duplicate_commits"]) == (0, 0, 0)
    # It was no quiet day: something was killed, and the store failed.
    assert sum(count for kind, count in answer["faults"].items() if kind.endswith(" killed")) >= 5
    assert sum(count for kind, count in answer["faults"].items() if kind.startswith("store ")) >= 5
