"""The child process: loads the engine once, then makes one picture after the other.

Started by the executor as ``python -m watcher.worker --fd N --shelf M --parent PID``: one end of a
socket pair, and the file that pictures are put into (see watcher.wire). Three threads: the main
thread calls the engine and nothing else, the reader takes orders (and says once a second that the
process lives), the sender writes what the other two have to say, so that a slow watcher never slows
a step.

Owns nothing on disk: it may be killed at any moment and loses at most the job in hand. It
leaves by itself when its socket closes or its parent dies. ``--probe`` prints the devices of
this machine as one line of JSON and exits (with ``--memory`` what is free on them, too).
"""

import argparse
import base64
import ctypes
import faulthandler
import gc
import importlib
import io
import json
import logging
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from watcher.engine import (
    BadPicture,
    Cancelled,
    DeviceLost,
    Engine,
    EngineInfo,
    EngineRequest,
    EngineSettings,
    Lora,
    ModelMissing,
    Preview,
)
from watcher.engines.shortage import is_out_of_memory, is_poison
from watcher.errors import SteadyError
from watcher.jobs import PICTURE_FIELDS
from watcher.pictures.source import mask_of, pixels_of
from watcher.retouch import Retouch, Upscaler
from watcher.wire import MAX_PREVIEW, PLACE_SIZE, PLACES, BadFrame, Frames, line

EXIT_NOT_LOADED = 69  #: the engine could not be loaded; the reason was sent
EXIT_DEVICE = 70  #: the device's context is beyond repair; a fresh process is needed
EXIT_NONSENSE = 76  #: the watcher sent what cannot be a message

HEARTBEAT_SECONDS = 1.0
_PREVIEW_SECONDS = 0.5  #: from one preview to the next
_LOOK_SECONDS = 5.0  #: for which somebody who looked is shown previews
_PREVIEW_SIDE = 512  #: pixels, at most
_STRIP = 64  #: rows of a picture copied at once

log = logging.getLogger("watcher.worker")


@dataclass
class _Order:
    """One job as it was sent."""

    job_id: str
    attempt: int
    request: EngineRequest
    files: Mapping[str, Any]
    forwards: int  #: as they were planned
    cancelled: bool = False
    looked_until: float = 0.0  #: monotonic

    def says(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "job_id": self.job_id, "attempt": self.attempt, **more}


class _Sender(threading.Thread):
    """Writes messages in the order they were posted; never keeps the poster waiting."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(name="sender", daemon=True)
        self._channel = channel
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()

    def post(self, message: Mapping[str, Any]) -> None:
        """Send ``message`` soon; does not wait."""
        self._queue.put(line(message))

    def settle(self, timeout: float | None = None) -> None:
        """Wait until all that was posted is in the kernel's hands: it outlives this process."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout)

    def run(self) -> None:
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                self._channel.sendall(item)
        except OSError:
            os._exit(0)  # nobody listens any more


