"""A node that is lost under a training run: it counts against max_preemptions, and the run goes on."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.on_nodes import run_on_nodes

pytestmark = pytest.mark.slow

SCRIPT = """
    import json, os, sys, threading, time
    from pathlib import Path
    from benchmarks import chaos

    folder = Path(sys.argv[1])
    nodes = chaos.Nodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    # A spare one for the second attempt. It is added here, since Ray adds nodes from the main thread only.
    nodes._nodes.append(nodes._cluster.add_node(num_cpus=1, **nodes._size))
    checkpoints, raylet = folder / "models/toy/seed-0/checkpoints", folder / "raylet"

    def trouble():
        while not list(checkpoints.glob("*/checkpoint_manager_snapshot.json")):
            time.sleep(0.1)
        pids = [node.all_processes["raylet"][0].process.pid for node in nodes._nodes]
        lost = nodes._nodes[pids.index(int(raylet.read_text()))]
        nodes._cluster.remove_node(lost, allow_graceful=False)

    recipe = {
        "name": "toy",
        "source": {"function": "stillhouse_toys:rows"},
        "student": {"factory": "stillhouse_lost:Waits", "arguments": {"raylet": str(raylet), "steps": 4}},
        "optimizer": {"lr": 0.05},
        "steps": 8,
        "batch_size": 8,
        "checkpoint_every": 4,
        "output": str(folder / "models"),
        "tracking": {"uri": False},
        "ray": {"workers": 2, "max_failures": 0},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    threading.Thread(target=trouble, daemon=True).start()
    from student_train.__main__ import main
    code = main([str(folder / "recipe.yaml"), "--json"])
    import ray
    ray.shutdown()
    nodes.close()
    sys.exit(code)
"""

STUDENT = """
    import os
    import time
    from pathlib import Path
    import torch

    class Waits(torch.nn.Module):
        '''Writes the id of its node's raylet process, and after some steps of an attempt waits for its end.'''

        def __init__(self, raylet, steps):
            super().__init__()
            self.linear, self.raylet, self.left = torch.nn.Linear(4, 3), Path(raylet), steps

        def forward(self, x):
            if self.training:
                self.raylet.write_text(str(os.getppid()))
                self.left -= 1
                while self.left < 0:
                    time.sleep(1)
            return self.linear(x)
"""


def test_a_lost_node_costs_an_attempt_and_no_failure(tmp_path: Path, toys: Path) -> None:
    (tmp_path / "stillhouse_lost.py").write_text(textwrap.dedent(STUDENT))
    answer, said = run_on_nodes(SCRIPT, tmp_path, toys, tmp_path)
    assert answer["resumed_from"] == 4, answer
    assert "toy, seed 0: attempt 2 begins" in said
