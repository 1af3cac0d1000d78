"""A stream as a torch data set: any number of workers gives the same batches once each, and no state is untrue."""

from __future__ import annotations

import copy
import itertools
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from storage.base.errors import RecipeError, VerificationError
from storage.cache.cache import Cache
from storage.objectstore.folder import Folder
from storage.rows.cache_rows import CacheRows
from storage.rows.reading import Reading
from storage.stream import torch_dataset as datasets
from storage.stream.stream import Batch, Stream
from storage.stream.torch_dataset import StreamDataset, TorchBatch

SIZES = (11, 3, 9)
EPOCHS = 4
ORDERS: list[dict[str, Any]] = [{}, {"lanes": 2, "window": 5}, {"lanes": 3, "window": 4, "rank": 1, "world": 2}]

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


@pytest.fixture
def cache(local: Folder, make_cache: Make) -> Cache:
    return make_cache(local, SIZES)


def new_stream(cache: Cache, **settings: Any) -> Stream:
    return Stream(CacheRows(cache), **{"batch_size": 4, "seed": 3, "reading": Reading(threads=2), **settings})


def new_loader(dataset: StreamDataset, workers: int, **settings: Any) -> DataLoader[TorchBatch]:
    if workers:
        settings.setdefault("multiprocessing_context", "fork")
    return DataLoader(dataset, batch_size=None, num_workers=workers, **settings)


def told(batches: Iterable[Batch]) -> list[Any]:
    """All that batches hold, to be compared, whether of arrays or of tensors."""
    return [
        (
            batch.first,
            batch.global_size,
            batch.places.tolist(),
            batch.sample_id.tolist(),
            {name: value.tolist() for name, value in batch.inputs.items()},
            batch.label.tolist(),
            batch.targets and (batch.targets.logits_PV.tolist(), batch.targets.temperature_P.tolist()),
        )
        for batch in batches
    ]


def firsts(batches: Iterable[Batch]) -> list[int]:
    return [batch.first for batch in batches]


def refusal(loop: Iterable[Batch]) -> str:
    """What a loop is refused with. The error's traceback holds a loader's workers, who are to be let go at once."""
    try:
        next(iter(loop))
    except RecipeError as error:
        traceback.clear_frames(error.__traceback__)
        return str(error)
    return "it was not refused"


@pytest.mark.parametrize("settings", ORDERS, ids=str)
def test_without_workers_it_is_the_stream(cache: Cache, settings: dict[str, Any]) -> None:
    stream, dataset = new_stream(cache, **settings), StreamDataset(new_stream(cache, **settings))
    loader = new_loader(dataset, 0)
    for loop in (dataset, loader, loader):
        assert told(loop) == told(stream)
    assert told(itertools.islice(dataset.endless(), 9)) == told(itertools.islice(stream.endless(), 9))
    assert dataset.state_dict() == stream.state_dict()