class _Shelf:
    """Where pictures are put for the watcher to take: two places, used in turn."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._free = threading.Semaphore(PLACES)
        self._place = 0

    def put(self, image: Image.Image, size: tuple[int, int]) -> int:
        """Raw RGB, rows from the top. Returns the place; waits while both are taken."""
        if image.size != size:
            raise ValueError(f"the engine drew {image.size}, asked for {size}")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        width, height = size
        self._free.acquire()
        place = self._place
        offset = place * PLACE_SIZE
        try:
            for top in range(0, height, _STRIP):  # in strips: five times faster than all at once
                data = rgb.crop((0, top, width, min(top + _STRIP, height))).tobytes()
                while data:
                    written = os.pwrite(self._descriptor, data, offset)
                    offset += written
                    data = data[written:]
        except OSError:
            self._free.release()
            raise
        self._place = (place + 1) % PLACES
        return place

    def taken(self) -> None:
        """The watcher has the oldest picture: its place is free again."""
        self._free.release()


class _Reader(threading.Thread):
    """Takes orders and keeps them until the main thread comes for the next one."""

    def __init__(self, channel: socket.socket, sender: _Sender, shelf: _Shelf) -> None:
        super().__init__(name="reader", daemon=True)
        self._shelf = shelf
        self._channel = channel
        self._sender = sender
        self._frames = Frames()
        self._changed = threading.Condition()
        self._load: dict[str, Any] | None = None
        self._orders: deque[_Order] = deque()
        self._current: _Order | None = None
        self._loaded = False
        self._stopping = False

    # -- for the main thread

    def load_order(self) -> dict[str, Any]:
        """The first message: which engine to load. Waits for it."""
        with self._changed:
            while self._load is None:
                self._changed.wait()
            return self._load

    def loaded(self) -> None:
        """From now on ``stop`` lets the job in hand come to its end."""
        with self._changed:
            self._loaded = True

    def next(self) -> _Order | None:
        """The next job to run, or None when it is time to leave. Waits."""
        with self._changed:
            self._current = None
            while not self._orders and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            self._current = self._orders.popleft()
            return self._current

    # -- the thread

    def run(self) -> None:
        try:
            self._read()
        except BadFrame as error:
            log.error("the watcher sent %s; leaving", error)
        except OSError:
            os._exit(0)
        finally:  # a worker that hears nothing is of no use
            os._exit(EXIT_NONSENSE)

    def _read(self) -> NoReturn:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                self._sender.post({"type": "beat", "rss": _resident()})
                beat_at = now + HEARTBEAT_SECONDS
            readable, _, _ = select.select([self._channel], [], [], max(0.0, beat_at - now))
            if not readable:
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                os._exit(0)  # the watcher is gone: so are we, whatever the engine is doing
            for message in self._frames.feed(data):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        with self._changed:
            if kind == "load" and self._load is None:
                self._load = message
            elif kind == "run":
                try:
                    asked = {k: v for k, v in message["request"].items() if k not in PICTURE_FIELDS}
                    asked["job_id"] = str(message["job_id"])
                    request = EngineRequest.model_validate(asked)
                    who = str(message["job_id"]), int(message["attempt"])
                    order = _Order(*who, request, dict(message["files"]), int(message["forwards"]))
                except (KeyError, TypeError, ValueError) as error:
                    raise BadFrame(f"a job that cannot be read ({error})") from None
                if not self._stopping:
                    self._orders.append(order)
            elif kind == "cancel":
                self._cancel(message.get("job_id"))
            elif kind == "look":
                if self._current is not None and self._current.job_id == message.get("job_id"):
                    self._current.looked_until = time.monotonic() + _LOOK_SECONDS
            elif kind == "taken":
                self._shelf.taken()
            elif kind == "stop":
                if not self._loaded:
                    os._exit(0)
                self._stopping = True
                self._orders.clear()
            else:
                raise BadFrame(f"a message of kind {kind!r}")
            self._changed.notify()

    def _cancel(self, job_id: Any) -> None:
        if self._current is not None and self._current.job_id == job_id:
            self._current.cancelled = True  # seen by report
        for order in [o for o in self._orders if o.job_id == job_id]:
            self._orders.remove(order)
            self._sender.post(_cancelled(order))


def _cancelled(order: _Order) -> dict[str, Any]:
    return order.says("failed", code="cancelled", message="The job was cancelled.")


class _Progress:
    """Passes on what an engine reports of one job, and previews while somebody looks."""

    def __init__(self, order: _Order, sender: _Sender) -> None:
        self._order = order
        self._sender = sender
        self._shown = 0.0  #: monotonic: when the last preview was made
        self.facts: dict[str, Any] = {}

    def __call__(self, done: int, total: int, preview: Preview = None) -> None:
        order = self._order
        if order.cancelled:
            raise Cancelled
        self.facts["forwards"] = total
        self._sender.post(order.says("step", done=done, total=total))
        now = time.monotonic()
        if preview is None or now > order.looked_until or now < self._shown + _PREVIEW_SECONDS:
            return
        jpeg = _small_jpeg(preview() if callable(preview) else preview)
        if jpeg is not None:
            self._shown = now
            self._sender.post(order.says("preview", jpeg=jpeg))


def _run(engine: Engine, info: EngineInfo, order: _Order, sender: _Sender, shelf: _Shelf) -> None:
    """One job from started to picture or failed. Does not return when the device is lost."""

    report = _Progress(order, sender)
    size = order.request.final_size
    if order.cancelled:
        sender.post(_cancelled(order))
        return
    sender.post(order.says("started"))
    # The watcher must know, whatever the engine does to this process now: that the job before
    # has its picture, and whose fault a death is.
    sender.settle()
    began = time.perf_counter()
    try:
        _must_take(info, order.files)
        retouch = Retouch(
            engine, report, forwards=order.forwards, upscaler=_upscaler(order.files, info.device)
        )
        result = retouch.draw(_with_files(order.request, order.files))
        told = {"info": {**report.facts, **result.facts}, "timings": dict(result.timings)}
        line(told)  # what cannot be said is found before the picture takes its place
        place = shelf.put(result.image, size)
    except Cancelled:
        sender.post(_cancelled(order))
    except BadPicture as error:
        sender.post(order.says("failed", code=error.code, message=str(error)))
    except SteadyError as error:
        sender.post(order.says("failed", code=error.code, message=error.message))
    except DeviceLost as error:
        _leave(sender, error.code, str(error) or _one_line(error))
    except Exception as error:  # an engine may raise anything; the next job must still run
        if is_out_of_memory(error):
            sender.post(order.says("failed", code="out_of_memory", message=_one_line(error)))
            return
        traceback.print_exc()
        if is_poison(error):
            _leave(sender, "device_error", _one_line(error))
        sender.post(order.says("failed", code="engine_failed", message=_one_line(error)))
    else:
        told["timings"]["total"] = round(time.perf_counter() - began, 6)
        sender.post(order.says("picture", place=place, width=size[0], height=size[1], **told))


def _must_take(info: EngineInfo, files: Mapping[str, Any]) -> None:
    """Raises SteadyError ``not_accepted`` for what would change nothing without a word: a job may
    be recorded before anybody knows what its model's engine takes."""
    for file, feature in {**{f: f for f in PICTURE_FIELDS}, "loras": "lora"}.items():
        if files.get(file) and feature not in info.accepts:
            raise SteadyError("not_accepted", f"This model does not take `{feature}`.")


