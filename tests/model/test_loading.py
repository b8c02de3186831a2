"""Reading a model: whose fault it is when it fails, and who reads while another does.

The libraries are scripted, in processes of their own: what they raise is what they were seen to.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from scripted_torch import ScriptedTorch

HOUSE = Path(__file__).parents[2]

#: A library with one part; WORDS says what it fails with, the pipe HELD keeps it reading.
_LIBRARY = """
import json, os
from pathlib import Path

class ZImagePipeline:
    @classmethod
    def from_pretrained(cls, folder, **how):
        return cls()
    def set_progress_bar_config(self, **how):
        pass

class Part:
    @classmethod
    def from_pretrained(cls, folder, **how):
        words = os.environ.get("WORDS")
        if words:
            raise RuntimeError(words)
        print("reads", flush=True)
        if Path(os.environ["HELD"]).exists():
            Path(os.environ["HELD"]).read_bytes()
        return cls(), {"missing_keys": []}
"""

_READ = """
import os, sys, torch
torch.dtype, torch.float32 = object, "float32"
from watcher.engines.loading import read_pipeline
from watcher.engines.plan import DeviceDescription, Options, Weights, plan
from watcher.errors import SteadyError
from pathlib import Path
for words in os.environ.get("ALL_WORDS", "").split("|"):
    os.environ["WORDS"] = words
    try:
        chosen = plan(DeviceDescription("cpu"), Options(), "auto", Weights(1, 1, 1))
        read_pipeline(Path(sys.argv[1]), chosen)
        print("read", flush=True)
    except SteadyError as error:
        print(error.code, flush=True)
    except RuntimeError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH."""
    folder = ScriptedTorch(tmp_path / "libraries").folder
    for name in ("diffusers", "transformers"):
        (folder / name / "utils").mkdir(parents=True)
        (folder / name / "__init__.py").write_text(_LIBRARY)
        (folder / name / "utils" / "__init__.py").touch()
        (folder / name / "utils" / "logging.py").write_text("def disable_progress_bar(): pass\n")
    return folder


@pytest.fixture
def read(libraries: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that reads the model called ``name``."""
    begun: list[subprocess.Popen[str]] = []

    def start(name: str, **environment: str) -> subprocess.Popen[str]:
        model = tmp_path / name
        (model / "transformer").mkdir(parents=True)
        (model / "transformer" / "config.json").write_text("{}")
        (model / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "Part"]}))
        paths = {"PYTHONPATH": f"{libraries}:{HOUSE}", "PYTHONDONTWRITEBYTECODE": "1"}
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", _READ, model], env=environment | paths, text=True,
                stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_fault_of_the_device_is_not_the_models(read: Callable[..., subprocess.Popen[str]]):
    device = [
        "No GPU found. A GPU is needed for quantization.",
        "CUDA driver error: operation not supported",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "HIP error: invalid argument",
        "rocBLAS error: Cannot read TensileLibrary.dat",
        "Can't initialize NVML",
        "MPS backend out of memory (MPS allocated: 17.9 GB)",
    ]
    files = [
        "Error(s) in loading state_dict for Part: size mismatch for x.weight",
        "PytorchStreamReader failed reading zip archive",
    ]
    told, _ = read("model", ALL_WORDS="|".join([*device, *files])).communicate(timeout=60)
    assert told.split() == ["RuntimeError"] * len(device) + ["model_damaged"] * len(files)


def test_workers_of_a_machine_read_one_after_another(
    read: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    """Also different models: it is the main memory that is short."""
    held = tmp_path / "held"
    os.mkfifo(held)
    first = read("one", HELD=str(held))
    assert first.stdout and first.stdout.readline() == "reads\n"
    second = read("two", HELD=str(tmp_path / "nothing"))
    until(lambda: opens(second.pid, HOUSE / "watcher" / "engines"), what="it waits for its turn")
    assert second.poll() is None
    held.write_bytes(b"")
    assert first.stdout.read() == "read\n"
    assert second.communicate(timeout=60)[0] == "reads\nread\n"


def opens(pid: int, folder: Path) -> bool:
    return any(link.resolve() == folder for link in Path(f"/proc/{pid}/fd").iterdir())
