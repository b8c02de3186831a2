"""A torch whose cards are told by a file: for the look for devices, in a process of its own.

``folder_of`` writes the module; its path goes into PYTHONPATH. The file ``cards.json`` beside it
may change between two looks, as a machine does.
"""

import json
from pathlib import Path
from typing import Any

_TORCH = """
import json, os, types, warnings
from pathlib import Path

told = json.loads((Path(__file__).parent / "cards.json").read_text())
Tensor = type("Tensor", (), {})
device = type("device", (), {})
AcceleratorError = type("AcceleratorError", (RuntimeError,), {})
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
nn = types.SimpleNamespace(Module=type("Module", (), {}))
version = types.SimpleNamespace(cuda=told["built_for"], hip=None)
backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: told["apple"]))


if told["memory"]:  # the child's alone: a machine without /proc/meminfo says it so
    os.sysconf = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": told["memory"]}.get
    Path.read_text = lambda self, *_, **__: (_ for _ in ()).throw(FileNotFoundError(self))


def count():
    if told["warning"]:
        warnings.warn(told["warning"], UserWarning)
        return 0
    return len(told["cards"])


def properties(index):
    name, major, minor = told["cards"][index]
    if major is None:
        raise RuntimeError(name)
    return types.SimpleNamespace(name=name, major=major, minor=minor, total_memory=24 << 30)


def mem_get_info(index):
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")


cuda = types.SimpleNamespace(
    is_available=lambda: count() > 0,
    device_count=count,
    get_device_properties=properties,
    get_arch_list=lambda: told["code_for"],
    mem_get_info=mem_get_info,
    DeferredCudaCallError=type("DeferredCudaCallError", (Exception,), {}),
)
"""

#: What a build of torch for CUDA 13 has code for.
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


class ScriptedTorch:
    """One machine as torch shows it."""

    def __init__(self, folder: Path, *, apple: bool = False, memory: int | None = None) -> None:
        self.folder = folder
        self._facts = {"apple": apple, "memory": memory}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "torch.py").write_text(_TORCH)
        self.shows()

    def shows(
        self,
        *cards: tuple[str, int | None, int | None],
        warning: str = "",
        built_for: str | None = "13.0",
    ) -> None:
        """Name, major and minor of each card; a card without a major fails with its name."""
        told: dict[str, Any] = {"cards": cards, "warning": warning, "built_for": built_for}
        (self.folder / "cards.json").write_text(
            json.dumps(told | self._facts | {"code_for": CUDA_13})
        )
