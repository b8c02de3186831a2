"""Tell what an error of a device means: no memory (try it smaller), or no device any more.

By the names and words of errors, so it needs no torch. Knows no engine.
"""

import re
from collections.abc import Callable
from typing import TypeVar

from watcher.engine import OutOfMemory

T = TypeVar("T")

#: CUDA has a class of its own for it; its libraries, MPS and the processor say it in words.
#: cuDNN that found no room for any of its ways says that it found no way; cuBLAS that it could
#: not begin.
_OOM = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED"
    r"|unable to find an engine|CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
#: An error of the device that leaves its context as it was: this way was not built for it.
_UNHARMED = re.compile(r"no kernel image|invalid device function", re.IGNORECASE)
#: Texts of errors after which nothing on the device works any more (torch raises them as
#: RuntimeError in many places). What is merely not supported is none of them.
_POISON = re.compile(
    r"\b(CUDA|HIP|XPU) (driver )?error\b|cuDNN error(?!.*NOT_SUPPORTED)"
    r"|CU(BLAS|SOLVER|SPARSE|FFT)_STATUS_(?!NOT_SUPPORTED)|device-side assert"
    r"|illegal memory access|unspecified launch failure",
    re.IGNORECASE,
)


def _is_a(error: BaseException, name: str) -> bool:
    return any(
        f"{c.__module__.partition('.')[0]}.{c.__name__}" == name for c in type(error).__mro__
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Was there no memory for it?"""
    if isinstance(error, OutOfMemory | MemoryError) or _is_a(error, "torch.OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and _OOM.search(str(error)) is not None


def is_poison(error: BaseException) -> bool:
    """Did the device's context die with this error, or with one that caused it?"""
    seen: BaseException | None = error
    while seen is not None:
        told = _is_a(seen, "torch.AcceleratorError") or _POISON.search(str(seen))
        if told and not is_out_of_memory(seen) and not _UNHARMED.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


def sparing_memory(work: Callable[[], T]) -> T:
    """``work``'s result; any kind of memory shortage comes out as OutOfMemory, without the
    traceback that would keep the attempt's tensors alive."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())
    raise OutOfMemory(words[:300])
