"""The devices of this machine, as they are now.

Looks only; knows nothing of models.
"""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from watcher.engine import DeviceLost
from watcher.errors import SteadyError
from watcher.plan import DeviceDescription


def describe(device: str) -> DeviceDescription:
    """The device asked for, ``auto`` resolved. Raises DeviceLost when it is not there."""
    if device == "auto":
        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available():
            device = "mps"
    kind, _, number = device.partition(":")
    host = _host_memory()
    if kind == "cpu":
        name = platform.processor() or platform.machine()
        return DeviceDescription("cpu", name, total=host[0], free=host[1], host_free=host[1])
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceLost("This machine has no MPS device.")
        return DeviceDescription("mps", "Apple", total=host[0], free=host[1], host_free=host[1])
    if kind != "cuda" or not (number or "0").isdigit():
        raise SteadyError("bad_config", f"`device` must be auto, cpu, mps or cuda:N, not {device}.")
    index = int(number or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceLost(f"There is no CUDA device {index} on this machine.")
    free, total = torch.cuda.mem_get_info(index)
    return DeviceDescription(
        f"cuda:{index}",
        torch.cuda.get_device_name(index),
        torch.cuda.get_device_capability(index),
        total,
        free,
        host[1],
    )


def probe() -> dict[str, Any]:
    """The devices of this machine, for choosing a model and for ``steady doctor``."""
    cards = []
    for index in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        card = describe(f"cuda:{index}")
        cards.append(
            {
                "device": card.device,
                "name": card.name,
                "capability": list(card.capability or ()),
                "total": card.total,
                "free": card.free,
            }
        )
    total, free = _host_memory()
    return {
        "torch": importlib.metadata.version("torch"),
        "cuda": cards,
        "mps": torch.backends.mps.is_available(),
        "cpu": {"cores": os.cpu_count(), "total": total, "free": free},
    }


def _host_memory() -> tuple[int | None, int | None]:
    """Bytes of main memory: all of it, and what could be had now."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return fields.get("MemTotal"), fields.get("MemAvailable")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    return None, None
