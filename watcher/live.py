"""The watcher's pulse: ``.steady/live.json``, written by the watcher, read by every door.

Step progress and health change many times a second and matter only now, so they live here
and not in the record. Replaced atomically, never synced; a crash leaves the last pulse,
which is then too old to be believed.
"""

import json
import time
from pathlib import Path
from typing import Any

from watcher.publish import replace

#: A pulse older than this (seconds) means: no watcher.
STALE_SECONDS = 5.0


def write(state: Path, pulse: dict[str, Any]) -> None:
    """Replace ``<state>/live.json`` with ``pulse``, stamped with the time. Raises OSError."""
    pulse = pulse | {"updated_at": time.time_ns() // 1000}
    text = json.dumps(pulse, separators=(",", ":"), default=str)
    replace(state / "live.json", text.encode(), temporary=state / ".live.tmp", sync=False)


def read(state: Path) -> dict[str, Any]:
    """The last pulse, with ``alive`` added; ``{"alive": False}`` when there is none."""
    try:
        pulse = json.loads((state / "live.json").read_bytes())
    except (OSError, ValueError):
        return {"alive": False}
    age = abs(time.time() - pulse.get("updated_at", 0) / 1e6)  # the clock may have gone back
    return dict(pulse) | {"alive": pulse.get("state") != "stopped" and age < STALE_SECONDS}
