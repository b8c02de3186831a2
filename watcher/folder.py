"""A folder of ours: is what lies under its path now still the one it was?

A path outlives what it leads to: folders are renamed, deleted and made anew, disks are
unmounted and mounted over. An empty mount point whose disk is absent looks exactly like an
empty folder; writing there would hide files under the disk once it is back. So each such
folder carries a mark, and without it only a folder of the same disk, seen through the same
mount as before, is taken for ours. Knows nothing of what the folder is for.
A crash leaves the folder with its mark or without; the next start makes it.
"""

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from watcher import publish
from watcher.errors import SteadyError


class Folder:
    """The folder at ``path``, called ``name`` in words, with the mark ``mark`` in it.

    ``fresh`` gives the content of a new mark. An empty mark is a person's word that this is
    the right folder. ``gone`` says why there is none at the moment, in words.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        mark: str,
        fresh: Callable[[], bytes] = lambda: uuid.uuid4().hex.encode(),
    ) -> None:
        self._path = path
        self._name = name
        self._mark = path / mark
        self._fresh = fresh
        self._first = False
        self._last: _Place | None = None  #: where it lay when it was last ours
        self._here: _Place | None = None  #: what is ours now
        self.text: bytes | None = None  #: what the mark says
        self.gone: str | None = None

    @property
    def held(self) -> bool:
        """Is there such a folder, as far as the last visit knows?"""
        return self._here is not None

    def found(self, *, first: bool) -> None:
        """Begin: make the folder if nothing is there at all; OSError when that fails.

        ``first``: nothing in the record says that this place was ours before, so a folder
        without the mark may be taken.
        """
        self._first = first
        try:
            self._path.mkdir(parents=first)
        except FileExistsError:
            return
        publish.sync_folder(self._path.parent)
        self._first = True

    def visit(self) -> bool:
        """False when all is as it was; True when the folder is to be moved into (``settle``).

        Raises SteadyError folder_gone when nothing is there or it is not ours.
        """
        try:
            place = _place_of(self._path)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise self.lose(f"The {self._name} is not there ({why}).") from error
        mark = self._read_mark()
        if place == self._here and mark == self.text:
            return False  # (a folder made anew may get the old one's inode number, but no mark)
        self._here = None
        if mark is None:
            ours = place.disk == self._last.disk if self._last else self._first
        else:
            ours = not mark or self.text in (None, mark)
        if not ours:
            raise self.lose(unmarked(self._name, self._mark.name))
        return True

    def settle(self) -> None:
        """Leave the mark, durably; from now on this folder is ours. Raises OSError."""
        mark = self._read_mark()
        if not mark:
            mark = self.text or self._fresh()
            temporary = self._mark.with_name(f"{self._mark.name}-new")
            publish.replace(self._mark, mark, temporary=temporary)
        self.text = mark
        self._last = self._here = _place_of(self._path)
        self.gone = None

    def lose(self, words: str) -> SteadyError:
        """It is gone; the error to raise."""
        self._here = None
        self.gone = words
        return SteadyError("folder_gone", words)

    def guard(self) -> None:
        """Before every write: is it still the folder that is ours? SteadyError folder_gone."""
        try:
            same = _place_of(self._path) == self._here
        except OSError:
            same = False
        if not same:
            raise SteadyError("folder_gone", self.gone or f"The {self._name} is not there.")

    def _read_mark(self) -> bytes | None:
        """What the mark says: None without one, ``?`` where it is no readable file."""
        try:
            with publish.open_regular(self._mark) as file:
                return file.read(100)
        except FileNotFoundError:
            return None
        except OSError:
            return b"?"


def unmarked(name: str, mark: str) -> str:
    """What to say of a folder that is not known to be the one it was."""
    return (
        f"The {name} is there but without its mark, as if its disk were absent."
        f" If it is the right folder, create an empty file `{mark}` in it."
    )


def is_read_only(folder: Path) -> bool:
    """Does ``folder`` lie on a disk that nobody may write to, as far as the system tells?"""
    with contextlib.suppress(OSError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False


def real_folder(path: Path) -> bool:
    """Make ``path`` a folder; was there none? One that is a link could lead our writes anywhere."""
    made = False
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        made = True
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(f"`{path.name}` must be a real folder")
    return made


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
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_bytes().splitlines():
            if line.startswith(b"mnt_id:"):
                return int(line.removeprefix(b"mnt_id:"))
    except (FileNotFoundError, PermissionError):
        return 0  # no /proc
    finally:
        os.close(fd)
    return 0
