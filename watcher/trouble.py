"""What is wrong around the service right now: the reasons the queue waits.

Environment trouble (disk, device, folder, record) never costs a job. Whoever meets it reports
it here as its owner, and it ends with its owner: when that one clears it, or when its time is
up and the next job may try again. The dispatcher starts nothing while any is left. What keeps a
single slot from drawing is not told here: that slot has it (executor/seat.py).
Kept in memory: after a restart the world is looked at anew.
"""

import threading
import time
from collections.abc import Callable, Iterable
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
    """A thread-safe board of :class:`SteadyError`, one per owner."""

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

    def report(self, owner: str, error: SteadyError, *, seconds: float | None = None) -> bool:
        """Put ``error`` up, for ``seconds`` or until ``owner`` clears it. True when it is news."""
        with self._lock:
            self._expire()
            known = self._entries.get(owner)
            if known and known.error.code != error.code:
                known = None
            since = known.since if known else self._now()
            until = None if seconds is None else self._clock() + seconds
            self._entries[owner] = _Entry(error, since, until)
            return known is None

    def clear(self, owner: str) -> None:
        """Take down what ``owner`` has put up."""
        with self._lock:
            self._entries.pop(owner, None)

    def current(self) -> list[dict[str, Any]]:
        """What stands now: code, message, remedy, since (microseconds UTC)."""
        with self._lock:
            self._expire()
            return each_once(e.error.as_dict() | {"since": e.since} for e in self._entries.values())

    def _expire(self) -> None:
        now = self._clock()
        for owner in [o for o, e in self._entries.items() if e.until and e.until <= now]:
            del self._entries[owner]

    def __bool__(self) -> bool:
        return bool(self.current())


def each_once(troubles: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """``troubles`` without those that only say again, in the same words, what is wrong."""
    return list({(t["code"], t["message"]): t for t in troubles}.values())
