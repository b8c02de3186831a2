"""The engine ``openai``: pictures from a server that speaks OpenAI's Images API.

The durable queue in front of any such server: SGLang, vLLM-Omni, LocalAI, stable-diffusion.cpp,
another service of ours, OpenAI itself. Address and key come from the configuration alone. No
torch: one HTTP call a picture, which is cut off when the job is cancelled.

A server that is away is this slot's trouble: the process leaves, and comes back when it is there.
The job's id goes along as idempotency key, so a call repeated after a crash is the same call to a
server that heeds it. Nothing lies on the disk.
"""

import asyncio
import base64
import functools
import io
import json
import os
import ssl
import time
from typing import Any, Literal, get_args

import httpx2
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
        if not key or not key.isascii():
            raise SteadyError("bad_config", f"The environment has no key in {self.key_env}.")
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
        self._url = self._options.url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "SteadyDiffusion"}
        if (key := self._options.key_now()) is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        sends = self._options.sends
        self._sends = sends if isinstance(sends, dict) else {name: name for name in sends}

    def load(self) -> EngineInfo:
        """Ask the server for its models. Raises ServerAway, SteadyError ``bad_config``.

        A server without such a list will do: it answers.
        """
        try:
            _answer(httpx2.Request("GET", f"{self._url}/models", headers=self._headers), _CONNECT)
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
        call = self._call(request)
        # A picture's bytes in base64, and twice that for a server that does not pack it well.
        limit = request.width * request.height * 8 + _SLACK
        answers = 0
        for tried in range(_TRIES):
            # A call that broke off may still be running there: the same key asks for that very one.
            call.headers["Idempotency-Key"] = f"{request.job_id}-{answers}"
            try:
                return _answer(call, self._options.timeout, limit, report)
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

    def close(self) -> None:
        """Nothing is kept open between two pictures."""

    def _call(self, request: EngineRequest) -> httpx2.Request:
        """The call that asks for a picture: JSON, or a form where a picture goes along."""
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
            url = f"{self._url}/images/generations"
            return httpx2.Request("POST", url, headers=self._headers, json=asked)
        pictures = {"image": request.image.convert("RGB")}
        if request.mask is not None:  # theirs: what is transparent is painted anew
            pictures["mask"] = pictures["image"].copy()
            pictures["mask"].putalpha(ImageChops.invert(request.mask.convert("L")))
        said = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asked.items()
            if value is not None
        }
        files = {name: (f"{name}.png", _png(each), "image/png") for name, each in pictures.items()}
        url = f"{self._url}/images/edits"
        return httpx2.Request("POST", url, headers=self._headers, data=said, files=files)


def _png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def _answer(
    call: httpx2.Request, seconds: float, limit: int = _SLACK, report: Report | None = None
) -> bytes:
    """The body of the server's answer, of at most ``limit`` bytes, within ``seconds``.

    Lets what ``report`` raises pass; the call is cut off then. Raises _Passing, SteadyError.
    """
    return asyncio.run(_waited_for(call, seconds, limit, report))


async def _waited_for(
    call: httpx2.Request, seconds: float, limit: int, report: Report | None
) -> bytes:
    answer = asyncio.create_task(_body_of(call, limit))  # ends with the loop, whatever is raised
    try:
        async with asyncio.timeout(seconds):
            while not answer.done():
                await asyncio.wait({answer}, timeout=_TICK)
                if report is not None:
                    report(0, 1)
    except TimeoutError:
        words = f"The server did not answer within {seconds:g} seconds."
        raise SteadyError("timed_out", words) from None
    return answer.result()


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates that the system and the environment trust, read once: that takes a tenth of a
    second."""
    return ssl.create_default_context()


async def _body_of(call: httpx2.Request, limit: int) -> bytes:
    """One request. Follows no redirect, uses no proxy; whoever waits looks at the clock."""
    patience = httpx2.Timeout(None, connect=_CONNECT)
    data = bytearray()
    asking = httpx2.AsyncClient(verify=_trusted(), trust_env=False, timeout=patience)
    async with asking as client:
        try:
            response = await client.send(call, stream=True)
            async for part in response.aiter_raw():
                data += part
                if len(data) > limit:
                    break
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            words = printable(str(error) or type(error).__name__)[:200]
            raise _Passing(f"The server cannot be reached ({words}).", away=True) from None
        except httpx2.TransportError as error:
            words = f"The server broke the call off ({type(error).__name__})."
            raise _Passing(words) from None
    _judge(response, bytes(data))
    if len(data) > limit:
        raise SteadyError("bad_answer", f"The server's answer is larger than {limit >> 20} MiB.")
    return bytes(data)


def _judge(response: httpx2.Response, data: bytes) -> None:
    """Raises what a status means that is no success."""
    status = response.status_code
    said = f"The server answers {status}: {_words_in(data) or response.reason_phrase}"
    if status in _ASIDE or status >= 500:
        after = response.headers.get("Retry-After", "")
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