def test_what_a_model_is_given_are_tensors(cache: Cache) -> None:
    batch = next(iter(StreamDataset(new_stream(cache)))).to("cpu", non_blocking=True)
    assert isinstance(batch, TorchBatch) and len(batch) == 4 and batch.targets is not None
    tensors = [*batch.inputs.values(), batch.label, batch.targets.logits_PV, batch.targets.temperature_P]
    assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in tensors)
    assert batch.to("meta").label.device.type == "meta"


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("workers", "settings"), list(zip((2, 3, 2), ORDERS, strict=True)), ids=str)
def test_workers_give_the_same_batches_in_the_same_order(
    cache: Cache, workers: int, settings: dict[str, Any], persistent: bool
) -> None:
    stream = new_stream(cache, **settings)
    loader = new_loader(StreamDataset(new_stream(cache, **settings)), workers, persistent_workers=persistent)
    for _ in range(EPOCHS):
        assert told(loader) == told(stream)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_do_so_too(cache: Cache, method: str) -> None:
    stream, dataset = new_stream(cache), StreamDataset(new_stream(cache))
    # Threads are at work in this process, and do not go along.
    assert firsts(itertools.islice(dataset, 2)) == firsts(itertools.islice(stream, 2))
    loader = new_loader(dataset, 2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        assert told(loader) == told(stream)
    dataset.load_state_dict(stream.state_dict() | {"place": 8})
    assert firsts(loader) == [8, 12, 16, 20]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_told_of_no_fewer_batches_than_come(cache: Cache, workers: int) -> None:
    dataset = StreamDataset(new_stream(cache))
    dataset.load_state_dict(dataset.state_dict() | {"place": 16})
    loader = new_loader(dataset, workers)
    # It warns of more than it was told of, whenever that was.
    assert [(len(loader), len(firsts(loader))) for _ in range(4)] == [(6, 2), (6, 6), (6, 6), (6, 5)]


def test_workers_of_any_number_take_turns_with_none(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache))
    given = [firsts(new_loader(dataset, workers)) for workers in (2, 0, 3, 1, 0, 2)]
    assert [first for loop in given for first in loop] == list(range(0, 6 * 23, 4))


def test_workers_that_have_no_batch_end_at_once(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache, batch_size=20))
    assert [firsts(new_loader(dataset, 3)) for _ in range(4)] == [[0, 20], [40], [60], [80]]


def test_a_fork_reads_from_s3(bucket: str, make_cache: Make, request: pytest.FixtureRequest) -> None:
    store = Folder(f"s3://{bucket}/{request.node.name}")
    store.__dict__["keeps_create"] = True
    stream, dataset = (new_stream(make_cache(store, SIZES)) for _ in range(2))
    # This process has talked to the server, and its threads are connected.
    expected = [told(stream) for _ in range(2)]
    loader = new_loader(StreamDataset(dataset), 2)
    assert [told(loader) for _ in range(2)] == expected


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loop_that_was_left_goes_on_only_where_it_is_told(cache: Cache, persistent: bool) -> None:
    expected = told(itertools.islice(new_stream(cache).endless(), 12))
    dataset = StreamDataset(new_stream(cache))
    loader = new_loader(dataset, 2, persistent_workers=persistent)
    for batch in itertools.islice(loader, 3):
        last = batch
    for again in (loader, dataset, new_loader(dataset, 3)):
        said = refusal(again)
        assert "left before its end" in said and "dataset.load_state_dict(dataset.state_dict(after=batch))" in said
    dataset.load_state_dict(dataset.state_dict(after=last))
    assert told(loader) == expected[3:6]
    assert told(loader) == expected[6:12]


def test_a_worker_that_ends_late_moves_nothing(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache))
    loader = new_loader(dataset, 2, persistent_workers=True)
    for _ in range(3):
        # Workers that were told of a loop's end before they get to it are about to reach it when the place is set.
        last = next(itertools.islice(loader, 3, None))
        dataset.load_state_dict(dataset.state_dict(after=last) | {"place": 4})
        assert firsts(loader) == [4, 8, 12, 16, 20]
        dataset.load_state_dict(dataset.state_dict(after=last) | {"place": 0})


def test_a_worker_that_begins_late_does_not_begin(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache))
    loader = new_loader(dataset, 2, persistent_workers=True, worker_init_fn=lambda worker: time.sleep(worker))
    first = next(iter(loader))
    # The second worker still sleeps, and has the loop to begin that is left here.
    dataset.load_state_dict(dataset.state_dict(after=first))
    assert firsts(loader) == [4, 8, 12, 16, 20]
    assert firsts(loader) == [24, 28, 32, 36, 40, 44]


