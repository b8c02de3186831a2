"""The watcher's pulse: ``.steady/live.json``, written by the watcher, read by every door.

Step progress and health change many times a second and matter only now, so they live here
and not in the record. Replaced atomically, never synced; a crash leaves the last pulse,
which is then too old to be believed.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from watcher.publish import replace

#: A pulse older than this (seconds) means: no watcher.
STALE_SECONDS = 5.0


def write(state: Path, pulse: dict[str, Any]) -> None:
    """Replace ``<state>/live.json`` with ``pulse``, stamped with the time. Raises OSError.

    On a full disk it is written over the last one, whose room is still ours: who asks what is
    wrong must be told just then.
    """
    pulse = pulse | {"updated_at": time.time_ns() // 1000}
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
    return dict(pulse) | {"alive": pulse.get("state") != "stopped" and age < STALE_SECONDS}
