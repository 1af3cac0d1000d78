"""TopK: the likeliest classes, and exactly how much lies outside them at each temperature of a grid.

Legend: P positions, K kept ids, G temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from storage.base.errors import RecipeError
from storage.encodings import planes
from storage.encodings.arrays import as_int64, widen
from storage.encodings.rounding import rounded
from storage.encodings.targets import Sparse, Targets
from storage.encodings.temperatures import BOUNDS, is_temperature
from storage.samples import tensor_columns

IDS, LOG_PROBS, LABEL_LOG_PROB = "soft_ids", "soft_log_probs", "soft_label_log_prob"
LOG_Z, LOG_TAIL, ENTROPIES = "soft_log_z", "soft_log_tail", "soft_entropies"


@dataclass(frozen=True)
class TopKTargets(Targets):
    """The K likeliest classes of each position, and what is exactly known of the rest at each temperature of a grid.

    With l = log softmax(z) and p^T = softmax(z / T):
    ids_PK: [P, K] unsigned integers, likeliest first, of equal ones the lowest first.
    log_probs_PK: [P, K] float16, l of those.
    label_log_prob_P: [P] float16, l of the label (of a language model: the true next token); NaN where there is none.
    log_z_PG: [P, G] float32, L_T = logsumexp(l / T), so that log p^T_i = l_i / T - L_T.
    log_tail_PG: [P, G] float32, the log of the mass that p^T has outside the K ids; -inf where there is none.
    entropy_PG: [P, G] float32, the entropy of p^T, in nats.
    """

    kind: ClassVar[str] = "topk"
    ids_PK: Any
    log_probs_PK: Any
    label_log_prob_P: Any
    log_z_PG: Any
    log_tail_PG: Any
    entropy_PG: Any
    temperatures: tuple[float, ...]
    classes: int
    mask_P: Any = None

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.label_log_prob_P.shape)

    def cleared(self, ignored_P: Any) -> TopKTargets:
        """These targets, with zeros written to positions without a target, and NaN as their label's log-probability."""
        self.each(lambda array: _fill(array, ignored_P, 0))
        _fill(self.label_log_prob_P, ignored_P, np.nan)
        return self

    def sparse(self, temperature: float) -> Sparse:
        at = self.temperature_index(temperature)
        log_p_PK = widen(self.log_probs_PK) / temperature - widen(self.log_z_PG)[..., at, None]
        return Sparse(as_int64(self.ids_PK), log_p_PK, widen(self.log_tail_PG[..., at]))

    def top(self, count: int) -> tuple[Any, Any]:
        return as_int64(self.ids_PK[..., :count]), widen(self.log_probs_PK[..., :count])

    def label_log_prob(self, label_P: Any) -> Any:
        """As it was stored, for the labels that the teacher's job read."""
        return widen(self.label_log_prob_P)

    def entropy(self) -> Any:
        return widen(self.entropy_PG[..., self.temperature_index(1.0)])

    def temperature_index(self, temperature: float) -> int:
        """Raises RecipeError, with the grid, for a temperature that is not in it."""
        if temperature not in self.temperatures:
            raise RecipeError(
                f"The temperature {temperature:g} is not in the grid of these targets.",
                f"They were kept for: {', '.join(f'{t:g}' for t in self.temperatures)}.",
                "Take one of those, or label anew with targets.temperatures naming it too.",
            )
        return self.temperatures.index(temperature)


def _fill(array: Any, ignored_P: Any, value: float) -> Any:
    array[ignored_P] = value
    return array


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
