"""What a worker prints, passed on to our own standard error: whole lines, and not without end.

Knows nothing of processes. What was not passed on is counted, and the count is said.
"""

import contextlib
import os
import time
from collections.abc import Callable

from watcher.log import harmless

BURST = 128 << 10  #: bytes that may come at once
RATE = 1 << 10  #: bytes a second that may come for ever
_LINE = 8 << 10  #: bytes of one line


def _to_stderr(data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: a log is no reason to end
        while data:
            data = data[os.write(2, data) :]


class Printed:
    """The lines of one worker; ``who`` is named where some were left out."""

    def __init__(
        self,
        who: str,
        *,
        write: Callable[[bytes], None] = _to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._who = who
        self._write = write
        self._clock = clock
        self._rest = b""  #: a line that has not ended
        self._left_out = 0  #: bytes since the last line that was passed on
        self._may = float(BURST)
        self._at = clock()

    def take(self, data: bytes) -> None:
        """``data`` was printed."""
        self._refill()
        if self._left_out and self._may < BURST / 8:  # in one piece, not a line now and then
            self._left_out += len(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        for text in lines:
            self._pass_on(text)

    def end(self) -> None:
        """Nothing more comes."""
        if self._rest:
            self._pass_on(self._rest)
            self._rest = b""
        self._confess()

    def _refill(self) -> None:
        now = self._clock()
        self._may = min(float(BURST), self._may + (now - self._at) * RATE)
        self._at = now

    def _pass_on(self, text: bytes) -> None:
        if self._may <= 0:
            self._left_out += len(text) + 1
            return
        self._confess()
        shown = harmless(text[:_LINE].decode("utf-8", "replace").rstrip("\r"))
        self._left_out += len(text[_LINE:])
        self._write(shown.encode() + b"\n")
        self._may -= len(shown) + 1

    def _confess(self) -> None:
        if self._left_out:
            self._write(f"{self._who}: {self._left_out} bytes left out here\n".encode())
            self._left_out = 0
