"""Sealing, naming, opening and verifying caches, and every way in which one may be damaged."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.digest import sha256_of
from storage.base.errors import CorruptShard, NoCache, RecipeError, StillhouseError, VerificationError
from storage.cache.cache import Cache, read_cache
from storage.cache.catalog import list_caches, verify
from storage.cache.checked_reads import read_checked, read_footer
from storage.cache.commits import Commit
from storage.cache.index import Index, index_of
from storage.cache.keys import cache_digest, cache_key
from storage.cache.open import open_cache
from storage.cache.seal import seal
from storage.format.sections import ByteRange, RowGroup
from storage.objectstore.folder import Folder

Make = Callable[..., Any]


def commit(key: str, rows: int, sha256: str = "ee" * 32, attempt: str = "a1") -> Commit:
    group, footer = RowGroup(4, 9, rows, "00", 4, "00", 5, "00", "00"), ByteRange(9, 12, 0, "00")
    return Commit(key, attempt, f"shards/{key[:2]}/{key}-{attempt}.parquet", 9, sha256, rows, (group,), footer)


def digest_of(shards: Sequence[Commit]) -> str:
    return cache_digest(index_of(shards))


# Keys and digests


def test_keys_and_digests_never_change() -> None:
    assert cache_key(["aa", "bb"]) == "ef06a380ce23da4ef1c23ccd5c7d8b8816085cb0b3f983e61d35a4743e1dfbc3"
    assert (
        digest_of([commit("aa", 3), commit("bb", 4, "dd" * 32)])
        == "9c8217aafd07ca260d99a69d88a187c37b6941c2610a165a2234ae39c09e2a00"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
def test_keys_and_digests_are_of_one_canonical_json_however_it_is_made(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("storage.cache.keys._AT_ONCE", 3)
    shards = [commit(f"k{index}", index, f"{index:064x}") for index in range(count)]
    keys = [shard.shard_key for shard in shards]
    assert cache_key(keys) == sha256_of({"format_version": 1, "shards": keys})
    assert digest_of(shards) == sha256_of([1, [[s.shard_key, s.sha256, s.rows] for s in shards]])


def test_the_key_depends_on_the_shards_and_their_order_only() -> None:
    keys = {cache_key(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["a", "b", "b"], ["ab"], [])}
    assert len(keys) == 6
    assert cache_key(("a", "b")) == cache_key(["a", "b"])


def test_the_digest_depends_on_bytes_rows_keys_and_order() -> None:
    a, b = commit("aa", 3), commit("bb", 4)
    lists = [
        [a, b],
        [b, a],
        [a],
        [replace(a, sha256="00" * 32), b],
        [replace(a, rows=2), b],
        [replace(a, shard_key="ac"), b],
    ]
    assert len({digest_of(shards) for shards in lists}) == len(lists)


def test_the_digest_does_not_depend_on_attempts_paths_or_ranges() -> None:
    a = commit("aa", 3)
    again = replace(a, attempt="z", path="elsewhere", bytes=1, row_groups=(), footer=ByteRange(0, 0, 0, ""))
    assert digest_of([again]) == digest_of([a])


def test_the_digest_does_not_depend_on_name_lineage_or_store(tmp_path: Path, put_shard: Make) -> None:
    digests: set[tuple[str, str]] = set()
    for number in range(2):
        store = Folder(str(tmp_path / str(number)))
        cache = seal(store, f"name{number}", [put_shard(store, 4)], {"by": number})
        digests.add((cache.key, cache.digest))
    assert len(digests) == 1


# Sealing


def test_a_sealed_cache_says_what_it_is(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder, (4, 3))
    assert cache.facts() == {
        "name": "digits",
        "url": folder.url_of(f"caches/{cache.key}"),
        "cache_key": cache_key([shard.shard_key for shard in cache.shards]),
        "cache_digest": digest_of(cache.shards),
        "encoding": {"encoding": "dense", "dtype": "float16", "temperature": 1.0},
        "classes": 5,
        "shards": 2,
        "samples": 7,
        "positions": 7,
        "bytes": sum(len(folder.read(shard.path)) for shard in cache.shards),
        "quarantined": 0,
        "inputs": ["x", "n"],
        "labelled": True,
        "lineage": {"by": "a test"},
    }
    assert cache.label == f"digits@{cache.key[:8]}"
    assert [shard.rows for shard in cache.shards] == [4, 3]
    assert folder.names("caches") == [cache.key]
    assert folder.names(f"caches/{cache.key}") == ["cache.json", "index.parquet"]
    assert folder.names("tmp") == []


def test_sealing_twice_changes_nothing_and_keeps_the_first_lineage(folder: Folder, put_shard: Make) -> None:
    shards = [put_shard(folder, 4), put_shard(folder, 3, 4)]
    first = seal(folder, "digits", shards, {"by": "the first"})
    before = [folder.read(f"caches/{first.key}/{name}") for name in ("cache.json", "index.parquet")]
    again = seal(folder, "digits", shards, {"by": "the second"})
    assert again == replace(first, store=again.store)
    assert again.lineage == {"by": "the first"}
    assert [folder.read(f"caches/{first.key}/{name}") for name in ("cache.json", "index.parquet")] == before


def test_of_two_that_seal_at_once_the_first_is_kept(
    folder: Folder, put_shard: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [put_shard(folder, 4)]
    first = seal(folder, "digits", shards, {"by": "the first"})
    before = folder.read(f"caches/{first.key}/cache.json")
    # The second one looked before the first one had finished.
    monkeypatch.setattr(folder, "exists", lambda path: False)
    assert seal(folder, "digits", shards, {"by": "the second"}).lineage == {"by": "the first"}
    assert folder.read(f"caches/{first.key}/cache.json") == before


def test_the_same_shards_under_another_name_are_the_same_cache(folder: Folder, put_shard: Make) -> None:
    shards = [put_shard(folder, 4)]
    first, second = seal(folder, "one", shards, {}), seal(folder, "two", shards, {})
    assert first.digest == second.digest
    assert folder.names("caches") == [first.key]
    assert [(row["name"], row["cache_key"]) for row in list_caches(folder)[0]] == [
        ("one", first.key),
        ("two", first.key),
    ]


def test_the_order_of_shards_is_part_of_a_cache(folder: Folder, put_shard: Make) -> None:
    a, b = put_shard(folder, 4), put_shard(folder, 3, 4)
    one, other = seal(folder, "one", [a, b], {}), seal(folder, "other", [b, a], {})
    assert (one.shards, other.shards) == ((a, b), (b, a))
    assert one.key != other.key and one.digest != other.digest


@pytest.mark.parametrize("stop", ["caches/", "names/"])
def test_a_seal_that_died_is_finished_by_the_next(
    folder: Folder, put_shard: Make, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    shards = [put_shard(folder, 4), put_shard(folder, 3, 4)]
    really_create, really_write = folder.create, folder.write

    def create(path: str, data: bytes) -> bool:
        if path.startswith(stop) and path.endswith("cache.json"):
            raise KeyboardInterrupt
        return really_create(path, data)

    def write(path: str, data: bytes) -> None:
        if path.startswith(stop):
            raise KeyboardInterrupt
        really_write(path, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder, "create", create)
        patched.setattr(folder, "write", write)
        seal(folder, "digits", shards, {"by": "the dead"})
    key = cache_key([shard.shard_key for shard in shards])
    with pytest.raises(NoCache):
        open_cache(folder.url_of("digits"))
    if stop == "caches/":
        with pytest.raises(NoCache, match=r"is not sealed: it has no cache\.json"):
            read_cache(folder, key)
    cache = seal(folder, "digits", shards, {"by": "the next"})
    assert cache.shards == tuple(shards)
    assert cache.lineage == {"by": "the next" if stop == "caches/" else "the dead"}
    assert open_cache(folder.url_of("digits")).digest == cache.digest


def test_an_index_of_other_rows_that_a_dead_seal_left_is_replaced(folder: Folder, put_shard: Make) -> None:
    old = put_shard(folder, 4, attempt="old")
    cache = seal(folder, "digits", [old], {})
    folder.remove(f"caches/{cache.key}/cache.json")
    folder.remove(f"commits/{old.shard_key[:2]}/{old.shard_key}.json")
    folder.remove(old.path)
    new = put_shard(folder, 4, attempt="new")
    sealed = seal(folder, "digits", [new], {})
    assert sealed.shards == (new,)
    assert verify(sealed)["ok"]
    assert read_cache(folder, cache.key).shards == (new,)


@pytest.mark.parametrize("left", [b"", b"PAR1 and not much more"])
def test_an_index_that_a_dead_seal_left_unfinished_is_replaced(folder: Folder, put_shard: Make, left: bytes) -> None:
    shard = put_shard(folder, 4)
    folder.create(f"caches/{cache_key([shard.shard_key])}/index.parquet", left)
    assert seal(folder, "digits", [shard], {}).shards == (shard,)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sealing_again_after_a_shard_was_made_again_gives_the_new_shard_or_an_error(
    folder: Folder, put_shard: Make, temperature: float
) -> None:
    """Never, unsaid, the old cache: its shard is not there any more, and may have been another answer."""
    old = put_shard(folder, 4)
    seal(folder, "digits", [old], {})
    folder.remove(f"commits/{old.shard_key[:2]}/{old.shard_key}.json")
    folder.remove(old.path)
    new = put_shard(folder, 4, temperature=temperature)
    assert (new.shard_key, new.sha256 == old.sha256) == (old.shard_key, temperature == 1)
    try:
        sealed = seal(folder, "digits", [new], {})
    except VerificationError:
        return
    assert sealed.digest == digest_of([new])
    assert verify(sealed)["ok"] and verify(open_cache(folder.url_of("digits")))["ok"]


@pytest.mark.parametrize("at", [-1, -30])
def test_a_shard_with_a_damaged_footer_is_not_sealed(folder: Folder, put_shard: Make, flip: Make, at: int) -> None:
    shard = put_shard(folder, 4)
    flip(folder, shard.path, at)
    with pytest.raises(CorruptShard, match=rf"{shard.path} is damaged: the footer"):
        seal(folder, "digits", [shard], {})
    assert list_caches(folder) == ([], [])


def without_sections(table: pa.Table) -> pa.Table:
    """An index as it was written before row groups had sections."""
    at, lists = table.schema.get_field_index("row_groups"), table.column("row_groups").combine_chunks()
    names = ["start", "stop", "rows", "xxh3"]
    groups = pa.StructArray.from_arrays([lists.flatten().field(name) for name in names], names)
    return table.set_column(at, "row_groups", pa.ListArray.from_arrays(lists.offsets, groups))


def test_a_cache_whose_index_lacks_the_sections_is_refused(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder, (4, 3))
    path, sink = f"caches/{cache.key}", io.BytesIO()
    pq.write_table(without_sections(pq.read_table(io.BytesIO(folder.read(f"{path}/index.parquet")))), sink)
    folder.write(f"{path}/index.parquet", sink.getvalue())
    facts = json.loads(folder.read(f"{path}/cache.json"))
    facts["index"] = {"path": "index.parquet", "sha256": sha256(sink.getvalue()).hexdigest()}
    folder.write(f"{path}/cache.json", json.dumps(facts).encode())
    with pytest.raises(CorruptShard, match=rf"{cache.key}/index.parquet is no index of a cache .*seal it anew"):
        open_cache(folder.url_of("digits"))


def test_opening_a_cache_makes_no_object_for_a_shard_or_a_row_group(
    folder: Folder, make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(folder, (4, 3, 2))

    def no_objects(self: Index, first: int, count: int) -> Any:
        raise AssertionError(f"{count} shards became objects")

    with monkeypatch.context() as patched:
        patched.setattr(Index, "_commits", no_objects)
        opened = open_cache(folder.url_of("digits"))
        assert opened.facts() == cache.facts() and opened == replace(cache, store=opened.store)
        assert opened.index.rows.tolist() == [4, 3, 2] and opened.index.path(2) == cache.index.path(2)
    assert opened.shards == cache.shards and opened.shards is opened.shards


# Names


def test_every_form_of_a_name_opens_the_cache(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    for form in (
        "digits",
        f"digits@{cache.key[:8]}",
        f"digits@{cache.key}",
        f"caches/{cache.key}",
        f"caches/{cache.key}/",
        "names/digits",
        cache.key,
    ):
        opened = open_cache(folder.url_of(form))
        assert (opened.key, opened.digest, opened.shards) == (cache.key, cache.digest, cache.shards), form
    assert open_cache(cache.url).key == cache.key


def test_a_relative_path_opens_the_cache(local: Folder, make_cache: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(local)
    monkeypatch.chdir(local.url)
    assert open_cache(f"caches/{cache.key}").digest == cache.digest
    assert open_cache("names/digits").digest == cache.digest
    assert open_cache("./digits").digest == cache.digest


@pytest.mark.parametrize("name", ["caches", "names"])
def test_a_store_may_lie_in_a_folder_of_any_name(tmp_path: Path, make_cache: Make, name: str) -> None:
    store = Folder(str(tmp_path / name))
    cache = make_cache(store)
    for form in ("digits", f"digits@{cache.key[:8]}", f"caches/{cache.key}", "names/digits"):
        assert open_cache(store.url_of(form)).digest == cache.digest


def test_a_name_moves_and_name_at_key_does_not(folder: Folder, put_shard: Make) -> None:
    a, b = put_shard(folder, 4), put_shard(folder, 3, 4)
    old, new = seal(folder, "digits", [a], {}), seal(folder, "digits", [a, b], {})
    assert open_cache(folder.url_of("digits")).key == new.key
    assert open_cache(folder.url_of(f"digits@{old.key[:8]}")).key == old.key
    rows = list_caches(folder)[0]
    assert [(row["name"], row["cache_key"]) for row in rows] == [("digits", new.key), (None, old.key)]
    seal(folder, "digits", [a], {})
    assert open_cache(folder.url_of("digits")).key == old.key


def test_a_list_of_caches_leaves_out_what_is_not_sealed(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    folder.create("caches/unfinished/index.parquet", b"")
    folder.write("names/dangling", b"00" * 32)
    assert [row["cache_key"] for row in list_caches(folder)[0]] == [cache.key]
    assert list_caches(folder)[0][0] == cache.facts()


def test_a_store_without_caches_lists_none_and_no_store_is_no_store(folder: Folder) -> None:
    with pytest.raises(NoCache, match="There is no store at"):
        list_caches(folder)[0]
    folder.create("x", b"")
    assert list_caches(folder) == ([], [])


def test_a_misspelt_name_is_answered_with_the_nearest(local: Folder, make_cache: Make) -> None:
    make_cache(local)
    with pytest.raises(NoCache, match=r"has no cache named 'digts'\. Did you mean 'digits'\? Its names are: digits\."):
        open_cache(local.url_of("digts"))


@pytest.mark.parametrize("form", ["digits@ffffffffff", "digits@zz", "other@ffffffffff"])
def test_a_key_that_is_not_there_is_no_cache(folder: Folder, make_cache: Make, form: str) -> None:
    make_cache(folder)
    with pytest.raises(NoCache, match=r"^0 caches in .* have a key that begins with"):
        open_cache(folder.url_of(form))


def test_the_first_digits_of_two_keys_are_refused(local: Folder, make_cache: Make) -> None:
    cache = make_cache(local)
    local.create(f"caches/{cache.key[:8]}{'0' * 56}/index.parquet", b"")
    with pytest.raises(NoCache, match=r"^2 caches in"):
        open_cache(local.url_of(f"digits@{cache.key[:8]}"))


# What is no cache


def test_a_place_without_a_store_is_no_cache(folder: Folder) -> None:
    with pytest.raises(NoCache, match=r"^There is no store at"):
        open_cache(folder.url_of("digits"))


@pytest.mark.parametrize(
    "form", ["notes.txt", "notes.txt/digits", "sub", "sub/digits", "names", "caches", "", "caches/x"]
)
def test_a_plain_file_or_folder_is_no_cache(tmp_path: Path, form: str) -> None:
    (tmp_path / "notes.txt").write_text("not a cache")
    (tmp_path / "sub").mkdir()
    with pytest.raises(NoCache):
        open_cache(f"{tmp_path}/{form}")


@pytest.mark.parametrize("url", ["", "/", "digits", "//"])
def test_a_word_alone_names_no_cache(url: str) -> None:
    with pytest.raises(NoCache):
        open_cache(url)


def test_a_cache_that_is_not_sealed_says_so(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    folder.remove(f"caches/{cache.key}/cache.json")
    for form in ("digits", f"digits@{cache.key[:8]}", f"caches/{cache.key}"):
        with pytest.raises(NoCache, match=r"is not sealed: it has no cache\.json\. .* Run the teacher's recipe again"):
            open_cache(folder.url_of(form))


@pytest.mark.parametrize("name", [b"", b"no key", b"\xff\xfe", b"../..", b"ab\ncd"])
def test_a_name_that_points_to_no_key_is_no_cache(local: Folder, make_cache: Make, name: bytes) -> None:
    make_cache(local)
    local.write("names/broken", name)
    with pytest.raises((NoCache, StillhouseError)) as caught:
        open_cache(local.url_of("broken"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"format_version": 1}', b'{"index": {}}']
)
def test_a_cache_json_that_is_junk_is_no_cache(local: Folder, make_cache: Make, junk: bytes) -> None:
    cache = make_cache(local)
    local.write(f"caches/{cache.key}/cache.json", junk)
    with pytest.raises(NoCache, match=r"cache\.json is not the cache\.json of a cache"):
        open_cache(local.url_of("digits"))


@pytest.mark.parametrize("value", [None, 3, [], {}, "x"])
def test_a_cache_json_whose_index_is_junk_is_no_cache(local: Folder, make_cache: Make, value: Any) -> None:
    path = f"caches/{make_cache(local).key}/cache.json"
    local.write(path, json.dumps({**json.loads(local.read(path)), "index": value}).encode())
    with pytest.raises(NoCache):
        open_cache(local.url_of("digits"))


@pytest.mark.parametrize(
    "key", ["cache_digest", "name", "encoding", "classes", "samples", "bytes", "lineage", "labelled"]
)
def test_a_cache_json_without_one_of_its_keys_is_no_cache(local: Folder, make_cache: Make, key: str) -> None:
    path = f"caches/{make_cache(local).key}/cache.json"
    facts = json.loads(local.read(path))
    del facts[key]
    local.write(path, json.dumps(facts).encode())
    with pytest.raises(NoCache, match=r"cache\.json"):
        open_cache(local.url_of("digits"))


def test_another_format_version_is_refused(local: Folder, make_cache: Make) -> None:
    path = f"caches/{make_cache(local).key}/cache.json"
    local.write(path, local.read(path).replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(NoCache, match=r"has the format version 2\. This version reads 1\."):
        open_cache(local.url_of("digits"))


# Damage


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_index_is_found(folder: Folder, make_cache: Make, flip: Make, at: int) -> None:
    cache = make_cache(folder)
    flip(folder, f"caches/{cache.key}/index.parquet", at)
    with pytest.raises(CorruptShard, match=rf"{cache.key}/index\.parquet has the sha256 .* cache\.json names"):
        open_cache(folder.url_of("digits"))


def test_an_index_that_is_gone_is_found(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    folder.remove(f"caches/{cache.key}/index.parquet")
    with pytest.raises(CorruptShard, match=r"index\.parquet is not there"):
        open_cache(folder.url_of("digits"))


def test_a_cache_that_was_put_under_another_key_is_found(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    for name in ("index.parquet", "cache.json"):
        folder.create(f"caches/{'0' * 64}/{name}", folder.read(f"caches/{cache.key}/{name}"))
    with pytest.raises(CorruptShard, match="do not give its digest"):
        open_cache(folder.url_of(f"caches/{'0' * 64}"))


def test_a_cache_json_with_another_digest_is_found(local: Folder, make_cache: Make) -> None:
    cache = make_cache(local)
    path = f"caches/{cache.key}/cache.json"
    local.write(path, local.read(path).replace(cache.digest.encode(), b"0" * 64))
    with pytest.raises(CorruptShard, match="do not give its digest 0000"):
        open_cache(local.url_of("digits"))


def test_a_whole_cache_is_verified(folder: Folder, make_cache: Make) -> None:
    cache = make_cache(folder)
    answer = verify(cache)
    assert answer["ok"] is True and answer["problems"] == []
    assert (answer["shards"], answer["samples"], answer["cache_digest"]) == (2, 7, cache.digest)


@pytest.mark.parametrize("at", [0, 60, -1])
def test_verify_names_the_shard_with_a_flipped_byte(folder: Folder, make_cache: Make, flip: Make, at: int) -> None:
    cache = make_cache(folder)
    shard = cache.shards[1]
    flip(folder, shard.path, at)
    answer = verify(cache)
    assert answer["ok"] is False and len(answer["problems"]) == 1
    assert answer["problems"][0].startswith(f"The shard {folder.url_of(shard.path)} has {shard.bytes} bytes")
    assert shard.sha256[:16] in answer["problems"][0]


@pytest.mark.parametrize("kept", [0, 4, -1])
def test_verify_names_a_truncated_shard(folder: Folder, make_cache: Make, kept: int) -> None:
    cache = make_cache(folder)
    shard = cache.shards[0]
    data = folder.read(shard.path)[:kept]
    folder.write(shard.path, data)
    answer = verify(cache)
    assert not answer["ok"] and len(answer["problems"]) == 1
    assert f"{shard.path} has {len(data)} bytes" in answer["problems"][0]
    assert f"{shard.bytes} bytes with" in answer["problems"][0]


def test_verify_names_every_damaged_shard_and_goes_on_after_one_that_is_gone(
    folder: Folder, make_cache: Make, flip: Make
) -> None:
    cache = make_cache(folder, (4, 3, 2))
    folder.remove(cache.shards[0].path)
    flip(folder, cache.shards[2].path, 10)
    answer = verify(cache)
    assert answer["ok"] is False
    assert [
        where in problem
        for where, problem in zip((cache.shards[0].path, cache.shards[2].path), answer["problems"], strict=True)
    ] == [True, True]
    assert answer["problems"][0].endswith("is not there.")


def test_a_checked_read_gives_the_bytes_or_names_shard_and_part(
    folder: Folder, make_cache: Make, flip: Make, caplog: pytest.LogCaptureFixture
) -> None:
    shard = make_cache(folder).shards[0]
    part = shard.row_groups[0]
    data = folder.read(shard.path)
    start, stop, checks = part.part({"inputs", "targets"})
    into = bytearray(stop - start)
    pieces = [memoryview(into)[:7], memoryview(into)[7:]]
    read_checked(folder, shard.path, start, pieces, checks, "row group 0")
    assert into == data[part.start : part.stop] and not caplog.records
    flip(folder, shard.path, part.stop - 1)
    with pytest.raises(
        CorruptShard, match=rf"{shard.path} is damaged: row group 0 \(bytes {part.start} to {part.stop}\)"
    ):
        read_checked(folder, shard.path, start, pieces, checks, "row group 0")
    [line] = [record.getMessage() for record in caplog.records]
    assert shard.path in line and line.endswith(" It is fetched again.")
    read_footer(folder, shard)
    folder.remove(shard.path)
    with pytest.raises(CorruptShard, match=rf"{shard.path} is not there"):
        read_footer(folder, shard)


def test_a_store_that_was_copied_elsewhere_is_the_same_cache(tmp_path: Path, local: Folder, make_cache: Make) -> None:
    cache = make_cache(local)
    shutil.copytree(local.url, tmp_path / "copy")
    shutil.rmtree(local.url)
    moved: Cache = open_cache(f"{tmp_path}/copy/digits")
    assert moved.digest == cache.digest
    assert verify(moved)["ok"]


def test_a_damaged_cache_is_told_of_and_does_not_hide_the_others(folder: Folder, make_cache: Make) -> None:
    whole = make_cache(folder)
    folder.write("caches/abcd/cache.json", b"{}")
    rows, problems = list_caches(folder)
    assert [row["cache_key"] for row in rows] == [whole.key]
    assert len(problems) == 1 and "caches/abcd/cache.json" in problems[0]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x@y", ".hidden", "two words"])
def test_a_name_that_could_be_no_file_is_refused_before_anything_is_written(
    local: Folder, put_shard: Make, name: str
) -> None:
    shard = put_shard(local, 4)
    with pytest.raises(RecipeError, match="is no name for a cache"):
        seal(local, name, [shard], {})
    assert local.names("caches") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples", 999),
        ("positions", 1),
        ("bytes", 1),
        ("classes", 77),
        ("encoding", {"encoding": "dense"}),
        ("quarantined", 5),
        ("inputs", ["other"]),
        ("labelled", 3),
    ],
)
def test_verify_finds_a_cache_json_that_says_what_the_shards_do_not(
    local: Folder, make_cache: Make, name: str, value: Any
) -> None:
    path = f"caches/{make_cache(local).key}/cache.json"
    local.write(path, json.dumps({**json.loads(local.read(path)), name: value}).encode())
    answer = verify(open_cache(local.url_of("digits")))
    assert not answer["ok"]
    assert f"says that {name} is" in answer["problems"][0]
