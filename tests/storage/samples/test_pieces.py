"""Ranges of rows inside a source's files."""

from __future__ import annotations

import pytest

from storage.samples.pieces import file_ranges
from storage.samples.samples import SourceFile


@pytest.mark.parametrize("rows", [1, 3, 4, 10, 100])
def test_ranges_tile_each_file_and_never_cross_two(rows: int) -> None:
    files = [SourceFile("a", 10), SourceFile("b", 0), SourceFile("c", 7)]
    ranges = list(file_ranges(files, rows))
    for file in files:
        tiled = [row for of, start, stop in ranges if of == file for row in range(start, stop)]
        assert tiled == list(range(file.rows))
    assert all(0 < stop - start <= rows for _, start, stop in ranges)
