"""python -m storage: what its commands answer in words and in JSON, and the exit codes that they end with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.__main__ import main
from storage.cache.cache import Cache
from storage.cache.catalog import verify
from storage.cache.commits import Commit, Quarantined, commit_path
from storage.cache.leases import lease
from storage.cache.seal import seal
from storage.objectstore.folder import Folder
from tests.storage.helpers import files, files_of, make_old

ROOT = Path(__file__).resolve().parents[2]
KEY = "ab" + "0" * 62
Run = Callable[..., tuple[int, Any, str]]

LINEAGE = {
    "teacher": {"factory": "toys:teacher", "arguments": {}, "dtype": "float32", "digest": "teacher", "weights": "none"},
    "source": {"function": "toys:rows"},
    "software": {"stillhouse": "0"},
    "sealed_at": "today",
}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("ls", url)`: exit code, what stdout held (read, where it is JSON), and what was said on stderr."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if "--json" in arguments and out else out, err

    return call


@pytest.fixture
def sealed(folder: Folder, put_shard: Callable[..., Commit]) -> Cache:
    """A cache of two shards and seven samples, besides two that were quarantined."""
    first, second = put_shard(folder, 4), put_shard(folder, 3, 10)
    holes = (Quarantined("s7", "logits are NaN"), Quarantined("s9", "logits are infinite"))
    return seal(folder, "digits", [first, replace(second, quarantined=holes)], LINEAGE)


def test_ls_shows_how_many_samples_were_quarantined(sealed: Cache, run: Run) -> None:
    code, out, _ = run("ls", sealed.store.url)
    assert code == 0
    header, row = out.splitlines()
    assert header.split()[-1] == "quarantined" and row.split()[0] == f"digits@{sealed.key[:8]}"
    assert row.split()[-1] == "2"
    code, answer, _ = run("ls", sealed.store.url, "--json")
    assert (code, [row["quarantined"] for row in answer["caches"]]) == (0, [2])


def test_show_of_a_store_lists_its_caches_as_ls_does(sealed: Cache, put_shard: Any, run: Run) -> None:
    seal(sealed.store, "more", [put_shard(sealed.store, 2, 70)], LINEAGE)
    for url in (sealed.store.url, f"{sealed.store.url}/"):
        for options in ([], ["--json"]):
            assert run("show", url, *options) == run("ls", url, *options)
    assert [row["name"] for row in run("show", sealed.store.url, "--json")[1]["caches"]] == ["digits", "more"]


def test_show_of_a_store_without_caches_says_so(folder: Folder, put_shard: Any, run: Run) -> None:
    put_shard(folder, 2)
    assert run("show", folder.url) == (0, "no sealed cache yet\n", "")
    assert run("show", folder.url, "--json") == (0, {"caches": [], "problems": []}, "")


def test_show_of_a_store_with_a_damaged_cache_exits_as_ls_does(sealed: Cache, run: Run) -> None:
    sealed.store.write(f"caches/{sealed.key}/index.parquet", b"damaged")
    code, answer, err = run("show", sealed.store.url, "--json")
    assert code == 3 and answer["caches"] == [] and "index.parquet has the sha256" in err
    assert run("ls", sealed.store.url, "--json") == (code, answer, err)


@pytest.mark.parametrize("command", ["show", "verify", "rm"])
def test_a_folder_that_is_no_store_says_so(folder: Folder, run: Run, command: str) -> None:
    folder.write("notes.txt", b"no store")
    for url in (folder.url, folder.url_of("notes.txt")):
        code, out, err = run(command, url)
        assert (code, out) == (2, "") and err.startswith(f"NoCache: {url} is no cache, and no store: ")


def test_commands_for_one_cache_name_the_caches_of_a_store(sealed: Cache, run: Run) -> None:
    for command in (["verify"], ["rm"], ["derive", "--to=topk:k=2"]):
        code, out, err = run(command[0], sealed.store.url, *command[1:])
        assert (code, out) == (2, "")
        assert err.startswith(
            f"NoCache: {sealed.store.url} is a store, not a cache. Its caches are: digits. A cache is"
        )


def test_show_names_each_quarantined_sample_and_says_why(sealed: Cache, run: Run) -> None:
    code, out, _ = run("show", f"{sealed.store.url}/digits")
    assert code == 0
    assert "7 in 2 shards" in out and "; 2 quarantined" in out
    assert "  quarantined s7: logits are NaN\n  quarantined s9: logits are infinite\n" in out
    code, answer, _ = run("show", f"{sealed.store.url}/digits", "--json")
    assert answer["quarantined"] == 2
    assert answer["quarantined_samples"] == [
        {"sample_id": "s7", "reason": "logits are NaN"},
        {"sample_id": "s9", "reason": "logits are infinite"},
    ]


def test_rm_forgets_a_cache_and_says_what_stays(sealed: Cache, run: Run) -> None:
    store = sealed.store
    code, out, _ = run("rm", f"{store.url}/digits")
    assert code == 0
    assert out.startswith(f"forgot digits@{sealed.key[:8]} (it had digits). Its 2 shards, ")
    assert "stay" in out and "gc" in out
    code, out, err = run("rm", f"{store.url}/digits")
    assert (code, out) == (2, "") and err.startswith("NoCache: ") and "no cache named 'digits'" in err
    code, out, _ = run("ls", store.url)
    assert (code, out) == (0, "no sealed cache yet\n")
    assert all(store.exists(shard.path) for shard in sealed.shards)


def test_rm_of_a_cache_by_its_key_tells_of_all_its_names_in_json(sealed: Cache, run: Run) -> None:
    seal(sealed.store, "second", sealed.shards, LINEAGE)
    code, answer, _ = run("rm", f"{sealed.store.url}/caches/{sealed.key}", "--json")
    assert code == 0
    assert answer == {
        "cache_key": sealed.key,
        "names": ["digits", "second"],
        "shards": 2,
        "bytes": sum(shard.bytes for shard in sealed.shards),
    }


def test_gc_says_what_it_removed_and_what_it_kept_and_why(sealed: Cache, put_shard: Any, run: Run) -> None:
    store = sealed.store
    made = put_shard(store, 2, 50)
    code, out, _ = run("gc", store.url)
    assert (code, out) == (0, "removed nothing; 0.00 MB\nkept 1 young\n")
    code, out, _ = run("gc", store.url, "--older-than", "0", "--dry-run")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("would remove 1 commits, 1 shards; 0.0")
    assert lines[1:] == [commit_path(made.shard_key), made.path]
    assert store.exists(made.path)
    code, answer, _ = run("gc", store.url, "--older-than", "0s", "--json")
    assert code == 0
    assert answer["removed"] == {"commits": 1, "shards": 1} and answer["dry_run"] is False
    assert answer["paths"] == lines[1:] and answer["bytes"] > made.bytes and answer["jobs"] == []
    assert files(store) == files_of(sealed)


def test_gc_tells_of_the_jobs_that_are_running(sealed: Cache, run: Run) -> None:
    with lease(sealed.store, "tokens", [KEY]):
        code, out, _ = run("gc", sealed.store.url)
    assert code == 0 and "\nrunning: 'tokens' on " in out


@pytest.mark.parametrize(
    ("age", "days"), [("90", 0.002), ("90s", 0.002), ("30m", 0.03), ("12h", 0.6), ("1.5d", 1.6), ("7d", 8)]
)
def test_older_than_is_written_in_seconds_minutes_hours_or_days(
    local: Folder, put_shard: Any, run: Run, age: str, days: float
) -> None:
    put_shard(local, 2)
    make_old(local, days=days / 3)
    assert run("gc", local.url, "--older-than", age, "--json")[1]["removed"] == {}
    make_old(local, days=days * 2 / 3)
    assert run("gc", local.url, "--older-than", age, "--json")[1]["removed"] == {"commits": 1, "shards": 1}


def test_gc_spares_what_is_younger_than_a_week_unless_told(local: Folder, put_shard: Any, run: Run) -> None:
    put_shard(local, 2)
    make_old(local, days=6.9)
    assert run("gc", local.url, "--json")[1]["removed"] == {}
    make_old(local, days=0.2)
    assert run("gc", local.url, "--json")[1]["removed"] == {"commits": 1, "shards": 1}


@pytest.mark.parametrize("age", ["", "soon", "-5d", "7 d", "7w", "1e3", "d", "7dd", "٣d x", "inf", "nan"])
def test_another_form_of_older_than_is_refused_before_anything_is_removed(
    local: Folder, put_shard: Any, capsys: pytest.CaptureFixture[str], age: str
) -> None:
    put_shard(local, 2)
    before = files(local)
    with pytest.raises(SystemExit) as ended:
        main(["gc", local.url, f"--older-than={age}"])
    assert ended.value.code == 2
    assert f"'{age}' is no time; it is written like 90s, 30m, 12h or 7d" in capsys.readouterr().err
    assert files(local) == before


@pytest.mark.parametrize("there", [True, False])
def test_gc_of_what_is_no_store_is_refused(tmp_path: Path, run: Run, there: bool) -> None:
    if there:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "notes.txt").write_text("not a store")
    code, out, err = run("gc", f"{tmp_path}/store", "--older-than", "0")
    assert (code, out) == (2, "") and err.startswith("StoreError: ") and "is no store" in err
    assert (tmp_path / "store").exists() == there
    assert [path.name for path in tmp_path.rglob("*")] == (["store", "notes.txt"] if there else [])


def test_gc_of_a_store_with_a_damaged_cache_removes_nothing(sealed: Cache, run: Run) -> None:
    store = sealed.store
    store.write(f"caches/{sealed.key}/cache.json", b"{}")
    before = files(store)
    code, out, err = run("gc", store.url, "--older-than", "0")
    assert (code, out) == (2, "") and "needs cannot be told" in err
    store.write(f"caches/{sealed.key}/cache.json", b"")
    assert files(store) == before


def test_a_command_without_its_operand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["gc"], ["rm"], ["sweep", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
    assert "python -m storage" in capsys.readouterr().err


def test_the_commands_run_as_a_program(local: Folder, put_shard: Any) -> None:
    cache = seal(local, "digits", [put_shard(local, 4)], LINEAGE)
    command = [sys.executable, "-m", "storage", "gc", local.url, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["paths"] == []
    assert verify(cache)["ok"]
