"""One rank's part of a global batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from storage.encodings.targets import Targets
from storage.format.rows import DecodedRows
from storage.rows.row_groups import Ints


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, in memory of its own.

    places: [B] the place of each row. first: the first place of the global batch; global_size: the
    rows of all ranks together.
    """

    first: int
    global_size: int
    places: Ints
    rows: DecodedRows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Self:
        """Some rows of this rank's part, `batch[8:16]`, for gradient accumulation; `first` and `global_size` stay."""
        return replace(self, places=self.places[rows], rows=self.rows[rows])

    @property
    def sample_id(self) -> np.ndarray[Any, Any]:
        return self.rows.sample_id

    @property
    def inputs(self) -> dict[str, Any]:
        return self.rows.inputs

    @property
    def label(self) -> Any:
        return self.rows.label

    @property
    def targets(self) -> Targets | None:
        return self.rows.targets
