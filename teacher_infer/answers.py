"""A teacher's softened answers for the rows of a span, batch by batch, without the samples that it cannot label."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from storage.commits import Quarantined
from storage.errors import DeviceLost, StillhouseError, TeacherError
from storage.lineage import redact
from storage.samples import SAMPLE_ID
from storage.shard import sample_rows
from teacher_infer.soften import Softened, not_finite, soften
from teacher_infer.teachers import Teacher

# What a reason may say of an error that a teacher raised.
_REASON_CHARS = 300


@dataclass(frozen=True)
class Answers:
    """Samples with their inputs, and what the teacher said of them."""

    samples: pa.Table
    softened: Softened


class Questioner:
    """Asks one teacher. Batches, and the halves of a batch that failed, follow from the span and `batch_size` alone.

    max_bad: how many samples of a span may be left out. `bad` says which were, and why.
    """

    def __init__(self, teacher: Teacher, batch_size: int, temperature: float, max_bad: int, where: str) -> None:
        self._teacher, self._batch_size, self._temperature = teacher, batch_size, temperature
        self._max_bad, self._where = max_bad, where
        self.bad: list[Quarantined] = []

    def ask(self, samples: pa.Table) -> Iterator[Answers]:
        """Raises TeacherError, with the first sample's id, once more than `max_bad` samples are bad."""
        for start in range(0, samples.num_rows, self._batch_size):
            yield from self._ask_whole_or_halves(samples.slice(start, self._batch_size))

    def _ask_whole_or_halves(self, batch: pa.Table) -> Iterator[Answers]:
        try:
            softened = soften(self._teacher.logits(list(sample_rows(batch).inputs.values())), self._temperature)
        except StillhouseError:
            raise
        except Exception as error:
            self._refuse_machines_fault(error, batch)
            if batch.num_rows == 1:
                self._quarantine(batch, 0, f"the teacher raised {_in_short(error)}")
                return
            half = batch.num_rows // 2
            yield from self._ask_whole_or_halves(batch.slice(0, half))
            yield from self._ask_whole_or_halves(batch.slice(half))
            return
        bad = not_finite(softened.logits_PV)
        for row in bad.nonzero()[0].tolist():
            self._quarantine(batch, row, "its logits are NaN or infinite")
        if not bad.all():
            yield Answers(batch, softened) if not bad.any() else Answers(batch.filter(~bad), softened.only(~bad))

    def _refuse_machines_fault(self, error: Exception, batch: pa.Table) -> None:
        """What a machine lacks or loses is no fault of a sample, and may not decide which samples a cache holds."""
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise TeacherError(
                f"The teacher has no memory for {batch.num_rows} samples (in {self._where}): {_in_short(error)}.",
                f"teacher.batch_size is {self._batch_size}.",
                "Lower it, or give each actor more memory.",
            ) from error
        if _is_device_lost(error):
            raise DeviceLost(
                f"The teacher's device failed (in {self._where}): {_in_short(error)}.",
                "After such an error it answers nothing any more.",
            ) from error

    def _quarantine(self, batch: pa.Table, row: int, reason: str) -> None:
        self.bad.append(Quarantined(str(batch.column(SAMPLE_ID)[row].as_py()), reason))
        if len(self.bad) > self._max_bad:
            raise TeacherError(
                f"The teacher cannot label the sample '{self.bad[0].sample_id}' (in {self._where}): "
                f"{self.bad[0].reason}.",
                f"max_bad_samples lets a job leave out {self._max_bad}.",
                "Look at that sample, at targets.temperature and the teacher's dtype (float16 overflows above "
                "65,504), or let max_bad_samples leave some out.",
            )


def _in_short(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = last.filename.rpartition("/")[2]
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:_REASON_CHARS]} ({file}:{last.lineno})"


def _is_device_lost(error: Exception) -> bool:
    signs = ("CUDA error", "CUDA driver error", "HIP error", "cuDNN error", "CUBLAS_STATUS", "NCCL error")
    return type(error).__name__ == "AcceleratorError" or any(sign in str(error) for sign in signs)
