"""What benchmarks.gpu measures, part by part; each runs in a process of its own.

The pictures are of random weights (on the processor: of the starter model), so speed, memory and
sameness mean something, and what is on them does not.
"""

import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engines import a_job

from benchmarks.fullsize import RandomWeights, a_request, nothing, outline, picture_of
from benchmarks.gpu import HOUSE, Say, outcomes
from watcher.engine import EngineSettings
from watcher.engines.zimage import ZImage
from watcher.executor import Died, Picture, Ready, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.models import describe_devices
from watcher.models.catalogue import starter_folder

GB = 1e9


def run(part: str, card: str, say: Say) -> None:
    """Measure one part on ``card``."""
    _RUN[part](card, say)


def _card(card: str, say: Say) -> None:
    begun = time.monotonic()
    seen = describe_devices(memory=True)
    say("the look for devices", time.monotonic() - begun, "s")
    say("torch", seen["torch"], "", f"CUDA {torch.version.cuda}, ROCm {torch.version.hip}")
    say("code for", " ".join(torch.cuda.get_arch_list()) or "none")
    for found in seen["cuda"]:
        free = found.get("free", 0) / GB
        say(found["device"], found["name"], "", f"{found['capability']}, {free:.1f} GB free")
    for words in seen["unusable"]:
        say("cannot be used", words)
    host = seen["cpu"]
    say("main memory", (host["free"] or 0) / GB, "GB", f"free; {host['cores']} cores")
    if card != "cpu":
        command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            say("driver and power limit", done.stdout.strip() or done.stderr.strip()[:200])


def _service(card: str, say: Say) -> None:
    """A worker with the starter model: draws, is killed, draws again."""
    executor = LocalExecutor(WorkerSpec("zimage", str(starter_folder()), card))
    said: list[Any] = []

    def wait(kind: type, count: int = 1) -> Any:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            said.extend(executor.events(0.05))
            found = [event for event in said if type(event) is kind]
            if len(found) >= count:
                return found[count - 1]
        raise TimeoutError(f"no {kind.__name__} in 120 s; heard {said[-3:]}")

    begun = time.monotonic()
    executor.start()
    try:
        info = wait(Ready).info
        say("worker ready", time.monotonic() - begun, "s", f"{info['dtype']}, {info['attention']}")
        executor.send(0, a_job("one", a_request(256)))
        first = wait(Picture).rgb
        os.kill(executor.status()[0]["pid"], signal.SIGKILL)
        begun = time.monotonic()
        wait(Died)
        wait(Ready, 2)
        say("ready again after a kill", time.monotonic() - begun, "s")
        executor.send(0, a_job("two", a_request(256)))
        _same(say, "after a kill", wait(Picture, 2).rgb == first)
    finally:
        executor.stop(2)


def _model(card: str, say: Say) -> None:
    """The full-size model, all of it on the card where that fits."""
    with _engine(card, say) as engine:
        for side in _sides(card, 512, 1024, 1536, 2048):
            with _guarded(say, f"{side} x {side}"):
                image = _picture(say, engine, f"{side} x {side}", side)
                if side == _sides(card, 1024)[0]:
                    _same(say, f"{side} x {side} again", _picture(say, engine, "", side) == image)
        side = _sides(card, 1024)[0]
        latents = torch.randn(1, 16, side // 8, side // 8).to(engine._device)
        for tiled in (False, True):
            how = " in tiles" if tiled else ""
            with _guarded(say, f"decode{how}"):
                engine._pipe.vae.use_tiling = tiled
                _decode(say, engine, f"decode {side} x {side}{how}", latents)
        engine._pipe.vae.use_tiling = False
        if card != "cpu":
            _squeeze(card, say, engine)


def _decode(say: Say, engine: ZImage, what: str, latents: Any) -> None:
    engine._decode(latents)
    _forget_peak(engine)
    begun = time.perf_counter()
    engine._decode(latents)
    say(what, time.perf_counter() - begun, "s", _peak(engine))


def _squeeze(card: str, say: Say, engine: ZImage) -> None:
    """Smaller cards, by a limit on this one: which tier each takes, and in which words it is full."""
    total = torch.cuda.get_device_properties(card).total_memory
    for size in (22.5, 16.0, 12.0, 8.0):
        with _guarded(say, f"with {size:g} GB"):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, size * GB / total))
            _picture(say, engine, f"with {size:g} GB", 1024)
            say("  tier", engine._placement.tier)
    torch.cuda.set_per_process_memory_fraction(1.0)


def _tiers(card: str, say: Say) -> None:
    """Every tier draws the same; what it takes of both memories, and of time."""
    side = _sides(card, 1024)[0]
    with _engine(card, say, tier="resident" if card != "cpu" else "auto") as engine:
        want = _picture(say, engine, "resident", side)
        for tier in ("offload", "stream", "resident"):
            with _guarded(say, tier):
                begun = time.perf_counter()
                engine._placement._settle(tier)
                took = time.perf_counter() - begun
                say(f"to {tier}", took, "s", f"{_held(engine)}; {_locked()}")
                engine._encode.cache_clear()
                image = _draw(say, engine, f"{tier}, a new prompt", side)
                _same(say, f"{tier} as resident", image == want)
                _draw(say, engine, f"{tier}, a known prompt", side)


