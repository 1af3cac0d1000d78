"""What Ray's metrics are told of a teacher's job; Ray's dashboard and Prometheus show them as ray_stillhouse_*."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge


class Meter:
    """Counters of one job, tagged with its cache's name. Needs a Ray that is connected to."""

    def __init__(self, name: str) -> None:
        tags = {"cache": name}

        def counter(what: str, description: str, *keys: str) -> Counter:
            made = Counter(f"stillhouse_{what}", description, tag_keys=("cache", *keys))
            made.set_default_tags(tags)
            return made

        self._positions = counter("positions", "Positions committed or found committed.", "how")
        self._spans = counter("spans", "Spans committed or found committed.", "how")
        self._bytes = counter("bytes", "Bytes of the shards of computed spans.")
        self._failed = counter("failed_attempts", "Attempts that failed and were made again.", "why")
        self._actors = Gauge("stillhouse_actors", "Actors that have a node.", tag_keys=("cache",))
        self._actors.set_default_tags(tags)
        # Sums, whose rates are shares of the time; the sums of Ray's histograms are made of their buckets' middles.
        self._seconds = counter("span_seconds", "Where the time of computed spans went.", "stage")

    def span(self, positions: int, size: int, seconds: dict[str, float], computed: bool) -> None:
        """positions: of the rows in the span's shard, so without quarantined samples. size: its bytes."""
        how = {"how": "computed" if computed else "found"}
        if positions:  # a span may hold quarantined samples only
            self._positions.inc(positions, how)
        self._spans.inc(1, how)
        if computed:
            self._bytes.inc(size)
            for stage, value in seconds.items():
                if value > 0:
                    self._seconds.inc(value, {"stage": stage})

    def failed(self, why: str) -> None:
        self._failed.inc(1, {"why": why})

    def actors(self, count: int) -> None:
        self._actors.set(count)
