"""One span in, one committed shard out, without a cluster."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.models.model_spec import ModelSpec
from storage.base.errors import JobError, SourceError, StoreFull, VerificationError
from storage.cache.catalog import verify
from storage.cache.checked_reads import read_footer
from storage.cache.commits import read_commit, settle
from storage.encodings.dense import Dense
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.sources import make_source
from storage.sources.function import FunctionSource
from storage.stream.scan import scan
from storage.stream.stream import Stream
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import Span, make_plan
from teacher_infer.teachers.module import ModuleTeacher


def work_of(folder: Path, batch_size: int = 8, **arguments: Any) -> Work:
    source = FunctionSource("stillhouse_toys:rows", arguments)
    return Work(Folder(str(folder)), source, Dense(temperature=2.0), "teacher digest", batch_size)


def spans_of(work: Work, span_rows: int = 10) -> tuple[Span, ...]:
    key_parts = KeyParts.of(work.teacher_digest, work.encoding, 0)
    return make_plan(work.source, span_rows, key_parts).spans


def toy_teacher(**arguments: Any) -> ModuleTeacher:
    return ModuleTeacher(ModelSpec("stillhouse_toys:linear", arguments), dtype="float32", seed=3, device="cpu")


def test_a_shard_holds_the_teachers_answers_for_its_rows(toys: Path, tmp_path: Path) -> None:
    work, teacher = work_of(tmp_path), toy_teacher()
    span = spans_of(work)[1]
    labelled = label_span(work, teacher, span)
    commit = labelled.commit
    assert labelled.computed
    assert commit == read_commit(work.store, span.shard_key)
    assert commit.rows == 10
    header, _ = read_footer(work.store, commit)
    assert (header.classes, header.teacher, header.span) == (3, "teacher digest", span.digest)
    [rows] = scan(CacheRows(seal_of(work, [commit])), 100)
    assert rows.targets is not None
    assert rows.label is not None
    assert rows.sample_id.tolist() == [f"s{i}" for i in range(10, 20)]
    assert rows.label.tolist() == [i % 3 for i in range(10, 20)]
    logits = teacher.logits(rows.inputs).double()
    expected = logits / 2 - (logits / 2).amax(1, keepdim=True)
    np.testing.assert_allclose(rows.targets.logits_PV.astype(np.float64), expected, rtol=2**-11, atol=1e-7)


def seal_of(work: Work, commits: list[Any]) -> Any:
    from storage.cache.seal import seal

    return seal(work.store, "toy", commits, {"teacher": {}})


def test_samples_that_are_read_in_pieces_give_the_same_bytes(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[Any] = []
    for name in ("whole", "pieces"):
        work = work_of(tmp_path / name)
        commits += [label_span(work, toy_teacher(), span).commit for span in spans_of(work, 25)]
        monkeypatch.setattr("storage.samples.pieces.PIECE_BYTES", 100)
    assert len(list(work.source.pieces(work.source.files()[0], 0, 25))) > 2
    facts = [(commit.shard_key, commit.sha256, commit.rows) for commit in commits]
    assert len(facts) == 4 and facts[:2] == facts[2:]


def test_each_step_is_reported_with_the_rows_that_are_labelled(toys: Path, tmp_path: Path) -> None:
    work, reports = work_of(tmp_path), list[tuple[int, str]]()
    label_span(work, toy_teacher(), spans_of(work, 20)[0], report=lambda rows, step: reports.append((rows, step)))
    # Read, three batches of at most eight rows, written.
    assert [rows for rows, step in reports if step == "label"] == [0, 0, 8, 16]
    assert reports[0] == (0, "move") and reports[-1] == (20, "move")


def test_the_same_work_gives_the_same_bytes(toys: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        work = work_of(tmp_path / name)
        digests.append([label_span(work, toy_teacher(), span).commit.sha256 for span in spans_of(work)])
    assert digests[0] == digests[1]


def test_another_batch_size_gives_the_same_keys(toys: Path, tmp_path: Path) -> None:
    small, large = work_of(tmp_path, batch_size=3), work_of(tmp_path, batch_size=64)
    assert spans_of(small) == spans_of(large)


def test_a_committed_span_stays_as_it_was_first_committed(toys: Path, tmp_path: Path) -> None:
    work = work_of(tmp_path)
    span = spans_of(work)[0]
    first = label_span(work, toy_teacher(), span)
    again = label_span(work, toy_teacher(), span)
    assert (again.commit, again.computed) == (first.commit, False)
    assert work.store.names(f"shards/{span.shard_key[:2]}") == [first.commit.path.rsplit("/", 1)[1]]


def test_a_file_that_cannot_be_read_any_more_has_changed(toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"sample_id": range(4), "x": np.zeros(4, np.float32)}), path)
    work = replace(work_of(tmp_path), source=make_source({"parquet": str(path)}))
    [span] = spans_of(work)
    path.write_bytes(b"no Parquet")
    with pytest.raises(VerificationError, match=r"could be planned, and cannot be read\. .*a\.parquet"):
        label_span(work, toy_teacher(), span)


def test_rows_that_changed_under_the_plan_are_no_shard(toys: Path, tmp_path: Path) -> None:
    planned = spans_of(work_of(tmp_path))[0]
    changed = work_of(tmp_path, first=1)
    with pytest.raises(VerificationError, match=r"rows\[0:10\] have the digest .*The plan read"):
        label_span(changed, toy_teacher(), planned)
    assert changed.store.names("commits") == []


@pytest.mark.parametrize("bad", [0.0, 0.9])
def test_a_teacher_that_is_not_a_number_names_the_sample(toys: Path, tmp_path: Path, bad: float) -> None:
    work = work_of(tmp_path)
    teacher = toy_teacher(bad=float(np.float32(bad)))
    with pytest.raises(JobError, match=rf"cannot label the sample 's{round(bad * 10)}' .*its logits contain NaN"):
        label_span(work, teacher, spans_of(work)[0])
    assert work.store.names("commits") == []
    assert work.store.names("tmp") == []


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_names_the_sample(toys: Path, tmp_path: Path, label: int) -> None:
    work = work_of(tmp_path, count=10, bad_label=label)
    with pytest.raises(SourceError, match=rf"'s9' .*has the label {label}.*classes 0 to 2"):
        label_span(work, toy_teacher(), spans_of(work)[0])


def test_a_teacher_must_give_one_row_of_logits_a_sample(toys: Path, tmp_path: Path) -> None:
    work = work_of(tmp_path)
    teacher = toy_teacher()
    teacher._model = torch.nn.Flatten(0)  # type: ignore[assignment]
    with pytest.raises(JobError, match=r"gave shape \[32\] for 8 samples"):
        label_span(replace(work, batch_size=8), teacher, spans_of(work)[0])


@pytest.mark.parametrize("bad", [0.0, 0.9])
def test_a_bad_sample_is_left_out_and_told_of(toys: Path, tmp_path: Path, bad: float) -> None:
    work = replace(work_of(tmp_path), max_bad_samples=1)
    spans = spans_of(work)
    commits = [label_span(work, toy_teacher(bad=float(np.float32(bad))), span).commit for span in spans]
    left_out = f"s{round(bad * 10)}"
    assert [(one.sample_id, one.reason) for one in commits[0].quarantined] == [(left_out, "its logits contain NaN")]
    assert [commit.rows for commit in commits] == [9, 10, 10, 10]
    assert read_commit(work.store, spans[0].shard_key) == commits[0]
    cache = seal_of(work, commits)
    assert (cache.samples, cache.quarantined) == (39, 1)
    ids = [i for rows in scan(CacheRows(cache), 100) for i in rows.sample_id]
    assert ids == [f"s{i}" for i in range(40) if f"s{i}" != left_out]


def test_a_span_of_bad_samples_only_is_an_empty_shard_that_streams(toys: Path, tmp_path: Path) -> None:
    work = replace(work_of(tmp_path, count=11), max_bad_samples=5)
    spans = spans_of(work)
    assert [span.rows for span in spans] == [10, 1]
    commits = [label_span(work, toy_teacher(bad=float(np.float32(1.0))), span).commit for span in spans]
    assert [commit.rows for commit in commits] == [10, 0]
    cache = seal_of(work, commits)
    assert verify(cache)["ok"]
    stream = Stream(CacheRows(cache), batch_size=5, seed=0).endless()
    ids = [i for _ in range(4) for i in next(stream).rows.sample_id]
    assert sorted(ids) == sorted([f"s{i}" for i in range(10)] * 2)


def test_what_another_attempt_has_committed_is_found_and_not_computed(toys: Path, tmp_path: Path) -> None:
    work = work_of(tmp_path)
    span = spans_of(work)[0]
    first = label_span(work, toy_teacher(), span).commit
    calls = tmp_path / "calls"
    found = label_span(work, toy_teacher(calls=str(calls)), span)
    assert (found.commit, found.computed) == (first, False)
    assert not calls.exists()


def test_where_one_process_commits_for_all_a_span_is_published_only(toys: Path, tmp_path: Path) -> None:
    work = replace(work_of(tmp_path), settles=False)
    span = spans_of(work)[0]
    commit = label_span(work, toy_teacher(), span).commit
    assert work.store.size(commit.path) == commit.bytes
    assert work.store.names("commits") == []
    assert settle(work.store, commit) == commit == read_commit(work.store, span.shard_key)


def test_one_span_is_read_and_written_while_another_is_with_the_teacher(toys: Path, tmp_path: Path) -> None:
    """Two calls in threads, as an actor has them: of the teacher's turns none overlap, of the rest some do."""
    inside, most = [0, 0], [0, 0]
    turn, watch = threading.Lock(), threading.Lock()

    class Slow:
        def __init__(self, work: Any, index: int) -> None:
            self._work, self._index = work, index

        def __getattr__(self, name: str) -> Any:
            found = getattr(self._work, name)
            if name not in ("logits", "pieces"):
                return found

            def call(*arguments: Any) -> Any:
                with watch:
                    inside[self._index] += 1
                    most[self._index] = max(most[self._index], inside[self._index])
                    both.append(inside[0] > 0 and inside[1] > 0)
                time.sleep(0.05)
                try:
                    return found(*arguments)
                finally:
                    with watch:
                        inside[self._index] -= 1

            return call

    both: list[bool] = []
    work = work_of(tmp_path)
    slow = replace(work, source=Slow(work.source, 1))
    teacher = Slow(toy_teacher(), 0)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda span: label_span(slow, teacher, span, turn), spans_of(work)))
    assert most[0] == 1
    assert any(both)
    assert all(one.computed for one in done)


def test_where_a_spans_time_went_is_told(toys: Path, tmp_path: Path) -> None:
    seconds = label_span(work_of(tmp_path), toy_teacher(), spans_of(work_of(tmp_path))[0]).seconds
    assert seconds.read > 0 and seconds.forward > 0 and seconds.write > 0


def test_a_disk_that_fills_up_in_the_middle_of_a_shard_leaves_nothing_half_done(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import teacher_infer.labelling.writer

    def full(path: Path, schema: Any, batches: Any, **_: Any) -> int:
        path.write_bytes(b"PAR1 and some more")
        next(iter(batches))
        raise OSError(28, "No space left on device")

    work = work_of(tmp_path)
    span = spans_of(work)[0]
    with monkeypatch.context() as patched:
        patched.setattr(teacher_infer.labelling.writer, "write_shard", full)
        with pytest.raises(StoreFull, match="is full: No space left on device"):
            label_span(work, toy_teacher(), span)
    assert (work.store.names("commits"), work.store.names("shards"), work.store.names("tmp")) == ([], [], [])
    assert label_span(work, toy_teacher(), span).computed
