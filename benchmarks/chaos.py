"""Whatever dies, whenever, the finished cache is the same: a teacher's job under kills and store faults, many times.

python benchmarks/chaos.py [--runs N] [--seed S] [--json]

A three-node Ray on this machine is started once. Each run has a new store, in turn on local disk and on
SeaweedFS behind a proxy that refuses, delays, cuts, repeats and loses; a job of many small spans; and up
to four kills at random moments of its life: of a worker (SIGKILL), of a node, of the driver (SIGKILL, after
which the same command is run again). All moments and kinds follow from the seed; what they meet does not.

digest_mismatches: runs whose cache is not the undisturbed one, or that did not end. recomputed_committed:
forward passes that began on a span after its commit, by the store's date of it and SLACK_S more, or in a
later driver's workers on a span that was seen committed before that driver began. duplicate_commits: shard
keys for which two different records were seen (they are read past the proxy), or ids that the cache holds twice.
Exit code 1 when any of the three is not 0.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import yaml  # noqa: E402

from jobs.console import say  # noqa: E402
from tests.servers import FAULTS, Proxy, environment, make_bucket, seaweed  # noqa: E402

SPANS, SPAN_ROWS, DELAY_S = 80, 16, 0.05

# Between its look for a commit and its forward pass a span may wait for another one's; and S3 dates by the second.
SLACK_S = {"file": 0.5, "s3": 1.5}

ATTEMPTS = 8

# A lost node is noticed after two seconds instead of thirteen: as often, and with less of the time spent waiting.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="the answer as JSON on stdout, and nothing else there")
    asked = parser.parse_args()
    os.environ |= {
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # A driver is forked from a process that has imported what it needs, and killed like any other.
    drivers = multiprocessing.get_context("forkserver")
    drivers.set_forkserver_preload(["teacher_infer.__main__", "teacher_infer.run", "teacher_infer.job"])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        (folder / "s3").mkdir()
        endpoint = stack.enter_context(seaweed(folder / "s3"))
        make_bucket(endpoint, "chaos")
        proxy = Proxy(endpoint)
        proxy.slow_s = 0.2
        stack.callback(proxy.close)
        os.environ |= environment(proxy.endpoint)
        nodes = Nodes()
        stack.callback(nodes.close)
        answer = conduct(asked.runs, asked.seed, folder, nodes, proxy, drivers)
    if asked.json:
        print(json.dumps(answer, indent=1))
    else:
        for name, value in answer.items():
            print(f"{name:22} {value}")
    return int(any(answer[name] for name in ("digest_mismatches", "recomputed_committed", "duplicate_commits")))


def conduct(runs: int, seed: int, folder: Path, nodes: Nodes, proxy: Proxy, drivers: Any) -> dict[str, Any]:
    begun = time.monotonic()
    undisturbed = Run("undisturbed", random.Random(0), folder, nodes, proxy, drivers, kinds=())
    assert undisturbed.go(None) == 0, undisturbed.log.read_text()[-3000:]
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for number in range(runs):
        generator = random.Random(f"{seed}/{number}")
        store = "s3" if number % 2 else "file"
        run = Run(f"{store}-{seed}-{number}", generator, folder, nodes, proxy, drivers)
        bad = run.go(undisturbed.digest)
        totals["digest_mismatches"] += bad
        totals["recomputed_committed"] += run.recomputed()
        totals["duplicate_commits"] += run.duplicates()
        totals["attempts"] += run.attempts
        faults += run.faults
        say(
            f"run {number + 1}/{runs} on {store}: {'differs' if bad else 'the same cache'} after "
            f"{run.attempts} drivers and {dict(run.faults)}"
        )
        if bad:
            say(run.log.read_text()[-3000:])
    return {
        "runs": runs,
        **{name: totals[name] for name in ("digest_mismatches", "recomputed_committed", "duplicate_commits")},
        "faults": dict(sorted(faults.items())),
        "drivers": totals["attempts"],
        "spans_per_run": SPANS,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
    }


class Nodes:
    """A Ray of a head without work and two nodes of one CPU each, which are killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._size: dict[str, Any] = {"object_store_memory": 100 << 20}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": HEALTH_CHECKS,
                **self._size,
            },
        )
        self._nodes = [self._cluster.add_node(num_cpus=1, **self._size) for _ in range(2)]
        self.address: str = self._cluster.address

    def kill_one(self, generator: random.Random) -> None:
        node = self._nodes.pop(generator.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)

    def fill_up(self) -> None:
        while len(self._nodes) < 2:
            self._nodes.append(self._cluster.add_node(num_cpus=1, **self._size))

    def close(self) -> None:
        self._cluster.shutdown()


