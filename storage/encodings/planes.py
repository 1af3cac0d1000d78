"""Numbers as byte planes: the low bytes of all, then the next ones, so that a compressor finds like beside like."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def split(values: Array) -> Array:
    """[R, ...] of an integer type as [R, bytes, ...] of uint8, the lowest byte first.

    >>> split(np.array([[1, 258]], np.uint16)).tolist()
    [[[1, 2], [0, 1]]]
    """
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    size = little.dtype.itemsize
    return np.ascontiguousarray(np.moveaxis(little.view(np.uint8).reshape(*little.shape, size), -1, 1))


def join(planes: Array, dtype: type[np.unsignedinteger[Any]]) -> Array:
    """What `split` was given, [R, ...], from [R, bytes, ...].

    >>> join(split(np.array([[1, 258]], np.uint16)), np.uint16).tolist()
    [[1, 258]]
    """
    values = planes[:, 0].astype(dtype)
    for byte in range(1, planes.shape[1]):
        values |= planes[:, byte].astype(dtype) << dtype(8 * byte)
    return values


def split_falling(values: Array) -> Array:
    """[R, ..., K] of float16, none above zero (-inf included), each at most the one before:
    the planes of how its bits grow.

    Of such numbers the bits, taken as integers, only grow, and neighbours differ by little.

    >>> split_falling(np.array([[-0.5, -1.0]], np.float16)).tolist()
    [[[0, 0], [184, 4]]]
    """
    # Zero is written as -0.0, the least of the negative ones.
    bits = (values.view(np.uint16) | np.uint16(0x8000)).view(np.uint16)
    steps = bits.copy()
    steps[..., 1:] -= bits[..., :-1]
    return split(steps)


def join_falling(planes: Array) -> Array:
    """What `split_falling` was given.

    >>> join_falling(split_falling(np.array([[0.0, -0.5, -1.0]], np.float16))).tolist()
    [[-0.0, -0.5, -1.0]]
    """
    return np.cumsum(join(planes, np.uint16), axis=-1, dtype=np.uint16).view(np.float16)
