"""Rows of two shapes, made of a seed: images with dense targets, and token sequences with the likeliest 64 of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 128
CLASSES, TEMPERATURE = 1000, 2.0
TOKENS, KEPT, VOCABULARY = 512, 64, 128_256

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Shape:
    """What a row is made of besides its sample_id, which counts from 0."""

    name: str
    columns: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def row_bytes(self) -> int:
        return 8 + sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in self.columns.values())

    def rows_in(self, megabytes: float) -> int:
        """As many whole batches as take some megabytes, and two at least."""
        return max(2, round(megabytes * 1e6 / self.row_bytes / BATCH)) * BATCH


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "image", {"image": ("uint8", (32, 32, 3)), "label": ("int64", ()), "soft_logits": ("float16", (CLASSES,))}
        ),
        Shape(
            "tokens",
            {
                "tokens": ("int32", (TOKENS,)),
                "ids": ("uint32", (TOKENS, KEPT)),
                "logprobs": ("float16", (TOKENS, KEPT)),
            },
        ),
    )
}


def make(shape: Shape, rows: int, folder: Path) -> None:
    """Write one .npy file a column, so that every reader's data come from the same bytes."""
    folder.mkdir(parents=True)
    np.save(folder / "sample_id.npy", np.arange(rows, dtype=np.int64))
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(kind), (rows, *inner))
        for name, (kind, inner) in shape.columns.items()
    }
    # In blocks: the random numbers behind a row take more memory than the row.
    block = max(1, 16_000_000 // shape.row_bytes)
    for number, start in enumerate(range(0, rows, block)):
        count = min(block, rows - start)
        for name, values in MAKERS[shape.name](np.random.default_rng([number, len(shape.name)]), count).items():
            files[name][start : start + count] = values


def load(folder: Path) -> Arrays:
    """The columns that `make` wrote, mapped into memory."""
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def blocks(arrays: Arrays, rows: int) -> list[Arrays]:
    """The same rows in blocks, each of so many."""
    total = len(arrays["sample_id"])
    return [{name: a[at : at + rows] for name, a in arrays.items()} for at in range(0, total, rows)]


def _images(generator: np.random.Generator, rows: int) -> Arrays:
    """Smooth fields with a little noise, which zstd finds as hard as photographs; logits around a random class."""
    coarse = generator.uniform(0, 255, (rows, 6, 6, 3)).astype(np.float32)
    at = np.linspace(0, 5, 32)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(6))).astype(np.float32)  # [32, 6]
    smooth = np.einsum("ya,nabc,xb->nyxc", weights, coarse, weights, optimize=True)
    noise = generator.normal(0, 3, smooth.shape).astype(np.float32)
    logits = generator.normal(0, 2.5, (rows, CLASSES)).astype(np.float32)
    label = generator.integers(0, CLASSES, rows)
    logits[np.arange(rows), label] += 8
    soft = logits / TEMPERATURE
    return {
        "image": np.clip(smooth + noise, 0, 255).astype(np.uint8),
        "label": label,
        "soft_logits": (soft - soft.max(axis=1, keepdims=True)).astype(np.float16),
    }


def _tokens(generator: np.random.Generator, rows: int) -> Arrays:
    """Ids as common as their rank says, and log-probabilities that fall from the likeliest on."""

    def zipf(*shape: int) -> Array:
        return (np.exp(generator.random(shape) * np.log(VOCABULARY)) - 1).astype(np.uint32)

    falls = generator.exponential(0.15, (rows, TOKENS, KEPT)).astype(np.float32)
    return {
        "tokens": zipf(rows, TOKENS).astype(np.int32),
        "ids": zipf(rows, TOKENS, KEPT),
        "logprobs": -np.cumsum(falls, axis=2).astype(np.float16),
    }


MAKERS: dict[str, Callable[[np.random.Generator, int], Arrays]] = {"image": _images, "tokens": _tokens}
