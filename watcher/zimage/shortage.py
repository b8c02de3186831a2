"""Telling the errors of a device apart: no memory (try it smaller) or no device any more."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from watcher.engine import OutOfMemory

T = TypeVar("T")

#: cuDNN that found no room for any of its ways says that it found no way; cuBLAS that it could
#: not begin.
_OOM = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED"
    r"|unable to find an engine|CUBLAS_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
#: An error of the device that leaves its context as it was: this way was not built for it.
_UNHARMED = re.compile(r"no kernel image|invalid device function", re.IGNORECASE)


def is_poison(error: BaseException) -> bool:
    """Did the device's context die with this error?"""
    words = str(error)
    harmless = _OOM.search(words) or _UNHARMED.search(words)
    return isinstance(error, torch.AcceleratorError) and not harmless


def is_out_of_memory(error: RuntimeError) -> bool:
    """Was there no memory for it?"""
    # CUDA has a class of its own for it; its libraries, MPS and the processor say it in words.
    return isinstance(error, torch.OutOfMemoryError) or bool(_OOM.search(str(error)))


def sparing_memory(work: Callable[[], T]) -> T:
    """``work``'s result; any kind of memory shortage comes out as OutOfMemory, without the
    traceback that would keep the attempt's tensors alive."""
    try:
        return work()
    except MemoryError as error:
        words = str(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())
    raise OutOfMemory(words[:300])
