"""An engine for tests: needs no model, and does what the prompt says.

``Scripted`` is named ``engines:Scripted`` in the configuration, with this folder on the
worker's PYTHONPATH. Words of the form ``key=value`` and the faults below are obeyed wherever
they stand in the prompt; all other words are just prompt.

    sleep=0.1      seconds per step
    held=PATH      the first step goes on while PATH exists, and heeds a cancel
    steps=8        forwards (default: what the request asks for)
    at=2           the fault comes after so many forwards (default 1; 0: before the first)
    once           the fault comes only the first time this prompt is run (needs the log)
    grows          has a preview of each step, lighter than the one before
    hidden         has previews that cannot be drawn
    again=9        says so often that it lives before the first step
    quits          ends as if it had been told to
    photo          a picture with grain, as expensive to encode as a photograph

Faults: ``segv``, ``exit`` (or exit=3), ``kill``, ``orphan`` (kills its
parent), ``term``, ``hang`` (holds no lock), ``seize`` (holds the interpreter lock: no thread of the worker can run), ``oom``, ``nan``, ``blank``,
``raise``, ``mojibake`` (an error whose words are no text), ``chatter`` (prints 20 MB and goes on),
``lost``, ``poison`` (a CUDA error), ``garbage`` (nonsense on the socket),
``flood`` (a line without end), ``liar`` (a word about another job), ``empty`` and ``nowhere`` (says it made a picture and
did not), ``wrongsize``, ``fork``
(leaves a child behind that keeps every descriptor, then exits), ``stubborn`` (hangs and does
not heed SIGTERM), ``unsayable`` (facts that are no plain data).

The picture is a function of prompt, seed and size alone: ``expected`` computes it.

Log: every load, start, step, finish, fault and close is one JSON line, appended in one write
to the file named by option ``log`` or the environment's ENGINE_LOG: ``{"event", "pid", "t"
(monotonic ns), "prompt", "seed", "width", "height", …}``.

Options (``engine_options``): ``log``; ``load_sleep`` seconds; ``load_waits_for``: a named pipe, the
load ends once it was written to; ``load_fault``: missing, lost, damaged, oom, raise, exit, segv, hang or a code
of ERRORS; ``load_fault_while``: a path, the load fault comes only while it exists;
``load_fault_on``: only on this device; ``load_faults``: a file with a load fault a line, each of
which comes once.
"""

import ctypes
import functools
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from watcher.engine import (
    BadPicture,
    Cancelled,
    DeviceLost,
    EngineInfo,
    EngineRequest,
    EngineSettings,
    ModelMissing,
    OutOfMemory,
    Report,
    Result,
)
from watcher.errors import ERRORS, SteadyError
from watcher.jobs import Job, JobRequest, JobState, Priority

FAULTS = (
    *(
        "segv",
        "exit",
        "kill",
        "orphan",
        "term",
        "hang",
        "seize",
        "oom",
        "nan",
        "blank",
        "raise",
        "lost",
    ),
    *(
        "mojibake",
        "chatter",
        "poison",
        "garbage",
        "flood",
        "liar",
        "empty",
        "nowhere",
        "wrongsize",
        "fork",
        "stubborn",
        "unsayable",
    ),
)


def a_job(id: str, request: JobRequest) -> Job:
    """A job as the record hands it out for the first time."""
    forwards = max(1, (request.num_inference_steps or 1) - 1)
    asked = request.model_dump(include=set(JobRequest.model_fields), exclude_none=True)
    request = JobRequest.model_validate(asked)  # the record knows no opened files
    return Job(
        seq=1, id=id, ticket=id, index=0, state=JobState.GENERATING, rev=1, request=request,
        image_name=id, folder="x", path=f"x/{id}.png", priority=Priority.NORMAL, created_at=1,
        forwards=forwards, attempt=1,
    )  # fmt: skip


def expected(prompt: str, seed: int, width: int, height: int) -> Image.Image:
    """The picture of this request: RGB, ``width`` x ``height``."""
    dice = random.Random(f"{seed} {prompt}")
    if "photo" in prompt.split():
        return Image.frombytes("RGB", (width, height), _grain(dice, width, height))
    tile = Image.frombytes("RGB", (8, 8), dice.randbytes(8 * 8 * 3))
    return tile.resize((width, height), Image.Resampling.NEAREST)


