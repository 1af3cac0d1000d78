"""How fast a cache is streamed into training: beside a bare scan of its shards, and beside other libraries' loaders.

python benchmarks/stream.py [--peers VENV] [--json] [--mb N] [--large N] [--rounds N]

Rows of two shapes, 300 MB of each by default: images of 32 x 32 x 3 bytes with a label and 1,000 float16
logits, and sequences of 512 tokens with the likeliest 64 ids and log-probabilities of each. Every reader runs
in a process of its own and has its turn in every round; it gives complete batches of 128 rows, all columns,
in memory of their own, and every row once (checked).

samples_per_s  one pass by a reader that is open and warm
over_scan      the same over `read_row_group` of our shards in the order they are stored in, without checks and
               without batches, by one thread or two, whichever is faster: a ratio of neighbours in a round
first_s        from nothing (libraries are imported) to the first batch
resume_s       from nothing to the first batch after the middle of an epoch, from a state that was taken there;
               exact says whether it is the batch that would have come
peak_mb        how much the memory of the reader and its workers grows in its first pass; peak_own_mb leaves out
               the pages of mapped files, which the system can take back
mixes          what is shuffled, and of how many stretches of the length of our row group a batch draws its rows

Ways of ours: `shuffled` is what this cache gets, a full shuffle, by a new stream for each pass; `again` are the later
epochs of such a stream, which holds what it read; `lanes` is what a cache gets that is larger than the memory bound,
by a stream that goes on. It is measured on a cache --large times as large, as is the scan beside it, with row groups
a quarter as large: so its windows hold a fifth of the cache, and not all of it.

Peers go on too: an epoch before the timed ones was theirs. They are written in their own formats with their own
defaults, uncompressed; of several settings the fastest one is kept (`tried` tells of all). Without --peers VENV there
are no peers; the environment is made from stream_peers.txt if it is not there.

shuffled_over_scan is the least over_scan of `lanes`, the others are the least ratios of a way of ours to the fastest
shuffling peer; all on shards as they are written by default.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from stream_readers.contest import Contest, contenders  # noqa: E402
from stream_readers.data import SHAPES, Shape, make  # noqa: E402
from stream_readers.told import least, rows_of  # noqa: E402

from jobs.console import say, table  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peers", type=Path, help="an environment with the other libraries; made if it is not there")
    parser.add_argument("--mb", type=float, default=300, help="megabytes of rows of each shape")
    parser.add_argument("--large", type=int, default=4, help="how many times that the cache read in lanes holds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    asked = parser.parse_args()
    # Gigabytes lie in the folder, which goes with this process however it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pythons = {False: sys.executable}
    if asked.peers:
        pythons[True] = peers_python(asked.peers)
    rows: list[dict[str, Any]] = []
    for name in asked.shapes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(SHAPES[name], Path(folder), pythons, asked)
    answer = {
        "rows": rows,
        "shuffled_over_scan": least(rows, "lanes", "over_scan"),
        "shuffled_over_best_peer": least(rows, "shuffled", "over_best_peer"),
        "again_over_best_peer": least(rows, "again", "over_best_peer"),
        "lanes_over_best_peer": least(rows, "lanes", "over_best_peer"),
        "rounds": asked.rounds,
        "mb": asked.mb,
        "large": asked.large,
    }
    print(json.dumps(answer, indent=1) if asked.json else readable(answer))
    return 0


def peers_python(folder: Path) -> str:
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"{folder} is made, with what {HERE / 'stream_peers.txt'} lists")
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "stream_peers.txt"]
        subprocess.run(list(map(str, install)), check=True, stdout=sys.stderr)
    return str(python)


def measure(shape: Shape, folder: Path, pythons: dict[bool, str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    make(shape, shape.rows_in(asked.mb), folder / "arrays")
    contest = Contest(shape, folder, pythons, say)
    all_of_them = contenders(asked.large, peers=True in pythons)
    contest.write(all_of_them)
    try:
        for one in all_of_them:
            contest.enter(one)
        for number in range(asked.rounds):
            begun = time.monotonic()
            contest.round()
            say(f"{shape.name}: round {number + 1}/{asked.rounds}, {time.monotonic() - begun:.0f} s")
    finally:
        contest.end()
    return rows_of(contest)


def readable(answer: dict[str, Any]) -> str:
    header = ["reader", "shape", "way", "rows", "samples/s", "over scan", "range", "groups", "first ms", "resume ms"]
    header += ["peak MB", "own", "MB on disk"]
    lines = [_cells(row) for row in answer["rows"]]
    ends = [f"{name} {value}" for name, value in answer.items() if name != "rows"]
    return "\n".join([table(header, lines), "", *ends])


def _cells(row: dict[str, Any]) -> list[str]:
    def ms(name: str) -> str:
        return f"{1000 * row[name]['median']:,.0f}" if name in row else ""

    low, high = row["over_scan"]["range"]
    resume = ms("resume_s") + ("" if row.get("resume_s", {}).get("exact", True) else " (inexact)")
    settings = [f"{value} {name}" for name, value in row["options"].items() if name in ("threads", "workers")]
    return [
        " ".join([row["reader"], row["compression"] or "", *settings]).replace("  ", " "),
        row["shape"],
        row["way"],
        f"{row['samples']:,}",
        f"{row['samples_per_s']['median']:,.0f}",
        f"{row['over_scan']['median']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['mixes']['groups']:g}",
        ms("first_s"),
        resume,
        *(f"{row[name]:,.0f}" if name in row else "" for name in ("peak_mb", "peak_own_mb")),
        f"{row['bytes'] / 1e6:,.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
