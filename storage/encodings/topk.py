"""TopK: the likeliest classes, and exactly how much lies outside them at each temperature of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.errors import RecipeError
from storage.encodings import planes
from storage.encodings.rounding import rounded
from storage.encodings.targets import TopKTargets
from storage.encodings.temperatures import BOUNDS, is_temperature
from storage.samples import tensor_columns

IDS, LOG_PROBS, LABEL_LOG_PROB = "soft_ids", "soft_log_probs", "soft_label_log_prob"
LOG_Z, LOG_TAIL, ENTROPIES = "soft_log_z", "soft_log_tail", "soft_entropies"


@dataclass(frozen=True)
class TopK:
    """Keep the k likeliest ids with l = log softmax(z) in float16, and (L_T, log tail, H_T) for each temperature.

    temperatures: the grid. Only those are served, since L_T = logsumexp(l / T) needs the whole vocabulary;
    1 is always among them. Rounding: a stored l is within |l| * 2^-11 + 2^-25 of the teacher's; -inf, a
    probability of 0, is stored as it is.
    """

    k: int = 64
    temperatures: tuple[float, ...] = (1.0,)

    draws = False

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise RecipeError(f"targets.k is {self.k!r}.", "It is a whole number of at least 1.")
        grid: Any = self.temperatures
        if isinstance(grid, int | float):
            grid = (grid,)
        if not isinstance(grid, list | tuple) or not all(is_temperature(t) for t in grid):
            raise RecipeError(f"targets.temperatures is {self.temperatures!r}.", f"It is a list of numbers {BOUNDS}.")
        object.__setattr__(self, "temperatures", tuple(sorted({1.0, *map(float, grid)})))

    def key(self) -> dict[str, Any]:
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        return {"encoding": "topk", "k": self.k, "temperatures": list(self.temperatures)}

    def fields(self, classes: int, positions: int | None = None) -> list[pa.Field]:
        """Raises RecipeError where the k ids would be all of the classes."""
        if self.k >= classes:
            raise RecipeError(
                f"targets.k is {self.k}, and the teacher has {classes} classes.",
                "The k likeliest classes are fewer than all of them.",
                "Lower targets.k, or keep all: targets.encoding=dense.",
            )
        lead = () if positions is None else (positions,)
        grid = (*lead, len(self.temperatures))
        half, single = np.dtype(np.float16), np.dtype(np.float32)
        byte, ids = np.dtype(np.uint8), np.dtype(_ids_type(classes))
        return [
            tensor_columns.tensor_field(
                IDS, byte, (ids.itemsize, *lead, self.k), "byte planes: the likeliest classes, likeliest first"
            ),
            tensor_columns.tensor_field(
                LOG_PROBS,
                byte,
                (half.itemsize, *lead, self.k),
                "byte planes of differences of float16 bits: log softmax of the teacher's logits at these",
            ),
            _field(LABEL_LOG_PROB, half, lead, "log softmax of the teacher's logits at the label; NaN without one"),
            tensor_columns.tensor_field(LOG_Z, single, grid, "L_T = logsumexp(log softmax / T), for each temperature"),
            tensor_columns.tensor_field(
                LOG_TAIL, single, grid, "log of the mass outside these ids, for each temperature"
            ),
            tensor_columns.tensor_field(ENTROPIES, single, grid, "entropy in nats, for each temperature"),
        ]

    def encode(self, targets: TopKTargets) -> list[pa.Array]:
        singles = (targets.log_z_PG, targets.log_tail_PG, targets.entropy_PG)
        return [
            tensor_columns.pack(planes.split(targets.ids_PK.astype(_ids_type(targets.classes)))),
            tensor_columns.pack(planes.split_falling(rounded(targets.log_probs_PK, "float16"))),
            tensor_columns.pack(rounded(targets.label_log_prob_P, "float16")),
            *(tensor_columns.pack(values.astype(np.float32)) for values in singles),
        ]

    def decode(self, columns: dict[str, np.ndarray[Any, Any]], classes: int) -> TopKTargets:
        ids_PK = planes.join(columns[IDS], _ids_type(classes))
        log_probs_PK = planes.join_falling(columns[LOG_PROBS])
        others = (columns[name] for name in (LABEL_LOG_PROB, LOG_Z, LOG_TAIL, ENTROPIES))
        return TopKTargets(ids_PK, log_probs_PK, *others, temperatures=self.temperatures, classes=classes)


def _ids_type(classes: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if classes <= 1 << 16 else np.uint32


def _field(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], meaning: str) -> pa.Field:
    """A tensor's field, or a plain number's where a row has one."""
    if shape:
        return tensor_columns.tensor_field(name, dtype, shape, meaning)
    return pa.field(name, pa.from_numpy_dtype(dtype), nullable=False, metadata={tensor_columns.MEANING: meaning})
