"""A table of samples as arrays, with the words that name its samples in errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.samples import tensor_columns
from storage.samples.samples import SAMPLE_ID

Array = np.ndarray[Any, Any]

# Inputs of transformers' models, beside the token ids and positions.
MASK, TYPES = "attention_mask", "token_type_ids"


@dataclass(frozen=True)
class SampleTable:
    """where: the file that the samples are from."""

    samples: pa.Table
    where: str

    def array(self, name: str) -> Array | None:
        """A column [R, ...]; None where there is none."""
        if name not in self.samples.schema.names:
            return None
        return tensor_columns.unpack(self.samples.column(name), self.samples.schema.field(name))

    def sample(self, row: int) -> str:
        """The beginning of a sentence about a sample."""
        return f"The sample '{self.samples.column(SAMPLE_ID)[int(row)].as_py()}' (in {self.where})"

    def first(self, where_R: Any) -> str:
        """The first sample for which something is true, [R] bool."""
        return self.sample(int(np.flatnonzero(where_R)[0]))
