"""The engine ``openai``: pictures from a server that speaks OpenAI's Images API.

The durable queue in front of any such server: SGLang, vLLM-Omni, LocalAI, stable-diffusion.cpp,
another service of ours, OpenAI itself. Address and key come from the configuration alone. No
torch, no client library: one HTTP call a picture, from a thread, so that a cancel needs no answer.

A server that is away is this slot's trouble: the process leaves, and comes back when it is there.
The job's id goes along as idempotency key, so a call repeated after a crash is the same call to a
server that heeds it. Nothing lies on the disk.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from PIL import Image, ImageChops
from pydantic import Field

from watcher.engine import (
    EngineInfo,
    EngineRequest,
    EngineSettings,
    Report,
    Result,
    ServerAway,
)
from watcher.engines.options import EngineOptions
from watcher.errors import SteadyError
from watcher.jobs import Feature
from watcher.pictures.source import Size, look_at, pixels_of
from watcher.wire import printable

_TRIES = 6  #: of a call that met a passing fault, with 1, 2, 4, 8, 16 seconds between
_TICK = 0.25  #: seconds between looks for a cancel
_CONNECT = 10.0  #: seconds
_MOST_PAUSE = 120.0  #: seconds, whatever a server asks for
_SLACK = 1 << 20  #: bytes of an answer beside its picture
#: Statuses below 500 that pass; 409: what was asked under this key was cancelled, or was else.
_ASIDE = (408, 409, 425, 429)
#: Fields of a job that may go along beside prompt, size and model.
Sent = Literal["seed", "num_inference_steps", "guidance_scale", "negative_prompt", "strength"]


class ServerOptions(EngineOptions):
    """``options`` of the engine. ``url`` is the API's root: ``http://127.0.0.1:30000/v1``."""

    url: str = Field(pattern=r"^https?://[\w.-]+(:\d+)?(/[\w./-]*)?$|^https?://\[[\da-f:]+\]")
    key: str | None = Field(None, repr=False, pattern=r"^[!-~]+$")
    key_env: str | None = None  #: the environment variable that holds the key
    sends: tuple[Sent, ...] | dict[Sent, str] = get_args(Sent)  #: a mapping renames them
    #: goes along with every job as it is
    extra: dict[str, Any] = Field(default_factory=lambda: {"response_format": "b64_json"})
    timeout: float = Field(600.0, gt=0)  #: seconds for one answer
    edits: bool = False  #: has it ``/images/edits``, for jobs that start from a picture?

    def key_now(self) -> str | None:
        """The key, from where it is kept. Raises SteadyError ``bad_config``."""
        if self.key_env is None:
            return self.key
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise SteadyError("bad_config", f"The environment has no {self.key_env}.")
        return key


