"""What the watcher and a worker say to each other over a socket: JSON, one object a line.

Pixels do not go this way: they lie on the *shelf*, a file without a name that both processes
hold open (in memory where the system can), at one of two places. So a worker hands a picture
over by one short line, however busy the watcher is, and the picture outlives the worker.
Pure: knows no sockets, no jobs. Both ends check the same limits, so a worker gone mad can
neither fill the watcher's memory nor be obeyed.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINE = 4 << 20  #: bytes of one message
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
    """Puts what arrives in pieces together again."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """``data`` arrived: every message that is complete now, in order.

        Raises BadFrame after the good ones; do not feed again then.
        """
        self._buffer += data
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if (end if end >= 0 else len(self._buffer)) > MAX_LINE:
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