def _attention(card: str, say: Say) -> None:
    """Every backend that may be there, against diffusers' own."""
    side = _sides(card, 1024)[0]
    names = ["native", "_native_cudnn", "_native_flash", "_flash_3", "flash", "sage"]
    if card == "cpu":
        names = ["native", "_native_math"]
    with _engine(card, say) as engine:
        want = b""
        for name in names:
            try:
                engine._pipe.transformer.set_attention_backend(name)
                engine._try_out()
            except Exception as error:
                say(name, "cannot be used", "", f"{type(error).__name__}: {error}"[:200])
                continue
            image = _picture(say, engine, name, side)
            want = want or image
            say(f"{name} as native", "the same" if image == want else "other pixels")


def _compile(card: str, say: Say) -> None:
    """Regional compiling: how long it takes, what it gains, and how often it starts anew."""
    if card == "cpu":
        say("compile", "not rehearsed", "", "minutes on a processor")
        return
    with _engine(card, say) as engine:
        want = _picture(say, engine, "plain", 1024)
        engine._pipe.transformer.compile_repeated_blocks(dynamic=True)
        for side in (1024, 512, 768):
            begun = time.perf_counter()
            engine._draw(a_request(side), nothing)
            say(f"first picture of {side} x {side}", time.perf_counter() - begun, "s", "compiles")
        image = _picture(say, engine, "compiled", 1024)
        say("compiled as plain", "the same" if image == want else "other pixels")
        engine._placement._settle("offload")
        _picture(say, engine, "compiled, then offload", 1024)


def _checks(card: str, say: Say) -> None:
    """tests/model/test_gpu.py with the starter model."""
    if card == "cpu":
        say("tests/model/test_gpu.py", "not rehearsed", "", "they need a card")
        return
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = ["-m", "pytest", "-q", "tests/model/test_gpu.py", f"--junitxml={report}"]
        subprocess.run([sys.executable, *command, "-k", "not compile"], cwd=HOUSE, check=False,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        for name, outcome, words in outcomes(report):
            say(name, outcome, "FAILED" if outcome in ("failure", "error") else "", words)


# -- what the parts share


@contextlib.contextmanager
def _engine(card: str, say: Say, **options: Any) -> Iterator[ZImage]:
    """The full-size model on the card; the starter model on the processor."""
    with tempfile.TemporaryDirectory() as scratch:
        if card == "cpu":
            engine = ZImage(EngineSettings(str(starter_folder()), card, options=options))
        else:
            folder = outline(Path(scratch) / "model")
            engine = RandomWeights(EngineSettings(str(folder), card, options=options))
        begun = time.perf_counter()
        info = engine.load()
        took = time.perf_counter() - begun
        say("load", took, "s", f"{info.details['tier']}, {info.dtype}, {_held(engine)}")
        yield engine


@contextlib.contextmanager
def _guarded(say: Say, what: str) -> Iterator[None]:
    """A failure is a row: its words are what we came for."""
    try:
        yield
    except Exception as error:
        say(what, type(error).__name__, "FAILED", " ".join(str(error).split())[:300])
        if "AcceleratorError" in type(error).__name__:
            raise  # nothing after it would mean anything


def _sides(card: str, *sides: int) -> list[int]:
    """The sides to draw; on the processor a sixteenth of each."""
    return [side // 16 for side in sides] if card == "cpu" else list(sides)


def _picture(say: Say, engine: ZImage, what: str, side: int) -> bytes:
    """Draw once to warm up and once for the row."""
    engine.generate(a_request(side), nothing)
    return _draw(say, engine, what, side)


def _draw(say: Say, engine: ZImage, what: str, side: int) -> bytes:
    _forget_peak(engine)
    marks = [time.perf_counter()]

    def step(done: int, total: int, preview: object = None) -> None:
        marks.append(time.perf_counter())

    image = picture_of(engine.generate(a_request(side), step))
    whole = time.perf_counter() - marks[0]
    each = (marks[-1] - marks[1]) / (len(marks) - 2) * 1000
    if what:
        digest = hashlib.sha256(image.tobytes()).hexdigest()[:12]
        say(what, whole, "s", f"{each:.1f} ms a step; {_peak(engine)}; sha256 {digest}")
    return bytes(image.tobytes())


def _same(say: Say, what: str, same: bool) -> None:
    say(f"same pixels: {what}", "yes" if same else "no", "" if same else "FAILED")


def _on_card(engine: ZImage, read: Callable[[Any], int]) -> float:
    return read(engine._device) / GB if engine._device.type == "cuda" else 0.0


def _forget_peak(engine: ZImage) -> None:
    if engine._device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine._device)


def _peak(engine: ZImage) -> str:
    allocated = _on_card(engine, torch.cuda.max_memory_allocated)
    reserved = _on_card(engine, torch.cuda.max_memory_reserved)
    return f"peak {allocated:.2f} GB, reserved {reserved:.2f} GB"


def _held(engine: ZImage) -> str:
    return f"{_on_card(engine, torch.cuda.memory_allocated):.2f} GB on the card"


def _locked() -> str:
    """Main memory of this process: locked now, and the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    locked = sum(int(fields.get(key, "0").split()[0]) for key in ("VmLck", "VmPin"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pinned = torch.cuda.host_memory_stats() if torch.cuda.is_available() else {}
    host = pinned.get("allocated_bytes.current", 0) / GB
    return (
        f"{locked * 1024 / GB:.1f} GB locked, {host:.1f} by torch; most {peak * 1024 / GB:.1f} GB"
    )


_RUN: dict[str, Callable[[str, Say], None]] = {
    "card": _card,
    "service": _service,
    "model": _model,
    "tiers": _tiers,
    "attention": _attention,
    "checks": _checks,
    "compile": _compile,
}
