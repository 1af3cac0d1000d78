"""A stream as a torch data set: batches of tensors, in this process or in a DataLoader's workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from storage.base.errors import RecipeError
from storage.rows.row_groups import Ints
from storage.stream.stream import Batch, Stream
from storage.stream.torch_tensors import changed, to_torch

# More workers than anybody starts for one loader.
WORKERS = 1024


class TorchBatch(Batch):
    """A batch whose inputs, label and targets are tensors; its ids and places stay numpy."""

    def to(self, device: str | torch.device, non_blocking: bool = False) -> TorchBatch:
        return replace(self, rows=changed(self.rows, lambda value: value.to(device, non_blocking=non_blocking)))

    def pin_memory(self) -> TorchBatch:
        """In memory that a GPU copies from by itself; a DataLoader with `pin_memory` calls this."""
        return replace(self, rows=changed(self.rows, lambda value: value.pin_memory()))

    @staticmethod
    def of(batch: Batch) -> TorchBatch:
        return TorchBatch(batch.first, batch.global_size, batch.places, to_torch(batch.rows))


class StreamDataset(IterableDataset[TorchBatch]):
    """A stream's batches as tensors on the CPU: `for batch in dataset` goes on to the end of the epoch.

    It can be given to `DataLoader(dataset, batch_size=None)`. No workers is the way: the stream reads with threads of
    its own, which share what they hold. With `num_workers=n` the order is the same, but each worker reads and holds all
    that its rank needs, and a batch is copied once more; no seed, epoch or sampler is to be set either way. The loader
    is not to be prepared by accelerate or the like: the stream was told its rank.

    With workers, batches are put together before anybody uses them. So a state is one after a batch,
    `state_dict(after=batch)`, and a loop that is left early goes on only from such a state; another loop is refused.
    (In the last num_workers * (prefetch_factor - 1) batches of an epoch every worker may be through with its part
    already, and that a loop was left cannot be seen.)
    """

    def __init__(self, stream: Stream, pin: bool | None = None) -> None:
        """The stream is moved by the data set alone from here on.

        pin: whether batches lie in memory that a GPU copies from by itself; None: where there is a GPU. In a loader
        with workers its own `pin_memory` does that.
        """
        self.stream, self.pin = stream, pin
        self._at, self._begin = stream.place, _Begin(stream.place)

    def __getstate__(self) -> dict[str, Any]:
        # Threads do not go to another process; where the stream goes on it starts its own.
        self.stream.close()
        return dict(self.__dict__)

    def __len__(self) -> int:
        """The batches of an epoch: the most that a loop gives, since one may lie in two epochs."""
        # Not what is left of this epoch: a loader remembers it, and warns when a later loop gives more.
        return -(-int(self.stream.groups.rows.sum()) // self.stream.share.batch_size)

    def __iter__(self) -> Iterator[TorchBatch]:
        info = get_worker_info()
        if info is None:
            return self._alone(self.stream.__iter__)
        # Asked now, not with the first batch: by then the loop may have been left, and the place set anew.
        return self._part(info.id, info.num_workers, self._begin.number())

    def endless(self) -> Iterator[TorchBatch]:
        """Batches without end, in this process: each epoch is followed by the next one."""
        return self._alone(self.stream.endless)

    def close(self) -> None:
        """Stop the threads that read ahead, and free what they read. A later loop goes on with the next batch."""
        self.stream.close()

    def state_dict(self, after: Batch | None = None) -> dict[str, Any]:
        """The stream's state: the next batch's, or the one after that batch, wherever it was put together."""
        if after is None and self._begin.by_workers:
            raise RecipeError(
                "A loader's workers put the batches together, before they are used.",
                "A state is one after a batch.",
                "Take it with `dataset.state_dict(after=batch)`, batch being the last one that was used.",
            )
        if after is None:
            self._check()
        return self.stream.state_dict(after)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next loop begin where a state was taken, in the workers too. Raises VerificationError."""
        self.stream.load_state_dict(state)
        self._set(self.stream.place)

    def _set(self, place: int) -> None:
        self.stream.place = self._at = place
        self._begin.set(place)

    def _check(self) -> None:
        if self.stream.place != self._at:
            raise RecipeError(
                f"The stream was moved from place {self._at} to {self.stream.place}, and its data set was not told.",
                "A data set moves its stream alone.",
                "Iterate the data set and load states into it, or make another data set of the stream.",
            )

    def _alone(self, batches: Callable[[], Iterator[Batch]]) -> Iterator[TorchBatch]:
        self._check()
        self._set(self._begin.place())
        pinned = self._pinned()
        for batch in batches():
            self._set(self.stream.place)
            tensors = TorchBatch.of(batch)
            yield tensors.pin_memory() if pinned else tensors

    def _pinned(self) -> bool:
        # Asked no earlier: a process that has asked for its GPUs is not to be forked.
        if self.pin is not False and torch.cuda.is_available():
            return True
        if self.pin:
            raise RecipeError("pin is True, and there is no GPU here.", "Pinned memory is a GPU's.", "Leave pin out.")
        return False

    def _part(self, worker: int, of: int, number: int) -> Iterator[TorchBatch]:
        """What worker `worker` of `of` gives: in turns, the workers give what the stream would."""
        self._check()
        stream = self.stream
        stream.place = self._at = self._begin.place_of(worker)
        self._begin.loop(worker, of, number, stop=stream.place + len(stream) * stream.share.batch_size)
        for batch in stream.part(worker, of):
            yield TorchBatch.of(batch)
        self._at = stream.place
        self._begin.over(worker, of, number, stream.place)