def _grain(dice: random.Random, width: int, height: int) -> bytes:
    """Smooth ground with three bits of noise in every channel, as cameras make it."""
    ground = Image.frombytes("RGB", (8, 8), dice.randbytes(8 * 8 * 3))
    ground = ground.resize((width, height), Image.Resampling.BICUBIC)
    three_bits = bytes(i & 7 for i in range(256))
    noise = dice.randbytes(width * height * 3).translate(three_bits)
    return ImageChops.add(ground, Image.frombytes("RGB", (width, height), noise)).tobytes()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines written so far."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().splitlines()]


class Scripted:
    """Does what the prompt says (see the module)."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._options = dict(settings.options)
        self._log = self._options.get("log") or os.environ.get("ENGINE_LOG")

    def load(self) -> EngineInfo:
        time.sleep(float(self._options.get("load_sleep", 0)))
        if pipe := self._options.get("load_waits_for"):
            Path(pipe).read_bytes()
        self._note("load", device=self._settings.device, model=self._settings.model)
        gate = self._options.get("load_fault_while")
        place = self._options.get("load_fault_on", self._settings.device)
        if (gate is None or Path(gate).exists()) and place == self._settings.device:
            self._load_fault(self._options.get("load_fault"))
        if faults := self._options.get("load_faults"):
            first, _, rest = Path(faults).read_text().partition("\n")
            Path(faults).write_text(rest)
            self._load_fault(first or None)
        return EngineInfo(
            model=self._settings.model,
            revision=self._options.get("revision", "scripted-1"),
            device="cpu" if self._settings.device == "auto" else self._settings.device,
            dtype="float32",
            versions={"python": sys.version.split()[0]},
            details={"torch": "torch" in sys.modules},
            accepts=tuple(self._options.get("accepts", ())),
            sampler="Euler",
            schedule="Simple",
        )

    def _load_fault(self, fault: str | None) -> None:
        if fault == "missing":
            raise ModelMissing("The model is not here.")
        if fault == "lost":
            raise DeviceLost("The device is not here.")
        if fault == "damaged":
            raise SteadyError("model_damaged", "The model is torn.")
        if fault == "oom":
            raise OutOfMemory("The model does not fit.")
        if fault in ERRORS:
            raise SteadyError(fault, f"It is {fault}.")
        if fault is not None:
            self._fault(fault, None)

    def generate(self, request: EngineRequest, report: Report) -> Result:
        words = request.prompt.split()
        values = dict(w.split("=", 1) for w in words if "=" in w)
        total = int(values.get("steps", request.num_inference_steps))
        held = values.get("held")
        grows = "grows" in words or "hidden" in words
        pause = float(values.get("sleep", 0))
        fault = next((w for w in words if w.partition("=")[0] in FAULTS), None)
        if fault and "once" in words and self._ran_before(request.prompt):
            fault = None
        at = int(values.get("at", 1))
        self._note("start", request)
        began = time.perf_counter()
        for _ in range(int(values.get("again", 0))):
            report(0, 1)
        try:
            if "quits" in words:
                raise Cancelled
            for done in range(total + 1):
                if done:
                    time.sleep(pause)
                    self._note("step", request, done=done)
                    report(
                        done,
                        total,
                        functools.partial(self._preview, words, done) if grows else None,
                    )
                    while done == 1 and held and os.path.exists(held):
                        time.sleep(0.05)
                        report(done, total)
                if fault and done == min(at, total):
                    self._note("fault", request, fault=fault)
                    self._fault(fault, request)
        except Cancelled:
            self._note("cancelled", request)
            raise
        width = request.width + 16 if fault == "wrongsize" else request.width
        image = expected(request.prompt, request.seed, width, request.height)
        if fault == "blank":
            image.paste("teal", (0, 0, width, request.height))
        self._note("finish", request)
        facts = {"cfg_scale": 1} | ({"odd": {1, 2}} if fault == "unsayable" else {})
        return Result(image, facts, {"denoise": time.perf_counter() - began})

    def _preview(self, words: list[str], done: int) -> Image.Image:
        self._note("preview", done=done)
        if "hidden" in words:
            raise OutOfMemory("not enough for a preview")
        return Image.new("RGB", (12, 8), (min(255, 20 * done),) * 3)

    def close(self) -> None:
        self._note("close")

    def _ran_before(self, prompt: str) -> bool:
        assert self._log, "`once` needs a log"
        return any(
            e["event"] == "start" and e["prompt"] == prompt for e in read_log(Path(self._log))
        )

    def _fault(self, fault: str, request: JobRequest | None) -> None:
        name, _, value = fault.partition("=")
        if name == "segv":
            ctypes.string_at(0)
        elif name == "exit":
            os._exit(int(value or 9))
        elif name == "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        elif name in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if name == "kill" else signal.SIGTERM)
            time.sleep(60)
        elif name == "hang":
            time.sleep(3600)
        elif name == "seize":
            while True:  # a signal that is handled ends the sleep
                ctypes.PyDLL(None).sleep(3600)
        elif name == "oom":
            raise OutOfMemory("not enough")
        elif name == "nan":
            raise BadPicture("non_finite", "The latents hold NaN.")
        elif name == "raise":
            raise RuntimeError("the engine\nfailed on purpose")
        elif name == "mojibake":
            raise RuntimeError("cannot open /models/\udcff\udcfe.bin\x00\x1b[31m")
        elif name == "chatter":
            for _ in range(20_000):
                os.write(2, b"x" * 999 + b"\n")
        elif name == "lost":
            raise DeviceLost("The device fell off the bus.")
        elif name == "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")
        elif name in ("garbage", "flood", "liar", "empty", "nowhere"):
            self._speak(name, request)
        elif name == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        elif name == "fork":
            if os.fork():
                os._exit(9)
            time.sleep(3)
            os._exit(0)

    def _speak(self, what: str, request: JobRequest | None) -> None:
        """Write on the worker's own socket what no worker would."""
        descriptor = int(sys.argv[sys.argv.index("--fd") + 1])
        lie = {"type": "started", "job_id": "another", "attempt": 1}
        picture: dict[str, Any] = {"type": "picture", "job_id": "a", "attempt": 1}
        picture |= {"info": {}, "timings": {}}
        if request is not None:
            picture |= {"width": request.width, "height": request.height}
        data = {
            "empty": json.dumps({**picture, "place": 1}).encode() + b"\n",
            "nowhere": json.dumps({**picture, "place": 2}).encode() + b"\n",
            "garbage": b"\xff\xfe no json\n",
            "flood": b"x" * (8 << 20),
            "liar": json.dumps(lie).encode() + b"\n",
        }[what]
        while data:
            data = data[os.write(descriptor, data) :]
        time.sleep(60)

    def _note(self, event: str, request: JobRequest | None = None, **more: Any) -> None:
        if not self._log:
            return
        entry: dict[str, Any] = {
            "event": event,
            "pid": os.getpid(),
            "t": time.monotonic_ns(),
            **more,
        }
        if request is not None:
            entry |= request.model_dump(include={"prompt", "seed", "width", "height"})
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)


