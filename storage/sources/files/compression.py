"""Compressed files: which kind they are, and their content piece by piece."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from storage.base.errors import SourceError

COMPRESSED_ENDINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}

# So many bytes of a file say whether it is compressed.
HEAD_BYTES = 6

# A frame of zstd may follow one that decoders skip.
_BEGINNINGS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "bzip2": re.compile(rb"BZh[1-9]"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}

_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    # `zstd --long=31` is common in large text collections.
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}

_REFUSED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError)

# Decoders of gzip and zstd give all that these bytes hold: at most 8 MB, and in frames made for it 256 MB.
_PIECE = 1 << 13
_AT_ONCE = 1 << 23


def compression_of(name: str, head: bytes) -> str | None:
    """Which kind of compressed file begins with these bytes; None for none.

    Raises SourceError where the file's name ends as one that is compressed and the bytes say otherwise.
    """
    kind = next((kind for kind, beginning in _BEGINNINGS.items() if beginning.match(head)), None)
    named = next((kind for ending, kind in COMPRESSED_ENDINGS.items() if name.lower().endswith(ending)), None)
    if named is not None and kind != named:
        found = f"holds {kind} data" if kind else "is empty" if not head else f"begins with {head!r}"
        raise SourceError(
            f"'{name}' {found}.",
            f"A file of this ending holds {named} data.",
            "Rename it after what it holds, or copy it again.",
        )
    return kind


def decompress(name: str, handle: Any, kind: str) -> Iterator[bytes]:
    """The content of a compressed file, of all its members or frames. Raises SourceError where it is not whole."""
    data, members = handle.read(_PIECE), 0
    while data:
        decoder, at = _DECODERS[kind](), 0
        while not decoder.eof:
            try:
                # Those that bound what they give say when they need more.
                bounded = hasattr(decoder, "needs_input")
                piece = decoder.decompress(data, _AT_ONCE) if bounded else decoder.decompress(data)
            except _REFUSED as error:
                found = "holds other data behind its end" if members and not at else "is damaged"
                raise _not_whole(name, kind, found, error) from None
            at += len(piece)
            yield piece
            data = b""
            if not decoder.eof and (not bounded or decoder.needs_input):
                data = handle.read(_PIECE)
                if not data:
                    raise _not_whole(name, kind, "ends in the middle", None)
        members += 1
        data = decoder.unused_data
        # Zeros behind the end are padding.
        while not (data := data.lstrip(b"\0")) and (more := handle.read(_PIECE)):
            data = more


def _not_whole(name: str, kind: str, found: str, error: Exception | None) -> SourceError:
    reason = "" if error is None else f": {str(error).strip().rstrip('.')}"
    return SourceError(
        f"'{name}' {found}{reason}.",
        f"It holds {kind} data and nothing else, to the end.",
        f"Look at it with `{kind} -t`, and copy or write it again.",
    )