def _upscaler(files: Mapping[str, Any], device: str) -> Upscaler | None:
    """What a job's method of enlarging is, where that is a file."""
    if "upscaler" not in files:
        return None
    from watcher.engines.upscaler import upscaler_of  # torch: only where it is asked for

    return upscaler_of(Path(files["upscaler"]), device)


def _small_jpeg(image: Image.Image | None) -> str | None:
    """A preview as the watcher takes it; None where there is none."""
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    data = out.getvalue()
    return base64.b64encode(data).decode() if len(data) <= MAX_PREVIEW else None


def _with_files(request: EngineRequest, files: Mapping[str, Any]) -> EngineRequest:
    """``request`` with its files opened. Raises SteadyError bad_picture, unreadable."""
    opened: dict[str, Any] = {}
    size, how = (request.width, request.height), request.resize or "crop"
    for name in PICTURE_FIELDS:
        if name in files:
            pixels = mask_of if name == "mask" else pixels_of
            try:
                opened[name] = pixels(Path(files[name]).read_bytes(), size, how)
            except OSError as error:
                raise SteadyError("unreadable", f"`{name}`: {error.strerror}.") from None
            except SteadyError as error:
                raise SteadyError(error.code, f"`{name}` {error.message}") from None
    loras = [
        Lora(each["name"], each["weight"], Path(each["file"]), each.get("sha256"))
        for each in files.get("loras", ())
    ]
    return request.model_copy(update=opened | {"loras": tuple(loras)})


def _leave(sender: _Sender, code: str, message: str) -> NoReturn:
    """Say why, then go: nothing more can be done in this process."""
    sender.post({"type": "leaving", "code": code, "message": message})
    sender.settle(5.0)
    os._exit(EXIT_DEVICE)


def _load(order: Mapping[str, Any], sender: _Sender) -> tuple[Engine, EngineInfo]:
    """The engine, loaded, and what it says of itself. Does not return when it cannot be."""
    code = "engine_failed"
    try:
        settings = EngineSettings(
            model=order["model"],
            device=order["device"],
            dtype=order["dtype"],
            options=order["options"],
            keep=Path(order["keep"]) if order["keep"] else None,
        )
        engine = _engine_class(order["engine"])(settings)
        info = engine.load()
        sender.post({"type": "ready", "info": _info_dict(info)})
        return engine, info
    except ModelMissing as error:
        code, message = "model_missing", str(error)
    except DeviceLost as error:
        code, message = error.code, str(error)
    except SteadyError as error:
        code, message = error.code, error.message
    except Exception as error:  # foreign code again; whatever it was, the watcher must hear of it
        if is_out_of_memory(error):
            code = "out_of_memory"
        else:
            traceback.print_exc()
        message = _one_line(error)
    sender.post({"type": "load_failed", "code": code, "message": message})
    sender.settle(5.0)
    os._exit(EXIT_NOT_LOADED)


