"""Does the own reader of Parquet pages earn its lines? The shuffled stream with it, and with pyarrow and a copy.

python benchmarks/page_reader.py [--mb 100] [--rounds 9] [--shapes image tokens]

Both read the same cache in one process, pass by pass in turns, each pass with a new stream whose batches are dropped.
Prints the ratio pyarrow / own of wall time and of CPU time: the median over the rounds, and the quartiles.
The result of 2026-11-28 is in stream.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from stream_readers import ours  # noqa: E402
from stream_readers.data import SHAPES, load, make  # noqa: E402

from jobs.console import table  # noqa: E402
from storage.rows import landing  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100, help="megabytes of rows of each shape")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    asked = parser.parse_args()
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.shapes:
            rows = Path(scratch) / name
            make(SHAPES[name], SHAPES[name].rows_in(asked.mb), rows)
            for compression in ("zstd", "none"):
                home = Path(scratch) / f"{name}-{compression}"
                ours.write_cache(home, load(rows), compression, 1)
                lines.append([name, compression, *ratios(home, asked.rounds)])
    print(table(["shape", "compression", "wall", "quartiles", "CPU", "quartiles"], lines))


def ratios(home: Path, rounds: int) -> list[str]:
    """pyarrow / own, of wall time and of CPU time; the first round warms up and does not count."""
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        own = one_pass(home)
        with pyarrow_reads():
            arrow = one_pass(home)
        pairs.append((arrow[0] / own[0], arrow[1] / own[1]))
    cells: list[str] = []
    for values in zip(*pairs[1:], strict=True):
        low, middle, high = statistics.quantiles(values, n=4)
        cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
    return cells


@contextmanager
def pyarrow_reads() -> Iterator[None]:
    """No column is one that the own reader knows, so pyarrow decodes all of them and a copy follows."""

    def land(self: landing.Landing, chunk: landing.Chunk, wanted: object) -> None:
        self._whole[chunk.name] = self._piece(chunk.stop - chunk.start)

    with mock.patch.object(landing.Landing, "_land", land), mock.patch.object(landing, "read_only_page", _never):
        yield


def _never(*_: object) -> bool:
    return False


def one_pass(home: Path) -> tuple[float, float]:
    """Seconds of the wall's clock and of the CPU for one epoch of a shuffled stream."""
    stream = ours.shuffled(ours.open_groups(home), 0, lanes=False)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in stream:
        pass
    taken = time.perf_counter() - wall, time.process_time() - cpu
    stream.close()
    return taken


if __name__ == "__main__":
    main()
