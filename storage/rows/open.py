"""A cache's rows by its URL: which parts, which rows, and where the inputs are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.cache.open import open_cache
from storage.rows.cache_rows import PARTS, CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.row_groups import RowGroups
from storage.rows.selected_rows import Selected
from storage.sources import Source, make_source, place_of
from storage.sources.settings import SourceSection


def open_rows(
    url: str,
    parts: Collection[str] = PARTS,
    where: str | None = None,
    inputs: Source | SourceSection | dict[str, Any] | None = None,
) -> RowGroups:
    """What a `Stream` reads of the cache at `url` (see `open_cache`).

    parts: `inputs`, `targets` or both; ids and labels always come. where: an expression over plain columns
    that rows are chosen by (see `Selected`). inputs: where the inputs of a cache by reference are, as a
    source or as a recipe describes one. Raises NoCache, RecipeError, SourceError, UsageError, CorruptShard.

    Example: `Stream(open_rows("s3://bucket/store/digits", where="soft_entropy < 1"), batch_size=256)`.
    """
    cache = open_cache(url)
    groups: CacheRows | JoinedRows = CacheRows(cache, parts)
    if inputs is not None:
        if "inputs" not in parts:
            raise RecipeError("A source of inputs is named, and no inputs are asked for.", "Both are, or neither is.")
        groups = JoinedRows(groups, make_source(inputs) if isinstance(inputs, dict | SourceSection) else inputs)
    elif "inputs" in parts and not cache.inputs:
        made_from = cache.lineage.get("source") or {}
        place = place_of(made_from) if made_from else None
        raise RecipeError(
            f"The cache {cache.url} keeps its inputs by reference, and no source of them is named.",
            "A model needs inputs; the cache has their digests only.",
            "Name the source that it was made from" + (f" ({place})" if place else "") + ": in a student's recipe as "
            "cache.inputs, elsewhere as `inputs=`.",
        )
    return groups if where is None else Selected(groups, where)


def cache_of(groups: RowGroups | None) -> Cache | None:
    """The cache that rows come from, if they come from one."""
    return groups.cache if isinstance(groups, CacheRows | JoinedRows | Selected) else None


def filter_of(groups: RowGroups | None) -> str | None:
    """The expression that rows were chosen by, if they were."""
    return groups.expression if isinstance(groups, Selected) else None
