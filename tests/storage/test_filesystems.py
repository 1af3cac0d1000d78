"""Failures of a store in words: what a server refused, that it is away, that a disk is full; and no secret in any."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from storage import filesystems
from storage.__main__ import main
from storage.errors import StoreError, StoreFull, StoreLost
from storage.filesystems import in_words, is_contested, is_past_the_end, is_taken, is_url, open_filesystem
from storage.folder import Folder
from storage.recipes import absolute
from tests.servers import KEY, SECRET, free_ports, lead_to
from tests.storage.helpers import commit, files, label

ROOT = Path(__file__).resolve().parents[2]
WRONG = "planted-wrong-secret-77aa"


def s3(code: str, status: int = 400) -> OSError:
    """What s3fs raises: an OSError, from the client's own error."""
    own = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
    error = OSError(errno.EINVAL, "said by the server")
    error.__cause__ = own
    return error


def gcs(code: int) -> Exception:
    """What gcsfs raises."""
    return type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": code})("said by the server")


def azure(status: int) -> Exception:
    """What adlfs lets through: an error of azure.core with a response that is no dict."""
    kind = type("HttpResponseError", (Exception,), {"__module__": "azure.core.exceptions"})
    error = kind("said by the server")
    error.response, error.status = SimpleNamespace(status_code=status), status
    return error


TAKEN = [FileExistsError("there"), s3("PreconditionFailed"), s3("412"), gcs(412), azure(412)]
CONTESTED = [s3("ConditionalRequestConflict"), s3("409"), gcs(409), azure(409)]
PAST = [s3("InvalidRange"), s3("416"), gcs(416), azure(416)]
OTHERS = [OSError("x"), ValueError("x"), s3("SlowDown"), gcs(503), FileNotFoundError("gone"), KeyError(412)]


@pytest.mark.parametrize("error", [*TAKEN, *CONTESTED, *PAST, *OTHERS], ids=repr)
def test_what_a_client_says_of_a_refused_put_is_understood(error: Exception) -> None:
    assert is_taken(error) == (error in TAKEN)
    assert is_contested(error) == (error in CONTESTED)
    assert is_past_the_end(error) == (error in PAST)


# In words, from what a client raises


def spoken(error: Exception) -> Exception:
    with pytest.raises(Exception) as caught, in_words("s3://bucket/store"):
        raise error
    return caught.value


@pytest.mark.parametrize("kind", [FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError])
def test_that_a_file_is_there_or_not_passes_unchanged(kind: type[OSError]) -> None:
    error = kind("x")
    assert spoken(error) is error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("x"), KeyError("x"), KeyboardInterrupt()])
def test_what_is_no_servers_failure_passes_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, in_words("s3://bucket/store"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), PermissionError(errno.EACCES, "Forbidden")])
def test_a_refusal_says_what_was_refused_and_what_to_do(error: Exception) -> None:
    said = spoken(error)
    assert type(said) is StoreError and said.exit_code == 2
    assert str(said).startswith("s3://bucket/store: access was refused: Forbidden.")
    assert "Mend the permissions, or the credentials" in str(said)


def test_missing_credentials_say_so() -> None:
    said = spoken(NoCredentialsError())
    assert type(said) is StoreError
    assert str(said).startswith("s3://bucket/store: there are no credentials: ") and "every machine" in str(said)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so(code: int) -> None:
    said = spoken(OSError(code, os.strerror(code)))
    assert type(said) is StoreFull and said.exit_code == 1
    assert str(said).startswith(f"s3://bucket/store is full: {os.strerror(code)}. What was committed stays.")


@pytest.mark.parametrize(
    "error", [s3("ServiceUnavailable"), s3("500"), gcs(503), azure(500), TimeoutError("x"), ConnectionResetError("x")]
)
def test_a_server_that_is_away_is_lost(error: Exception) -> None:
    said = spoken(error)
    assert type(said) is StoreLost and said.exit_code == 1
    assert str(said).startswith("s3://bucket/store did not answer as a store does: ")
    assert "What was committed stays" in str(said)


def test_a_url_with_a_password_is_shown_without_it() -> None:
    said = spoken(TimeoutError(f"no answer from http://{KEY}:{SECRET}@127.0.0.1/x"))
    assert SECRET not in str(said) and "127.0.0.1" in str(said)


def test_what_the_environment_says_of_the_client_goes_before_what_is_said_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(filesystems.fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 7}, "key": "k"})
    fs, path = open_filesystem("s3://bucket/store")
    assert path == "bucket/store" and fs.config_kwargs["read_timeout"] == 7
    assert fs.config_kwargs["connect_timeout"] == 10 and fs.key == "k"