class _Passing(Exception):
    """What may be otherwise in a moment.

    ``away``: nobody is there; ``answered``: it was said by the server, which asked for ``pause``
    seconds.
    """

    def __init__(
        self, words: str, *, away: bool = False, answered: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(words)
        self.away = away
        self.answered = answered
        self.pause = pause


class ImageServer:
    """A model on a server, as an engine (see watcher.engine). One call at a time."""

    def __init__(self, settings: EngineSettings) -> None:
        self._model = settings.model
        self._options = ServerOptions.of(settings.options)
        self._where = urlsplit(self._options.url.rstrip("/"))
        self._key = self._options.key_now()
        sends = self._options.sends
        self._sends = sends if isinstance(sends, dict) else {name: name for name in sends}

    def load(self) -> EngineInfo:
        """Ask the server for its models. Raises ServerAway, SteadyError ``bad_config``.

        A server without such a list will do: it answers.
        """
        try:
            self._call("GET", "/models").wait(_CONNECT)
        except _Passing as error:
            raise ServerAway(str(error)) from None
        except SteadyError as error:
            if error.code == "timed_out":
                raise ServerAway(error.message) from None
            if error.code != "server_refused":
                raise SteadyError("bad_config", error.message) from None
        takes: dict[Feature, str] = {
            "guidance": "guidance_scale",
            "negative_prompt": "negative_prompt",
        }
        begins: tuple[Feature, ...] = ("image", "mask") if self._options.edits else ()
        return EngineInfo(
            model=self._model,
            revision=None,
            device="server",
            dtype="",
            details={"sends": sorted(self._sends)},
            accepts=(*(what for what, name in takes.items() if name in self._sends), *begins),
        )

    def generate(self, request: EngineRequest, report: Report) -> Result:
        """One picture from the server. Raises ServerAway, and SteadyError ``server_failed`` (which
        passes), ``server_refused``, ``bad_answer``, ``timed_out``."""
        began = time.perf_counter()
        size = (request.width, request.height)
        image = _picture_in(self._asked(request, report), size)
        # Nobody tells what the server really did with the steps and the scale it was sent.
        facts: dict[str, Any] = {"forwards": None, "cfg_scale": None}
        if "seed" not in self._sends:
            words = "The server is not given the seed: the same job makes another picture."
            facts["warnings"] = [words]
        report(1, 1)
        return Result(image, facts, {"server": round(time.perf_counter() - began, 6)})

    def _asked(self, request: EngineRequest, report: Report) -> bytes:
        """Ask the server and return its answer; what may pass is tried again for a while, then raised.

        Raises SteadyError server_failed, ServerAway.
        """
        path, kind, body = self._body(request)
        # A picture's bytes in base64, and twice that for a server that does not pack it well.
        limit = request.width * request.height * 8 + _SLACK
        answers = 0
        for tried in range(_TRIES):
            # A call that broke off may still be running there: the same key asks for that very one.
            key = f"{request.job_id}-{answers}"
            try:
                call = self._call("POST", path, body, kind=kind, key=key, limit=limit)
                return call.wait(self._options.timeout, report)
            except SteadyError as error:
                if error.code == "bad_config":  # since it was loaded
                    raise SteadyError("server_failed", error.message) from None
                raise
            except _Passing as error:
                if error.away and not tried:
                    raise ServerAway(str(error)) from None
                if tried == _TRIES - 1:
                    raise SteadyError("server_failed", str(error)) from None
                answers += error.answered
                _pause(max(2.0**tried, min(error.pause, _MOST_PAUSE)), report)
        raise AssertionError  # every way out is above

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        kind: str = "",
        key: str = "",
        limit: int = _SLACK,
    ) -> "_Call":
        headers = {"Accept": "application/json", "User-Agent": "SteadyDiffusion"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers |= {"Content-Type": kind, "Idempotency-Key": key}
        return _Call(self._where, method, path, headers, body, limit)

    def close(self) -> None:
        """Nothing is kept open between two pictures."""

    def _body(self, request: EngineRequest) -> tuple[str, str, bytes]:
        """Path, media type and body of the call: JSON, or a form where a picture goes along."""
        asked: dict[str, Any] = {
            **self._options.extra,
            "model": self._model,
            "prompt": request.prompt,
            "size": f"{request.width}x{request.height}",
            "n": 1,
        }
        for name, theirs in self._sends.items():
            value = getattr(request, name)
            if value is not None:
                asked[theirs] = value
        if request.image is None:
            return "/images/generations", "application/json", json.dumps(asked).encode()
        pictures = {"image": request.image.convert("RGB")}
        if request.mask is not None:  # theirs: what is transparent is painted anew
            pictures["mask"] = pictures["image"].copy()
            pictures["mask"].putalpha(ImageChops.invert(request.mask.convert("L")))
        return "/images/edits", *_form(asked, pictures)


def _form(fields: Mapping[str, Any], pictures: Mapping[str, Image.Image]) -> tuple[str, bytes]:
    """A form of fields and PNG files: its media type and its bytes."""
    edge = uuid.uuid4().hex
    parts: list[bytes] = []
    for name, value in fields.items():
        if value is None:
            continue
        said = value if isinstance(value, str) else json.dumps(value)
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(f"{head}{said}\r\n".encode())
    for name, picture in pictures.items():
        held = io.BytesIO()
        picture.save(held, "PNG")
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}.png"'
        parts.append(f"{head}\r\nContent-Type: image/png\r\n\r\n".encode())
        parts += held.getvalue(), b"\r\n"
    return f"multipart/form-data; boundary={edge}", b"".join([*parts, f"--{edge}--\r\n".encode()])


