"""The child process: loads the engine once, then makes one picture after the other.

Started by the executor as ``python -m watcher.worker --fd N --shelf M --parent PID``: one end of a
socket pair, and the file that pictures are put into (see watcher.wire). The main thread calls the
engine and nothing else; orders.py hears and speaks for it.

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
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
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
from watcher.errors import SteadyError, did_you_mean
from watcher.jobs import PICTURE_FIELDS
from watcher.orders import Order, Orders, PictureShelf, Sender
from watcher.pictures.source import mask_of, pixels_of
from watcher.retouch import Retouch, Upscaler
from watcher.upscaling import REFINE
from watcher.wire import MAX_PREVIEW, line

EXIT_NOT_LOADED = 69  #: the engine could not be loaded; the reason was sent
EXIT_DEVICE = 70  #: the device's context is beyond repair; a fresh process is needed

_PREVIEW_SECONDS = 0.5  #: from one preview to the next
_PREVIEW_SIDE = 512  #: pixels, at most

log = logging.getLogger("watcher.worker")


class _Progress:
    """Passes on what an engine reports of one job, and previews while somebody looks."""

    def __init__(self, order: Order, sender: Sender) -> None:
        self._order = order
        self._sender = sender
        self._shown = 0.0  #: monotonic: when the last preview was made

    def __call__(self, done: int, total: int, preview: Preview = None) -> None:
        order = self._order
        if order.cancelled:
            raise Cancelled
        self._sender.post(order.says("step", done=done, total=total))
        now = time.monotonic()
        if preview is None or now > order.looked_until or now < self._shown + _PREVIEW_SECONDS:
            return
        try:
            jpeg = _small_jpeg(preview() if callable(preview) else preview)
        except Exception:  # whether somebody looks on changes no picture
            log.exception("the preview of a job failed: none of it is shown any more")
            jpeg, self._shown = None, math.inf
        if jpeg is not None:
            self._shown = now
            self._sender.post(order.says("preview", jpeg=jpeg))


def _run(
    engine: Engine, info: EngineInfo, order: Order, sender: Sender, shelf: PictureShelf
) -> None:
    """One job from started to picture or failed. Does not return when the device is lost."""

    report = _Progress(order, sender)
    if order.cancelled:
        sender.post(order.says_cancelled())
        return
    sender.post(order.says("started"))
    # The watcher must know, whatever the engine does to this process now: that the job before
    # has its picture, and whose fault a death is.
    sender.settle()
    began = time.perf_counter()
    try:
        # Also one that asks for more than may be asked for today fails alone, not its worker.
        request = _with_files(order)
        size = request.final_size
        _must_take(info, request, order.files)
        retouch = Retouch(
            engine, report, forwards=order.forwards, upscaler=_upscaler(order.files, info.device)
        )
        result = retouch.draw(request)
        told = {"info": dict(result.facts), "timings": dict(result.timings)}
        line(told)  # what cannot be said is found before the picture takes its place
        place = shelf.put(result.image, size)
    except Cancelled:
        sender.post(order.says_cancelled())
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


def _must_take(info: EngineInfo, request: EngineRequest, files: Mapping[str, Any]) -> None:
    """Raises SteadyError ``not_accepted`` for what would change nothing without a word: a job may
    be recorded before anybody knows what its model's engine takes."""
    needed = [feature for feature in PICTURE_FIELDS if files.get(feature)]
    if files.get("loras"):
        needed.append("lora")
    upscale = request.upscale
    if upscale is not None and upscale.get("method") == REFINE:
        needed.append("image")  # which it is given tile by tile
    for feature in needed:
        if feature not in info.accepts:
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


def _with_files(order: Order) -> EngineRequest:
    """What is asked for, with its files opened. Raises SteadyError bad_picture, unreadable; pydantic's
    ValidationError."""
    asked = {name: value for name, value in order.asked.items() if name not in PICTURE_FIELDS}
    request = EngineRequest.model_validate({**asked, "job_id": order.job_id})
    files, opened = order.files, dict[str, Any]()
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


def _leave(sender: Sender, code: str, message: str) -> NoReturn:
    """Say why, then go: nothing more can be done in this process."""
    sender.post({"type": "leaving", "code": code, "message": message})
    sender.settle(5.0)
    os._exit(EXIT_DEVICE)


def _load(order: Mapping[str, Any], sender: Sender) -> tuple[Engine, EngineInfo]:
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
    """One of ours, or ``package.module:Class`` found on PYTHONPATH. SteadyError bad_config."""
    module, sign, attribute = _ENGINES.get(name, name).partition(":")
    if not sign:
        others = f"Take {', '.join(_ENGINES)} or package.module:Class."
        words = f"`{name}` is no engine. {did_you_mean(name, _ENGINES, others)}"
        raise SteadyError("bad_config", words)
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


def run_jobs(channel: socket.socket, shelf: PictureShelf) -> NoReturn:
    """Load what the first message names, then run jobs until told to stop."""
    sender = Sender(channel)
    orders = Orders(channel, sender, shelf)
    sender.post({"type": "hello", "pid": os.getpid()})
    sender.start()
    orders.start()
    engine, info = _load(orders.load_order(), sender)
    orders.loaded()
    gc.collect()
    gc.freeze()  # a model's objects live for ever: never walk them again between two jobs
    while (order := orders.next()) is not None:
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
    run_jobs(channel, PictureShelf(options.shelf))


if __name__ == "__main__":
    sys.exit(main())
