"""One call from a cache's URL to its rows: what is asked for is read, and no more; what cannot be is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.analysis.show import first_rows as shown_rows
from storage.base.errors import NoCache, RecipeError
from storage.cache.cache import Cache
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.open import cache_of, filter_of, open_rows
from storage.rows.row_groups import first_rows
from storage.rows.selected_rows import Selected
from storage.rows.source_rows import SourceRows
from storage.sources import make_source
from storage.stream.scan import scan
from tests.storage.stream.caches import put_cache, section_bytes, watch, write_source

SHARDS = [range(11), range(11, 14), range(14, 23)]
N = 23


@pytest.fixture
def stored(local: Folder) -> Cache:
    return put_cache(local, SHARDS)


@pytest.fixture
def referenced(local: Folder) -> Cache:
    return put_cache(local, SHARDS, "referenced")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_source(tmp_path / "source", {"a": range(N)})


@pytest.mark.parametrize("parts", [[], ["inputs"], ["targets"], ["inputs", "targets"]], ids="+".join)
def test_parts_that_are_not_asked_for_are_not_read(
    stored: Cache, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: Any = open_rows(stored.url, parts)
    reads = watch(groups.cache.store)
    ids: list[int] = []
    for rows in scan(groups, 5):
        ids += rows.sample_id.tolist()
        assert (bool(rows.inputs), rows.targets is not None) == ("inputs" in parts, "targets" in parts)
        assert rows.label is not None
    assert ids == list(range(N))
    assert reads.bytes == sum(section_bytes(stored, section) for section in ["plain", *parts])


def test_a_filter_reads_what_was_asked_for_of_the_chosen_groups(stored: Cache) -> None:
    groups: Any = open_rows(stored.url, ["targets"], where="sample_id < 4")
    reads = watch(groups.cache.store)
    assert [i for rows in scan(groups, 5) for i in rows.sample_id] == [0, 1, 2, 3]
    group = stored.shards[0].row_groups[0]
    assert [(start, stop) for _, start, stop in reads.rows] == [(group.inputs_stop, group.stop)]


def test_an_unknown_part_or_cache_is_refused(stored: Cache) -> None:
    with pytest.raises(RecipeError, match=r"'target' is no part .*Did you mean 'targets'"):
        open_rows(stored.url, ["target"])
    with pytest.raises(NoCache):
        open_rows(f"{stored.store.url}/none")


def test_a_source_may_be_named_or_given(referenced: Cache, stored: Cache, source: str) -> None:
    for inputs in ({"parquet": source}, make_source({"parquet": source})):
        groups = open_rows(referenced.url, inputs=inputs, where="label == 1")
        assert [int(i) for rows in scan(groups, 50) for i in rows.inputs["n"] // 3] == [1, 6, 11, 16, 21]


def test_inputs_by_reference_need_a_source(referenced: Cache) -> None:
    for parts in (["inputs"], ["inputs", "targets"]):
        with pytest.raises(RecipeError, match=r"by reference, and no source .*made from \(the/source\).*cache\.inputs"):
            open_rows(referenced.url, parts)


def test_without_inputs_a_cache_by_reference_needs_none(referenced: Cache) -> None:
    for parts in ([], ["targets"]):
        assert sum(len(rows) for rows in scan(open_rows(referenced.url, parts), 5)) == N
    assert [row["sample_id"] for row in shown_rows(referenced)] == [0, 1, 2]
    assert first_rows(CacheRows(referenced), 2).inputs == {}


def test_a_source_where_none_is_wanted_is_refused(stored: Cache, referenced: Cache, source: str) -> None:
    with pytest.raises(RecipeError, match="no inputs are asked for"):
        open_rows(referenced.url, ["targets"], inputs={"parquet": source})
    with pytest.raises(RecipeError, match="holds its inputs"):
        open_rows(stored.url, inputs={"parquet": source})


def test_rows_say_which_cache_and_filter_they_have(stored: Cache, referenced: Cache, source: str) -> None:
    joined = JoinedRows(CacheRows(referenced), make_source({"parquet": source}))
    plain, chosen = CacheRows(stored), Selected(joined, "label==1")
    of_source = SourceRows(make_source({"parquet": source}))
    assert [cache_of(rows) for rows in (plain, joined, chosen)] == [stored, referenced, referenced]
    assert [filter_of(rows) for rows in (plain, joined, chosen)] == [None, None, "label == 1"]
    assert [cache_of(rows) for rows in (of_source, None)] == [None, None] == [filter_of(of_source), filter_of(None)]


def test_the_cache_is_the_one_that_was_named(stored: Cache) -> None:
    for url in (stored.url, f"{stored.store.url}/stored", f"{stored.store.url}/stored@{stored.key[:8]}"):
        assert open_rows(url).digest == stored.digest
