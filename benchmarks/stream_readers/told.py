"""What the rounds gave, as rows of numbers and as two numbers for all of it."""

from __future__ import annotations

import statistics
from typing import Any

from stream_readers.contest import Contest, Entry

Row = dict[str, Any]


def rows_of(contest: Contest) -> list[Row]:
    """One row a reader and way; ratios are of neighbours in the same round."""
    peer, peer_rates = best_peer(contest)
    rows: list[Row] = []
    for entry in contest.entries:
        one = entry.contender
        for way in one.ways:
            scan = the_scan(contest, one.compression or "zstd", one.times)
            row: Row = {
                "shape": contest.shape.name,
                "reader": one.name,
                "way": way,
                "compression": one.compression,
                "options": entry.options,
                "tried": entry.tried if len(entry.tried) > 1 else [],
                "samples": entry.told["rows"],
                "samples_per_s": spread(entry.rates[way], 0),
                "over_scan": spread(ratios(entry.rates[way], scan), 3),
                "mixes": {
                    "words": entry.told["shuffles"] if way != "sequential" else "nothing",
                    "groups": entry.groups[way],
                },
                "checks": entry.told["checks"],
                "bytes": contest.bytes[one.home],
            }
            if peer and one.name == "ours" and way != "sequential":
                row["over_best_peer"] = {"peer": peer, **spread(ratios(entry.rates[way], peer_rates), 3)}
            if way == one.ways[0]:
                row |= _once(entry)
            rows.append(row)
    return rows


def _once(entry: Entry) -> Row:
    """What is measured of a reader's first way only."""
    told: Row = {name: round(entry.told[name], 1) for name in ("peak_mb", "peak_own_mb")}
    if entry.first:
        told["first_s"] = spread(entry.first, 4)
    seconds = [value for value in entry.resume if value is not None]
    if seconds:
        told["resume_s"] = {**spread(seconds, 4), "exact": entry.exact}
    return told


def the_scan(contest: Contest, compression: str, times: int) -> list[float]:
    """The rates of the faster of the scans of some shards."""
    scans = [
        entry.rates["sequential"]
        for entry in contest.entries
        if entry.contender.reader == "scan"
        and (entry.contender.compression, entry.contender.times) == (compression, times)
    ]
    return max(scans, key=statistics.median)


def best_peer(contest: Contest) -> tuple[str | None, list[float]]:
    peers = {e.contender.name: e.rates["shuffled"] for e in contest.entries if e.contender.peer}
    if not peers:
        return None, []
    best = max(peers, key=lambda name: statistics.median(peers[name]))
    return best, peers[best]


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: list[float], digits: int) -> Row:
    return {
        "median": round(statistics.median(values), digits),
        "range": [round(min(values), digits), round(max(values), digits)],
    }


def least(rows: list[Row], way: str, ratio: str) -> float | None:
    """The least of a ratio over the shapes, of our stream on shards as they are written by default."""
    mine = [row for row in rows if (row["reader"], row["way"], row["compression"]) == ("ours", way, "zstd")]
    return min((row[ratio]["median"] for row in mine if ratio in row), default=None)
