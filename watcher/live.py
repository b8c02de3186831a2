"""The watcher's pulse: ``.steady/live.json``, written by the watcher, read by every door.

Step progress and health change many times a second and matter only now, so they live here
and not in the record. Replaced atomically, never synced; a crash leaves the last pulse,
which is then too old to be believed. Where the record is on a server, doors on other machines
find the pulse there (an unlogged table); who may look and where, :func:`seen` knows.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from watcher.clock import now_us
from watcher.publish import replace

#: A pulse older than this (seconds) means: no watcher.
STALE_SECONDS = 5.0


#: Who the pulses on a server are of: the one watcher, and those that wait for its place.
WATCHER, STANDBY = "watcher", "standby"


class Pulses(Protocol):
    """Where pulses lie on a server (the record): by whom, seconds old, what."""

    def pulses(self) -> Mapping[str, tuple[float, dict[str, Any]]]:
        """Every pulse that was put there, also one long gone."""
        ...


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
    file = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.write(file, data.ljust(os.fstat(file).st_size))
    finally:
        os.close(file)


def read(state: Path) -> dict[str, Any]:
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


def seen(record: Pulses) -> dict[str, Any]:
    """The same from a record on a server, with ``standbys``: how many wait to take over."""
    said = record.pulses()
    age, pulse = said.get(WATCHER, (STALE_SECONDS, {}))
    waiting = [age for who, (age, _) in said.items() if who.startswith(STANDBY)]
    fresh = sum(age < STALE_SECONDS for age in waiting)
    return dict(pulse) | {"alive": _alive(pulse, age), "standbys": fresh}


def _alive(pulse: Mapping[str, Any], age: float) -> bool:
    return pulse.get("state") != "stopped" and age < STALE_SECONDS
