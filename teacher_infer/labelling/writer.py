"""A shard file written by a thread of its own, a few batches behind the teacher."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.failures.out_of_memory import is_out_of_memory
from storage.base.errors import JobError, StillhouseError
from storage.encodings import Encoding
from storage.format.position_columns import ENTROPY, TOP1
from storage.format.shard import write_shard
from storage.objectstore.client_errors import in_words
from storage.samples import tensor_columns
from storage.samples.inputs_digest import inputs_digests
from storage.samples.samples import INPUTS_XXH3
from teacher_infer.soften import Softened

# Batches of softened logits that wait for the disk; then the teacher waits.
WAITING = 4


class Writer:
    """Use it as a context manager: `begin` with the schema, `put` batches, `finish` for the rows written.

    A batch's columns are those that the schema names. compression and group_row_bytes: see `write_shard`.
    waited: seconds that `put` waited for the disk; seconds: what encoding and writing took. `where` names
    the store in errors. What the thread raises is raised by the next call.
    """

    def __init__(self, path: Path, where: str, encoding: Encoding, *, compression: str = "zstd") -> None:
        self._path, self._where, self._encoding, self._compression = path, where, encoding, compression
        self._queue: queue.Queue[tuple[pa.Table, Softened] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._rows, self._ended = 0, False
        self.waited = self.seconds = 0.0

    @property
    def begun(self) -> bool:
        return self._thread is not None

    def begin(self, schema: pa.Schema, group_row_bytes: int | None = None) -> None:
        arguments = (schema, group_row_bytes)
        self._thread = threading.Thread(target=self._write, args=arguments, name="shard writer", daemon=True)
        self._thread.start()

    def put(self, samples: pa.Table, softened: Softened) -> None:
        """Samples with their inputs, and their softened rows."""
        self._raise()
        begun = time.perf_counter()
        self._queue.put((samples, softened))
        self.waited += time.perf_counter() - begun

    def finish(self) -> int:
        self._join()
        self._raise()
        return self._rows

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._join()

    def _join(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, schema: pa.Schema, group_row_bytes: int | None) -> None:
        begun, idle = time.perf_counter(), [0.0]
        try:
            with in_words(self._where):
                self._rows = write_shard(
                    self._path,
                    schema,
                    self._batches(schema, idle),
                    compression=self._compression,
                    group_row_bytes=group_row_bytes,
                )
        except BaseException as error:
            self._error = _translated(error, self._where)
            # Whoever puts must not wait for a thread that writes no more; most of a shard is written at its end.
            while not self._ended and self._queue.get() is not None:
                pass
        self.seconds = time.perf_counter() - begun - idle[0]

    def _batches(self, schema: pa.Schema, idle: list[float]) -> Iterator[pa.RecordBatch]:
        while True:
            begun = time.perf_counter()
            batch = self._queue.get()
            idle[0] += time.perf_counter() - begun
            if batch is None:
                self._ended = True
                return
            yield record_batch(*batch, self._encoding, schema)


def _translated(error: BaseException, where: str) -> BaseException:
    """A lack of memory as one sentence; any other error as it is."""
    if isinstance(error, StillhouseError) or not is_out_of_memory(error):
        return error
    return JobError(
        f"There is no memory to write a shard of {where} ({type(error).__name__}).",
        "Some batches of soft targets and one row group must fit into an actor's memory.",
        "Lower teacher.batch_size, or give each actor more memory.",
    )


def record_batch(samples: pa.Table, softened: Softened, encoding: Encoding, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a shard: the columns that the shard's schema names, in its order."""
    arrays = {name: samples.column(name).combine_chunks() for name in samples.schema.names if name in schema.names}
    arrays[ENTROPY] = pa.array(softened.entropy_R)
    if softened.top1_R is not None:
        arrays[TOP1] = pa.array(softened.top1_R)
    if INPUTS_XXH3 in schema.names:
        arrays[INPUTS_XXH3] = tensor_columns.pack(inputs_digests(samples).view(np.uint8).reshape(-1, 16))
    fields = encoding.fields(softened.targets.classes, softened.positions)
    arrays |= {f.name: array for f, array in zip(fields, encoding.encode(softened.targets), strict=True)}
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)
