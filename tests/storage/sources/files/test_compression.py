"""Compressed files: all of their members are read, and what is not whole is a sentence with the file's name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from storage.base.errors import SourceError
from storage.sources.files.compression import COMPRESSED_ENDINGS, HEAD_BYTES, compression_of, decompress

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
TEXT = b"".join(b"%d %x\n" % (n, n * 7919) for n in range(20_000))

kinds = pytest.mark.parametrize("kind", COMPRESS)


def unpacked(data: bytes, kind: str) -> bytes:
    return b"".join(decompress("a.jsonl", io.BytesIO(data), kind))


def test_every_kind_is_tried_here() -> None:
    assert set(COMPRESS) == set(COMPRESSED_ENDINGS.values())


@kinds
def test_all_members_of_a_file_are_read(kind: str) -> None:
    compress = COMPRESS[kind]
    parts = [TEXT[:9], TEXT[9:100_000], b"", TEXT[100_000:]]
    assert unpacked(b"".join(map(compress, parts)), kind) == TEXT
    assert unpacked(compress(TEXT) + bytes(20_000), kind) == TEXT  # padding
    assert unpacked(compress(b""), kind) == b""


def test_what_programs_write_in_parallel_is_read() -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"  # as pzstd begins its frames
    frames = [skippable + COMPRESS["zstd"](part) for part in (TEXT[:5], TEXT[5:])]
    assert unpacked(b"".join(frames), "zstd") == TEXT
    assert compression_of("a.zst", frames[0][:HEAD_BYTES]) == "zstd"
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    ).compressobj()
    assert unpacked(wide.compress(TEXT) + wide.flush(), "zstd") == TEXT


@kinds
@pytest.mark.parametrize("before", [0, 1])
def test_a_file_that_ends_too_early_is_named(kind: str, before: int) -> None:
    data = COMPRESS[kind](TEXT)
    for stop in (HEAD_BYTES, len(data) // 2, len(data) - 1):
        with pytest.raises(
            SourceError, match=rf"^'a\.jsonl' ends in the middle\. It holds {kind} data and .*{kind} -t`"
        ):
            unpacked(data * before + data[:stop], kind)


@kinds
def test_a_damaged_file_is_named(kind: str) -> None:
    data = bytearray(COMPRESS[kind](TEXT))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(SourceError, match=r"^'a\.jsonl' is damaged: .+\. It holds"):
        unpacked(bytes(data), kind)


@kinds
@pytest.mark.parametrize("behind", [b"garbage behind the end", b'{"x": 1}\n', b"\0\0\0x" * 5_000])
def test_other_data_behind_the_end_is_not_passed_over(kind: str, behind: bytes) -> None:
    with pytest.raises(
        SourceError, match=r"^'a\.jsonl' (holds other data behind its end: .+|ends in the middle)\. It h"
    ):
        unpacked(COMPRESS[kind](TEXT) + behind, kind)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_content_that_compresses_well_comes_in_pieces(kind: str) -> None:
    data = COMPRESS[kind](bytes(32 << 20))
    pieces = [len(piece) for piece in decompress("a", io.BytesIO(data), kind)]
    assert sum(pieces) == 32 << 20
    assert max(pieces) <= 9 << 20


@kinds
def test_a_kind_is_known_by_a_files_first_bytes(kind: str) -> None:
    head = COMPRESS[kind](TEXT)[:HEAD_BYTES]
    endings = [ending for ending, named in COMPRESSED_ENDINGS.items() if named == kind]
    for name in ("a.jsonl", *(f"a.jsonl{ending}" for ending in endings), *(f"A{end.upper()}" for end in endings)):
        assert compression_of(name, head) == kind
    for other in COMPRESSED_ENDINGS.keys() - endings:
        with pytest.raises(SourceError, match=rf"^'a{other}' holds {kind} data\. A file of this ending holds"):
            compression_of(f"a{other}", head)
    for ending in endings:
        for bad, found in ((b'{"x": ', "begins with"), (b"", "is empty")):
            with pytest.raises(SourceError, match=rf"^'a{ending}' {found}.* A file of this ending holds {kind} data"):
                compression_of(f"a{ending}", bad)
    assert compression_of("a.jsonl", b'{"x": ') is compression_of("a.jsonl", b"") is None
