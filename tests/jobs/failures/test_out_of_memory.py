"""Every library's way to report a lack of memory is recognised, and nothing else is."""

from __future__ import annotations

import errno

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.failures.out_of_memory import is_out_of_memory


def raised_by_torch() -> Exception:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 55)
    return found.value


def raised_by_numpy() -> Exception:
    with pytest.raises(MemoryError) as found:
        np.empty(1 << 55)
    return found.value


@pytest.mark.parametrize(
    "error",
    [
        raised_by_torch(),
        raised_by_numpy(),
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        OSError(errno.ENOMEM, "fork"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("HIP out of memory."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request"),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_recognised_also_behind_another_exception(error: Exception) -> None:
    assert is_out_of_memory(error)
    for explicit in (True, False):
        with pytest.raises(ValueError, match="sample") as found:
            try:
                raise error
            except Exception as one:
                if explicit:
                    raise ValueError("sample 3 failed") from one
                raise ValueError("sample 3 failed")  # noqa: B904 (the context is what is tested)
        assert is_out_of_memory(found.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the text is out of memory bounds"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "absent"),
        KeyError("bad_alloc"),
    ],
    ids=str,
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)
