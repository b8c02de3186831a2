"""What the watcher and a worker say to each other over a socket: JSON, one object a line.

Pixels do not go this way: they lie on the *shelf*, a file without a name that both processes
hold open (in memory where the system can), at one of two places. So a worker hands a picture
over by one short line, however busy the watcher is, and the picture outlives the worker.
Pure: knows no sockets, no jobs. Both ends check the same limits, so a worker gone mad can
neither fill the watcher's memory nor be obeyed; what it says is let in by ``heard`` alone, in a
form that the record, the log and every answer can hold.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from watcher.log import harmless

MAX_LINE = 4 << 20  #: bytes of one message
MAX_SAID = 256 << 10  #: of one that a worker sends
MAX_PREVIEW = 64 << 10  #: bytes of a half-made picture
MAX_TEXT = 2000  #: characters of one text in it; the rest is cut off
MAX_DEPTH = 8  #: objects inside each other in it
PLACES = 2  #: on the shelf: one is read while the next is written
PLACE_SIZE = 8192 * 8192 * 3  #: bytes from one place to the next; untouched ones cost nothing


class BadFrame(Exception):
    """The other side sent what cannot be a message; the connection is of no more use."""


def line(message: Mapping[str, Any]) -> bytes:
    """``message`` as one line. Raises ValueError when it is over the limit."""
    data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(data) > MAX_LINE:
        raise ValueError(f"a message of {len(data)} bytes is over the limit")
    return data


class Frames:
    """Puts what arrives in pieces together again; a message has at most ``limit`` bytes."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """``data`` arrived: every message that is complete now, in order.

        Raises BadFrame after the good ones; do not feed again then.
        """
        self._buffer += data
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if (end if end >= 0 else len(self._buffer)) > self._limit:
                raise BadFrame("a line without an end")
            if end < 0:
                self._searched = len(self._buffer)
                return
            message = _parse(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            self._searched = 0
            yield message


def _parse(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError both
        raise BadFrame("a line that is not JSON") from None
    except RecursionError:
        raise BadFrame("a line nested too deeply") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadFrame("a line that is no message")
    return message


# -- what a worker says

_SPACES = {ord(space): " " for space in "\t\n\r"}


def printable(text: str) -> str:
    """``text``, cut to one line of MAX_TEXT; what cannot be encoded or steers a terminal is written out."""
    whole = text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
    return harmless(whole.translate(_SPACES))


_Count = Annotated[int, Field(ge=0, strict=True)]
_Size = Annotated[int, Field(ge=1, strict=True)]


class Facts(TypedDict, total=False):
    """An EngineInfo, or what of it is otherwise for one picture."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    model: str
    revision: str | None
    device: str
    dtype: str
    memory: _Count | None  #: bytes
    attention: str | None
    versions: dict[str, Any]
    details: dict[str, Any]


class SaidHello(BaseModel):
    """The process has begun."""

    type: Literal["hello"]


class SaidBeat(BaseModel):
    """The process lives. ``rss``: its memory in bytes."""

    type: Literal["beat"]
    rss: _Count | None


class SaidReady(BaseModel):
    """The engine is loaded."""

    type: Literal["ready"]
    info: Facts


class SaidLeaving(BaseModel):
    """The process ends: nothing could be loaded, or the device is beyond repair."""

    type: Literal["load_failed", "leaving"]
    code: str
    message: str


class _OfJob(BaseModel):
    job_id: str
    attempt: _Count


class SaidStarted(_OfJob):
    """The engine began this job."""

    type: Literal["started"]


class SaidStep(_OfJob):
    """``done`` of ``total`` forwards are over."""

    type: Literal["step"]
    done: _Count
    total: _Size


def _jpeg_of(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("no text")
    return base64.b64decode(text, validate=True)


class SaidPreview(_OfJob):
    """How this job's picture looks so far: a small JPEG."""

    type: Literal["preview"]
    jpeg: Annotated[bytes, BeforeValidator(_jpeg_of), Field(min_length=4, max_length=MAX_PREVIEW)]


class SaidPicture(_OfJob):
    """The picture of this job lies at ``place`` of the shelf. ``timings``: seconds by phase."""

    type: Literal["picture"]
    place: _Count
    width: _Size
    height: _Size
    info: Facts
    timings: dict[str, Any]


class SaidFailed(_OfJob):
    """This job ended without a picture."""

    type: Literal["failed"]
    code: str
    message: str


SaidOfJob = SaidStarted | SaidStep | SaidPreview | SaidPicture | SaidFailed
Said = SaidHello | SaidBeat | SaidReady | SaidLeaving | SaidOfJob
_SAID: TypeAdapter[Said] = TypeAdapter(Annotated[Said, Field(discriminator="type")])


def heard(message: Mapping[str, Any]) -> Said:
    """What a worker said: texts of one printable line, finite numbers of 64 bits, types as told.

    Texts over the limit are cut; a number that is none becomes None, since an engine that divides
    by zero does no harm. Raises BadFrame for what is no message of a worker.
    """
    jpeg = {"jpeg": message["jpeg"]} if "jpeg" in message else {}  # bounded, and no words to mend
    rest = {name: value for name, value in message.items() if name != "jpeg"}
    try:
        return _SAID.validate_python(_clean(rest) | jpeg)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "type"
        raise BadFrame(f"a message whose {printable(where)[:80]} is wrong") from None


def _clean(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise BadFrame("a line nested too deeply")
    match value:
        case str():
            return printable(value)
        case dict():
            return {printable(key): _clean(each, depth + 1) for key, each in value.items()}
        case list():
            return [_clean(each, depth + 1) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case int():
            return value if -(1 << 63) <= value < 1 << 63 else None
    return value