# In words, from real servers and through the commands

Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """`told("ls", url)`: the exit code and all that the command said, without a traceback or a secret."""

    def run(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(arguments)
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said
        assert SECRET not in said and WRONG not in said
        return code, said

    return run


COMMANDS = (["ls", "{}"], ["verify", "{}/digits"], ["rm", "{}/digits"], ["gc", "{}"])


def each(told: Told, url: str) -> list[tuple[int, str]]:
    return [told(*(part.format(url) for part in command)) for command in COMMANDS]


@pytest.mark.parametrize(
    "wrong",
    [{"AWS_SECRET_ACCESS_KEY": WRONG}, {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": WRONG}],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_refused_in_a_sentence(
    seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch, told: Told, wrong: dict[str, str]
) -> None:
    lead_to(seaweed_endpoint, monkeypatch, **wrong)
    for url in ("s3://bucket/refused", "s3://bucket"):
        for code, said in each(told, url):
            assert code == 2
            assert said.startswith(f"StoreError: {url}") and "access was refused" in said
        with pytest.raises(StoreError, match="access was refused") as caught:
            Folder(url).prepare()
        assert WRONG not in str(caught.value)


def test_no_credentials_at_all_are_told_of_in_a_sentence(
    seaweed_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: Told
) -> None:
    nothing = str(tmp_path / "nothing")
    lead_to(seaweed_endpoint, monkeypatch, AWS_SHARED_CREDENTIALS_FILE=nothing, AWS_CONFIG_FILE=nothing)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for url in ("s3://bucket/nobody", "s3://bucket"):
        for code, said in each(told, url):
            assert code == 2
            assert said.startswith(f"StoreError: {url}") and "there are no credentials: " in said
        with pytest.raises(StoreError, match="no credentials"):
            Folder(url).prepare()


def test_a_bucket_that_is_not_there_is_told_of_in_a_sentence(careless: Folder, told: Told) -> None:
    url = "s3://no-such-bucket/store"
    answers = each(told, url)
    assert [code for code, _ in answers] == [2, 2, 2, 2]
    for _, said in answers:
        assert url in said and ("There is no store at" in said or "is no store" in said)
    with pytest.raises(StoreError, match=r"There is no bucket 'no-such-bucket' for .* Make the bucket, or mend"):
        Folder(url).prepare()


def test_an_endpoint_that_nobody_listens_at_is_lost_in_a_sentence(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setitem(filesystems._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    lead_to(f"http://127.0.0.1:{free_ports(1)[0]}", monkeypatch)
    for url in ("s3://bucket/away", "s3://bucket"):
        for code, said in each(told, url):
            assert code == 1
            assert said.startswith(f"StoreLost: {url}") and "What was committed stays" in said
        with pytest.raises(StoreLost, match="did not answer"):
            Folder(url).prepare()


# A full disk


@pytest.mark.parametrize("where", ["create", "write", "publish"])
def test_a_put_to_a_full_disk_fails_in_a_sentence_and_leaves_nothing_behind(
    local: Folder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    staged = local.stage()
    staged.write_bytes(b"a shard")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    calls: dict[str, Callable[[], Any]] = {
        "create": lambda: local.create("x", b"1"),
        "write": lambda: local.write("x", b"1"),
        "publish": lambda: local.publish(staged, "x"),
    }
    with monkeypatch.context() as patched, pytest.raises(StoreFull, match=r"/x is full: No space left on device"):
        patched.setattr(os, "link" if where == "publish" else "fsync", full)
        calls[where]()
    staged.unlink(missing_ok=True)
    assert files(local) == []
    assert local.create("x", b"1")


ON_A_SMALL_DISK = """
import sys
from storage.errors import StoreFull
from storage.__main__ import main
from storage.folder import Folder
from tests.storage.helpers import commit, files, label

store = Folder(sys.argv[1])
_, cache = label(store)
made = [commit(store, f"{index:064x}", index) for index in range(8)]
filler = open(f"{store.url}/filler", "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
before = files(store)
for full in (lambda: store.write("names/x", b"1"), lambda: store.create("commits/x", b"1"), lambda: label(store)):
    try:
        full()
    except StoreFull as error:
        assert "is full: No space left on device. What was committed stays." in str(error), error
    else:
        raise AssertionError("the disk was to be full")
assert files(store) == before, set(files(store)) ^ set(before)
assert main(["verify", f"{store.url}/work"]) == 0
assert main(["gc", store.url, "--older-than", "0"]) == 0, "gc is what makes room"
assert not any(store.exists(shard.path) for shard in made)
again, same = label(store)
assert not again and same.digest == cache.digest, "what gc made room for goes on"
filler.close()
"""


def test_on_a_disk_that_runs_full_what_was_committed_stays_and_gc_makes_room(tmp_path: Path) -> None:
    """A disk of one megabyte, which only this child and its own see."""
    disk, script = tmp_path / "disk", tmp_path / "small.py"
    disk.mkdir()
    script.write_text(ON_A_SMALL_DISK)
    mount = f"mount -t tmpfs -o size=1m none {disk}"
    command = ["unshare", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*command, mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a disk of its own")
    run = f"{mount} && exec {sys.executable} {script} {disk}"
    done = subprocess.run(
        [*command, run], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "every byte is as it was committed" in done.stdout


def test_a_disk_that_is_full_ends_a_command_with_one(
    local: Folder, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    label(local)
    commit(local, "ab" + "0" * 62, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, said = told("gc", local.url)
    assert code == 1 and said.startswith("StoreFull: ") and "run the same command to go on" in said


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/x", True),
        ("file:///x", True),
        ("nobody-knows+it.1://x", True),
        ("simplecache::s3://bucket/x", True),
        ("/a::b/x", False),
        ("a::b/x", False),
        ("/x/s3://bucket", False),
        ("C/x:y", False),
        ("::", False),
        ("", False),
    ],
)
def test_what_is_a_url_and_what_a_path(text: str, url: bool) -> None:
    assert is_url(text) == url
    assert (absolute(text) == text) == (url or (text.startswith("/") and "//" not in text))
