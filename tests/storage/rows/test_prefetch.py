"""Row groups come before they are needed, stay for as long as they are, and take no more memory than was told."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from storage.base.errors import CorruptShard, StoreLost
from storage.order import sample_order as ordering
from storage.order.rank_share import Share
from storage.order.sample_order import Order
from storage.order.schedule import Need, held_rows, lookups, needs
from storage.rows.prefetch import Reader
from storage.rows.reading import Reading
from storage.rows.row_groups import Arrays
from tests.storage.stream.fakes import Fake, grid, stream_threads

MANY = 1 << 40


def asked_for(reader: Reader) -> set[int]:
    """The row groups that are there or on their way."""
    return set(reader._held)


def held(reader: Reader) -> int:
    """Rows of the arena that are taken."""
    return sum(slab.rows - sum(stop - start for start, stop in slab.free) for slab in reader._arena._slabs)


def all_there(reader: Reader) -> None:
    for one in list(reader._held.values()):
        one.loaded.result()


class Walk:
    """A rank's batches read one after another, as a stream does, in one thread."""

    def __init__(self, groups: Fake, order: Order, share: Share, reading: Reading, start: int = 0) -> None:
        self.groups, self.order, self.share, self.reading, self.start = groups, order, share, reading, start
        total = groups.total
        laid = ordering.epoch(order, groups.rows, start // total)
        self.room = held_rows(laid, groups.sizes, share, start)
        wanted = needs(order, groups.rows, share, start)
        self.reader = Reader(groups, wanted, reading, room=self.room, near=order.lanes)

    def __iter__(self) -> Iterator[list[int]]:
        firsts = itertools.count(self.start, self.share.batch_size)
        try:
            for at in lookups(self.order, self.groups.rows, self.share, firsts, 1000):
                self.reader.advance(at.first, at.first + self.share.batch_size)
                rows = self.reader.rows(at.group, at.row)
                left_out = (self.groups.sizes - self.groups.rows)[at.group]
                expected = self.groups.starts[at.group] + left_out + at.row
                np.testing.assert_array_equal(rows.sample_id, expected)
                if rows.label is not None:
                    assert rows.label.tolist() == [f"row {i}" for i in expected]
                yield rows.sample_id.tolist()
        finally:
            self.reader.close()

    def take(self, count: int) -> list[list[int]]:
        return list(itertools.islice(self, count))


def walk(setting: dict[str, Any], reading: Reading, start: int = 0, **more: Any) -> Walk:
    share = Share(setting["batch_size"], setting["world"] // 2, setting["world"])
    order = Order(setting["seed"], setting["window"], setting["lanes"])
    return Walk(Fake(setting["sizes"].tolist(), **more), order, share, reading, start)


# What comes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("texts", [False, True])
def test_the_rows_are_the_same_however_they_are_read(seed: int, texts: bool) -> None:
    dice = random.Random(seed)
    for setting in grid(seed, 4):
        count = 2 * int(setting["sizes"].sum()) // setting["batch_size"] + 3
        right = walk(setting, Reading(prefetch_bytes=MANY, threads=1), texts=texts).take(count)
        for budget, threads in ((0, 1), (100, 5), (MANY, 8), (0, 8)):
            late = walk(
                setting,
                Reading(prefetch_bytes=budget, threads=threads),
                texts=texts,
                delay=lambda _: dice.choice([0, 0, 0.0005]),
            )
            assert late.take(count) == right, setting


def test_rows_that_are_left_out_are_loaded_and_not_given() -> None:
    for kept in ([3, 0, 1, 8, 2], [1] * 5):
        groups = Fake([8] * 5, kept=kept)
        order = Order(1, 4, 2)
        seen = Walk(groups, order, Share(sum(kept)), Reading(prefetch_bytes=0, threads=2)).take(4)
        right = [int(g) * 8 + 8 - k + r for g, k in enumerate(kept) for r in range(k)]
        assert [sorted(ids) for ids in seen] == [right] * 4
        assert set(groups.reads) == {g for g, k in enumerate(kept) if k}


# How much is held


def check_bound(walked: Walk, count: int) -> None:
    """What the windows hold, what is fetched ahead, and one row group, which may come whatever the budget."""
    groups, reader, order = walked.groups, walked.reader, walked.order
    width, most = sum(column.width for column in groups.columns), int(groups.sizes.max())
    ahead = max(walked.reading.prefetch_bytes // width, most)
    for number, _ in enumerate(itertools.islice(walked, count)):
        all_there(reader)
        laid = ordering.epoch(order, groups.rows, number * walked.share.batch_size // groups.total)
        told = held_rows(laid, groups.sizes, walked.share, 0)
        assert held(reader) <= min(told + ahead, int(groups.sizes.sum()))


@pytest.mark.parametrize("budget", [0, 200, 3000, MANY])
@pytest.mark.parametrize("seed", range(2))
def test_no_more_is_held_than_the_windows_draw_from_and_the_budget_allows(seed: int, budget: int) -> None:
    for setting in grid(seed + 40, 8):
        count = 3 * int(setting["sizes"].sum()) // setting["batch_size"] + 4
        check_bound(walk(setting, Reading(prefetch_bytes=budget, threads=2)), count)


@pytest.mark.parametrize("budget", [0, 400, MANY])
@pytest.mark.parametrize(
    "lanes, window, world", [(1, 400, 1), (1, 40, 3), (8, 25, 1), (8, 25, 4), (4, 400, 4), (16, 16, 16)]
)
def test_row_groups_of_one_size_never_need_more_memory_than_was_made(
    budget: int, lanes: int, window: int, world: int
) -> None:
    order = Order(2, window, lanes)
    for rank in {0, world - 1}:
        walked = Walk(Fake([8] * 50), order, Share(48, rank, world), Reading(prefetch_bytes=budget, threads=2))
        slab = walked.reader._arena._slabs[0]
        assert slab.rows <= min(walked.room + max(budget // 16, 0), 400) + 8
        for _ in itertools.islice(walked, 4 * 400 // 48):
            all_there(walked.reader)
            assert len(walked.reader._arena._slabs) == 1


@pytest.mark.parametrize("lanes, window, world", [(1, 200, 3), (8, 25, 4), (8, 100, 2), (16, 64, 1)])
@pytest.mark.parametrize("budget", [0, 4000])
def test_where_the_last_row_group_of_a_shard_is_short_a_quarter_more_is_enough(
    lanes: int, window: int, world: int, budget: int
) -> None:
    """Gaps of its size may lie between the others."""
    order = Order(2, window, lanes)
    walked = Walk(Fake(([16] * 9 + [5]) * 8), order, Share(48, 0, world), Reading(prefetch_bytes=budget, threads=2))
    first = walked.reader._arena._slabs[0].rows
    for _ in itertools.islice(walked, 6 * 1192 // 48):
        all_there(walked.reader)
    assert sum(slab.rows for slab in walked.reader._arena._slabs) <= 1.25 * first


def test_small_windows_hold_a_small_part_of_the_rows() -> None:
    walked = Walk(Fake([8] * 200), Order(2, 16, 8), Share(32), Reading(prefetch_bytes=0, threads=2))
    most = 0
    for _ in itertools.islice(walked, 150):
        all_there(walked.reader)
        most = max(most, held(walked.reader))
    assert 8 * 16 <= most <= 8 * 5 * 10
    assert len(walked.reader._arena._slabs) == 1


def test_what_is_fetched_ahead_is_the_budget_and_not_more() -> None:
    """Row groups of 64 bytes, one after another; the first batch needs one."""
    wanted = [Need(group, 4 * group, 4 * group + 3) for group in range(30)]
    for budget, ahead in ((0, 1), (63, 1), (64, 1), (127, 1), (128, 2), (640, 10), (MANY, 29)):
        groups = Fake([4] * 30)
        reader = Reader(groups, iter(wanted), Reading(prefetch_bytes=budget, threads=2), room=8, near=1)
        reader.advance(0, 4)
        assert asked_for(reader) == set(range(1 + ahead))
        # A batch over two of them takes both from the budget.
        reader.advance(4, 12)
        assert asked_for(reader) == set(range(1, min(30, 3 + ahead)))
        reader.close()


def test_nothing_is_fetched_further_ahead_than_an_epoch() -> None:
    groups = Fake([4] * 5)
    endless = (Need(n % 5, 4 * n, 4 * n + 3) for n in itertools.count())
    reader = Reader(groups, endless, Reading(prefetch_bytes=MANY, threads=2), room=8, near=1)
    for first in range(0, 200, 4):
        reader.advance(first, first + 4)
        assert reader._next is not None and reader._next.first < first + 4 + 20 + 4
    reader.close()


def test_what_is_needed_no_more_is_let_go_of() -> None:
    groups = Fake([4] * 6)
    wanted = [Need(0, 0, 7), Need(1, 0, 3), Need(2, 4, 11), Need(0, 12, 15), Need(3, 20, 23)]
    reader = Reader(groups, iter(wanted), Reading(prefetch_bytes=0, threads=2), room=12, near=0)
    reader.advance(0, 4)
    assert asked_for(reader) == {0, 1, 2}
    all_there(reader)
    reader.advance(4, 8)
    # Group 0 is needed until place 7, and again at 12: that is far away, and is what is fetched ahead.
    assert asked_for(reader) == {0, 2}
    reader.advance(8, 12)
    assert asked_for(reader) == {0, 2} and groups.reads[0] == 1
    reader.advance(12, 16)
    assert asked_for(reader) == {0, 3}
    reader.close()


@pytest.mark.parametrize("near, kept", [(0, {0}), (1, {0}), (2, {0, 1})])
def test_a_row_group_that_is_needed_again_soon_stays_beside_the_budget(near: int, kept: set[int]) -> None:
    """Group 0 is, two places after its last; so that the budget is free for group 1."""
    wanted = [Need(0, 0, 3), Need(1, 0, 3), Need(0, 5, 9), Need(1, 6, 9), Need(2, 6, 9)]
    reader = Reader(Fake([4] * 3), iter(wanted), Reading(prefetch_bytes=0, threads=2), room=12, near=near)
    reader.advance(0, 4)
    assert len(reader._ahead) == 1 and reader._ahead[0][0] == (6 if near == 2 else 5)
    reader.advance(4, 5)
    assert asked_for(reader) == kept
    reader.close()


def test_memory_that_a_thread_still_writes_to_goes_to_nobody_else() -> None:
    """Group 0 is needed by its window, and by no row of this rank: it is let go of while it is on its way."""
    gate, writing = threading.Event(), threading.Event()

    class Slow(Fake):
        def load(self, group: int, out: Arrays) -> Arrays:
            if group == 0:
                writing.set()
                gate.wait(10)
            return super().load(group, out)

    groups = Slow([4] * 6)
    wanted = [Need(g, 4 * (g // 2), 4 * (g // 2) + 3) for g in range(6)]
    reader = Reader(groups, iter(wanted), Reading(prefetch_bytes=0, threads=4), room=8, near=0)
    try:
        reader.advance(0, 4)
        assert writing.wait(10)
        room = reader._held[0].room
        for at in (1, 2):
            reader.advance(4 * at, 4 * at + 4)
            mine = np.full(4, 2 * at + 1)
            rows = reader.rows(mine, np.arange(4))
            assert 0 not in asked_for(reader)
            others = [one.room for one in reader._held.values()]
            assert all(o.slab != room.slab or o.start + 4 <= room.start or room.start + 4 <= o.start for o in others)
        gate.set()
        deadline = time.monotonic() + 10
        while reader._leaving and time.monotonic() < deadline:
            time.sleep(0.001)
            reader._release(8)
        assert not reader._leaving
        assert rows.sample_id.tolist() == [20, 21, 22, 23]
        assert reader._arena.take(4) == room  # it is free now, and the first gap
    finally:
        gate.set()
        reader.close()


def test_a_row_group_that_comes_again_while_it_is_let_go_of_is_read_anew() -> None:
    gate = threading.Event()

    class Slow(Fake):
        def load(self, group: int, out: Arrays) -> Arrays:
            if group == 0 and not self.reads[0]:
                self.reads[0] += 1
                gate.wait(10)
                out["sample_id"][:] = -1
                return {}
            return super().load(group, out)

    groups = Slow([4] * 3)
    wanted = [Need(0, 0, 3), Need(1, 0, 3), Need(2, 4, 11), Need(0, 100, 103)]
    reader = Reader(groups, iter(wanted), Reading(prefetch_bytes=0, threads=4), room=8, near=0)
    try:
        for first in (0, 4, 8):
            reader.advance(first, first + 4)
        reader.advance(100, 104)
        assert reader.rows(np.zeros(4, int), np.arange(4)).sample_id.tolist() == [0, 1, 2, 3]
        gate.set()
        time.sleep(0.01)
        reader.advance(100, 104)
        assert reader.rows(np.zeros(4, int), np.arange(4)).sample_id.tolist() == [0, 1, 2, 3]
    finally:
        gate.set()
        reader.close()


# How often


@pytest.mark.parametrize("window", [1, 3, 8, 20, 96])
def test_a_row_group_is_read_once_an_epoch(window: int) -> None:
    groups = Fake([4] * 24)
    Walk(groups, Order(4, window), Share(6), Reading(prefetch_bytes=0, threads=2)).take(16)
    # The last batch has asked for one of the next epoch.
    assert groups.reads.total() <= 25 and set(groups.reads) == set(range(24))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("window", [4, 10, 24])
def test_with_lanes_a_row_group_is_read_once_an_epoch_but_where_lanes_meet(window: int, world: int) -> None:
    reads = 0
    for rank in range(world):
        groups = Fake([4] * 96)
        Walk(groups, Order(4, window, 4), Share(16, rank, world), Reading(prefetch_bytes=0, threads=2)).take(24)
        reads += groups.reads.total()
        assert max(groups.reads.values()) <= 2
    # Lanes of 96 rows meet between row groups; and the beginning of the next epoch, fetched ahead.
    assert reads <= 96 + world


def test_what_fits_is_read_once_for_ever() -> None:
    groups = Fake([4] * 24)
    Walk(groups, Order(4, 96), Share(6), Reading(prefetch_bytes=0, threads=2)).take(4 * 16)
    assert set(groups.reads.values()) == {1}


def test_row_groups_are_read_in_the_order_of_their_first_use() -> None:
    groups, order = Fake([4] * 30), Order(4, 30)
    Walk(groups, order, Share(4), Reading(prefetch_bytes=0, threads=1)).take(30)
    drawn, _ = ordering.epoch(order, groups.rows, 0).locate(np.arange(120))
    assert list(groups.reads) == list(dict.fromkeys(drawn.tolist()))


# Trouble


def reader_over(groups: Fake, reading: Reading) -> Reader:
    wanted = (Need(g, 4 * g, 4 * g + 3) for g in range(len(groups.rows)))
    return Reader(groups, wanted, reading, room=8, near=0)


@pytest.mark.parametrize("error", [CorruptShard("It is damaged."), OSError("odd"), KeyError(1)], ids=repr)
def test_what_reading_raised_is_raised_where_the_rows_are_asked_for(error: Exception) -> None:
    groups = Fake([4] * 6)
    groups.faults[2] = [error]
    reader = reader_over(groups, Reading(prefetch_bytes=MANY, threads=2, stall_s=0.05))
    for group in (0, 1):
        reader.advance(4 * group, 4 * group + 4)
        assert len(reader.rows(np.full(4, group), np.arange(4))) == 4
    reader.advance(8, 12)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            reader.rows(np.full(4, 2), np.arange(4))
        assert caught.value is error
    # The others are as they were.
    reader.advance(12, 16)
    assert reader.rows(np.full(4, 3), np.arange(4)).sample_id.tolist() == [12, 13, 14, 15]
    reader.close()


@pytest.mark.parametrize("error", [TimeoutError("late"), ConnectionResetError("reset")], ids=repr)
def test_a_load_that_times_out_is_a_store_that_was_lost(error: Exception) -> None:
    """A socket's timeout is a TimeoutError, as is that of waiting for a load."""
    groups = Fake([4] * 6)
    groups.faults[0] = [error]
    reader = reader_over(groups, Reading(prefetch_bytes=MANY, threads=2, stall_s=0.05))
    reader.advance(0, 4)
    with pytest.raises(
        StoreLost, match=rf"^group 0 did not answer as a store does: {error} \({type(error).__name__}\)"
    ):
        reader.rows(np.zeros(4, int), np.arange(4))
    reader.close()


@pytest.mark.parametrize("error", [None, StoreLost("gone"), TimeoutError("its own")], ids=repr)
def test_a_load_may_end_just_after_the_wait_for_it_did(error: Exception | None) -> None:
    class Late(Future[Arrays]):
        """Ends when a wait for it has run out, before it is asked whether it is done."""

        def run_out(self, timeout: float | None) -> None:
            if timeout is not None and not self.done():
                self.set_result({}) if error is None else self.set_exception(error)
                raise TimeoutError

        def result(self, timeout: float | None = None) -> Arrays:
            self.run_out(timeout)
            return super().result()

        def exception(self, timeout: float | None = None) -> BaseException | None:
            self.run_out(timeout)
            return super().exception()

    reader = reader_over(Fake([4] * 3), Reading(prefetch_bytes=0, threads=1))
    reader.advance(0, 8)
    all_there(reader)
    reader._held[0].loaded = Late()
    if error is None:
        assert reader.rows(np.zeros(4, int), np.arange(4)).sample_id.tolist() == [0, 1, 2, 3]
    else:
        with pytest.raises(type(error)) as caught:
            reader.rows(np.zeros(4, int), np.arange(4))
        assert caught.value is error
    reader.close()


def test_a_row_group_that_does_not_come_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "stillhouse.stream")
    gates = {1: threading.Event()}

    class Slow(Fake):
        def load(self, group: int, out: Arrays) -> Arrays:
            if group in gates:
                gates[group].wait(10)
            return super().load(group, out)

    groups = Slow([4] * 3)
    reader = reader_over(groups, Reading(prefetch_bytes=MANY, threads=3, stall_s=0.04))
    reader.advance(0, 8)
    timer = threading.Timer(0.15, gates[1].set)
    timer.start()
    try:
        assert reader.rows(np.array([1, 0]), np.array([0, 0])).sample_id.tolist() == [4, 0]
    finally:
        timer.join()
        reader.close()
    told = [record.getMessage() for record in caplog.records if record.name == "stillhouse.stream"]
    assert told and set(told) == {"The stream has waited 0 s for group 1."}
    assert 1 <= len(told) <= 4 and {record.levelname for record in caplog.records} == {"WARNING"}


def test_nothing_is_said_of_a_row_group_that_comes_in_time(caplog: pytest.LogCaptureFixture) -> None:
    groups = Fake([4] * 3, delay=lambda _: 0.01)
    reader = reader_over(groups, Reading(prefetch_bytes=0, threads=1, stall_s=30))
    reader.advance(0, 12)
    reader.rows(np.array([0, 1, 2]), np.array([0, 0, 0]))
    reader.close()
    assert not caplog.records


def test_after_close_nothing_more_is_read_and_no_thread_is_left() -> None:
    gate = threading.Event()

    def wait(group: int) -> float:
        gate.wait(10)
        return 0.0

    groups = Fake([4] * 20, delay=wait)
    reader = reader_over(groups, Reading(prefetch_bytes=MANY, threads=3))
    reader.advance(0, 4)
    assert len(asked_for(reader)) == 20
    reader.close()
    gate.set()
    assert stream_threads() == []
    assert groups.reads.total() <= 3
