"""What the watcher and a worker say to each other over a socket: lines of JSON, and pixels.

A frame is one JSON object on one line; when it has a member ``bytes`` (an int), so many raw
bytes follow the line. Pure: knows no sockets, no jobs. Both ends check the same limits, so a
worker gone mad can neither fill the watcher's memory nor be obeyed.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINE = 4 << 20  #: bytes of one JSON line
MAX_PAYLOAD = 8192 * 8192 * 3  #: bytes after a line: the largest picture, raw RGB


class BadFrame(Exception):
    """The other side sent what cannot be a frame; the connection is of no more use."""


def line(message: Mapping[str, Any], payload: int = 0) -> bytes:
    """``message`` as one line; ``payload`` bytes will follow it (0: none).

    Raises ValueError for a message or payload over the limits: nothing is sent then.
    """
    body = dict(message, bytes=payload) if payload else dict(message)
    data = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    if len(data) > MAX_LINE or payload > MAX_PAYLOAD:
        raise ValueError(f"a message of {len(data)} + {payload} bytes is over the limit")
    return data


class Frames:
    """Puts what arrives in pieces together again."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._message: dict[str, Any] | None = None
        self._size = 0

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """``data`` arrived: every (message, payload) that is complete now, in order.

        Raises BadFrame after the good ones; do not feed again then.
        """
        self._buffer += data
        while True:
            if self._message is None:
                end = self._buffer.find(b"\n", self._searched)
                if max(end, len(self._buffer) if end < 0 else 0) > MAX_LINE:
                    raise BadFrame("a line without an end")
                if end < 0:
                    self._searched = len(self._buffer)
                    return
                self._message, self._size = _parse(bytes(self._buffer[:end]))
                del self._buffer[: end + 1]
                self._searched = 0
            if len(self._buffer) < self._size:
                return
            payload = bytes(memoryview(self._buffer)[: self._size]) if self._size else b""
            del self._buffer[: self._size]
            message, self._message = self._message, None
            yield message, payload


def _parse(data: bytes) -> tuple[dict[str, Any], int]:
    try:
        message = json.loads(data)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError both
        raise BadFrame("a line that is not JSON") from None
    except RecursionError:
        raise BadFrame("a line nested too deeply") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadFrame("a line that is no message")
    size = message.get("bytes", 0)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_PAYLOAD:
        raise BadFrame("a payload over the limit")
    return message, size
