"""What is wrong around the service right now: the reasons the queue waits.

Environment trouble (disk, device, folder, record) never costs a job. Whoever meets it
reports it here; the dispatcher starts nothing while any is left; it ends by itself, when
the one who reported it clears it or when its time is up and the next job may try again.
Kept in memory: after a restart the world is looked at anew.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watcher.clock import now_us
from watcher.errors import SteadyError


@dataclass
class _Entry:
    error: SteadyError
    since: int
    until: float | None


class Troubles:
    """A thread-safe board of :class:`SteadyError`, one per code."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = now_us,
    ) -> None:
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def report(self, error: SteadyError, *, seconds: float | None = None) -> bool:
        """Put ``error`` up, for ``seconds`` or until cleared. True when it is news."""
        with self._lock:
            known = self._entries.get(error.code)
            since = known.since if known else self._now()
            until = None if seconds is None else self._clock() + seconds
            self._entries[error.code] = _Entry(error, since, until)
            return known is None

    def clear(self, code: str) -> bool:
        """Take the trouble down. True when it was up."""
        with self._lock:
            return self._entries.pop(code, None) is not None

    def current(self) -> list[dict[str, Any]]:
        """What stands now: code, message, remedy, since (microseconds UTC)."""
        with self._lock:
            now = self._clock()
            for code in [c for c, e in self._entries.items() if e.until and e.until <= now]:
                del self._entries[code]
            return [e.error.as_dict() | {"since": e.since} for e in self._entries.values()]

    def __bool__(self) -> bool:
        return bool(self.current())
