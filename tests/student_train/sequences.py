"""Rows that are sequences, with what a cache would keep of their teacher, as a stream's row groups in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from storage.encodings.dense import DenseTargets
from storage.encodings.targets import IGNORED, with_mask
from storage.encodings.topk import TopKTargets
from storage.format.rows import DecodedRows
from storage.rows.row_groups import Arrays, Column, Ints
from storage.samples.samples import LABEL, SAMPLE_ID
from tests.student_train.sparse import GRID, top_k

VOCABULARY, LENGTH, KEPT = 13, 6, 4
TOPK = ("ids", "log_probs", "label_log_prob", "log_z", "log_tail", "entropies")


def sequence_columns(rows: int, seed: int = 0, masked: bool = True) -> Arrays:
    """Random tokens, labels that are the next ones, and a random teacher of either kind; the last position, and some
    others, have no label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, LENGTH + 1), generator=generator)
    label = tokens[:, 1:].clone()
    if masked:
        label[:, -1] = IGNORED
        label[torch.rand(label.shape, generator=generator) < 0.2] = IGNORED
    # The teacher knows something of the label.
    logits = 2 * torch.randn(rows * LENGTH, VOCABULARY, generator=generator)
    logits += 3 * torch.nn.functional.one_hot(tokens[:, 1:].reshape(-1), VOCABULARY)
    kept = top_k(logits, KEPT, label.reshape(-1))
    arrays = [
        kept.ids_PK.to(torch.uint16),
        kept.log_probs_PK.half(),
        kept.label_log_prob_P.half(),
        *(kept.log_z_PG, kept.log_tail_PG, kept.entropy_PG),
    ]
    soft = {
        name: array.numpy().reshape(rows, LENGTH, *array.shape[1:]) for name, array in zip(TOPK, arrays, strict=True)
    }
    dense = (logits - logits.amax(dim=1, keepdim=True)).half().numpy().reshape(rows, LENGTH, VOCABULARY)
    return {
        SAMPLE_ID: np.arange(rows),
        "input_ids": tokens[:, :-1].numpy().astype(np.int32),
        "position_ids": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (rows, LENGTH)).copy(),
        LABEL: label.numpy().astype(np.int32),
        **soft,
        "dense": dense,
    }


class SequenceRows:
    """One group of rows with targets `kind`: topk or dense."""

    def __init__(self, rows: int, kind: str = "topk", seed: int = 0, masked: bool = True) -> None:
        self._arrays, self._kind = sequence_columns(rows, seed, masked), kind
        self.rows = self.sizes = np.array([rows])
        self.columns: Sequence[Column] = [
            Column(name, array.dtype, array.shape[1:]) for name, array in self._arrays.items()
        ]
        self.digest, self.where = f"{kind}-{seed}-{rows}-{masked}", "sequences"

    def load(self, group: int, out: Arrays) -> Arrays:
        for name, array in self._arrays.items():
            out[name][...] = array
        return {}

    def name_of(self, group: int) -> str:
        return self.where

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return row_B

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        inputs = {name: columns[name] for name in ("input_ids", "position_ids")}
        targets: Any
        if self._kind == "dense":
            targets = DenseTargets(columns["dense"], np.ones(columns["dense"].shape[:2], np.float32))
        else:
            targets = TopKTargets(*(columns[name] for name in TOPK), temperatures=GRID, classes=VOCABULARY)
        return DecodedRows(columns[SAMPLE_ID], inputs, columns[LABEL], with_mask(targets, columns[LABEL]))

    def whole(self) -> DecodedRows:
        return self.rows_of(np.zeros(len(self._arrays[SAMPLE_ID]), np.int64), self._arrays)
