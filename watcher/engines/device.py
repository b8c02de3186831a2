"""The devices of this machine, as they are now.

Looks only; knows nothing of models. A card is looked at without a context on it (which would
take 0.4 GB, and is refused where another process has the card for itself), unless its free
memory is asked for.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from watcher.engine import DeviceLost
from watcher.engines.plan import DeviceDescription
from watcher.errors import SteadyError

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: Any of these means that a driver for NVIDIA's cards is installed, whatever torch says.
_DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1")


@dataclass(frozen=True)
class Cards:
    """The CUDA (or ROCm) cards of this machine.

    Attributes:
        usable: torch's properties by number.
        unusable: a sentence for each card, or for the whole of CUDA, that cannot be used.
        broken: nothing is usable for a reason that can go away by itself or by a new driver.
    """

    usable: dict[int, Any]
    unusable: tuple[str, ...]
    broken: bool


def cards() -> Cards:
    """Look at the cards; torch answers "none" for many faults and tells the cause in a warning."""
    usable: dict[int, Any] = {}
    unusable: list[str] = []
    broken = False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            try:
                card = torch.cuda.get_device_properties(index)
            except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
                unusable.append(f"cuda:{index}: {_fault_words(error)}")
                broken = True
                continue
            if _has_code_for(card):
                usable[index] = card
            else:
                unusable.append(
                    f"cuda:{index} ({card.name}, compute capability {card.major}.{card.minor}): this"
                    " PyTorch was not built for it. Its build for CUDA 12.6 (cu126) knows older cards."
                )
    if not count:
        faults = [w.message for w in said if "initializ" in str(w.message)]
        unusable += [_fault_words(fault) for fault in faults]
        broken = bool(faults)
    if not count and not unusable and _driver_installed():
        unusable.append(
            "A driver for NVIDIA cards is installed, but this PyTorch is built without CUDA."
            if torch.version.cuda is None
            else "A driver for NVIDIA cards is installed, but shows no card to this process."
        )
    return Cards(usable, tuple(unusable), broken and not usable)


def _fault_words(fault: object) -> str:
    """On one line, without the places in torch's own source."""
    text = re.sub(r"\(Triggered internally at [^)]*\)", "", str(fault))
    return " ".join(text.split())[:400]


def _driver_installed() -> bool:
    return any(map(os.path.exists, _DRIVER)) or shutil.which("nvidia-smi") is not None


def _has_code_for(card: Any) -> bool:
    """Is there code for this card in torch's build? (ROCm names its cards otherwise: believed.)"""
    built = torch.cuda.get_arch_list()
    if torch.version.hip is not None or not built:
        return True
    mine = 10 * card.major + card.minor
    for kind, number in re.findall(r"\b(sm|compute)_(\d+)", " ".join(built)):
        newest = int(number)
        if newest <= mine and (kind == "compute" or newest // 10 == card.major):
            return True
    return False


def describe(device: str) -> DeviceDescription:
    """The device asked for, ``auto`` resolved. Raises DeviceLost when it cannot be used."""
    found = cards() if device.startswith(("auto", "cuda")) else Cards({}, (), False)
    if device == "auto":
        if found.broken:
            raise DeviceLost(" ".join(found.unusable))
        apple = "mps" if torch.backends.mps.is_available() else "cpu"
        device = f"cuda:{next(iter(found.usable))}" if found.usable else apple
    kind, _, number = device.partition(":")
    host = host_memory()
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceLost("This machine has no MPS device.")
    if kind in ("cpu", "mps"):
        name = "Apple" if kind == "mps" else platform.processor() or platform.machine()
        return DeviceDescription(kind, name, total=host[0], free=host[1], host_free=host[1])
    if kind != "cuda" or not (number or "0").isdigit():
        raise SteadyError("bad_config", f"`device` must be auto, cpu, mps or cuda:N, not {device}.")
    index = int(number or 0)
    if index not in found.usable:
        words = f"There is no CUDA device {index} on this machine that can be used."
        raise DeviceLost(" ".join([words, *found.unusable]))
    card = found.usable[index]
    free, total = torch.cuda.mem_get_info(index)
    return DeviceDescription(
        f"cuda:{index}",
        card.name,
        (card.major, card.minor),
        total,
        free,
        host[1],
        rocm=torch.version.hip is not None,
    )


def probe(*, memory: bool = False) -> dict[str, Any]:
    """The devices of this machine, for choosing a model and for ``steady doctor``.

    ``memory``: each card's ``free`` bytes too, which makes a context on it.
    """
    found = cards()
    listed = []
    unusable = list(found.unusable)
    for index, card in found.usable.items():
        facts = {
            "device": f"cuda:{index}",
            "name": card.name,
            "capability": [card.major, card.minor],
            "total": card.total_memory,
        }
        if memory:
            try:
                facts["free"] = torch.cuda.mem_get_info(index)[0]
            except RuntimeError as error:  # this card's affair: the others are as they were
                unusable.append(f"cuda:{index}: {_fault_words(error)}")
        listed.append(facts)
    total, free = host_memory()
    return {
        "torch": importlib.metadata.version("torch"),
        "cuda": listed,
        "unusable": unusable,
        "broken": found.broken,
        "mps": torch.backends.mps.is_available(),
        "cpu": {"cores": os.cpu_count(), "total": total, "free": free},
    }


def host_memory() -> tuple[int | None, int | None]:
    """Bytes of main memory: all that this process may have, and what it could have now."""
    with contextlib.suppress(OSError, ValueError):
        lines = (_PROC / "meminfo").read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, free = fields["MemTotal"], fields["MemAvailable"]
        for limit, used in _limits():
            total, free = min(total, limit), min(free, max(0, limit - used))
        return total, free
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    return None, None


def _limits() -> list[tuple[int, int]]:
    """Of each control group around this process that has a limit: the limit, and what is used.

    A container sees its own group at the top. Pages of files that could be dropped are not used.
    """
    found = []
    own = ""
    with contextlib.suppress(OSError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line.removeprefix("0::").strip("/")
    here = _GROUPS / own
    for folder in [here, *here.parents]:
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / "memory.max").read_text())  # "max": no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
            found.append((limit, used))
        if folder == _GROUPS:
            break
    return found
