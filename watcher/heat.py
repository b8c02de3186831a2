"""How hot the graphics cards are, by their vendor's own library where it is installed.

Only asks, so a crash leaves nothing. Knows no jobs.
"""

import contextlib
import importlib
from typing import Any


def hottest_card() -> int | None:
    """Degrees Celsius of the hottest card of this machine; None where nobody can tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    with contextlib.suppress(nvml.NVMLError):  # no driver, no card, or one that does not tell
        nvml.nvmlInit()
        cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        told = (nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU) for card in cards)
        return max(map(int, told), default=None)
    return None
