"""What a store may lose and what never goes: rm forgets, gc removes what nothing needs, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from storage.base.digest import sha256_of
from storage.base.errors import CorruptShard, NoCache, StoreError
from storage.cache.cache import Cache
from storage.cache.catalog import list_caches, verify
from storage.cache.commits import Commit, commit_path, committed_keys, shard_path
from storage.cache.gc import collect, forget
from storage.cache.keys import cache_key
from storage.cache.leases import lease
from storage.cache.open import open_cache
from storage.cache.seal import seal
from storage.objectstore.folder import Folder
from tests.storage.helpers import DAY, KEYS, commit, files, files_of, label, make_old, race

KEY, OTHER = "ab" + "0" * 62, "ab" + "1" * 62
LOST = "0123456789abcdef"


@pytest.fixture
def aged(folder: Folder) -> Callable[[], None]:
    """`aged()`: everything that is in the folder now is ten days old."""
    return lambda: make_old(folder, days=10)


# rm


def test_a_forgotten_cache_is_none_and_has_no_name(folder: Folder) -> None:
    _, cache = label(folder)
    folder.write("names/second", cache.key.encode())
    folder.write("names/foreign", b"0" * 64)
    answer = forget(cache)
    assert answer["names"] == ["second", "work"] and answer["cache_key"] == cache.key
    assert (answer["shards"], answer["bytes"]) == (2, cache.bytes)
    assert folder.names("names") == ["foreign"]
    for form in ("work", "second", f"caches/{cache.key}", f"work@{cache.key[:8]}"):
        with pytest.raises(NoCache):
            open_cache(folder.url_of(form))
    assert list_caches(folder) == ([], [])


def test_a_forgotten_cache_is_sealed_again_without_a_shard_written(folder: Folder) -> None:
    _, cache = label(folder)
    before = [path for path in files(folder) if path.startswith("shards/")]
    forget(cache)
    collect(folder, 7 * DAY, dry_run=False)
    computed, again = label(folder)
    assert computed == set() and again.digest == cache.digest and verify(again)["ok"]
    assert [path for path in files(folder) if path.startswith("shards/")] == before


def test_the_shards_of_a_forgotten_cache_are_spared_as_long_as_young_ones_from_then_on(local: Folder) -> None:
    _, cache = label(local)
    make_old(local)
    forget(cache)
    assert collect(local, 7 * DAY, dry_run=False)["paths"] == []
    assert label(local)[0] == set()
    forget(cache)
    make_old(local, days=8)
    collect(local, 7 * DAY, dry_run=False)
    assert files(local) == []


def test_shards_that_two_caches_share_survive_forgetting_one(folder: Folder, aged: Callable[[], None]) -> None:
    _, both = label(folder)
    one = seal(folder, "one", [both.shards[0]], {})
    forget(both)
    aged()
    collect(folder, 7 * DAY, dry_run=False)
    assert files(folder) == files_of(one)
    assert verify(open_cache(folder.url_of("one")))["ok"]


# gc


def test_a_sealed_cache_and_all_that_it_needs_stays_however_old(folder: Folder, aged: Callable[[], None]) -> None:
    _, cache = label(folder)
    before = files(folder)
    aged()
    assert collect(folder, 0, dry_run=False)["paths"] == []
    assert files(folder) == before == files_of(cache)
    assert verify(open_cache(folder.url_of("work")))["ok"]


def test_a_committed_shard_that_no_cache_lists_goes_when_it_is_old(folder: Folder, aged: Callable[[], None]) -> None:
    made = commit(folder, KEY, 0)
    answer = collect(folder, 7 * DAY, dry_run=False)
    assert answer["paths"] == [] and answer["kept"] == {"young": 1}
    assert files(folder) == sorted([made.path, commit_path(KEY)])
    aged()
    answer = collect(folder, 7 * DAY, dry_run=False)
    assert answer["removed"] == {"commits": 1, "shards": 1}
    assert answer["bytes"] > made.bytes
    assert files(folder) == []


def test_an_attempt_that_lost_goes_when_it_is_old_and_the_winner_stays(
    folder: Folder, aged: Callable[[], None]
) -> None:
    _, cache = label(folder)
    lost = shard_path(KEYS[0], LOST)
    uncommitted = shard_path(KEY, LOST)
    for path in (lost, uncommitted):
        folder.write(path, b"lost")
    answer = collect(folder, 7 * DAY, dry_run=False)
    assert answer["paths"] == [] and answer["kept"] == {"attempts": 2}
    aged()
    answer = collect(folder, 7 * DAY, dry_run=False)
    assert sorted(answer["paths"]) == sorted([lost, uncommitted])
    assert (answer["removed"], answer["bytes"]) == ({"shards": 2}, 8)
    assert files(folder) == files_of(cache)


def test_a_young_commit_keeps_its_shard_however_old_that_is(local: Folder) -> None:
    made = commit(local, KEY, 0)
    lost = shard_path(KEY, LOST)
    local.write(lost, b"lost")
    make_old(local, made.path, lost)
    assert collect(local, 7 * DAY, dry_run=False)["paths"] == [lost]
    assert files(local) == sorted([made.path, commit_path(KEY)])


def test_an_index_without_a_cache_json_keeps_its_shards_while_it_is_young(local: Folder) -> None:
    _, cache = label(local)
    index = f"caches/{cache.key}/index.parquet"
    local.remove(f"caches/{cache.key}/cache.json")
    make_old(local, *(path for path in files(local) if path != index))
    answer = collect(local, 7 * DAY, dry_run=False)
    assert answer["paths"] == [] and answer["kept"] == {"unsealed and young": 1}
    make_old(local, index)
    answer = collect(local, 7 * DAY, dry_run=False)
    assert answer["removed"] == {"unsealed": 1, "commits": 2, "shards": 2}
    assert files(local) == ["names/work"]


def test_an_index_that_cannot_be_read_keeps_nothing_from_being_told(local: Folder) -> None:
    """As a kill in the middle of a put leaves it where there are no hard links."""
    _, cache = label(local)
    index = f"caches/{cache.key}/index.parquet"
    local.remove(f"caches/{cache.key}/cache.json")
    local.write(index, b"PAR1 and no more")
    with pytest.raises(StoreError, match=rf"{index} is no index of shards .* Remove it"):
        collect(local, 7 * DAY, dry_run=False)
    make_old(local)
    collect(local, 7 * DAY, dry_run=False)
    assert files(local) == ["names/work"]


def test_two_caches_that_list_different_files_of_one_key_both_stay_whole(
    folder: Folder, aged: Callable[[], None]
) -> None:
    """A commit was removed, as an error advised, its shard computed anew, and the first file restored from a copy."""
    first, second = commit(folder, KEY, 0), commit(folder, OTHER, 10)
    caches = [seal(folder, "one", [first], {}), seal(folder, "two", [first, second], {})]
    folder.remove(commit_path(KEY))
    anew = commit(folder, KEY, 0)
    assert anew.path != first.path
    # Caches are read in the order of their keys; the last one shall list the new file.
    last = max(cache.key for cache in caches)
    third = next(k for k in (sha256_of(["third", n]) for n in range(999)) if cache_key([KEY, k]) > last)
    caches.append(seal(folder, "three", [anew, commit(folder, third, 20)], {}))
    aged()
    collect(folder, 0, dry_run=False)
    for cache in caches:
        assert verify(open_cache(folder.url_of(cache.name)))["ok"]


def test_a_commit_keeps_its_own_file_where_a_sealed_cache_lists_another_one(
    folder: Folder, aged: Callable[[], None]
) -> None:
    first = commit(folder, KEY, 0)
    cache = seal(folder, "one", [first], {})
    folder.remove(commit_path(KEY))
    anew = commit(folder, KEY, 0)
    lost = shard_path(KEY, LOST)
    folder.write(lost, b"lost")
    aged()
    assert collect(folder, 0, dry_run=False)["paths"] == [lost]
    assert files(folder) == sorted([*files_of(cache), anew.path])


def plain_path(key: str, digit: str = "0") -> str:
    return f"caches/{key}/plain-{digit * 32}.parquet"


def test_the_plain_columns_of_a_cache_stay_with_it_and_go_with_it(local: Folder) -> None:
    _, cache = label(local)
    for digit in "ab":
        local.write(plain_path(cache.key, digit), b"plain")
    make_old(local)
    assert collect(local, 0, dry_run=False)["paths"] == []
    forget(open_cache(local.url_of("work")))
    answer = collect(local, 7 * DAY, dry_run=False)
    assert answer["paths"] == [] and answer["kept"] == {"unsealed and young": 1}
    assert local.names(f"caches/{cache.key}") == ["index.parquet", *(f"plain-{d * 32}.parquet" for d in "ab")]
    make_old(local)
    answer = collect(local, 7 * DAY, dry_run=False)
    assert answer["removed"] == {"unsealed": 1, "plain": 2, "commits": 2, "shards": 2}
    assert answer["bytes"] > cache.bytes + 10
    assert files(local) == []


def test_plain_columns_that_a_cache_left_behind_go_when_they_are_old(folder: Folder, aged: Callable[[], None]) -> None:
    """A gc was stopped after the index, or a reader that had the cache open wrote them later than that."""
    _, cache = label(folder)
    path = plain_path("0" * 64)
    folder.write(path, b"plain")
    assert collect(folder, 7 * DAY, dry_run=False)["paths"] == []
    aged()
    with lease(folder, "work", KEYS):
        assert collect(folder, 7 * DAY, dry_run=False)["removed"] == {"plain": 1}
    assert files(folder) == files_of(cache)


def test_the_plain_columns_of_an_unsealed_cache_stay_while_a_job_may_seal_it(
    folder: Folder, aged: Callable[[], None]
) -> None:
    _, cache = label(folder)
    folder.write(plain_path(cache.key), b"plain")
    forget(cache)
    aged()
    with lease(folder, "work", KEYS):
        assert collect(folder, 7 * DAY, dry_run=False)["kept"]["unsealed, while a job runs"] == 1
    assert folder.exists(plain_path(cache.key))


def test_staged_files_and_probes_of_the_dead_go(local: Folder) -> None:
    label(local)
    staged = local.stage()
    staged.write_bytes(b"half a shard")
    for name in ("probe", "clock"):
        local.write(f"tmp/{name}-{'0' * 32}", b"")
    assert collect(local, 7 * DAY, dry_run=False)["paths"] == []
    make_old(local)
    answer = collect(local, 7 * DAY, dry_run=False)
    assert (answer["removed"], answer["bytes"]) == ({"staged": 3}, 12)
    assert local.names("tmp") == []


def test_what_somebody_stages_who_holds_no_lease_yet_stays_for_ten_minutes(local: Folder) -> None:
    """It may be the lease itself, on its way to its name."""
    label(local)
    staged = local.stage()
    staged.write_bytes(b"a lease")
    assert collect(local, 0, dry_run=False)["paths"] == []
    make_old(local, f"tmp/{staged.name}", days=590 / DAY)
    assert collect(local, 0, dry_run=False)["paths"] == []
    make_old(local, f"tmp/{staged.name}", days=20 / DAY)
    assert collect(local, 0, dry_run=False)["paths"] == [f"tmp/{staged.name}"]


def test_leases_of_the_dead_go(local: Folder) -> None:
    label(local)
    for name in (f"job-{'1' * 32}.json", f"job-{'1' * 32}.keys", f"job-{'2' * 32}.keys", f"sweep-{'3' * 32}.json"):
        local.write(f"jobs/{name}", b"{}")
    make_old(local)
    assert collect(local, 7 * DAY, dry_run=False)["removed"] == {"leases": 4}
    assert local.names("jobs") == []


def test_where_files_have_no_dates_nothing_is_removed(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(local, KEY, 0)
    monkeypatch.setattr("storage.objectstore.listing._modified", lambda info: None)
    with pytest.raises(StoreError, match=r"tells no dates of its files\. What gc spares it spares by age\."):
        collect(local, 0, dry_run=False)
    assert local.names("commits") and local.names("shards")


FOREIGN = [
    "README.txt",
    "notes/x.json",
    "shards/README.txt",
    f"shards/ab/{KEY}.parquet",
    "shards/ab/notes.txt",
    "shards/ab/notes-0123456789abcdef.parquet",
    f"shards/ab/{KEY}-{LOST}.parquet.bak",
    f"shards/ab/{KEY}-../{LOST}.parquet".replace("../", "sub/"),
    f"shards/cd/{KEY}-{LOST}.parquet",
    f"shards/zz/{KEY}-{LOST}.parquet",
    "commits/README.txt",
    "commits/ab/notes.json",
    "commits/ab/notes.txt",
    f"commits/ab/{KEY}.json.bak",
    f"commits/cd/{KEY}.json",
    "caches/README.txt",
    "caches/notes/index.parquet",
    f"caches/{'0' * 64}/notes.txt",
    f"caches/{'0' * 64}/plain-notes.parquet",
    f"caches/{'0' * 64}/plain-{'0' * 32}.parquet.bak",
    f"caches/notes/plain-{'0' * 32}.parquet",
    "names/digits",
    "tmp/notes.txt",
    "tmp/probe.txt",
    "jobs/notes.txt",
    "jobs/job-notes.json",
]


def test_files_that_are_not_ours_stay_whatever_their_age(folder: Folder, aged: Callable[[], None]) -> None:
    commit(folder, KEY, 0)
    for path in FOREIGN:
        folder.write(path, b"not ours")
    aged()
    collect(folder, 0, dry_run=True)
    answer = collect(folder, 0, dry_run=False)
    assert answer["removed"] == {"commits": 1, "shards": 1}
    assert files(folder) == sorted(FOREIGN)


def test_files_that_are_not_ours_keep_nothing(folder: Folder) -> None:
    """Nor do they stand in the way: whoever made them, gc does its work around them."""
    commit(folder, KEY, 0)
    for path in FOREIGN:
        folder.write(path, b"not ours")
    assert collect(folder, 7 * DAY, dry_run=False)["kept"] == {"young": 1}


def test_a_dry_run_removes_nothing_and_lists_what_a_real_run_then_removes(
    folder: Folder, aged: Callable[[], None]
) -> None:
    _, cache = label(folder)
    commit(folder, KEY, 0)
    folder.write(shard_path(KEYS[1], LOST), b"lost")
    folder.write(f"tmp/probe-{'0' * 32}", b"")
    folder.write(f"jobs/job-{'1' * 32}.keys", b"")
    folder.write(f"caches/{'0' * 64}/index.parquet", b"")
    aged()
    before = files(folder)
    dry = collect(folder, 7 * DAY, dry_run=True)
    assert files(folder) == before
    real = collect(folder, 7 * DAY, dry_run=False)
    assert {**dry, "dry_run": False} == real
    assert real["removed"] == {"unsealed": 1, "commits": 1, "shards": 2, "staged": 1, "leases": 1}
    assert sorted(set(before) - set(files(folder))) == sorted(dry["paths"])
    assert files(folder) == files_of(cache)


@pytest.mark.parametrize("junk", [b"", b"{", b"{}", b"\xff"])
def test_a_damaged_cache_json_stops_gc_rather_than_freeing_its_shards(
    folder: Folder, aged: Callable[[], None], junk: bytes
) -> None:
    _, cache = label(folder)
    folder.write(f"caches/{cache.key}/cache.json", junk)
    before = files(folder)
    aged()
    with pytest.raises(StoreError, match=rf"needs cannot be told: .*{cache.key}/cache\.json is not the cache\.json"):
        collect(folder, 0, dry_run=False)
    assert files(folder) == before


def test_a_damaged_index_of_a_sealed_cache_stops_gc_too(folder: Folder, aged: Callable[[], None]) -> None:
    _, cache = label(folder)
    folder.write(f"caches/{cache.key}/index.parquet", b"damaged")
    before = files(folder)
    aged()
    with pytest.raises(CorruptShard, match=r"index\.parquet has the sha256"):
        collect(folder, 0, dry_run=False)
    assert files(folder) == before


def test_a_cache_of_a_later_version_stops_gc_too(folder: Folder, aged: Callable[[], None]) -> None:
    _, cache = label(folder)
    path = f"caches/{cache.key}/cache.json"
    folder.write(path, folder.read(path).replace(b'"format_version": 1', b'"format_version": 2'))
    before = files(folder)
    aged()
    with pytest.raises(StoreError, match="has the format version 2"):
        collect(folder, 0, dry_run=False)
    assert files(folder) == before


def test_a_folder_that_is_no_store_is_refused(folder: Folder) -> None:
    for path in ("notes.txt", "tmp/probe-0", "jobs/job-0.json"):
        folder.write(path, b"")
    before = files(folder)
    with pytest.raises(StoreError, match="is no store: it has neither commits nor caches"):
        collect(folder, 0, dry_run=False)
    assert files(folder) == before


def test_gc_that_runs_many_times_at_once_does_no_harm(folder: Folder, aged: Callable[[], None]) -> None:
    _, cache = label(folder)
    for index in range(8):
        commit(folder, sha256_of(["old", index]), index)
    aged()
    answers = race(4, lambda _: collect(folder, 0, dry_run=False))
    assert [answer for answer in answers if not isinstance(answer, dict)] == []
    collect(folder, 0, dry_run=False)
    assert files(folder) == files_of(cache)


def test_a_commit_that_another_gc_took_first_is_no_failure(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A young commit is read for the file that it keeps; in between it went, by a gc that spared less."""
    commit(folder, KEY, 0)
    really = Folder.entries

    def entries(self: Folder, path: str) -> Any:
        found = really(self, path)
        if path.startswith("shards/"):
            self.remove(commit_path(KEY))
        return found

    monkeypatch.setattr(Folder, "entries", entries)
    assert collect(folder, 7 * DAY, dry_run=False)["paths"] == []


