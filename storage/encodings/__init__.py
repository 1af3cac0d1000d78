"""Which part of the soft targets is kept, and how it lies in columns."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from storage.base.errors import RecipeError
from storage.base.names import nearest
from storage.encodings.dense import Dense
from storage.encodings.targets import Targets
from storage.encodings.topk import TopK


class Encoding(Protocol):
    """A frozen dataclass whose fields are its settings, checked when it is made."""

    @property
    def draws(self) -> bool:
        """Whether the seed has a say in what is kept."""
        ...

    def key(self) -> dict[str, Any]:
        """The settings that the shard key counts: those that no reader could undo."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Everything that a reader needs, for the shard's own metadata."""
        ...

    def fields(self, classes: int, positions: int | None = None) -> list[pa.Field]:
        """The columns of rows that are sequences of so many positions, or a position each."""
        ...

    def encode(self, targets: Any) -> list[pa.Array]:
        """Targets of this encoding's own kind, in any precision, as one Arrow column for each of `fields`."""
        ...

    def decode(self, columns: dict[str, np.ndarray[Any, Any]], classes: int) -> Targets:
        """The columns of `fields`, as arrays of R rows, as targets."""
        ...


ENCODINGS: dict[str, Any] = {"dense": Dense, "topk": TopK}


def make_encoding(name: str, settings: dict[str, Any]) -> Encoding:
    """The encoding of a recipe's `targets`, or of a shard's metadata. Raises RecipeError."""
    if name not in ENCODINGS:
        raise RecipeError(
            f"targets.encoding is '{name}'.", f"The encodings are: {', '.join(ENCODINGS)}.{nearest(name, ENCODINGS)}"
        )
    try:
        return ENCODINGS[name](**settings)
    except TypeError:
        known = list(ENCODINGS[name].__dataclass_fields__)
        odd = next(key for key in settings if key not in known)
        raise RecipeError(
            f"targets.{odd} is no setting of '{name}'.", f"Its settings are: {', '.join(known)}.{nearest(odd, known)}"
        ) from None