#: The engines of ours, by the names that settings give them.
_ENGINES = {
    "zimage": "watcher.engines.zimage:ZImage",
    "diffusers": "watcher.engines.diffusers:AnyPipeline",
    "openai": "watcher.engines.openai:ImageServer",
}


def _engine_class(name: str) -> Callable[[EngineSettings], Engine]:
    """One of ours, or ``package.module:Class`` found on PYTHONPATH."""
    module, _, attribute = _ENGINES.get(name, name).partition(":")
    found: Callable[[EngineSettings], Engine] = getattr(importlib.import_module(module), attribute)
    return found


def _info_dict(info: EngineInfo) -> dict[str, Any]:
    accepts = [*info.accepts, "upscale"]  # which needs no engine, see retouch.py
    told = {"versions": dict(info.versions), "details": dict(info.details), "accepts": accepts}
    return {**vars(info), **told}


def _one_line(error: BaseException) -> str:
    """Class and text, short, on one line; the traceback is in the log."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind}: {text}"[:500] if text else kind


def _resident() -> int | None:
    """Memory of this process in bytes, where /proc tells."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _die_with(parent: int) -> None:
    """When the parent dies, so does this process, even inside a call that never returns."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked


def _behave(parent: int | None) -> None:
    """Signals, standard streams and environment of a worker."""
    if parent is not None:
        _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the watcher's to answer
    os.dup2(2, 1)  # what a library prints is a log line
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # where does it hang? asked before it is ended
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of 30 GB helps nobody
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # Locked blocks larger than 1 MB are not rounded up to a power of two: 20 GB instead of 30.
    os.environ.setdefault(
        "PYTORCH_ALLOC_CONF", "expandable_segments:True,pinned_max_round_threshold_mb:1"
    )
    # Threads that wait by spinning take the cores from everybody, themselves included: beside
    # other work a picture on the processor took ten times the time and the energy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="worker %(process)d: %(message)s")


def run_jobs(channel: socket.socket, shelf: _Shelf) -> NoReturn:
    """Load what the first message names, then run jobs until told to stop."""
    sender = _Sender(channel)
    reader = _Reader(channel, sender, shelf)
    sender.post({"type": "hello", "pid": os.getpid()})
    sender.start()
    reader.start()
    engine, info = _load(reader.load_order(), sender)
    reader.loaded()
    gc.collect()
    gc.freeze()  # a model's objects live for ever: never walk them again between two jobs
    while (order := reader.next()) is not None:
        _run(engine, info, order, sender, shelf)
        del order
    sender.settle(5.0)
    engine.close()
    sys.stderr.flush()
    os._exit(0)  # no interpreter teardown: native libraries like to crash in it


def main(arguments: list[str] | None = None) -> int:
    """The command line of the child process."""
    parser = argparse.ArgumentParser(prog="python -m watcher.worker")
    parser.add_argument("--fd", type=int, help="inherited socket to the watcher")
    parser.add_argument("--shelf", type=int, help="inherited file for pictures")
    parser.add_argument("--parent", type=int, help="process id this worker must not outlive")
    parser.add_argument("--probe", action="store_true", help="print the devices and exit")
    parser.add_argument("--memory", action="store_true", help="with --probe: their free memory")
    options = parser.parse_args(arguments)
    if options.probe:
        answer = os.dup(1)
        _behave(options.parent)
        from watcher.engines.device import probe  # torch: only where it is asked for

        with os.fdopen(answer, "w") as out:
            print(json.dumps(probe(memory=options.memory)), file=out)
        return 0
    if options.fd is None or options.shelf is None:
        parser.error("--fd and --shelf are required")
    channel = socket.socket(fileno=options.fd)
    channel.setblocking(True)
    os.set_inheritable(options.fd, False)
    os.set_inheritable(options.shelf, False)
    _behave(options.parent)
    run_jobs(channel, _Shelf(options.shelf))


if __name__ == "__main__":
    sys.exit(main())