class _Call(threading.Thread):
    """One request, in a thread of its own. Follows no redirect, uses no proxy."""

    def __init__(
        self,
        where: SplitResult,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limit: int,
    ) -> None:
        super().__init__(name="call", daemon=True)
        kind = (
            http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(str(where.hostname), where.port, timeout=_CONNECT)
        self._asked = (method, where.path + path, body, dict(headers))
        self._limit = limit
        self._found: bytes | Exception = RuntimeError("the call died; the log says of what")

    def run(self) -> None:
        try:
            self._found = self._ask()
        except (_Passing, SteadyError) as error:
            self._found = error

    def wait(self, timeout: float, report: Report | None = None) -> bytes:
        """The body of the answer. Lets what ``report`` raises pass; raises _Passing, SteadyError."""
        deadline = time.monotonic() + timeout
        self.start()
        try:
            while self.is_alive():
                self.join(_TICK)
                if report is not None:
                    report(0, 1)
                if time.monotonic() > deadline:
                    words = f"The server did not answer within {timeout:g} seconds."
                    raise SteadyError("timed_out", words)
        finally:
            connected = self._connection.sock
            if connected is not None:
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)  # wakes the thread
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _ask(self) -> bytes:
        connection = self._connection
        try:
            connection.connect()
            connection.sock.settimeout(None)  # whoever waits looks at the clock
        except OSError as error:
            words = f"The server cannot be reached ({error.strerror or type(error).__name__})."
            raise _Passing(words, away=True) from None
        try:
            connection.request(*self._asked)
            with connection.getresponse() as response:
                data = response.read(self._limit + 1)
                if response.length and len(data) <= self._limit:
                    raise http.client.IncompleteRead(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = f"The server broke the call off ({type(error).__name__})."
            raise _Passing(words) from None
        finally:
            connection.close()
        _judge(response, data)
        if len(data) > self._limit:
            words = f"The server's answer is larger than {self._limit >> 20} MiB."
            raise SteadyError("bad_answer", words)
        return data


def _judge(response: http.client.HTTPResponse, data: bytes) -> None:
    """Raises what a status means that is no success."""
    status = response.status
    said = f"The server answers {status}: {_words_in(data) or response.reason}"
    if status in _ASIDE or status >= 500:
        after = response.getheader("Retry-After", "")
        raise _Passing(said, answered=True, pause=float(after) if after.isdecimal() else 0.0)
    if status in (401, 403):
        raise SteadyError("bad_config", f"The server refuses the key ({status}).")
    if 300 <= status < 400:
        raise SteadyError("bad_answer", f"The server points elsewhere ({status}): mend `url`.")
    if status >= 400:
        raise SteadyError("server_refused", said)


def _words_in(data: bytes) -> str:
    """What an error's body says, in the forms that servers of this kind use."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(said, dict):
            said = said.get(name, said)
    return printable(said if isinstance(said, str) else json.dumps(said))[:300]


def _picture_in(data: bytes, size: Size) -> Image.Image:
    """The picture of an answer, RGB. Raises SteadyError ``bad_answer``."""
    try:
        first = json.loads(data)["data"][0]
        told = base64.b64decode(first["b64_json"], validate=True)
    except (ValueError, LookupError, TypeError, RecursionError):
        words = "The server's answer holds no picture as `b64_json` (an address is not followed)."
        raise SteadyError("bad_answer", words) from None
    try:
        found = look_at(told).size
        if found != size:
            words = f"The server made {found[0]}x{found[1]} pixels instead of {size[0]}x{size[1]}."
            raise SteadyError("bad_answer", words)
        return pixels_of(told, size)
    except SteadyError as error:
        if error.code == "bad_answer":
            raise
        raise SteadyError("bad_answer", f"The server's picture {error.message}") from None


def _pause(seconds: float, report: Report) -> None:
    """Wait, and heed a cancel meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        report(0, 1)
        time.sleep(min(left, _TICK))
