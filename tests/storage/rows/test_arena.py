"""The arena: rooms never overlap, what is given back is used again, and rows are gathered from where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.rows.arena import Arena, Room
from storage.rows.row_groups import Column

COLUMNS = (
    Column("sample_id", np.dtype(np.int64)),
    Column("x", np.dtype(np.float16), (2, 3)),
    Column("label", None),
    Column("nothing", np.dtype(np.int32), (0,)),
)


def free_of(arena: Arena) -> list[list[tuple[int, int]]]:
    return [slab.free for slab in arena._slabs]


def check_free(arena: Arena, taken: list[Room]) -> None:
    """The gaps are the rows that no room holds: in order, each as long as it can be."""
    for number, slab in enumerate(arena._slabs):
        held = np.zeros(slab.rows, np.int64)
        for room in taken:
            if room.slab == number:
                assert 0 <= room.start and room.start + room.rows <= slab.rows
                held[room.start : room.start + room.rows] += 1
        assert held.max(initial=0) <= 1, "two rooms overlap"
        edges = np.flatnonzero(np.diff(np.concatenate([[1], held, [1]])))
        assert slab.free == list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_rooms_never_overlap_and_gaps_grow_together(seed: int) -> None:
    dice = np.random.default_rng(seed)
    arena = Arena(COLUMNS, int(dice.integers(0, 60)))
    taken: list[Room] = []
    for _ in range(600):
        if taken and dice.random() < (0.3 if len(taken) < 12 else 0.6):
            arena.give_back(taken.pop(int(dice.integers(len(taken)))))
        else:
            rows = int(dice.choice([1, 4, 4, 4, 7, 16]))
            taken.append(arena.take(rows))
            assert taken[-1].rows == rows
        check_free(arena, taken)
    for at in dice.permutation(len(taken)).tolist():
        arena.give_back(taken[at])
    assert free_of(arena) == [[(0, slab.rows)] for slab in arena._slabs]


def test_a_gap_that_is_large_enough_is_taken() -> None:
    arena = Arena(COLUMNS, 20)
    first, second, third = (arena.take(5) for _ in range(3))
    assert [room.start for room in (first, second, third)] == [0, 5, 10]
    arena.give_back(first)
    assert arena.take(6) == Room(1, 0, 6)
    assert arena.take(4) == Room(0, 0, 4)
    arena.give_back(second)
    assert arena.take(6) == Room(0, 4, 6)


def test_rooms_of_one_size_never_need_another_slab() -> None:
    arena, dice = Arena(COLUMNS, 40), np.random.default_rng(1)
    taken = [arena.take(4) for _ in range(10)]
    for _ in range(300):
        arena.give_back(taken.pop(int(dice.integers(10))))
        taken.append(arena.take(4))
    assert len(arena._slabs) == 1


def test_more_than_was_foreseen_gets_another_slab() -> None:
    arena = Arena(COLUMNS, 40)
    assert [arena.take(rows) for rows in (40, 3, 8, 25)] == [
        Room(0, 0, 40),
        Room(1, 0, 3),
        Room(2, 0, 8),
        Room(3, 0, 25),
    ]
    # A quarter of the first at least, so that there are few of them.
    assert [slab.rows for slab in arena._slabs] == [40, 10, 10, 25]
    assert arena.take(7) == Room(1, 3, 7)


def test_an_arena_of_no_rows_has_room_too() -> None:
    arena = Arena(COLUMNS, 0)
    assert arena.take(1).rows == 1 and arena.take(5).rows == 5


def test_a_room_has_an_array_for_each_column_that_has_a_dtype() -> None:
    arrays = Arena(COLUMNS, 10).arrays(Room(0, 3, 4))
    told: dict[str, Any] = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    assert told == {
        "sample_id": (np.int64, (4,)),
        "x": (np.float16, (4, 2, 3)),
        "nothing": (np.int32, (4, 0)),
    }


@pytest.mark.parametrize("count, slabs", [(3, 1), (9, 7)])
def test_rows_are_gathered_from_where_they_were_put(count: int, slabs: int) -> None:
    arena, dice = Arena(COLUMNS, 30), np.random.default_rng(2)
    rooms = [arena.take(10) for _ in range(count)]
    for at, room in enumerate(rooms):
        arrays = arena.arrays(room)
        arrays["sample_id"][:] = 100 * at + np.arange(10)
        arrays["x"].reshape(10, 6)[:] = (100 * at + np.arange(10))[:, None]
    assert len(arena._slabs) == slabs
    for count in (0, 1, 7, 50):
        room_B, row_B = dice.integers(len(rooms), size=count), dice.integers(10, size=count)
        out = {c.name: np.full((count, *c.shape), -1, c.dtype) for c in COLUMNS if c.dtype is not None}
        starts, numbers = np.array([room.start for room in rooms]), np.array([room.slab for room in rooms])
        arena.gather(numbers[room_B], starts[room_B] + row_B, out)
        assert out["sample_id"].tolist() == (100 * room_B + row_B).tolist()
        assert (out["x"].reshape(count, 6) == (100 * room_B + row_B)[:, None]).all()
