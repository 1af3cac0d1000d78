"""A network that refuses, delays, cuts, repeats and loses: the same cache comes of it, or a sentence."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.__main__ import main
from storage.base.errors import StoreLost
from storage.cache.cache import Cache
from storage.cache.catalog import verify
from storage.cache.gc import collect, forget
from storage.cache.open import open_cache
from storage.objectstore import filesystem
from storage.objectstore.folder import Folder
from tests.servers import FAULTS, Proxy, lead_to
from tests.storage.helpers import KEYS, commit, files, files_of, label

# What is asked of the server, as far as a store is concerned.
KINDS: dict[str, Callable[[str, str], bool]] = {
    "PUT of a shard": lambda method, path: method == "PUT" and "/shards/" in path,
    "PUT of a commit": lambda method, path: method == "PUT" and "/commits/" in path,
    "PUT of a cache": lambda method, path: method == "PUT" and "/caches/" in path,
    "GET of a file": lambda method, path: method == "GET" and "list-type" not in path,
    "GET of a listing": lambda method, path: method == "GET" and "list-type" in path,
    "HEAD": lambda method, path: method == "HEAD",
}


@pytest.fixture
def proxy(seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before SeaweedFS, which this process's environment leads to."""
    made = Proxy(seaweed_endpoint)
    made.slow_s = 0.3
    lead_to(made.endpoint, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def digest(tmp_path: Path) -> str:
    """The digest of the cache that comes of the job where nothing goes wrong."""
    return label(Folder(str(tmp_path / "undisturbed")))[1].digest


class Faults:
    """`Proxy.fault` for many stores at once: each has a rule of its own for its n-th request."""

    def __init__(self) -> None:
        self.rules: dict[str, Callable[[str, str], str | None]] = {}
        self.struck: Counter[str] = Counter()
        self._lock = threading.Lock()

    def store(self, rule: Callable[[str, str], str | None]) -> Folder:
        name = uuid.uuid4().hex
        self.rules[name] = rule
        made = Folder(f"s3://bucket/{name}")
        made.__dict__["keeps_create"] = True  # else each store is probed with a race of its own
        return made

    def __call__(self, method: str, path: str) -> str | None:
        with self._lock:
            for name, rule in self.rules.items():
                if name in path:
                    fault = rule(method, path)
                    self.struck[name] += fault is not None
                    return fault
        return None


def once(kind: str, fault: str) -> Callable[[str, str], str | None]:
    left = [fault]
    return lambda method, path: left.pop() if left and KINDS[kind](method, path) else None


def now_and_then(seed: int, share: float) -> Callable[[str, str], str | None]:
    """A fault for that share of the requests, drawn by chance; but none for one that two struck in turn."""
    dice, in_turn = random.Random(seed), Counter[str]()

    def rule(method: str, path: str) -> str | None:
        request = f"{method} {path}"
        if dice.random() >= share or in_turn[request] == 2:
            in_turn[request] = 0
            return None
        in_turn[request] += 1
        return dice.choice(FAULTS)

    return rule


def check(store: Folder, digest: str) -> Cache:
    """A job, and all that is asked of a cache afterwards."""
    computed, cache = label(store)
    assert computed == set(KEYS)
    assert cache.digest == digest
    cache = open_cache(store.url_of("work"))
    assert cache.digest == digest and verify(cache)["ok"]
    for shard in cache.shards:
        assert len(store.read(shard.path)) == shard.bytes
    return cache


def test_each_fault_on_each_kind_of_request_leaves_the_same_cache(proxy: Proxy, digest: str) -> None:
    faults = Faults()
    proxy.fault = faults
    stores = {(kind, fault): faults.store(once(kind, fault)) for kind in KINDS for fault in FAULTS}
    with ThreadPoolExecutor(len(stores)) as pool:  # for clients wait before they try again
        caches = dict(zip(stores, pool.map(lambda store: check(store, digest), stores.values()), strict=True))
    # No attempt took another one's place or its own file away, and nothing but the cache is left.
    assert {case: files(stores[case]) for case in stores} == {case: files_of(cache) for case, cache in caches.items()}
    assert set(faults.struck.values()) == {1} and len(faults.struck) == len(stores)


def test_faults_by_chance_leave_the_same_cache_and_gc_cleans_it(proxy: Proxy, digest: str) -> None:
    faults = Faults()
    proxy.fault = faults
    stores = [faults.store(now_and_then(seed, share)) for seed, share in enumerate((0.1, 0.15, 0.2))]

    def work(store: Folder) -> None:
        cache = check(store, digest)
        forget(cache)
        again, same = label(store)
        assert (again, same.digest) == (set(), digest)
        collect(store, 0, dry_run=False)
        assert files(store) == files_of(same)

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(work, stores))
    assert min(faults.struck.values()) > 3 and len(faults.struck) == len(stores)


@pytest.mark.parametrize("fault", ["lost", "repeated"])
def test_a_commit_whose_answer_was_lost_or_whose_put_was_repeated_is_mine(proxy: Proxy, fault: str) -> None:
    faults = Faults()
    proxy.fault = faults
    store = faults.store(once("PUT of a commit", fault))
    mine = commit(store, KEYS[0], 0, attempt="mine")
    assert mine.attempt == "mine" and faults.struck
    assert len(store.read(mine.path)) == mine.bytes


def test_the_probe_is_right_though_the_network_is_bad(proxy: Proxy) -> None:
    rule = now_and_then(1, 0.3)
    proxy.fault = lambda method, path: rule(method, path) if "/tmp/probe-" in path else None
    assert Folder(f"s3://bucket/{uuid.uuid4().hex}").keeps_create is True
    assert sum(proxy.seen.values()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_refuses_for_good_is_lost_in_a_sentence_and_the_next_run_goes_on(
    proxy: Proxy, digest: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(filesystem._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    faults = Faults()
    proxy.fault = faults
    store = faults.store(lambda method, path: "refused" if KINDS[kind](method, path) else None)
    with pytest.raises(StoreLost, match=r"did not answer as a store does: .* What was committed") as caught:
        check(store, digest)
    assert caught.value.exit_code == 1 and store.url in str(caught.value)
    proxy.fault = lambda method, path: None
    computed, cache = label(store)
    assert cache.digest == digest and verify(cache)["ok"]
    # A shard that was committed before the server was gone is there, and not computed again.
    assert len(computed) == {"PUT of a cache": 0, "GET of a file": 0}.get(kind, 2)


def test_verify_of_shards_that_are_always_cut_ends_in_a_sentence(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(filesystem._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    store = Faults().store(lambda method, path: None)
    label(store)
    good = ["the first shard's footer"]

    def cut(method: str, path: str) -> str | None:
        return None if method != "GET" or "/shards/" not in path or (good and good.pop()) else "cut"

    proxy.fault = cut
    assert main(["verify", f"{store.url}/work"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"StoreLost: {store.url}/shards/") and "Traceback" not in said


def test_a_command_on_a_server_that_refuses_for_good_ends_with_one(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(filesystem._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    store = Faults().store(lambda method, path: None)
    label(store)
    proxy.fault = lambda method, path: "refused"
    for command in (["ls", store.url], ["verify", f"{store.url}/work"], ["gc", store.url]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"StoreLost: {store.url}") and "Traceback" not in said
    proxy.fault = lambda method, path: None
    assert main(["verify", f"{store.url}/work"]) == 0
