"""The data of a run: what its recipe names, and the batches that a worker trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from storage.base.errors import VerificationError
from storage.rows.open import open_rows
from storage.rows.row_groups import RowGroups
from storage.rows.source_rows import SourceRows
from storage.sources import make_source
from storage.sources.settings import SourceSection
from storage.stream.stream import Stream
from storage.stream.torch_dataset import StreamDataset
from student_train.training.config import CacheSection, OrderSection, StudentRecipe
from student_train.training.place import Place


def open_data(recipe: StudentRecipe) -> RowGroups:
    """What a recipe learns from. Raises NoCache, CorruptShard, SourceError, RecipeError, UsageError."""
    section = recipe.source if recipe.cache is None else recipe.cache
    assert section is not None
    return _open(section)


def open_evaluation(recipe: StudentRecipe) -> RowGroups | None:
    """The held-out rows of a recipe, if it names some. Raises as `open_data` does."""
    return None if recipe.evaluate is None else _open(recipe.evaluate)


def _open(section: CacheSection | SourceSection) -> RowGroups:
    if isinstance(section, SourceSection):
        return SourceRows(make_source(section))
    return open_rows(section.url, where=section.where, inputs=section.inputs)


def refuse_changed(groups: Sequence[RowGroups | None], expected: Sequence[str | None]) -> None:
    """Raises VerificationError for data of another digest than the driver read."""
    for rows, digest in zip(groups, expected, strict=True):
        if rows is not None and rows.digest != digest:
            raise VerificationError(
                f"The data that this worker reads from {rows.where} has the digest {rows.digest[:16]}.",
                f"The driver read {str(digest)[:16]}.",
                "Leave a source alone while a job reads it; a function gives the same rows at every call.",
            )


def make_batches(recipe: StudentRecipe, data: RowGroups, seed: int, place: Place) -> StreamDataset:
    """This worker's batches as tensors on the CPU, in pinned memory where it trains on a GPU. Raises RecipeError."""
    order = recipe.order or OrderSection()
    stream = Stream(
        data,
        batch_size=recipe.batch_size,
        seed=seed,
        rank=place.rank,
        world=place.world,
        lanes=order.lanes,
        window=order.window,
        reading=recipe.reading,
    )
    return StreamDataset(stream, pin=torch.device(place.device).type == "cuda")
