"""Hot folders: the preset ``presets/NAME.yaml`` makes ``inbox/NAME/`` an inbox of its own.

    presets/ink.yaml                              what every job of that folder is made with
    inbox/ink/x.jpg                               somebody's picture, or a job file
    inbox/.claimed/ink@<digest>/preset.yaml       the preset as it was at the claim
    inbox/.claimed/ink@<digest>/<ticket>~x.jpg    claimed

A preset is a file that somebody may be writing just now, so it must lie as still as a job file
before anything is claimed under it. Folders come and go with their presets, without a restart.
Looks, and makes the folders; knows nothing of what presets mean.
"""

import os
from collections.abc import Callable
from pathlib import Path

from watcher.errors import SteadyError
from watcher.folder import real_folder
from watcher.inbox.archive import DONE, REFUSED
from watcher.inbox.arrivals import Arrival, Arrivals, Glance
from watcher.inbox.claims import ROOM, Claim, display, read_claim
from watcher.publish import reason
from watcher.suffixes import HOT_SUFFIXES, passing

PRESET_SUFFIX = ".yaml"
MAX_PRESET = 64 << 10  #: bytes
_LONGEST = 80  #: bytes of a name

#: An :class:`Arrivals` of a folder, as the inbox has them.
ArrivalsOf = Callable[..., Arrivals]


class HotFolders:
    """The hot folders of ``inbox``: one for every file in ``presets``. For one thread.

    Attributes:
        folders: by name, those whose preset lies still.
        names: of all that are hot folders, or were one since the start.
        places: the folders to be watched beside the inbox, and which they are on their disk.
        leases: can it be told here whether a file is still written?
    """

    def __init__(self, inbox: Path, presets: Path, arrivals_of: ArrivalsOf) -> None:
        self._inbox = inbox
        self._arrivals_of = arrivals_of
        self._said = f"{presets.name}/"
        self._presets = arrivals_of(presets, suffixes={PRESET_SUFFIX}, shown=self._said)
        self._settled: dict[str, Arrival] = {}
        self._texts: dict[str, tuple[Arrival, bytes]] = {}
        self.folders: dict[str, Arrivals] = {}
        self.names: set[str] = set()
        self.places: dict[Path, tuple[int, int]] = {}
        self.leases = True

    def forget(self) -> None:
        """Another inbox has taken the place of the one looked at."""
        self.folders.clear()
        self.places.clear()

    def look(self, now: float) -> Glance:
        """One pass over the presets and every hot folder; what cannot be read is in the notices."""
        glance = Glance()
        places: dict[Path, tuple[int, int]] = {}
        hot: dict[str, Arrivals] = {}
        try:
            self._look_at_presets(now, glance)
            places[self._presets.folder] = _device_and_inode(self._presets.folder)
        except FileNotFoundError:
            self._settled = {}
        except OSError as error:
            self._settled = {}
            glance.notices.append(f"{self._said} cannot be read ({reason(error)}).")
        for name in sorted(self._settled):
            folder = self._inbox / name
            arrivals = self.folders.get(name) or self._arrivals_of(
                folder, suffixes=HOT_SUFFIXES, hot=name, shown=f"{name}/"
            )
            arrivals.leases = self.leases
            try:
                real_folder(folder)
                place = _device_and_inode(folder)
                glance.add(arrivals.look(now))
            except OSError as error:
                glance.notices.append(f"The hot folder {name}/ cannot be used ({reason(error)}).")
                continue
            hot[name], places[folder] = arrivals, place
        for name in sorted(self.names - self._settled.keys()):
            if not os.path.lexists(self._presets.folder / f"{name}{PRESET_SUFFIX}"):
                glance.notices.append(
                    f"{name}/ is no hot folder any more, as {self._said}{name}{PRESET_SUFFIX} is"
                    " gone. Files in it wait until it is back."
                )
        self.names |= self._settled.keys()
        self.folders, self.places = hot, places
        return glance

    def _look_at_presets(self, now: float, glance: Glance) -> None:
        """Find those that lie still; the others are told of in ``glance``. Raises OSError."""
        self._settled = {}
        found = self._presets.look(now)
        glance.settling, glance.due = found.settling, found.due
        glance.notices += found.notices + found.blocked
        for arrival in found.ready:
            name = arrival.name.removesuffix(PRESET_SUFFIX)
            if why := _unfit(name):
                shown = f"{self._said}{display(arrival.name)}"
                glance.notices.append(f"{shown} makes no hot folder: {why}.")
            else:
                self._settled[name] = arrival

    def preset(self, name: str) -> bytes | None:
        """The text of a preset as it is now; None while it is written or cannot be read."""
        arrival, presets = self._settled.get(name), self._presets
        if arrival is None or presets.confirm(arrival) is not None:
            return None
        known, text = self._texts.get(name, (None, b""))
        if known is not arrival:
            file = Claim("", arrival.name, PRESET_SUFFIX, "file", 0, presets.folder, arrival.name)
            try:
                text = read_claim(file, MAX_PRESET)
            except FileNotFoundError:
                return None
            except SteadyError as error:
                presets.block(arrival, f"cannot be used: {error.message.rstrip('.')}")
                return None
            self._texts[name] = arrival, text
        return text


def _unfit(name: str) -> str:
    """Why no hot folder can be called so; empty when one can."""
    if name in (DONE, REFUSED) or passing(name):
        return "a folder of this name means something else to the inbox"
    if name != display(name) or any(mark in name for mark in (ROOM, "~", "\\")):
        return f"`{ROOM}`, `~`, `\\` and control characters cannot be in its name"
    return "its name is too long" if len(os.fsencode(name)) > _LONGEST else ""


def _device_and_inode(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino
