"""Who is timed, in which process, and how the rounds go: every reader has its turn in every round."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_readers.data import Shape
from stream_readers.ours import SMALLER
from stream_readers.session import Session

ROW_GROUP_BYTES = 16 << 20
# In a first pass that is shorter than this the start of its workers decides.
START_COUNTS_S = 2.0
QUIET = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Contender:
    """A reader, where its rows lie and the options to choose the fastest of.

    compression: of our shards. times: how often the rows lie there, under ids of their own. settles: it goes on
    between its turns. elsewhere: in the peers' environment.
    """

    name: str
    reader: str
    home: str
    ways: tuple[str, ...]
    variants: tuple[dict[str, Any], ...] = ({},)
    compression: str | None = None
    times: int = 1
    settles: bool = False
    peer: bool = False
    elsewhere: bool = False

    @property
    def writes(self) -> bool:
        return self.name == "ours" or self.elsewhere


def ours(compression: str, large: int) -> list[Contender]:
    """Our stream among scans of the very shards that it reads, as near in time as can be."""

    def scan(threads: int, times: int) -> Contender:
        home = f"{compression}-{times}"
        return Contender("scan", "scan", home, ("sequential",), ({"threads": threads},), compression, times)

    def stream(way: str, times: int) -> Contender:
        options = {"compression": compression, "way": way, "times": times}
        home = f"{compression}-{times}"
        return Contender(
            "ours", "ours", home, (way,), (options,), compression, times, settles=way in ("again", "lanes")
        )

    return [
        scan(1, 1),
        stream("shuffled", 1),
        scan(2, 1),
        stream("again", 1),
        stream("sequential", 1),
        scan(1, large),
        stream("lanes", large),
        scan(2, large),
    ]


def contenders(large: int, peers: bool) -> list[Contender]:
    """In the order in which they have their turns."""
    both = ("shuffled", "sequential")
    workers = ({"workers": 0}, {"workers": 2})

    def peer(name: str, reader: str, variants: tuple[dict[str, Any], ...], home: str | None = None) -> Contender:
        return Contender(name, reader, home or name, both, variants, peer=True, elsewhere=True)

    here = [
        *ours("zstd", large),
        *ours("none", large),
        Contender("memmap", "memmap", "arrays", ("shuffled",)),
    ]
    if not peers:
        return here
    return [
        *here,
        Contender("ray data", "ray", "zstd-1", both, compression="zstd", peer=True),
        peer("mosaic", "mosaic", workers),
        peer("litdata", "litdata", workers),
        peer("webdataset", "webdataset", workers),
        peer("datasets arrow", "datasets", ({"form": "arrow"},), "datasets"),
        peer("datasets numpy", "datasets", ({"form": "numpy"},), "datasets"),
        peer("grain", "grain", ({"threads": 0}, {"threads": 16})),
    ]


@dataclass
class Entry:
    """A contender at work, and what was measured of it: samples/s of each way, and seconds."""

    contender: Contender
    session: Session
    options: dict[str, Any]
    told: dict[str, Any]
    tried: list[dict[str, Any]]
    rates: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    resume: list[float | None] = field(default_factory=list)
    resumes: bool = False
    exact: bool | None = None


class Contest:
    """All readers of one shape's rows."""

    def __init__(self, shape: Shape, folder: Path, pythons: dict[bool, str], say: Callable[[str], None]) -> None:
        self.shape, self._folder, self._pythons, self._say = shape, folder, pythons, say
        self.entries: list[Entry] = []
        self.bytes: dict[str, int] = {}
        (folder / "tmp").mkdir()

    def write(self, all_of_them: list[Contender]) -> None:
        """Every library's files once, then all of them to the disk, whose writing back would disturb the rounds."""
        for one in all_of_them:
            home = self._folder / one.home
            if one.writes and not home.exists():
                home.mkdir()
                session = self._session(one, one.variants[0])
                session.ask("prepare")
                session.end()
                self._say(f"{self.shape.name}: {one.home} is written")
            if home.exists():
                # Before anything is read: datasets leaves its shuffles beside the rows.
                self.bytes[one.home] = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        os.sync()

    def enter(self, one: Contender) -> None:
        """Start a contender with the options that are fastest here, warm, and checked against the arrays."""
        entered: list[Entry] = []
        for options in one.variants:
            session = self._session(one, options)
            told = session.ask("start")
            watched = session.ask_watched("passes", one.ways[0])
            if len(one.variants) > 1 and watched["seconds"] < START_COUNTS_S:
                watched |= session.ask("passes", one.ways[0])
            entered.append(Entry(one, session, options, told | watched, []))
        tried = [{**entry.options, "samples_per_s": round(rate(entry.told))} for entry in entered]
        best = max(entered, key=lambda entry: rate(entry.told))
        for entry in entered:
            if entry is not best:
                entry.session.end()
        best.tried = tried
        if one.reader != "scan":
            for way in one.ways:
                best.session.ask("check", way)
            if one.ways[0] not in ("sequential", "again"):
                best.resumes = best.session.ask("state", one.ways[0])["has"]
        self.entries.append(best)
        self._say(f"{self.shape.name}: {one.name} {best.options} {rate(best.told):,.0f}/s")

    def round(self) -> None:
        for entry in self.entries:
            for way in entry.contender.ways:
                if entry.contender.settles:
                    entry.session.ask("settle", way)
                answer = entry.session.ask("passes", way)
                entry.rates.setdefault(way, []).append(rate(answer))
                entry.groups[way] = answer["groups"]
            if entry.contender.reader != "scan" and entry.contender.ways != ("again",):
                entry.first.append(entry.session.ask("first", entry.contender.ways[0])["seconds"])
            if entry.resumes:
                answer = entry.session.ask("resume", entry.contender.ways[0])
                entry.resume.append(answer["seconds"])
                entry.exact = answer["exact"]

    def end(self) -> None:
        for entry in self.entries:
            entry.session.end()

    def _session(self, one: Contender, options: dict[str, Any]) -> Session:
        return Session(
            self._pythons[one.elsewhere],
            {
                "reader": one.reader,
                "home": str(self._folder / one.home),
                "arrays": str(self._folder / "arrays"),
                "shape": self.shape.name,
                "options": options,
                "times": one.times,
                "group_rows": ROW_GROUP_BYTES // (SMALLER if one.times > 1 else 1) // self.shape.row_bytes,
                "log": str(self._folder / f"{one.reader}.log"),
            },
            # Locks and caches that a library leaves behind go with the folder; Ray's sockets need a short path.
            QUIET
            | ({"TMPDIR": str(self._folder / "tmp"), "HF_HOME": str(self._folder / "tmp")} if one.elsewhere else {}),
        )


def rate(answer: dict[str, Any]) -> float:
    return answer["rows"] / answer["seconds"]
