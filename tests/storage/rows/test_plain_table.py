"""The index of plain columns: every row's, made once of the plain sections alone, and never wrong unseen."""

from __future__ import annotations

import errno
import json
import logging
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.base.digest import range_digest
from storage.base.errors import CorruptShard, RecipeError, StoreError, StoreFull, UsageError
from storage.cache.cache import Cache
from storage.cache.open import open_cache
from storage.cache.seal import seal
from storage.encodings.topk import TopK
from storage.objectstore.folder import Folder
from storage.rows.plain_table import plain_table
from tests.storage import sparse
from tests.storage.stream.caches import entropy_of, put_cache, put_rows, section_bytes, top1_of, watch
from tests.storage.stream.fakes import Make

SHARDS = [range(11), range(11, 14), range(14, 23)]
N = 23


@pytest.fixture
def cache(local: Folder) -> Cache:
    return put_cache(local, SHARDS)


def kept_names(cache: Cache) -> list[str]:
    return [name for name in cache.store.names(f"caches/{cache.key}") if name.startswith("plain-")]


def check(table: pa.Table, count: int = N) -> None:
    ids = np.arange(count)
    assert table.column_names == ["sample_id", "label", "soft_entropy", "soft_top1"]
    assert [str(field.type) for field in table.schema] == ["int64", "int64", "float", "int32"]
    np.testing.assert_array_equal(table.column("sample_id").to_numpy(), ids)
    np.testing.assert_array_equal(table.column("label").to_numpy(), ids % 5)
    np.testing.assert_array_equal(table.column("soft_entropy").to_numpy(), entropy_of(ids))
    np.testing.assert_array_equal(table.column("soft_top1").to_numpy(), top1_of(ids))


def test_it_has_the_plain_columns_of_every_row_in_stored_order(folder: Folder) -> None:
    cache = put_cache(folder, SHARDS)
    check(plain_table(cache))
    assert len(kept_names(cache)) == 1
    check(plain_table(open_cache(cache.url)))


@pytest.mark.parametrize("kind", ["stored", "referenced"])
def test_only_plain_sections_are_read_for_it(local: Folder, kind: Any) -> None:
    cache = put_cache(local, SHARDS, kind)
    reads = watch(local)
    check(plain_table(cache))
    assert 0 < reads.bytes == section_bytes(cache, "plain")


def test_it_is_made_once(cache: Cache) -> None:
    plain_table(cache)
    [name] = kept_names(cache)
    data = cache.store.read(f"caches/{cache.key}/{name}")
    assert name == f"plain-{range_digest(data)}.parquet"
    told = json.loads(pq.ParquetFile(pa.BufferReader(data)).schema_arrow.metadata[b"stillhouse"])
    assert told == {"plain_version": 1, "cache_digest": cache.digest}
    reads = watch(cache.store)
    check(plain_table(cache))
    assert reads.rows == [] and kept_names(cache) == [name]


def test_some_columns_may_be_asked_for(cache: Cache) -> None:
    for _ in range(2):  # made, and taken
        assert plain_table(cache, ["soft_top1", "label"]).column_names == ["soft_top1", "label"]


@pytest.mark.parametrize("at", [4, 100, -1])
def test_a_damaged_one_is_told_and_made_anew(
    cache: Cache, flip: Make, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain_table(cache)
    [name] = kept_names(cache)
    path = f"caches/{cache.key}/{name}"
    whole = cache.store.read(path)
    flip(cache.store, path, at)
    with caplog.at_level(logging.WARNING):
        check(plain_table(cache))
    assert re.search(r"plain-.*parquet is damaged.*read anew", caplog.text)
    assert cache.store.read(path) == whole


def test_one_of_other_shards_is_left_alone(cache: Cache) -> None:
    """As an earlier cache of the same key leaves it, whose shards were computed again since."""
    plain_table(cache)
    [name] = kept_names(cache)
    table = pq.read_table(pa.BufferReader(cache.store.read(f"caches/{cache.key}/{name}")))
    facts = {"plain_version": 1, "cache_digest": "f" * 64}
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(3).replace_schema_metadata({b"stillhouse": json.dumps(facts).encode()}), sink)
    data = sink.getvalue().to_pybytes()
    cache.store.remove(f"caches/{cache.key}/{name}")
    cache.store.write(f"caches/{cache.key}/plain-{range_digest(data)}.parquet", data)
    check(plain_table(cache))
    assert len(kept_names(cache)) == 2


