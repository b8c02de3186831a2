"""Which file was being read when the process died: that one may have killed it, no other.

A file is named in a note while its bytes are looked at, and for no longer: most of its time belongs
to the disk, the record and the other files of its group, and a death in that says nothing about it.
What the next start finds in the note counts as a try of that file.

A crash leaves the note as it was. It is not synced, which would take fifty times as long as to write
it: the system keeps it when a process dies, and after half a minute also when the machine does.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from watcher.errors import SteadyError

_NOBODY = " " * 36  #: as long as a ticket
_TICKET = re.compile(r"[0-9a-f-]{36}")  #: a power cut may leave anything else


class Suspect:
    """The note at ``path``. For one thread. Without a note, as on a full disk, nobody is to blame."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named = _NOBODY
        self._final = False

    def left(self) -> list[str]:
        """The tickets of files over which the last process ended, until that is ``forgotten``."""
        try:
            return _TICKET.findall(self._path.read_text("ascii").partition("\n")[0])
        except (OSError, ValueError):
            return []

    def forget(self) -> None:
        """Take the note away: what it says is on record. A crash before that counts it twice."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def taking(self, tickets: Sequence[str]) -> Iterator[None]:
        """Name ``tickets`` when a fault of ours ends this: it would be met in the same file again.

        That stays: whoever was interrupted by these is not to blame, and the process ends.
        """
        ours = True
        try:
            yield
            ours = False
        except SteadyError:
            ours = False
            raise
        finally:
            if ours:
                self._name(" ".join(tickets))
                self._final = True

    @contextlib.contextmanager
    def reading(self, ticket: str = _NOBODY) -> Iterator[None]:
        """Note, inside, that reading ``ticket`` is the cause of whatever ends the process.

        A table may be interrupted by another file, which is the cause until it is read.
        """
        outer = self._named
        self._name(ticket)
        try:
            yield
        finally:
            self._name(outer)

    def _name(self, tickets: str) -> None:
        if self._final:
            return
        self._named = tickets
        with contextlib.suppress(OSError):
            note = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(note, "w", encoding="ascii") as file:
                file.write(tickets)
