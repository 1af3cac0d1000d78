"""Byte planes give back every bit that was put in, and lie in the order that FORMAT.md tells of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.encodings import planes

# All float16 that are no NaN and not above zero, from -0.0 down to -65504 and -inf: as integers their bits only grow.
FALLING = np.arange(0x8000, 0xFC01).astype(np.uint16).view(np.float16)


def bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view(np.uint16)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 3), (4, 6, 3), (2, 3, 4, 5)])
def test_integers_come_back(dtype: Any, shape: tuple[int, ...]) -> None:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, top, shape, dtype=dtype, endpoint=True)
    if values.size:
        values.flat[0], values.flat[-1] = top, 0
    made = planes.split(values)
    assert (made.dtype, made.shape) == (np.uint8, (shape[0], np.dtype(dtype).itemsize, *shape[1:]))
    back = planes.join(made, dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


def test_the_lowest_bytes_lie_first() -> None:
    assert planes.split(np.array([[0x0102, 0x0304]], np.uint16)).tobytes() == b"\x02\x04\x01\x03"
    assert planes.split(np.array([[0x01020304, 5]], np.uint32)).tobytes() == b"\x04\x05\x03\x00\x02\x00\x01\x00"
    # Whatever the machine's own order, and wherever in a larger array they lie.
    assert planes.split(np.array([[0x0102, 0x0304]], ">u2")).tobytes() == b"\x02\x04\x01\x03"
    assert planes.split(np.array([[0x0102, 9, 0x0304, 9]], np.uint16)[:, ::2]).tobytes() == b"\x02\x04\x01\x03"


def test_each_row_is_by_itself() -> None:
    values = np.arange(24, dtype=np.uint16).reshape(4, 2, 3) * 300
    for at in range(4):
        np.testing.assert_array_equal(planes.split(values)[at], planes.split(values[at : at + 1])[0])


def test_every_float16_not_above_zero_comes_back_to_the_bit() -> None:
    made = planes.split_falling(FALLING[None])
    np.testing.assert_array_equal(bits(planes.join_falling(made))[0], bits(FALLING))
    # After the first each differs by one from the one before.
    np.testing.assert_array_equal(planes.join(made, np.uint16)[0, 1:], 1)


def test_random_rows_come_back() -> None:
    draw = np.random.default_rng(1)
    values = -np.sort(-FALLING[draw.integers(0, len(FALLING), (7, 5, 16))].astype(np.float32)).astype(np.float16)
    made = planes.split_falling(values)
    assert (made.dtype, made.shape) == (np.uint8, (7, 2, 5, 16))
    np.testing.assert_array_equal(bits(planes.join_falling(made)), bits(values))


def test_differences_never_reach_across_positions() -> None:
    values = np.array([[[-0.5, -1.0], [-0.25, -4.0]]], np.float16)
    steps = planes.join(planes.split_falling(values), np.uint16)
    assert steps.tolist() == [[[0xB800, 0x0400], [0xB400, 0x1000]]]


def test_zero_of_either_sign_is_the_negative_one() -> None:
    both = np.array([[0.0, -0.0, 0.0, -1.0], [-0.0, -0.0, -0.0, -1.0]], np.float16)
    made = planes.split_falling(both)
    np.testing.assert_array_equal(made[0], made[1])
    assert bits(planes.join_falling(made)).tolist() == [[0x8000, 0x8000, 0x8000, 0xBC00]] * 2


def test_ties_are_differences_of_nothing() -> None:
    values = np.array([[-1.5, -1.5, -1.5, -3.0, -3.0]], np.float16)
    assert planes.join(planes.split_falling(values), np.uint16)[0, [1, 2, 4]].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(planes.join_falling(planes.split_falling(values)), values)


def test_denormals_come_back() -> None:
    values = np.array([[0.0, -(2.0**-24), -(2.0**-23), -(2.0**-14) + 2.0**-24, -(2.0**-14)]], np.float16)
    steps = planes.join(planes.split_falling(values), np.uint16)
    assert steps.tolist() == [[0x8000, 1, 1, 0x3FD, 1]]
    np.testing.assert_array_equal(planes.join_falling(planes.split_falling(values)), values)


def test_a_position_that_reads_as_zeros_comes_back_so() -> None:
    zeros = np.zeros((1, 2, 3), np.float16)
    assert (planes.join_falling(planes.split_falling(zeros)) == 0).all()


def test_what_was_given_is_left_as_it_was() -> None:
    values = np.array([[0.0, -1.0]], np.float16)
    planes.split_falling(values)
    assert bits(values).tolist() == [[0, 0xBC00]]