@pytest.mark.parametrize(
    "error",
    [StoreError("access was refused."), StoreFull("full."), OSError(errno.EROFS, "read-only"), NotImplementedError()],
    ids=lambda error: type(error).__name__,
)
def test_where_nothing_may_be_written_it_is_read_every_time(
    cache: Cache, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def write(path: str, data: bytes) -> None:
        raise error

    cache.store.write = write
    reads = watch(cache.store)
    caplog.set_level(logging.WARNING, "stillhouse.stream")
    for _ in range(2):
        caplog.clear()
        check(plain_table(cache))
        assert len(caplog.records) == 1 and "not kept" in caplog.text
    assert reads.bytes == 2 * section_bytes(cache, "plain") and not kept_names(cache)


def test_a_range_that_comes_wrong_once_is_fetched_again(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    watch(cache.store, spoil=lambda number: number == 3)
    caplog.set_level(logging.WARNING, "stillhouse.stream")
    check(plain_table(cache))
    assert "fetched again" in caplog.text


def test_damage_in_a_plain_section_is_an_error_and_elsewhere_it_is_not_seen(cache: Cache, flip: Make) -> None:
    group = cache.shards[1].row_groups[0]
    flip(cache.store, cache.shards[1].path, group.stop - 1)
    check(plain_table(cache))
    cache.store.remove(f"caches/{cache.key}/{kept_names(cache)[0]}")
    flip(cache.store, cache.shards[1].path, group.plain_stop - 1)
    with pytest.raises(CorruptShard, match=re.escape(cache.shards[1].path)):
        plain_table(cache)
    assert not kept_names(cache)


def test_ids_may_be_text_and_labels_absent(local: Folder) -> None:
    cache = put_cache(local, SHARDS, texts=True, label=False)
    table = plain_table(cache)
    assert table.column_names == ["sample_id", "soft_entropy", "soft_top1"]
    assert table.column("sample_id").to_pylist() == [f"s{i}" for i in range(N)]
    with pytest.raises(RecipeError, match=r"no plain column 'label'.*sample_id, soft_entropy, soft_top1"):
        plain_table(cache, ["label"])


def test_shards_without_the_columns_that_the_first_one_has_are_refused(local: Folder, put_shard: Make) -> None:
    cache = seal(local, "mixed", [put_rows(local, range(5)), put_shard(local, 5, 5)], {})
    with pytest.raises(UsageError, match=r"has the columns .*The first one of .* has .*soft_entropy.*soft_top1"):
        plain_table(cache)
    assert not kept_names(cache)


def test_a_cache_without_summaries_names_the_columns_that_it_has(local: Folder, put_shard: Make) -> None:
    cache = seal(local, "bare", [put_shard(local, 5)], {})
    assert plain_table(cache).column_names == ["sample_id", "label"]
    with pytest.raises(RecipeError, match=r"has no plain column 'soft_entropy'.*Rows are chosen by: sample_id, label"):
        plain_table(cache, ["soft_entropy"])


def test_a_shard_without_rows_adds_none(local: Folder) -> None:
    cache = seal(local, "holes", [put_rows(local, ids) for ids in ([], range(5), [])], {})
    check(plain_table(cache), 5)
    empty = seal(local, "empty", [put_rows(local, [])], {})
    assert plain_table(empty).num_rows == 0


def test_sequences_have_no_likeliest_class_as_a_whole(local: Folder) -> None:
    cache = sparse.cache(local, TopK(3))
    assert "soft_entropy" in plain_table(cache).column_names
    with pytest.raises(
        RecipeError, match=r"holds sequences, which have a likeliest class a position.*sample_id"
    ) as said:
        plain_table(cache, ["soft_top1"])
    assert "label the samples anew" not in str(said.value)
