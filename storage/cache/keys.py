"""The key of a cache, which names the question, and its digest, which names the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from storage.base.digest import canonical_json
from storage.cache.index import Index
from storage.format.header import FORMAT_VERSION

_AT_ONCE = 4096


def cache_key(shard_keys: Iterable[str]) -> str:
    """The name of the question: sha256 of {format version, the ordered shard keys}, known before any work."""
    return _sha256_of(b'{"format_version":%d,"shards":[' % FORMAT_VERSION, shard_keys, b"]}")


def cache_digest(index: Index) -> str:
    """The name of the answer: sha256 of [format version, ordered (shard key, shard sha256, rows)]."""
    return _sha256_of(b"[%d,[" % FORMAT_VERSION, index.facts("shard_key", "sha256", "rows"), b"]]")


def _sha256_of(head: bytes, items: Iterable[Any], tail: bytes) -> str:
    """sha256 of canonical JSON that has a list in it; some items at a time, since a cache may have 100,000 shards."""
    digest, left = hashlib.sha256(head), iter(items)
    comma = b""
    while some := list(islice(left, _AT_ONCE)):
        digest.update(comma + canonical_json(some)[1:-1])
        comma = b","
    digest.update(tail)
    return digest.hexdigest()
