"""Dense: every class's softened logit, centred, in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from storage.base.errors import RecipeError
from storage.encodings.arrays import widen
from storage.encodings.rounding import rounded
from storage.encodings.targets import Targets
from storage.encodings.temperatures import BOUNDS, is_temperature
from storage.samples import tensor_columns

COLUMN = "soft_logits"


@dataclass(frozen=True)
class DenseTargets(Targets):
    """Every class's logit, centred on its position's maximum and divided by that position's temperature.

    logits_PV: [P, V] float16 or float32, at most 0; softmax(logits) is the teacher softened by T_c.
    temperature_P: [P] float32, the T_c of each position; softmax(logits * T_c / T) serves any other T.
    """

    kind: ClassVar[str] = "dense"
    logits_PV: Any
    temperature_P: Any
    mask_P: Any = None

    @property
    def classes(self) -> int:
        return int(self.logits_PV.shape[-1])

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.logits_PV.shape[:-1])

    def logits(self, temperature: float) -> Any:
        return widen(self.logits_PV) * (widen(self.temperature_P)[..., None] / temperature)


@dataclass(frozen=True)
class Dense:
    """Keep z/T_c - max(z/T_c) for all V classes; for class counts up to some thousands.

    Any temperature T is served by softmax(stored * T_c / T), so T_c is recorded but is not part of
    the question that a shard answers. Rounding: a stored value x is within |x| * 2^-11 + 2^-25 of
    the teacher's (float16), and a finite value below -65,504 is stored as -65,504.
    -inf, a probability of 0, is stored as it is.
    """

    temperature: float = 1.0
    dtype: str = "float16"

    draws = False

    def __post_init__(self) -> None:
        if not is_temperature(self.temperature):
            raise RecipeError(f"targets.temperature is {self.temperature!r}.", f"It is a number {BOUNDS}.")
        if self.dtype not in ("float16", "float32"):
            raise RecipeError(f"targets.dtype is '{self.dtype}'.", "Dense logits are kept as float16 or float32.")

    def key(self) -> dict[str, Any]:
        return {"encoding": "dense", "dtype": self.dtype}

    def to_dict(self) -> dict[str, Any]:
        return {"encoding": "dense", "dtype": self.dtype, "temperature": float(self.temperature)}

    def fields(self, classes: int, positions: int | None = None) -> list[pa.Field]:
        meaning = "teacher logits / temperature, minus their maximum"
        shape = (classes,) if positions is None else (positions, classes)
        return [tensor_columns.tensor_field(COLUMN, np.dtype(self.dtype), shape, meaning)]

    def encode(self, targets: DenseTargets) -> list[pa.Array]:
        return [tensor_columns.pack(rounded(targets.logits_PV, self.dtype))]

    def decode(self, columns: dict[str, np.ndarray[Any, Any]], classes: int) -> DenseTargets:
        logits_PV = columns[COLUMN]
        return DenseTargets(logits_PV, np.full(logits_PV.shape[:-1], self.temperature, np.float32))
