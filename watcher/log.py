"""One line an event: for people on a terminal, JSON objects everywhere else.

``say(logger, "job.completed", job_id=…)`` is how the product logs: the event's name is
stable and greppable, the facts are data. Control characters are escaped at the sink, so
no file name or prompt can forge a line. Prompts belong at DEBUG only.
Knows nothing of what it tells; a crash loses no line that was said.
"""

import datetime
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


_PLAIN = {ord(c): f"\\x{ord(c):02x}" for c in map(chr, [*range(32), *range(127, 160)])}
_PLAIN |= {
    c: f"\\u{c:04x}" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
}


def harmless(text: str) -> str:
    """``text`` with control and direction-changing characters written out, for terminals."""
    return text.translate(_PLAIN)


def say(logger: logging.Logger, event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log ``event`` with its ``facts`` (None is left out)."""
    if logger.isEnabledFor(level):
        kept = {key: value for key, value in facts.items() if value is not None}
        logger.log(level, event, extra={"facts": kept})


class ThrottledLog:
    """Says each event at most ``most`` times a minute and counts the rest. Any thread.

    The count of what was kept back is said with ``unsaid=N`` as soon as the minute is over: by
    the next such event, or by ``tell``.
    """

    def __init__(self, most: int = 1, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._minutes: dict[tuple[str, int], _Minute] = {}

    def say(
        self, logger: logging.Logger, event: str, level: int = logging.INFO, **facts: Any
    ) -> None:
        """As :func:`say`, if there is room."""
        self.tell()
        with self._lock:
            minute = self._minutes.get((event, level))
            if minute is None:
                minute = self._minutes[event, level] = _Minute(logger, self._clock())
            minute.events += 1
            room = minute.events <= self._most
        if room:
            say(logger, event, level, **facts)

    def tell(self, *, now: bool = False) -> None:
        """Say what was kept back in minutes that are over; ``now``: in all."""
        with self._lock:
            end = self._clock() - 60
            over = [key for key, minute in self._minutes.items() if now or minute.begun <= end]
            ended = [(key, self._minutes.pop(key)) for key in over]
        for (event, level), minute in ended:
            if minute.events > self._most:
                say(minute.logger, event, level, unsaid=minute.events - self._most)


@dataclass
class _Minute:
    """How often an event was to be said since ``begun``."""

    logger: logging.Logger
    begun: float
    events: int = 0


class JsonLines(logging.Formatter):
    """One JSON object a line: ts (UTC), level, event, logger and the facts."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "ts": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class Terminal(logging.Formatter):
    """``12:30:01 job.completed job_id=… ms=…``, with nothing that steers a terminal."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).astimezone()
        facts = " ".join(f"{k}={v}" for k, v in getattr(record, "facts", {}).items())
        mark = "" if record.levelno < logging.WARNING else record.levelname + " "
        line = harmless(f"{moment:%H:%M:%S} {mark}{record.getMessage()} {facts}".rstrip())
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join("\n    " + harmless(part) for part in trace)
        return line


def configure(level: str = "info") -> None:
    """Send every log record of this process to stderr in the fitting form. Call once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Terminal() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("alembic", "asyncio", "sqlalchemy", "watchdog"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