class Run:
    """One store, one recipe, as many drivers as it takes, and what happened to them."""

    def __init__(
        self,
        name: str,
        generator: random.Random,
        folder: Path,
        nodes: Nodes,
        proxy: Proxy,
        drivers: Any,
        kinds: tuple[str, ...] = ("worker", "worker", "node", "driver"),
    ) -> None:
        self._generator, self._nodes, self._proxy, self._drivers = generator, nodes, proxy, drivers
        self._kind = "s3" if name.startswith("s3") else "file"
        self._store = f"s3://chaos/{name}" if self._kind == "s3" else str(folder / name)
        self.log, self._recipe = folder / f"{name}.log", folder / f"{name}.yaml"
        # One name for all runs: the teacher's arguments are part of what the cache's digest stands for.
        self._calls = folder / "calls"
        self._calls.touch()
        self._recipe.write_text(yaml.safe_dump(_recipe(self._store, str(self._calls))))
        # Moments are counted from the first forward pass of a driver's life; some drivers do not live to see one.
        self._plan = [
            (generator.choice(kinds), generator.uniform(0, SPANS * DELAY_S / 2))
            for _ in range(generator.randint(1, 4) if kinds else 0)
        ]
        self._early = generator.uniform(0.2, 4.0) if kinds and generator.random() < 0.25 else None
        self._rate = generator.choice((0.02, 0.05, 0.1)) if kinds and self._kind == "s3" else 0.0
        self._records: dict[str, set[bytes]] = {}
        self._seen_before: list[tuple[int, set[str]]] = []
        self.faults: Counter[str] = Counter()
        self.attempts = 0
        self.digest = ""

    def go(self, expected: str | None) -> int:
        """Run to the end; 1 when the cache is not the expected one."""
        from storage.cache.open import open_cache

        dice = random.Random(self._generator.random())
        self._wait_for_old_workers()
        self._calls.write_text("")
        self._proxy.seen.clear()
        self._proxy.fault = lambda method, path: dice.choice(FAULTS) if dice.random() < self._rate else None
        code = None
        while code != 0 and self.attempts < ATTEMPTS:
            code = self._drive()
        self.faults += Counter({f"store {kind}": count for kind, count in self._proxy.seen.items()})
        self._proxy.fault = lambda method, path: None
        self._nodes.fill_up()
        if code != 0:
            return 1
        cache = open_cache(f"{self._store}/chaos")
        self.digest = cache.digest
        return int(expected is not None and (cache.digest != expected or cache.samples != SPANS * SPAN_ROWS))

    def _drive(self) -> int | None:
        """One driver's life; its exit code, negative when it was killed."""
        self.attempts += 1
        self._look()
        before = self._calls.stat().st_size
        self._seen_before.append((before, set(self._records)))
        driver = self._drivers.Process(target=_driver, args=(str(self._recipe), str(self.log), self._nodes.address))
        driver.start()
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            if self._early is not None:
                driver.join(self._early)
                self._early = None
                self._kill("driver", driver)
            deadline = time.monotonic() + 180
            while driver.is_alive() and self._calls.stat().st_size == before and time.monotonic() < deadline:
                time.sleep(0.01)
            begun = time.monotonic()
            # What this driver does not live to see, the next one may.
            for kind, moment in sorted(self._plan, key=lambda event: event[1]):
                driver.join(max(0.0, begun + moment - time.monotonic()))
                if not driver.is_alive():
                    break
                self._plan.remove((kind, moment))
                self._kill(kind, driver)
            driver.join(180)
            if driver.is_alive():
                say("a driver hangs and is killed")
                self.faults["hung"] += 1
                driver.kill()
                driver.join()
        finally:
            over.set()
            watcher.join()
        return driver.exitcode

    def _kill(self, kind: str, driver: Any) -> None:
        if kind == "driver":
            driver.kill()
        elif kind == "node":
            self._nodes.kill_one(self._generator)
            # The job goes on with what is left until another one joins.
            time.sleep(self._generator.uniform(0, 1))
            self._nodes.fill_up()
        else:
            pids = {int(line.split()[0]) for line in self._calls.read_text().splitlines()[-8:]}
            alive = sorted(pid for pid in pids if _is_worker(pid))
            if not alive:
                return
            os.kill(self._generator.choice(alive), signal.SIGKILL)
        self.faults[f"{kind} killed"] += 1

    def _watch(self, over: threading.Event) -> None:
        """Look at the commit records while the job runs: one that changes is seen."""
        while not over.wait(0.5):
            self._look()

    def _look(self, again: bool = False) -> None:
        """Read the records that were not seen yet, or all of them."""
        if self._kind == "file":
            paths = {path.stem: str(path) for path in Path(self._store).glob("commits/*/*.json")}
        else:
            found = self._direct.find(f"{self._store.removeprefix('s3://')}/commits")
            paths = {Path(path).stem: path for path in found}
        for key, path in paths.items():
            if again or key not in self._records:
                data = Path(path).read_bytes() if self._kind == "file" else self._direct.cat_file(path)
                self._records.setdefault(key, set()).add(data)

    @functools.cached_property
    def _direct(self) -> Any:
        """SeaweedFS without the proxy between."""
        from s3fs import S3FileSystem

        return S3FileSystem(endpoint_url=self._proxy.upstream, use_listings_cache=False)

    def _wait_for_old_workers(self) -> None:
        """Workers of the run before may still write to the log of forward passes, which all runs share."""
        pids = {int(line.split()[0]) for line in self._calls.read_text().splitlines()}
        deadline = time.monotonic() + 30
        while any(_is_worker(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)

    def duplicates(self) -> int:
        """Keys with more than one record, and ids that are not exactly once in the cache."""
        from storage.cache.open import open_cache
        from storage.rows.cache_rows import CacheRows
        from storage.stream.scan import scan

        self._look(again=True)
        changed = sum(len(records) > 1 for records in self._records.values())
        if not self.digest:
            return changed
        cache = open_cache(f"{self._store}/chaos")
        for shard in cache.shards:
            record = cache.store.read(f"commits/{shard.shard_key[:2]}/{shard.shard_key}.json")
            changed += json.loads(record)["attempt"] != shard.attempt
        ids = Counter(id for rows in scan(CacheRows(cache), 1024) for id in rows.sample_id.tolist())
        return changed + sum(count != 1 for count in ids.values()) + abs(len(ids) - SPANS * SPAN_ROWS)

    def recomputed(self) -> int:
        """Forward passes that began on a span which was committed already."""
        from storage.cache.open import open_cache

        if not self.digest:
            return 0
        cache = open_cache(f"{self._store}/chaos")
        dates: dict[int, float] = {}
        for index, shard in enumerate(cache.shards):
            folder, _, name = f"commits/{shard.shard_key[:2]}/{shard.shard_key}.json".rpartition("/")
            dated = {entry.name: entry.modified for entry in cache.store.entries(folder)}[name]
            assert dated is not None
            dates[index] = dated
        text = self._calls.read_text()
        late = 0
        for start, seen in [(0, set[str]()), *self._seen_before]:
            older = {line.split()[0] for line in text[:start].splitlines()}
            for pid, row, when in (line.split() for line in text[start:].splitlines()):
                span = int(row) // SPAN_ROWS
                after = float(when) > dates[span] + SLACK_S[self._kind]
                # A worker of an earlier driver may still be at its last span.
                late += pid not in older and (cache.shards[span].shard_key in seen if start else after)
        return late


def _recipe(store: str, calls: str) -> dict[str, Any]:
    return {
        "name": "chaos",
        "store": store,
        "source": {"function": "chaos_models:rows", "arguments": {"count": SPANS * SPAN_ROWS}},
        "teacher": {
            "factory": "chaos_models:teacher",
            "arguments": {"log": calls, "delay_s": DELAY_S},
            "dtype": "float32",
            "batch_size": SPAN_ROWS,
        },
        "targets": {"encoding": "dense", "temperature": 2.0},
        "span_rows": SPAN_ROWS,
        "ray": {"actors": 2, "max_crashes": 10},
        "tracking": {"uri": False},
    }


def _driver(recipe: str, log: str, address: str) -> None:
    """What a user types, in a process of its own."""
    os.environ["RAY_ADDRESS"] = address
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from teacher_infer.__main__ import main as teach

    sys.exit(teach([recipe]))


def _is_worker(pid: int) -> bool:
    """Whether a process is still one of Ray's workers, and not another one that was given its number."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
