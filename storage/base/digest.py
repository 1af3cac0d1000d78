"""Names made from content: canonical JSON, sha256 of values and files, xxh3 of byte ranges."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from typing import Any, BinaryIO

import xxhash


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_of(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """sha256, in hex, of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(file: BinaryIO, chunk: int = 1 << 22) -> str:
    """sha256, in hex, of everything from the file's place to its end."""
    digest = hashlib.sha256()
    while data := file.read(chunk):
        digest.update(data)
    return digest.hexdigest()


def range_digest(data: bytes | memoryview) -> str:
    """xxh3-128, in hex, of one byte range: it finds damage, it is no defence against an attacker."""
    return xxhash.xxh3_128_hexdigest(data)


def pieces_digests(pieces: Iterable[memoryview], sizes: Iterable[int]) -> list[str]:
    """The `range_digest` of each of some ranges that follow one another, of bytes that lie in several pieces."""
    digests: list[str] = []
    left = deque(pieces)
    for size in sizes:
        digest = xxhash.xxh3_128()
        while size and left:
            piece = left.popleft()
            if len(piece) > size:
                left.appendleft(piece[size:])
                piece = piece[:size]
            digest.update(piece)
            size -= len(piece)
        digests.append(digest.hexdigest())
    return digests
