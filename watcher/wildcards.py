"""Word lists for ``__name__`` in prompts: ``wildcards/<name>.txt`` below the root, nowhere else.

One choice a line; blank lines and lines that begin with ``# `` are skipped. Every list is
read once for each job file. Names come from job files, so nothing outside the folder is
opened, whatever they say and wherever links lead.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from watcher.errors import SteadyError
from watcher.publish import disk_trouble, of_the_disk

FOLDER = "wildcards"  #: below the root
MAX_BYTES = 1 << 20  #: of one list
MAX_LISTS = 100  #: in one job file

_NAME = re.compile(r"\w[\w-]{0,79}(/\w[\w-]{0,79}){0,3}")


class Wildcards:
    """Looks lists up by name. For one reading of one file; not for several threads."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER
        self._lists: dict[str, Sequence[str] | None] = {}

    def __call__(self, name: str) -> Sequence[str] | None:
        """The lines of a list; None when there is none of this name.

        Raises SteadyError too_large, encoding, unreadable, or the disk's trouble.
        """
        if name not in self._lists:
            if len(self._lists) >= MAX_LISTS:
                raise SteadyError("too_large", f"The file uses more than {MAX_LISTS} lists.")
            self._lists[name] = self._read(name) if _NAME.fullmatch(name) else None
        return self._lists[name]

    def _read(self, name: str) -> list[str] | None:
        shown, found = f"{FOLDER}/{name}.txt", False
        try:
            path = (self._folder / f"{name}.txt").resolve(strict=True)
            if not path.is_relative_to(self._folder.resolve(strict=True)):
                return None
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return None
            found = True
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and of_the_disk(error, reading=found):
                raise disk_trouble(error, f"{shown} cannot be read") from error
            raise SteadyError("unreadable", f"{shown} cannot be read.") from error
        if len(data) > MAX_BYTES:
            raise SteadyError("too_large", f"{shown} has more than {MAX_BYTES >> 20} MiB.")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SteadyError("encoding", f"{shown} is not UTF-8 text.") from None
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and line != "#" and not line.startswith("# ")]
