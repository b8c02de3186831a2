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
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: its own classes are not to be had then
        return None
    with contextlib.suppress(Exception):
        cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return max(
            int(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)) for card in cards
        )
    return None