# A random history


@dataclass
class Model:
    """What a store holds, in a few sets; and what of it gc must leave."""

    age: dict[str, float] = field(default_factory=dict)  # every file that counts, in days
    committed: dict[str, Commit] = field(default_factory=dict)
    sealed: dict[str, Cache] = field(default_factory=dict)
    forgotten: dict[str, Cache] = field(default_factory=dict)
    leased: set[str] = field(default_factory=set)

    def needed(self, days: float) -> set[str]:
        young = {path for path, age in self.age.items() if age < days}
        recent = [c for key, c in self.forgotten.items() if f"caches/{key}/index.parquet" in young]
        kept = {f"caches/{key}/{name}" for key in self.sealed for name in ("cache.json", "index.parquet")}
        kept |= {f"caches/{cache.key}/index.parquet" for cache in recent}
        listed = {shard.shard_key for cache in [*self.sealed.values(), *recent] for shard in cache.shards}
        for key, won in self.committed.items():
            if key in listed | self.leased or commit_path(key) in young:
                kept |= {won.path, commit_path(key)}
        in_use = {path for path in self.age if path.startswith("shards/") and path[10:74] in self.leased}
        return kept | in_use | {path for path in young if path.startswith(("shards/", "tmp/")) or "/plain-" in path}


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_what_is_needed_is_there_and_all_else_that_is_old_is_gone(
    local: Folder, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice, model = random.Random(seed), Model()
    keys = [sha256_of(["history", index]) for index in range(6)]
    for _ in range(60):
        what = dice.choice(["commit", "commit", "attempt", "staged", "seal", "read", "forget", "days", "lease", "gc"])
        key = dice.choice(keys)
        if what == "commit" and key not in model.committed:
            model.committed[key] = commit(local, key, keys.index(key))
            model.age |= {model.committed[key].path: 0.0, commit_path(key): 0.0}
        elif what == "attempt":
            path = shard_path(key, f"{dice.getrandbits(64):016x}")
            local.write(path, b"lost")
            model.age[path] = 0.0
        elif what == "staged":
            path = f"tmp/probe-{dice.getrandbits(128):032x}"
            local.write(path, b"")
            model.age[path] = 0.0
        elif what == "seal" and model.committed:
            some = dice.sample(sorted(model.committed), dice.randint(1, len(model.committed)))
            cache = seal(local, f"name{dice.randrange(3)}", [model.committed[k] for k in some], {})
            for name in ("index.parquet", "cache.json"):
                model.age.setdefault(f"caches/{cache.key}/{name}", 0.0)
            model.sealed[cache.key] = cache
            model.forgotten.pop(cache.key, None)
        elif what == "forget" and model.sealed:
            cache = model.sealed.pop(dice.choice(sorted(model.sealed)))
            forget(cache)
            del model.age[f"caches/{cache.key}/cache.json"]
            model.age[f"caches/{cache.key}/index.parquet"] = 0.0
            model.forgotten[cache.key] = cache
        elif what == "read" and model.sealed:
            path = plain_path(dice.choice(sorted(model.sealed)))
            local.write(path, b"plain")
            model.age[path] = 0.0
        elif what == "days":
            days = dice.choice([1, 3, 8])
            make_old(local, days=days)
            model.age = {path: age + days for path, age in model.age.items()}
        elif what == "lease":
            model.leased = set(dice.sample(keys, dice.randint(0, 3)))
        elif what == "gc":
            days = dice.choice([0, 2, 7])
            with lease(local, "history", model.leased) if model.leased else nullcontext():
                needed = model.needed(days)
                # While a job runs, what it may have staged stays for a day, and an index that it may seal.
                spared = max(days, 1 if model.leased else 600 / DAY)
                needed |= {path for path, age in model.age.items() if path.startswith("tmp/") and age < spared}
                if model.leased:
                    needed |= {p for p in model.age if p.endswith("/index.parquet")}
                needed |= {p for p in model.age if "/plain-" in p and f"{p.rpartition('/')[0]}/index.parquet" in needed}
                if local.exists("commits") or local.exists("shards") or local.exists("caches"):
                    collect(local, days * DAY, dry_run=False)
                    found = {path for path in files(local) if not path.startswith(("names/", "jobs/"))}
                    assert found == needed
            model.age = {path: age for path, age in model.age.items() if path in needed}
            model.committed = {key: won for key, won in model.committed.items() if commit_path(key) in needed}
            for cache in model.sealed.values():
                assert verify(open_cache(local.url_of(f"caches/{cache.key}")))["ok"]
    assert committed_keys(local, keys) == set(model.committed)
