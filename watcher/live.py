"""The watcher's pulse: ``.steady/live.json``, written by the watcher, read by every door.

Step progress and health change many times a second and matter only now, so they live here
and not in the record. Replaced atomically, never synced; a crash leaves the last pulse,
which is then too old to be believed. Where the record is on a server, doors on other machines
find the pulse there (an unlogged table); who may look and where, :func:`seen` knows.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from watcher.errors import SteadyError
from watcher.log import now_us
from watcher.publish import replace

if TYPE_CHECKING:
    from watcher.store import JobStore


@dataclass
class _Entry:
    error: SteadyError
    since: int
    until: float | None


class Troubles:
    """A thread-safe board of :class:`SteadyError`, one per owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def report(self, owner: str, error: SteadyError, *, seconds: float | None = None) -> bool:
        """Put ``error`` up, for ``seconds`` or until ``owner`` clears it. True when it is news."""
        with self._lock:
            self._expire()
            known = self._entries.get(owner)
            if known and known.error.code != error.code:
                known = None
            since = known.since if known else now_us()
            until = None if seconds is None else time.monotonic() + seconds
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
        now = time.monotonic()
        for owner in [o for o, e in self._entries.items() if e.until and e.until <= now]:
            del self._entries[owner]

    def __bool__(self) -> bool:
        return bool(self.current())


def each_once(troubles: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """``troubles`` without those that only say again, in the same words, what is wrong."""
    return list({(t["code"], t["message"]): t for t in troubles}.values())


#: A pulse older than this (seconds) means: no watcher.
STALE_SECONDS = 5.0


_ADDRESS = "address"  #: a file of the state folder: where the page is
READY = "ready"  #: how :func:`standing` calls a service that makes pictures

#: Who the pulses on a server are of: the one watcher, and those that wait for its place.
WATCHER, STANDBY = "watcher", "standby"


def write(state: Path, pulse: dict[str, Any]) -> None:
    """Replace ``<state>/live.json`` with ``pulse``, stamped with the time. Raises OSError.

    On a full disk it is written over the last one, whose room is still ours: who asks what is
    wrong must be told just then.
    """
    pulse = pulse | {"updated_at": now_us()}
    text = json.dumps(pulse, separators=(",", ":"), default=str)
    path = state / "live.json"
    try:
        replace(path, text.encode(), temporary=state / ".live.tmp", sync=False)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _write_over(path, text.encode())


def _write_over(path: Path, data: bytes) -> None:
    """In place, in one write, padded to the old length. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, data.ljust(os.fstat(file).st_size))
    finally:
        os.close(file)


def read_pulse(state: Path) -> dict[str, Any]:
    """The last pulse, with ``alive`` added; ``{"alive": False}`` when there is none."""
    for _ in range(2):  # one that is being written over may be met half new
        try:
            pulse = json.loads((state / "live.json").read_bytes())
            break
        except (OSError, ValueError):
            pulse = None
    if pulse is None:
        return {"alive": False}
    age = abs(time.time() - pulse.get("updated_at", 0) / 1e6)  # the clock may have gone back
    return dict(pulse) | {"alive": _alive(pulse, age)}


def seen(record: "JobStore") -> dict[str, Any]:
    """The same from a record on a server, with ``standbys``: how many wait to take over."""
    said = record.pulses()
    age, pulse = said.get(WATCHER, (STALE_SECONDS, {}))
    waiting = [age for who, (age, _) in said.items() if who.startswith(STANDBY)]
    fresh = sum(age < STALE_SECONDS for age in waiting)
    return dict(pulse) | {"alive": _alive(pulse, age), "standbys": fresh}


def _alive(pulse: Mapping[str, Any], age: float) -> bool:
    return pulse.get("state") != "stopped" and age < STALE_SECONDS


#: A worker whose model is loaded, or one that sleeps until work comes.
_WORKING = {"ready", "busy", "unloaded"}


def unready(pulse: Mapping[str, Any]) -> Iterator[SteadyError]:
    """Every reason why no picture can be begun, by the watcher's pulse; none when it is ready."""
    if not pulse["alive"]:
        yield SteadyError("watcher_down")
        return
    troubles = pulse.get("trouble", ())
    yield from map(SteadyError.told, troubles)
    workers = pulse.get("workers", ())
    if not troubles and not any(worker.get("state") in _WORKING for worker in workers):
        so_far = max((worker.get("loading_seconds") or 0 for worker in workers), default=0)
        before = max((worker.get("load_seconds") or 0 for worker in workers), default=0)
        words = f", {before:.0f} s the last time" if before else ""
        yield SteadyError("model_loading", f"The model is loading: {so_far:.0f} s so far{words}.")


def pulse_troubles(pulse: Mapping[str, Any]) -> Iterator[SteadyError]:
    """What the watcher's pulse says is wrong, also where the queue goes on all the same."""
    yield from (error for error in unready(pulse) if error.code != "model_loading")
    if pulse["alive"]:
        for words in (pulse.get("inbox") or {}).get("problems", ()):
            yield SteadyError("inbox_degraded", str(words))
        yield from map(SteadyError.told, pulse.get("warnings", ()))


def standing(pulse: Mapping[str, Any]) -> str:
    """In one line: `ready`, `The model is loading: 12 s so far.`, or `NOT READY:` why and what to do."""
    reason = next(unready(pulse), None)
    if reason is None:
        return READY
    return reason.message if reason.code == "model_loading" else f"NOT READY: {reason}"


def tell_address(state: Path, address: str) -> None:
    """Note where the page is for commands that are called here. One that cannot be noted is not."""
    with contextlib.suppress(OSError):
        (state / _ADDRESS).write_text(address, encoding="utf-8")


def page_address(state: Path) -> str | None:
    """Where the page was when `steady serve` was last started here, if somebody answers there."""
    with contextlib.suppress(OSError, ValueError):
        address = (state / _ADDRESS).read_text(encoding="utf-8")
        place = urlsplit(address)
        with socket.create_connection((place.hostname or "", place.port or 80), timeout=0.5):
            return address
    return None