class Tracing(Scripted):
    """Starts from pictures: gives back what it was given, white where the mask is."""

    def load(self) -> EngineInfo:
        return replace(super().load(), accepts=("image", "mask"))

    def generate(self, request: EngineRequest, report: Report) -> Result:
        made = super().generate(request, report)
        if request.image is None:
            return made
        traced = request.image.copy()
        if request.mask is not None:
            traced.paste("white", mask=request.mask)
        return replace(made, image=traced)


class Guided:
    """As engines of other families: says what it is, and draws by guidance and negative prompt."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings

    def load(self) -> EngineInfo:
        return EngineInfo(
            model=self._settings.model,
            revision=None,
            device="cpu",
            dtype="float32",
            accepts=("guidance", "negative_prompt"),
            sampler="DPM++ 2M",
            schedule="Karras",
        )

    def generate(self, request: EngineRequest, report: Report) -> Result | Image.Image:
        steps = request.num_inference_steps
        for done in range(1, steps + 1):
            report(done, steps, Image.new("RGB", (8, 8)))
        words = f"{request.prompt} {request.negative_prompt} {request.guidance_scale}"
        return Result(expected(words, request.seed, request.width, request.height))

    def close(self) -> None:
        pass


class Old(Guided):
    """As engines were before there was a Result: two numbers a step, a picture, no word more."""

    def load(self) -> EngineInfo:
        return EngineInfo("tiny", None, "cpu", "float32")

    def generate(self, request: JobRequest, on_step: Callable[[int, int], None]) -> Image.Image:
        for done in (1, 2, 3):
            on_step(done, 3)
        return expected(request.prompt, request.seed or 0, request.width or 0, request.height or 0)


def digest(rgb: bytes) -> str:
    """Short name of a picture's pixels, for comparing."""
    return hashlib.sha256(rgb).hexdigest()[:16]
