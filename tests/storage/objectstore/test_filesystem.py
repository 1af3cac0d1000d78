"""Failures of a store in words: what a server refused, that it is away, that a disk is full; and no secret in any."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)
from fsspec.implementations.memory import MemoryFileSystem

from jobs.models.weights import load_weights
from storage.__main__ import main
from storage.base.digest import sha256_file
from storage.base.errors import StoreError, StoreFull, StoreLost
from storage.objectstore import filesystem
from storage.objectstore.client_errors import in_words, is_contested, is_past_the_end, is_taken
from storage.objectstore.filesystem import is_url, open_filesystem
from storage.objectstore.folder import Folder, open_url
from storage.objectstore.location import absolute
from storage.objectstore.preparation import prepare_folder
from storage.sources.packing.tokenizer import TokenizerFile
from tests.servers import KEY, SECRET, free_ports, lead_to
from tests.storage.helpers import commit, files, label

ROOT = Path(__file__).resolve().parents[3]
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
    monkeypatch.setitem(filesystem.fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 7}, "key": "k"})
    fs, path = open_filesystem("s3://bucket/store")
    assert path == "bucket/store" and fs.config_kwargs["read_timeout"] == 7
    assert fs.config_kwargs["connect_timeout"] == 10 and fs.key == "k"


# Reads and seeks after a file was opened

LOST = [
    ConnectionResetError(errno.ECONNRESET, "reset by peer"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
    TimeoutError("read timed out"),
    ssl.SSLEOFError("EOF occurred in violation of protocol"),
    aiohttp.ClientPayloadError("Response payload is not completed"),
    ReadTimeoutError(endpoint_url="http://bucket", error="read timed out"),
    IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ResponseStreamingError(error="broken"),
]


class Dropping(io.BytesIO):
    """A file whose reads fail after so many bytes."""

    def __init__(self, data: bytes, good: int, error: Exception) -> None:
        super().__init__(data)
        self._good, self._error = good, error

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._count(len(data))
        return data

    def readinto(self, into: Any, /) -> int:
        count = super().readinto(into)
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        self._good -= count
        if self._good < 0:
            raise self._error


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """`dropping(good, error)`: from now on files in memory fail after so many bytes."""

    def drop(good: int, error: Exception) -> None:
        def opened(self: Any, path: str, *_: Any, **__: Any) -> Any:
            return Dropping(self.store[self._strip_protocol(path)].getvalue(), good, error)

        monkeypatch.setattr(MemoryFileSystem, "_open", opened)

    return drop


@pytest.fixture
def memory() -> Folder:
    return Folder(f"memory://{uuid.uuid4().hex}")


def parquet(rows: int = 20_000) -> bytes:
    sink = pa.BufferOutputStream()
    numbers = {name: list(range(rows)) for name in "abcd"}
    pq.write_table(pa.table(numbers), sink, compression="none", use_dictionary=False, row_group_size=rows // 5)
    return sink.getvalue().to_pybytes()


READERS: dict[str, Callable[[str], Any]] = {
    "weights": lambda url: load_weights(None, url),
    "tokenizer": TokenizerFile.read,
    "digest": lambda url: sha256_file(open_url(url)),
    "seek": lambda url: open_url(url).seek(1),
}


# Every way of losing one for one reader, and every reader for one way.
@pytest.mark.parametrize(
    "reader, error",
    [*(("digest", error) for error in LOST), *((reader, LOST[0]) for reader in READERS if reader != "digest")],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_connection_that_is_lost_while_a_file_is_read_is_a_sentence(
    memory: Folder, dropping: Any, monkeypatch: pytest.MonkeyPatch, reader: str, error: Exception
) -> None:
    def fail(self: Any, *_: Any) -> int:
        raise error

    memory.write("a", bytes(5000))
    dropping(4000, error)
    monkeypatch.setattr(Dropping, "seek", fail)
    with pytest.raises(StoreLost, match=r"/a did not answer as a store does: .* What was committed stays") as caught:
        READERS[reader](memory.url_of("a"))
    assert caught.value.exit_code == 1 and caught.value.__cause__ is error


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_connection_that_is_lost_below_pyarrow_is_the_same_sentence(
    memory: Folder, dropping: Any, error: Exception
) -> None:
    data = parquet()
    memory.write("a.parquet", data)
    for good in (0, 100, len(data) // 2):
        dropping(good, error)
        for threads, pre_buffer in itertools.product((True, False), repeat=2):
            with pytest.raises(StoreLost, match="did not answer"), memory.open("a.parquet") as file:
                pq.ParquetFile(file, pre_buffer=pre_buffer).read(use_threads=threads)


def test_an_opened_file_reads_and_seeks_as_any_other(folder: Folder) -> None:
    data = parquet()
    folder.write("a.parquet", data)
    with folder.open("a.parquet") as file:
        assert file.read(4) == b"PAR1" and file.tell() == 4
        into = bytearray(4)
        assert file.seek(-4, os.SEEK_END) == len(data) - 4 and file.readinto(into) == 4 and into == b"PAR1"
        assert file.read(1) == b"" and file.seek(0) == 0 and file.read() == data
        assert file.seek(0) == 0 and file.readall() == data and file.readable() and file.seekable()
        for threads, pre_buffer in itertools.product((True, False), repeat=2):
            table = pq.ParquetFile(file, pre_buffer=pre_buffer).read(use_threads=threads)
            assert table.column("d").to_pylist() == list(range(20_000))
    assert file.closed
    with pytest.raises(FileNotFoundError):
        folder.open("b.parquet")


def test_verify_ends_with_one_where_a_shard_is_lost_in_the_middle(
    memory: Folder, dropping: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    label(memory)
    dropping(100, LOST[4])
    assert main(["verify", memory.url_of("work")]) == 1
    assert capsys.readouterr().err.startswith("StoreLost: ")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, StoreError), (403, StoreError), (404, FileNotFoundError), (410, FileNotFoundError)]
)
def test_http_says_of_every_failure_that_a_file_is_not_there(status: int, kind: type[Exception]) -> None:
    url: Any = SimpleNamespace(real_url="http://host/a")
    error = FileNotFoundError("http://host/a")
    error.__cause__ = aiohttp.ClientResponseError(url, (), status=status, message="said by the server")
    assert type(spoken(error)) is kind
    error.__cause__ = aiohttp.ServerDisconnectedError()
    assert type(spoken(error)) is StoreLost
    error.__cause__ = KeyError("x")
    assert spoken(error) is error


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
            prepare_folder(Folder(url))
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
            prepare_folder(Folder(url))


def test_a_bucket_that_is_not_there_is_told_of_in_a_sentence(careless: Folder, told: Told) -> None:
    url = "s3://no-such-bucket/store"
    answers = each(told, url)
    assert [code for code, _ in answers] == [2, 2, 2, 2]
    for _, said in answers:
        assert url in said and ("There is no store at" in said or "is no store" in said)
    with pytest.raises(StoreError, match=r"There is no bucket 'no-such-bucket' for .* Make the bucket, or mend"):
        prepare_folder(Folder(url))


def test_an_endpoint_that_nobody_listens_at_is_lost_in_a_sentence(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setitem(filesystem._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    lead_to(f"http://127.0.0.1:{free_ports(1)[0]}", monkeypatch)
    for url in ("s3://bucket/away", "s3://bucket"):
        for code, said in each(told, url):
            assert code == 1
            assert said.startswith(f"StoreLost: {url}") and "What was committed stays" in said
        with pytest.raises(StoreLost, match="did not answer"):
            prepare_folder(Folder(url))


# URLs and settings that cannot be used

WRONG_SETTINGS = [
    ParamValidationError(report='Invalid bucket name "b d!"'),
    ProfileNotFound(profile="nowhere"),
    aiohttp.InvalidURL("http://"),
]


@pytest.mark.parametrize("error", WRONG_SETTINGS, ids=lambda error: type(error).__name__)
def test_what_no_server_was_asked_is_not_lost(error: Exception) -> None:
    said = spoken(error)
    assert type(said) is StoreError and str(said).startswith("'s3://bucket/store' cannot be used: ")


@pytest.mark.parametrize("command", ["ls", "show", "verify", "rm", "gc"])
@pytest.mark.parametrize("url", ["http://", "http://[::1", "s3://b d!/x", "s3://", "zip://a::README.md", "foo://x"])
def test_a_url_that_cannot_be_used_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, told: Told, command: str, url: str
) -> None:
    lead_to("nonsense" if url == "s3://" else "http://127.0.0.1:9", monkeypatch)
    code, said = told(command, url if command in ("ls", "gc") else f"{url}/work")
    assert code == 2 and said.startswith(("StoreError: ", "NoCache: ")) and said.count("\n") == 1
    with pytest.raises(StoreError):
        store = Folder(url)
        store.names("commits")


def test_a_local_folder_that_may_not_be_looked_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **settings: Any) -> Any:
        if str(path).startswith(f"{tmp_path}/locked/"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *arguments, **settings)

    (tmp_path / "locked").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert not Folder(str(tmp_path)).exists("link") and not Folder(str(tmp_path)).exists("link/x")
    monkeypatch.setattr(os, "stat", refuse)
    for url in (f"{tmp_path}/locked", f"{tmp_path}/locked/x"):
        code, said = told("ls", url)
        assert code == 2 and said.startswith(f"StoreError: {url}") and "access was refused: Permission denied" in said


def test_a_file_system_that_cannot_connect_when_it_is_made_is_lost(told: Told) -> None:
    code, said = told("ls", f"ftp://127.0.0.1:{free_ports(1)[0]}/x")
    assert code == 1 and said.startswith("StoreLost: ftp://127.0.0.1")


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
from storage.base.errors import StoreFull
from storage.__main__ import main
from storage.objectstore.folder import Folder
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
