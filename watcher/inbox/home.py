"""Which folder lies under the inbox's path, and is it ours?

A path outlives what it leads to: folders are renamed, deleted and made anew, disks are
unmounted and mounted over. An empty mount point whose disk is absent looks exactly like an
empty inbox; writing there would hide files under the disk once it is back. So every inbox
carries a mark, and without it only a folder of the same disk, seen through the same mount
as before, is taken for ours. Knows nothing of files and jobs.
"""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from watcher.errors import SteadyError

MARK = ".steady"
#: Its rooms: half-written files, files in work, finished ones, refused ones.
TMP, CLAIMED, DONE, REFUSED = ".tmp", ".claimed", "done", "refused"
UNMARKED = (
    "The inbox is there but without its mark, as if its disk were absent."
    f" If it is the right folder, create an empty file `{MARK}` in it."
)


class Home:
    """The inbox as a place. ``gone`` says why there is none at the moment, in words."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first = False
        self._last: _Place | None = None  #: where it lay when it was last ours
        self._here: _Place | None = None  #: what is ours now
        self.gone: str | None = None

    @property
    def held(self) -> bool:
        """Is there an inbox, as far as the last visit knows?"""
        return self._here is not None

    def found(self, *, first: bool) -> None:
        """Begin: make the folder if nothing is there at all; OSError when that fails.

        ``first``: nothing in the record says that this place was ours before, so a folder
        without the mark may be taken.
        """
        self._first = first
        try:
            self._folder.mkdir(parents=first)
        except FileExistsError:
            return
        self._first = True

    def visit(self) -> bool:
        """False when all is as it was; True when the folder is to be moved into (``settle``).

        Raises SteadyError folder_gone when nothing is there or it is not ours.
        """
        try:
            place = _place_of(self._folder)
        except OSError as error:
            raise self.lose(f"The inbox is not there ({os.strerror(error.errno or 0)}).") from error
        marked = os.path.lexists(self._folder / MARK)
        if place == self._here and marked:
            return False  # (a folder made anew may get the old one's inode number, but no mark)
        self._here = None
        ours = place.disk == self._last.disk if self._last else self._first
        if not marked and not ours:
            raise self.lose(UNMARKED)
        return True

    def settle(self) -> None:
        """Leave the mark; from now on this folder is ours. Raises OSError."""
        mark = self._folder / MARK
        if not os.path.lexists(mark):
            mark.write_bytes(b"This folder is the inbox of SteadyDiffusion.\n")
        self._last = self._here = _place_of(self._folder)
        self.gone = None

    def lose(self, words: str) -> SteadyError:
        """It is gone; the error to raise."""
        self._here = None
        self.gone = words
        return SteadyError("folder_gone", words)

    def guard(self) -> None:
        """Before every write: is it still the folder that is ours? SteadyError folder_gone."""
        try:
            same = _place_of(self._folder) == self._here
        except OSError:
            same = False
        if not same:
            raise SteadyError("folder_gone", self.gone or "The inbox is not there.")


def real_folder(path: Path) -> None:
    """Make ``path`` a folder; one that is a link could lead our writes anywhere."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(f"`{path.name}` must be a real folder")


@dataclass(frozen=True)
class _Place:
    disk: tuple[int, int]  #: device, and the mount through which it is seen
    inode: int


def _place_of(folder: Path) -> _Place:
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return _Place((found.st_dev, _mount_of(folder)), found.st_ino)


def _mount_of(folder: Path) -> int:
    """The id of the mount where the system tells it (bind mounts share a device number), or 0."""
    if not hasattr(os, "O_PATH"):
        return 0
    fd = os.open(folder, os.O_PATH | getattr(os, "O_CLOEXEC", 0))
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines():
            if line.startswith(b"mnt_id:"):
                return int(line.removeprefix(b"mnt_id:"))
    except (FileNotFoundError, PermissionError):
        return 0  # no /proc
    finally:
        os.close(fd)
    return 0
