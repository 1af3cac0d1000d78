"""The factor is what streams read, and a high one is logged once with the lanes that lower it."""

from __future__ import annotations

import logging
import pickle
import re

import numpy as np
import pytest

from storage.order import read_amplification
from storage.order.read_amplification import read_factor
from storage.order.sample_order import Order
from storage.rows.reading import Reading
from storage.stream.stream import Stream
from tests.storage.stream.fakes import Fake, batches

ROWS = [16] * 256
ORDER = Order(0, 48, 16)


def read_by_streams(batch_size: int, world: int, lanes: int = 16, epochs: int = 2) -> float:
    """Rows that the streams of all ranks load an epoch, over those of the cache, once they are under way.

    They fetch four row groups ahead. Without, a row group is read again where no batch lies in two windows of its lane.
    """
    total, read = sum(ROWS), 0
    count = -(-total // batch_size)
    for rank in range(world):
        groups = Fake(ROWS, shape=(1,))
        reading = Reading(prefetch_bytes=4 * 16 * 12, threads=1)
        stream = Stream(groups, batch_size=batch_size, rank=rank, world=world, lanes=lanes, window=48, reading=reading)
        batches(stream, count)
        before = groups.reads.total()
        batches(stream, epochs * count)
        stream.close()
        read += 16 * (groups.reads.total() - before)
    return read / (epochs * count * batch_size)


@pytest.mark.parametrize("world, batch_size", [(3, 192), (7, 200), (24, 200), (48, 192), (64, 200)])
def test_the_factor_is_what_streams_read(world: int, batch_size: int) -> None:
    """Also where the lanes do not divide the batch."""
    told = read_factor(np.array(ROWS), ORDER, batch_size, world)
    assert read_by_streams(batch_size, world) == pytest.approx(told, rel=0.06)


@pytest.mark.parametrize("world, batch_size, lanes", [(12, 12, 16), (7, 8, 16), (14, 14, 16), (5, 8, 64), (4, 8, 16)])
def test_the_factor_is_what_streams_read_with_batches_smaller_than_the_lanes(
    world: int, batch_size: int, lanes: int
) -> None:
    told = read_factor(np.array(ROWS), Order(0, 48, lanes), batch_size, world)
    assert read_by_streams(batch_size, world, lanes) == pytest.approx(told, rel=0.06)


@pytest.mark.parametrize(
    "world, most", [(1, 1), (2, 1), (3, 1.2), (7, 1.4), (8, 1), (16, 1), (24, 2), (32, 2), (48, 2.8), (64, 3.4)]
)
def test_a_cache_is_read_about_twice_by_up_to_twice_as_many_ranks_as_lanes(world: int, most: float) -> None:
    """Of batches that the lanes divide, and windows as long as three row groups."""
    assert 1 <= read_factor(np.full(256, 256), Order(0, 768, 16), 768, world) <= most


def test_a_full_shuffle_is_read_by_every_rank() -> None:
    rows = np.array(ROWS)
    assert read_factor(rows, Order(0, 4096, 1), 64, 8) == 8
    assert read_factor(rows, Order(0, 48, 1), 64, 8) < 8


def test_an_estimate_is_about_the_factor() -> None:
    rows = np.full(256, 64)
    for world in (3, 24, 64):
        exact = read_factor(rows, Order(0, 192, 16), 200, world)
        assert read_factor(rows, Order(0, 192, 16), 200, world, 4096) == pytest.approx(exact, rel=0.1)
        # One window is enough for a number.
        assert read_factor(rows, Order(0, 192, 16), 200, world, 1) >= 1


def test_windows_too_long_to_be_sorted_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_amplification, "SORTED_ROWS", 0)
    rows = np.array(ROWS)
    assert read_factor(rows, ORDER, 192, 32) == 2
    assert read_factor(rows, ORDER, 192, 64) == 4
    assert read_factor(rows, ORDER, 192, 24) == pytest.approx(2, rel=0.02)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records if record.name == "stillhouse.stream"]
    caplog.clear()
    return told


@pytest.mark.parametrize(
    "world, batch_size, lanes, better, sentence",
    [
        (
            64,
            192,
            16,
            64,
            r"^64 workers together read memory about 3\.\d times an epoch: they do not divide the order's 16",
        ),
        (24, 200, 16, 24, r"^24 workers together read memory about 2\.\d times"),
        (40, 50, 64, 80, r"^40 workers together read memory about \d\.\d times"),
    ],
)
def test_a_high_factor_is_logged_once_with_the_lanes_that_lower_it(
    caplog: pytest.LogCaptureFixture, world: int, batch_size: int, lanes: int, better: int, sentence: str
) -> None:
    settings = {
        "batch_size": batch_size,
        "world": world,
        "lanes": lanes,
        "window": 48,
        "reading": Reading(prefetch_bytes=0, threads=1),
    }
    stream = Stream(Fake(ROWS), **settings)
    batches(stream, 3)
    stream.close()
    stream.load_state_dict(stream.state_dict())
    batches(stream, 3)
    stream.close()
    [line] = said(caplog)
    assert re.search(sentence, line)
    assert f"With lanes={better} (order.lanes in a recipe) they read it about 1." in line
    # What the log recommends is not worth a line.
    Stream(Fake(ROWS), **{**settings, "lanes": better})
    assert said(caplog) == []


def test_where_no_lanes_lower_it_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    Stream(Fake([16] * 3), batch_size=64, world=60, lanes=16, window=8)
    [line] = said(caplog)
    assert line.endswith("It has 3 row groups; other lanes would not lower that.")


@pytest.mark.parametrize(
    "settings",
    [
        {"world": 24, "batch_size": 192, "lanes": 16, "window": 48},
        {"world": 32, "batch_size": 192, "lanes": 16, "window": 48},
        {"world": 16, "batch_size": 24, "lanes": 16, "window": 48},
        {"world": 64, "batch_size": 64},
        {"world": 64, "batch_size": 192, "lanes": 16, "window": 48, "rank": 1},
    ],
    ids=str,
)
def test_nothing_is_logged_of_a_low_factor_a_full_shuffle_or_by_other_ranks(
    caplog: pytest.LogCaptureFixture, settings: dict[str, int]
) -> None:
    caplog.set_level(logging.INFO)
    Stream(Fake(ROWS), **settings)
    assert said(caplog) == []


def test_a_copy_of_a_stream_in_another_process_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(Fake(ROWS), batch_size=192, world=64, lanes=16, window=48)
    assert len(said(caplog)) == 1
    stream.groups = None
    pickle.loads(pickle.dumps(stream))
    assert said(caplog) == []
