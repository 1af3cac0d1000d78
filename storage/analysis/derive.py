"""A cache from another one that keeps less of each position, without the teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from storage.base import yaml12
from storage.base.digest import sha256_of
from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.cache.checked_reads import read_footer
from storage.cache.commits import Commit, commit_shard, committed_keys, new_attempt, read_commit
from storage.cache.leases import lease
from storage.cache.lineage import derived_lineage
from storage.cache.seal import seal
from storage.encodings import Encoding, make_encoding
from storage.encodings.convert import convert
from storage.format.header import FORMAT_VERSION, ShardHeader
from storage.format.shard import ROW_GROUP_BYTES, write_shard
from storage.rows.cache_rows import CacheRows
from storage.samples import tensor_columns
from storage.samples.samples import INPUTS_XXH3, LABEL


def derived_encoding(text: str, parent: dict[str, Any]) -> Encoding:
    """The encoding of `topk:k=16,temperatures=[1,2]`; what it does not say is as the parent's, if that is of its kind.

    >>> derived_encoding("topk:k=16", {"encoding": "topk", "k": 64, "temperatures": [1.0, 2.0]}).to_dict()
    {'encoding': 'topk', 'k': 16, 'temperatures': [1.0, 2.0]}
    """
    name, _, settings = text.partition(":")
    told = dict(parent) if parent["encoding"] == name else {"encoding": name}
    del told["encoding"]
    for item in filter(None, re.split(r",(?![^\[]*\])", settings)):
        key, sign, value = item.partition("=")
        try:
            told[key.strip()] = yaml12.load(value)
        except yaml.YAMLError:
            sign = ""
        if not sign:
            raise RecipeError(
                f"'{item}' in '--to {text}' is no setting.",
                "Settings are written key=value, as in --to topk:k=16,temperatures=[1,2].",
            )
    return make_encoding(name, told)


def derive(cache: Cache, encoding: Encoding, name: str, on_rows: Callable[[int], None] = lambda rows: None) -> Cache:
    """Seal a cache of the same rows in another encoding. Shards that were derived before are reused.

    on_rows is called after each shard with the rows that are done.
    Raises RecipeError for an encoding that cannot be had from the cache's, CorruptShard and StoreLost.
    """
    store, commits = cache.store, list[Commit]()
    if encoding.to_dict() == cache.encoding:
        raise RecipeError(
            f"{cache.label} has these very targets: {cache.encoding}.", "A derived cache keeps less of them."
        )
    keys = [_shard_key(shard.shard_key, encoding) for shard in cache.shards]
    with lease(store, name, keys) as held:
        done, first, rows = committed_keys(store, keys), 0, 0
        source = CacheRows(cache)
        for number, (parent, key) in enumerate(zip(cache.shards, keys, strict=True)):
            groups = range(first, first + len(parent.row_groups))
            first = groups.stop
            if key in done:
                commits.append(read_commit(store, key))
            else:
                commits.append(_derive_shard(source, number, groups, encoding, key))
            on_rows(rows := rows + parent.rows)
        held.check()
        origin = {"cache_key": cache.key, "cache_digest": cache.digest, "name": cache.name, "targets": cache.encoding}
        lineage = derived_lineage(cache.lineage, targets=encoding.to_dict(), derived_from=origin)
        return seal(store, name, commits, lineage)


def _shard_key(parent: str, encoding: Encoding) -> str:
    return sha256_of({"format_version": FORMAT_VERSION, "derived_from": parent, "encoding": encoding.key()})


def _derive_shard(source: CacheRows, number: int, groups: range, encoding: Encoding, key: str) -> Commit:
    cache, parent = source.cache, source.cache.index.commit(number)
    header, schema = read_footer(cache.store, parent)
    mine = ShardHeader(
        FORMAT_VERSION, key, encoding, header.classes, header.teacher, header.span, positions=header.positions
    )
    old = [field.name for field in header.fields()]
    kept = [field for field in schema if field.name not in old]
    schema = pa.schema([*kept, *mine.fields()], metadata=mine.to_metadata())

    def batches() -> Iterator[pa.RecordBatch]:
        for group in groups:
            table = source.table(group, [*(field.name for field in kept), *old])
            columns = {name: tensor_columns.unpack(table.column(name), table.schema.field(name)) for name in old}
            label = None
            if LABEL in table.schema.names:
                label = tensor_columns.unpack(table.column(LABEL), table.schema.field(LABEL))
            targets = convert(header.encoding.decode(columns, header.classes), label, encoding)
            arrays = [table.column(field.name).combine_chunks() for field in kept]
            yield pa.record_batch([*arrays, *encoding.encode(targets)], schema=schema)

    width = None
    if INPUTS_XXH3 in schema.names:
        # Its rows are read with inputs that lie elsewhere beside them, so a group has no more of them than before.
        width = ROW_GROUP_BYTES // max(1, int(np.max(cache.index.rows[groups.start : groups.stop], initial=1)))
    staged = cache.store.stage()
    try:
        rows = write_shard(staged, schema, batches(), group_row_bytes=width)
        return commit_shard(cache.store, key, new_attempt(), staged, rows, parent.quarantined)
    finally:
        staged.unlink(missing_ok=True)