def test_an_older_loop_says_nothing_of_where_to_begin() -> None:
    begin = datasets._Begin(0)
    late = copy.copy(begin)  # as in a worker that was made now
    begin.loop(0, 2, 1, stop=24)
    begin.set(8)
    begin.over(0, 2, 1, 24)
    assert begin.place() == begin.place_of(0) == 8
    with pytest.raises(RecipeError):
        late.loop(1, 2, late.number(), stop=24)
    assert begin.place() == 8 and late.number() == begin.number() == 2
    begin.loop(0, 2, 2, stop=24)
    begin.over(0, 2, 2, 24)
    begin.over(0, 2, 1, 48)
    assert (begin.place_of(0), begin.place_of(1)) == (24, 8)
    with pytest.raises(RecipeError):
        begin.place()


def test_one_who_is_through_sees_another_one_who_is_not() -> None:
    begin = datasets._Begin(0)
    for worker in range(2):
        begin.loop(worker, 2, 1, stop=24)
    begin.over(0, 2, 1, 24)
    for worker, of in ((0, 2), (1, 2), (0, 3), (1, 3)):
        with pytest.raises(RecipeError):
            begin.loop(worker, of, 1, stop=2 * begin.place_of(worker) + 24)
    begin.over(1, 2, 1, 24)
    assert begin.place() == 24


def test_a_state_is_one_after_a_batch_where_workers_are_ahead(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache, seed=5))
    states: list[dict[str, Any]] = []
    for batch in new_loader(dataset, 2):
        with pytest.raises(RecipeError, match="after=batch"):
            dataset.state_dict()
        states.append(dataset.state_dict(after=batch))
    with pytest.raises(RecipeError, match="after=batch"):
        dataset.state_dict()
    expected = told(itertools.islice(new_stream(cache, seed=5).endless(), 6))
    for workers, used in ((0, 2), (2, 3), (3, 1)):
        resumed = StreamDataset(new_stream(cache, seed=5))
        resumed.load_state_dict(states[used - 1])
        assert resumed.state_dict() == states[used - 1]
        assert told(new_loader(resumed, workers)) == expected[used:]
    with pytest.raises(VerificationError):
        StreamDataset(new_stream(cache)).load_state_dict(states[0])


def test_a_stream_that_is_moved_behind_its_back_is_refused(cache: Cache) -> None:
    stream = new_stream(cache)
    dataset = StreamDataset(stream)
    next(iter(stream))
    for loop in (dataset, new_loader(dataset, 2)):
        assert "moved from place 0 to 4" in refusal(loop)
    with pytest.raises(RecipeError, match="moved"):
        dataset.state_dict()
    assert firsts(StreamDataset(stream))[0] == 4


def test_a_closed_dataset_keeps_its_state_and_goes_on(cache: Cache) -> None:
    dataset, expected = StreamDataset(new_stream(cache)), new_stream(cache)
    batches = dataset.endless()
    for used in (2, 7):
        assert told(itertools.islice(batches, used)) == told(itertools.islice(expected.endless(), used))
        run = dataset.stream._run
        assert run is not None
        dataset.close()
        assert dataset.stream._run is None and run._thread._shutdown
        assert dataset.state_dict() == expected.state_dict()
    assert told(dataset) == told(expected)
    dataset.close()
    dataset.close()


def test_a_copy_has_a_place_of_its_own(cache: Cache) -> None:
    dataset = StreamDataset(new_stream(cache))
    other = copy.deepcopy(dataset)
    assert firsts(new_loader(other, 2)) + firsts(new_loader(other, 2)) == list(range(0, 46, 4))
    assert firsts(dataset)[0] == 0


def test_pinned_memory_is_a_gpus(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    with pytest.raises(RecipeError, match="no GPU"):
        next(iter(StreamDataset(new_stream(cache), pin=True)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    next(iter(StreamDataset(new_stream(cache))))
    assert not pinned
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    next(iter(StreamDataset(new_stream(cache), pin=False)))
    assert not pinned
    batch = next(iter(StreamDataset(new_stream(cache))))
    assert len(pinned) == 6 and told([batch]) == told([next(iter(new_stream(cache)))])
