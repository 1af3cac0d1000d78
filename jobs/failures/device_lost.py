"""Recognises a device that failed, whichever library reports it."""

from __future__ import annotations

from jobs.failures.out_of_memory import chain

_SIGNS = ("CUDA error", "CUDA driver error", "HIP error", "cuDNN error", "CUBLAS_STATUS", "NCCL error")


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from or while handling, reports a device that failed.

    CUBLAS_STATUS_ALLOC_FAILED is a lack of memory: ask `is_out_of_memory` first.
    """
    return any(
        type(one).__name__ == "AcceleratorError" or any(sign in str(one) for sign in _SIGNS) for one in chain(error)
    )
