"""Data at rest and how it is read: shards, caches, the order of samples and the stream. No Ray, no MLflow, no models.

The names below are the public API. What makes torch tensors is imported when it is first used, so that caches are
read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.base.errors import JobError, StillhouseError, UsageError, VerificationError
from storage.cache.cache import Cache
from storage.cache.catalog import list_caches, verify
from storage.cache.open import open_cache
from storage.encodings.dense import DenseTargets
from storage.encodings.targets import Targets
from storage.encodings.topk import TopKTargets
from storage.rows.open import open_rows
from storage.rows.reading import Reading
from storage.rows.row_groups import RowGroups, first_rows
from storage.sources import make_source
from storage.stream.distributed import world
from storage.stream.stream import Batch, Stream

if TYPE_CHECKING:
    from storage.stream.torch_dataset import StreamDataset, TorchBatch
    from storage.stream.torch_tensors import to_torch

__all__ = [
    "Batch",
    "Cache",
    "DenseTargets",
    "JobError",
    "Reading",
    "RowGroups",
    "StillhouseError",
    "Stream",
    "StreamDataset",
    "Targets",
    "TopKTargets",
    "TorchBatch",
    "UsageError",
    "VerificationError",
    "first_rows",
    "list_caches",
    "make_source",
    "open_cache",
    "open_rows",
    "to_torch",
    "verify",
    "world",
]

_NEED_TORCH = {
    "StreamDataset": "storage.stream.torch_dataset",
    "TorchBatch": "storage.stream.torch_dataset",
    "to_torch": "storage.stream.torch_tensors",
}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module 'storage' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_NEED_TORCH[name]), name)
