"""A node that is lost under a job, and a worker that dies, on a Ray of three nodes: each is laid to its own budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.on_nodes import run_on_nodes

pytestmark = pytest.mark.slow

SCRIPT = """
    import os, random, signal, subprocess, sys, threading, time
    from pathlib import Path
    import yaml
    from benchmarks import chaos

    folder = Path(sys.argv[1])
    nodes = chaos.Nodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    calls = folder / "calls"
    calls.touch()

    def wait_for_calls(count):
        while len(calls.read_text().splitlines()) < count:
            time.sleep(0.02)

    def worker_of_a_node_that_lives():
        # A worker outlives its node's raylet by some seconds and computes on: its death would be no crash.
        raylets = {str(node.all_processes["raylet"][0].process.pid) for node in nodes._nodes}
        while True:
            pid = calls.read_text().splitlines()[-1].split()[0]
            parent = subprocess.run(["ps", "-o", "ppid=", "-p", pid], capture_output=True, text=True).stdout.strip()
            if parent in raylets:
                return int(pid)
            time.sleep(0.02)

    def trouble():
        wait_for_calls(4)
        nodes.kill_one(random.Random(0))
        before = len(calls.read_text().splitlines())
        wait_for_calls(before + 8)
        os.kill(worker_of_a_node_that_lives(), signal.SIGKILL)

    recipe = chaos._recipe(str(folder / "store"), str(calls))
    recipe["teacher"]["arguments"]["delay_s"] = 0.2
    recipe["ray"] = {"actors": {"min": 1, "max": 2}, "max_crashes": 1, "max_preemptions": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    threading.Thread(target=trouble, daemon=True).start()
    from teacher_infer.__main__ import main
    code = main([str(folder / "recipe.yaml"), "--json"])
    import ray
    ray.shutdown()
    nodes.close()
    sys.exit(code)
"""


def test_a_lost_node_is_told_from_a_worker_that_died(tmp_path: Path) -> None:
    answer, said = run_on_nodes(SCRIPT, tmp_path)
    # Until Ray misses a node it may place another actor there, which goes the same way.
    assert answer["work"]["crashes"] == 1, said[-4000:]
    assert 1 <= answer["work"]["preemptions"] <= 3
    # A span that was committed by an actor which died before it could say so is found, not computed again.
    assert answer["spans"]["total"] == 80 and answer["spans"]["reused"] <= 4
    assert "An actor was lost with its node" in said and "An actor died" in said
