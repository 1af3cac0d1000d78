"""Progress of a teacher's job: what is committed, what failed, and its line and summary for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storage.base.errors import JobError
from storage.cache.commits import Commit, Quarantined, commit_path
from teacher_infer.labelling.label import Labelled
from teacher_infer.planning.plan import Span


@dataclass
class JobProgress:
    """The commits of a job's spans by shard key: `reused` before it began, `labelled` since.

    max_bad_samples: how many samples may be left out of all of them. positions_a_row: of each span, where it
    is not 1. done: positions that were dealt with since the job began; bytes: of their shards. actor_s: seconds
    that loaded teachers were held for the job.
    """

    reused: dict[str, Commit]
    max_bad_samples: int
    spans: int
    positions_a_row: dict[str, int] = field(default_factory=dict[str, int])
    labelled: dict[str, Labelled] = field(default_factory=dict[str, Labelled])
    quarantined: list[Quarantined] = field(default_factory=list[Quarantined])
    done: int = 0
    bytes: int = 0
    failed_attempts: int = 0
    crashes: int = 0
    preemptions: int = 0
    actor_s: float = 0.0

    def __post_init__(self) -> None:
        for commit in self.reused.values():
            self._quarantine(commit)

    def add(self, span: Span, labelled: Labelled) -> None:
        """Raises JobError once more samples are quarantined than the recipe lets it."""
        self.labelled[span.shard_key] = labelled
        self.done += span.rows * self.positions_a_row.get(span.shard_key, 1)
        self.bytes += labelled.commit.bytes
        self._quarantine(labelled.commit)

    def commit(self, span: Span) -> Commit:
        return self.reused[span.shard_key] if span.shard_key in self.reused else self.labelled[span.shard_key].commit

    def computed(self, span: Span) -> bool:
        """Whether this job's own forward passes made the span's shard."""
        return span.shard_key in self.labelled and self.labelled[span.shard_key].computed

    def _quarantine(self, commit: Commit) -> None:
        self.quarantined += commit.quarantined
        bad = self.quarantined
        if len(bad) > self.max_bad_samples:
            raise JobError(
                f"{len(bad)} samples are quarantined; the first is '{bad[0].sample_id}': {bad[0].reason}.",
                f"max_bad_samples lets this job leave out {self.max_bad_samples}.",
                "Allow more, or mend the samples. Where the fault was the teacher's or a machine's, remove "
                f"{commit_path(commit.shard_key)} from the store: its span is then computed anew.",
            )

    def positions(self, *commits: Commit) -> int:
        """Positions of the rows in these shards; quarantined samples have none."""
        return sum(commit.rows * self.positions_a_row.get(commit.shard_key, 1) for commit in commits)

    def note(self) -> str:
        """For a line of progress."""
        return (
            f"{len(self.labelled) + len(self.reused)}/{self.spans} spans, {len(self.reused)} reused, "
            f"{self.failed_attempts} failed, {self.bytes / 1e6:,.1f} MB"
            + (f", {len(self.quarantined)} samples quarantined" if self.quarantined else "")
        )

    def facts(self, seconds: float) -> dict[str, Any]:
        """positions_per_s: of those computed, over the job's seconds. forward_share: of the actors' time."""
        mine = [labelled for labelled in self.labelled.values() if labelled.computed]
        commits = [*self.reused.values(), *(labelled.commit for labelled in self.labelled.values())]
        rows, all_rows = self.positions(*(one.commit for one in mine)), self.positions(*commits)
        forward = sum(labelled.seconds.forward for labelled in mine)
        return {
            "computed_positions": rows,
            "reused_positions": all_rows - rows,
            "positions_per_s": round(rows / seconds, 1) if seconds else 0.0,
            "forward_share": round(forward / self.actor_s, 4) if self.actor_s else None,
            "bytes_per_position": round(sum(commit.bytes for commit in commits) / all_rows, 2) if all_rows else None,
            "failed_attempts": self.failed_attempts,
            "crashes": self.crashes,
            "preemptions": self.preemptions,
        }


def summary(work: dict[str, Any]) -> str:
    """`JobProgress.facts` as a sentence."""
    if not work["computed_positions"] and not work["failed_attempts"]:
        return f"Nothing was computed; {work['reused_positions']:,} positions were reused."
    share, size = work["forward_share"], work["bytes_per_position"]
    return (
        f"{work['computed_positions']:,} positions computed at {work['positions_per_s']:,.0f}/s, "
        f"{work['reused_positions']:,} reused"
        + (f"; {100 * share:.0f} % of the actors' time in forward" if share is not None else "")
        + (f"; {size:,.1f} bytes a position" if size is not None else "")
        + (f"; {work['failed_attempts']} attempts failed and were made again" if work["failed_attempts"] else "")
        + "."
    )
