"""Settings that lead elsewhere than at the last start: what of ours lies in the old place?

``inbox``, ``outputs`` and ``database`` may be changed at any time; jobs on record go on. What
lies in the old place is left alone, never lost and never taken along by itself, so people are
told of it until it is gone. The places of earlier starts are kept in ``.steady/places.json``;
a crash leaves the old list or the new one.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from watcher import publish
from watcher.config import Config
from watcher.inbox import claimed_files
from watcher.suffixes import JOB_SUFFIXES

_WORDS = {
    "inbox": "{n} of its files are not taken. Move them to the new inbox (those in .claimed/ to its"
    " .claimed/), or set `inbox` back.",
    "outputs": "Pictures made before lie there and are not shown. Move what is in it to the new"
    " folder, or set `outputs` back.",
    "database": "Its jobs are not known now. Stop the service and move the file with those beside"
    " it (-wal, -shm) to the new place, or set `database` back.",
}


def note_places(config: Config) -> None:
    """Remember where this start looks, durably. Raises OSError."""
    known = _known(config)
    for key, path in _now(config).items():
        here = _below_root(config, path)
        known[key] = [here, *(p for p in known.get(key, ()) if p != here)]
    if known != _known(config):
        data = json.dumps(known, indent=1).encode() + b"\n"
        publish.replace(_places_file(config), data, temporary=config.state / ".places.tmp")


def left_behind(config: Config) -> list[str]:
    """What of ours still lies where a setting led before, in words."""
    return list(_left_behind(config))


def _left_behind(config: Config) -> Iterator[str]:
    known = _known(config)
    for key, here in _now(config).items():
        for former in known.get(key, ()):
            path = config.root / former
            with contextlib.suppress(OSError):
                if path.exists() and not (here.exists() and os.path.samefile(path, here)):
                    number = _things_in(key, path)
                    if number:
                        words = _WORDS[key].format(n=number)
                        yield f"`{key}` was {former} at an earlier start. {words}"


def _things_in(key: str, path: Path) -> int:
    """How much of ours lies there."""
    if key == "database":
        return 1
    if key == "outputs":
        return sum(not name.startswith(".") for name in os.listdir(path))
    waiting = [n for n in os.listdir(path) if os.path.splitext(n)[1].lower() in JOB_SUFFIXES]
    return len(waiting) + len(claimed_files(path))


def _now(config: Config) -> dict[str, Path]:
    places = {"inbox": config.inbox, "outputs": config.outputs}
    if config.database_path is not None:
        places["database"] = config.database_path
    return places


def _places_file(config: Config) -> Path:
    return config.state / "places.json"


def _known(config: Config) -> dict[str, list[str]]:
    """By setting, the last place first."""
    try:
        known = json.loads(_places_file(config).read_bytes())
        return {str(key): [str(place) for place in places] for key, places in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _below_root(config: Config, path: Path) -> str:
    """Below the root without it: a root that is moved as a whole takes all of it along."""
    with contextlib.suppress(ValueError):
        return path.relative_to(config.root).as_posix()
    return str(path)
