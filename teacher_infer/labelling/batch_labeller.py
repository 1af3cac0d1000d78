"""Labels samples batch by batch, and quarantines those that the teacher cannot label."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import DeviceLost
from jobs.failures.device_lost import is_device_lost
from jobs.failures.out_of_memory import is_out_of_memory
from jobs.failures.transient import is_network_failure, is_passing
from storage.base.errors import JobError, SourceError, StillhouseError, StoreLost
from storage.base.redact import redact
from storage.cache.commits import Quarantined
from storage.encodings import Encoding
from storage.encodings.targets import IGNORED
from storage.format.rows import DecodedRows, sample_rows
from storage.samples.samples import SAMPLE_ID
from teacher_infer.soften import Softened, soften
from teacher_infer.teachers import Teacher

# What a reason may say of an error that a teacher raised.
_REASON_CHARS = 300


class BatchLabeller:
    """Runs a teacher on batches of samples and softens its logits.

    A batch for which the teacher raises is halved until the samples that it raises for are alone. Batches and halves
    depend on the samples and `batch_size` alone.

    max_bad: how many samples may be quarantined. where: names the samples in errors. `quarantined` lists the samples
    that were left out, with the reasons. on_call: is called after each call of the teacher, also when it raised.
    """

    def __init__(self, teacher: Teacher, batch_size: int, encoding: Encoding, max_bad: int, where: str) -> None:
        self._teacher, self._batch_size, self._encoding = teacher, batch_size, encoding
        self._max_bad, self._where = max_bad, where
        self.quarantined: list[Quarantined] = []
        self.on_call: Callable[[], None] = lambda: None

    def label(self, samples: pa.Table) -> Iterator[tuple[pa.Table, Softened]]:
        """Batches of the samples that could be labelled, each with its softened rows.

        Raises JobError, with the first sample's id, once more than `max_bad` samples are quarantined; SourceError
        for labels that do not fit the logits; StoreLost and DeviceLost.
        """
        for start in range(0, samples.num_rows, self._batch_size):
            yield from self._label_whole_or_halves(samples.slice(start, self._batch_size))

    def _label_whole_or_halves(self, batch: pa.Table) -> Iterator[tuple[pa.Table, Softened]]:
        try:
            rows = sample_rows(batch)
            logits = self._teacher.logits(rows.inputs)
            _refuse_labels(rows, tuple(logits.shape), self._where)
            softened = soften(logits, self._encoding, rows.label)
        except StillhouseError:
            raise
        except Exception as error:
            self._raise_for_machine(error, batch)
            self.on_call()
            if batch.num_rows == 1:
                self._quarantine(batch, 0, f"the teacher raised {_short(error)}")
                return
            half = batch.num_rows // 2
            yield from self._label_whole_or_halves(batch.slice(0, half))
            yield from self._label_whole_or_halves(batch.slice(half))
            return
        self.on_call()
        bad = softened.bad_R
        for row in bad.nonzero()[0].tolist():
            self._quarantine(batch, row, _why_bad(logits[row]))
        if not bad.all():
            yield (batch.filter(~bad), softened.each(lambda array: array[~bad])) if bad.any() else (batch, softened)

    def _raise_for_machine(self, error: Exception, batch: pa.Table) -> None:
        """Raises for errors of memory, network and device, which are no fault of a sample and quarantine none."""
        # Before a lost device: CUBLAS_STATUS_ALLOC_FAILED is a lack of memory.
        if is_out_of_memory(error):
            raise JobError(
                f"The teacher has no memory for {batch.num_rows} samples (in {self._where}): {_short(error)}.",
                f"teacher.batch_size is {self._batch_size}.",
                "Lower it, or give each actor more memory.",
            ) from error
        if is_network_failure(error):
            raise StoreLost(f"The teacher lost a connection (in {self._where}): {_short(error)}.") from error
        if is_device_lost(error) or is_passing(error):
            raise DeviceLost(
                f"The teacher's device failed (in {self._where}): {_short(error)}.",
                "After such an error it answers nothing any more.",
            ) from error

    def _quarantine(self, batch: pa.Table, row: int, reason: str) -> None:
        self.quarantined.append(Quarantined(str(batch.column(SAMPLE_ID)[row].as_py()), reason))
        if len(self.quarantined) > self._max_bad:
            raise JobError(
                f"The teacher cannot label the sample '{self.quarantined[0].sample_id}' (in {self._where}): "
                f"{self.quarantined[0].reason}.",
                f"max_bad_samples lets a job leave out {self._max_bad}.",
                "Look at that sample, at targets.temperature and the teacher's dtype (float16 overflows above "
                "65,504), or let max_bad_samples leave some out.",
            )


def _refuse_labels(rows: DecodedRows, shape: tuple[int, ...], where: str) -> None:
    """shape: of the logits, [R, V] or [R, L, V]."""
    label = rows.label
    if label is None:
        return
    *lead, classes = shape
    if label.shape != tuple(lead):
        raise SourceError(
            f"The labels of {where} have the shape {list(label.shape)}, the teacher's answers {list(lead)}.",
            "There is a label for each answer: one a sample, or one for each position of a sequence.",
            "Name another column as source.columns.label, or leave labels out with source.columns.label=false.",
        )
    outside = (label != IGNORED) & ((label < 0) | (label >= classes))
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise SourceError(
            f"The sample '{rows.sample_id[at[0]]}' (in {where}) has the label {label[at]}.",
            f"The teacher has the classes 0 to {classes - 1}.",
        )


def _why_bad(logits: Any) -> str:
    """Why one row's logits [V] or [L, V] are no distribution."""
    import torch

    if logits.isnan().any():
        return "its logits contain NaN"
    if logits.isposinf().any():
        return "its logits contain +inf"
    if torch.isneginf(logits).all(dim=-1).any():
        return "all its logits are -inf" if logits.ndim == 1 else "all logits of a position are -inf"
    return "its logits overflow float32, as they are or divided by the temperature"


def _short(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = last.filename.rpartition("/")[2]
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:_REASON_CHARS]} ({file}:{last.lineno})"