class _Begin:
    """Where the next loop begins, in memory that the workers of a loader share with the process that made them.

    Row 0 is the maker's: how often it has set the place, and the place. Row 1 + k is that of worker k mod n of n: the
    number in row 0 that it went by, and twice the place where its next loop begins, or that plus 1 while its loop from
    there is not over. So nobody writes what another one writes, and a worker sees where the others are. A row that
    went by an older number says nothing.
    """

    def __init__(self, place: int) -> None:
        self._shared = torch.zeros((1 + WORKERS, 2), dtype=torch.int64).share_memory_()
        # Not shared: what row 0 had when a worker was made. None in a worker that has begun its first loop.
        self._made: int | None = 0
        self.set(place)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy in the same process is one of its own; its workers shall share it.
        self.__dict__.update(state)
        self._shared.share_memory_()

    @property
    def _rows(self) -> Ints:
        return self._shared.numpy()

    @property
    def by_workers(self) -> bool:
        """Whether workers have begun a loop since the place was set."""
        return bool((self._rows[1:, 0] == self._rows[0, 0]).any())

    def _marks(self) -> Ints:
        number, place = self._rows[0].tolist()
        return np.where(self._rows[1:, 0] == number, self._rows[1:, 1], 2 * place)

    def set(self, place: int) -> None:
        self._rows[0, 1] = place
        self._rows[0, 0] += 1
        self._made = int(self._rows[0, 0])

    def place(self) -> int:
        """Where a loop without workers begins. Raises RecipeError while one with workers is not over."""
        marks = np.unique(self._marks())
        if len(marks) > 1 or marks[0] % 2:
            raise _left_early()
        return int(marks[0]) // 2

    def number(self) -> int:
        """The number that a worker's next loop goes by."""
        number, self._made = self._made, None
        return int(self._rows[0, 0]) if number is None else number

    def place_of(self, worker: int) -> int:
        """Where a worker's next loop begins."""
        return int(self._marks()[worker]) // 2

    def loop(self, worker: int, of: int, number: int, stop: int) -> None:
        """Begin a worker's loop, which ends at `stop`.

        Raises RecipeError where this worker or another one shows that the last loop was not over, or the place was set
        after this loop was begun: then it was left before the worker came to it.
        """
        marks = self._marks()
        mine = int(marks[worker])
        # The others have not begun this loop, or have, or are through with it.
        fits = np.isin(marks, (mine, mine + 1, 2 * stop)).all()
        if mine % 2 or not fits or number != self._rows[0, 0]:
            raise _left_early()
        self._rows[1 + worker :: of, 1] = mine + 1
        self._rows[1 + worker :: of, 0] = number

    def over(self, worker: int, of: int, number: int, stop: int) -> None:
        rows = self._rows[1 + worker :: of]
        # A loop that was left may end after the next one has begun, in another process.
        if rows[0, 0] == number:
            rows[:, 1] = 2 * stop


def _left_early() -> RecipeError:
    return RecipeError(
        "The last loop over a loader's workers was left before its end.",
        "Only who used its batches knows how many.",
        "Go on with `dataset.load_state_dict(dataset.state_dict(after=batch))`, batch being the last one that was "
        "used, or from an earlier state.",
    )
