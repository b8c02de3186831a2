"""Which file was being read when the process died: that one may have killed it, no other.

A file's try is on record before it is read, and counts until its jobs are on record too. Most of
that time belongs to the disk and to the other files of its group, so a death in it says little
about the file. The one whose bytes are being looked at is therefore named in a note, and whoever
was only begun gets its try back at the next start.

A crash leaves the note as it was. It is not synced: the system keeps it when a process dies, and
when the machine itself died (another boot) it is not believed, and every try counts.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from watcher.errors import SteadyError

_BOOT = Path("/proc/sys/kernel/random/boot_id")
NOBODY = " " * 36  #: as long as a ticket


class Suspect:
    """The note at ``path``. For one thread. Without a note, as on a full disk, every try counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _boot()
        #: Tickets whose file was begun by the last process and was not what killed it.
        self.innocent: frozenset[str] = self._innocent()
        self._begun: list[str] = []
        self._named = NOBODY

    def _innocent(self) -> frozenset[str]:
        try:
            suspect, boot, *begun = self._path.read_text("ascii").splitlines()
        except (OSError, ValueError):
            return frozenset()
        return frozenset(begun) - {suspect} if boot == self._boot else frozenset()

    @contextlib.contextmanager
    def begun(self, tickets: Sequence[str]) -> Iterator[None]:
        """Note, inside, that the tries of ``tickets`` are counted; entered before the record does.

        A fault of ours that is raised in here would be met in the same file again, whichever it
        is: every try counts.
        """
        outer = self._begun
        self._begun = [*outer, *tickets]
        self._drop()
        with contextlib.suppress(OSError):
            note = [self._named, self._boot, *self._begun]
            self._path.write_text("\n".join(note) + "\n", "ascii")
        counts = True
        try:
            yield
            counts = False
        except SteadyError:
            counts = False
            raise
        finally:
            if counts:
                self._drop()
            self._begun = outer

    @contextlib.contextmanager
    def reading(self, ticket: str) -> Iterator[None]:
        """Note, inside, that reading ``ticket`` is the cause of whatever ends the process.

        A table may be interrupted by another file, which is the cause until it is read.
        """
        outer = self._named
        self._name(ticket)
        try:
            yield
        finally:
            self._name(outer)

    def _name(self, ticket: str) -> None:
        self._named = ticket
        try:
            with self._path.open("r+b") as note:
                note.write(ticket.encode("ascii"))
        except OSError:
            self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


def _boot() -> str:
    """What differs after every start of the machine; nothing where the system does not say."""
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, ValueError):
        return f"unknown to process {os.getpid()}"
