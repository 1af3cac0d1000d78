"""Recognises a lack of memory, whichever library reports it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# Parts of messages, in lower case: torch's allocators (CPU, CUDA, HIP, XPU, MPS), cuBLAS, cuDNN, oneDNN, C++, JAX.
_MESSAGES = (
    *("out of memory", "out_of_memory", "not enough memory", "insufficient memory", "resource_exhausted"),
    *("can't allocate memory", "cannot allocate memory", "could not allocate", "couldn't allocate"),
    *("unable to allocate", "failed to allocate", "alloc_failed", "bad_alloc", "could not create a memory object"),
)
# What user code raises about its own data. Its message alone proves nothing; its cause may.
_ABOUT_DATA = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from or while handling, reports a lack of memory."""
    return any(_reports_lack(one) for one in chain(error))


def chain(error: BaseException, suppressed: bool = True) -> Iterator[BaseException]:
    """The exception, then its causes and contexts, each once. suppressed: those as well that `from None` hides."""
    waiting: list[BaseException | None] = [error]
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [None if one.__suppress_context__ and not suppressed else one.__context__, one.__cause__]


def _reports_lack(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any("OutOfMemory" in kind.__name__ for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    message = str(error).lower()
    return not isinstance(error, _ABOUT_DATA) and any(part in message for part in _MESSAGES)
