"""Which files in the inbox are complete: names, signatures, and who still writes.

No event says "this file is whole", and a YAML file cut anywhere is mostly valid YAML, so
taking one too early would make a wrong picture. A file is ready when two looks at least
``settle`` seconds apart (monotonic) found the same signature and no process has it open
for writing. Looks only: it moves, opens for reading and changes nothing.
"""

import os
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from watcher.inbox.claims import Signature, display, own_ticket, signature_of
from watcher.inbox.writers import Writer, writer_of
from watcher.suffixes import JOB_SUFFIXES, passing, remedy_for, suffix_of

BLIND_SECONDS = 10.0  #: of silence at least, where nobody can tell whether a file is still written
EMPTY_SECONDS = 30.0  #: an empty file waits to be filled
MOST_KNOWN = 20_000  #: entries of a folder that are remembered at a time
_MOST_NOTICES = 20
_FOLDER = "is a folder; folders are not read. Move its files into the inbox itself."
_FIRST_RETRY, _LAST_RETRY = 5.0, 60.0  #: seconds between tries at a file that cannot be moved


@dataclass(slots=True)
class Arrival:
    """One entry that may become a claim, as last looked at."""

    name: str  #: as the file system has it (undecodable bytes as surrogates)
    signature: Signature
    since: float  #: first look with this signature, monotonic seconds
    regular: bool
    ticket: str | None  #: of a file of our own making
    blind: bool = False  #: nobody can say whether it is still written
    held: bool = False  #: somebody writes
    retry_at: float = 0.0
    delay: float = 0.0
    why: str | None = None  #: it cannot be moved, in words
    hot: str = ""  #: the hot folder it lies in

    @property
    def size(self) -> int:
        """Bytes at the last look."""
        return self.signature[1]


@dataclass
class Glance:
    """What one look at the whole folder found."""

    ready: list[Arrival] = field(default_factory=list)  #: settled; oldest first
    waiting: int = 0  #: job files not ready, and those beyond the table's room
    settling: int = 0  #: of these, the ones that will be ready by themselves
    due: float = float("inf")  #: when the next of them may be, monotonic seconds
    fresh: int = 0  #: names seen for the first time
    notices: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)  #: files that cannot be moved, in words

    def put_off(self, until: float = float("inf")) -> None:
        """One more will be ready by itself, and may be then."""
        self.waiting += 1
        self.settling += 1
        self.due = min(self.due, until)

    def add(self, other: "Glance") -> None:
        """What a look at one more folder found."""
        self.ready = sorted(self.ready + other.ready, key=_by_age)
        self.waiting += other.waiting
        self.settling += other.settling
        self.due = min(self.due, other.due)
        self.fresh += other.fresh
        self.notices += other.notices
        self.blocked += other.blocked


def _by_age(arrival: Arrival) -> tuple[int, str]:
    return arrival.signature[3], arrival.name


class Arrivals:
    """Remembers how the entries of ``folder`` looked, and says which are ready.

    At most so many entries are remembered at a time (about 400 bytes each), so a million dropped
    files cost no more memory than these; the others wait for their turn.

    Args:
        settle: seconds between the two looks.
        empty: seconds in which an empty file may be filled.
        blind: seconds of silence at least, where nobody can tell whether a file is still written.
        most: entries that are remembered at a time.
        suffixes: of the files that are taken.
        hot: the hot folder this is; files of our own making come to the inbox itself only.
        shown: what stands before a file's name in words.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle: float,
        empty: float = EMPTY_SECONDS,
        blind: float = BLIND_SECONDS,
        most: int = MOST_KNOWN,
        suffixes: Collection[str] = JOB_SUFFIXES,
        hot: str = "",
        shown: str = "",
    ) -> None:
        self.folder = folder
        self._suffixes = suffixes
        self._hot = hot
        self._shown = shown
        self._settle = settle
        self._empty = empty
        self._blind = blind
        self._most = most
        self._known: dict[str, Arrival] = {}
        self.leases = True  #: do they work on this file system?

    def forget(self) -> None:
        """Another folder has taken the place of the one looked at."""
        self._known.clear()

    def look(self, now: float, apart: Collection[str] = ()) -> Glance:
        """One pass over the folder but for what is ``apart``, by name; linear, one ``lstat`` for
        each entry that needs it.

        Raises OSError when the folder cannot be read.
        """
        glance = Glance()
        known: dict[str, Arrival] = {}
        room = self._most - len(self._known)
        extra = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name = entry.name
                if passing(name) or name in apart:
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        extra += self._notice(glance, name, _FOLDER)
                        continue
                    if suffix_of(name) not in self._suffixes:
                        extra += self._notice(glance, name, "is no job file.", remedy_for)
                        continue
                    arrival = self._known.get(name)
                    if arrival is None:
                        glance.fresh += 1
                        if glance.fresh > room:
                            glance.put_off(now + self._settle)
                            continue
                    arrival = self._update(arrival, entry, now)
                except FileNotFoundError:
                    continue
                known[name] = arrival
                self._judge(arrival, glance, now)
        self._known = known
        if extra:
            glance.notices.append(f"… and {extra} more.")
        if len(glance.blocked) > _MOST_NOTICES:
            rest = len(glance.blocked) - _MOST_NOTICES
            glance.blocked[_MOST_NOTICES:] = [f"… and {rest} more."]
        glance.ready.sort(key=_by_age)
        return glance

    def _notice(
        self, glance: Glance, name: str, what: str, remedy: Callable[[str], str] = lambda _: ""
    ) -> int:
        if len(glance.notices) >= _MOST_NOTICES:
            return 1
        glance.notices.append(f"{self._shown}{display(name)} {what} {remedy(name)}".rstrip())
        return 0

    def _update(self, arrival: Arrival | None, entry: "os.DirEntry[str]", now: float) -> Arrival:
        if (
            arrival is not None
            and arrival.size > 0
            and not arrival.held
            and arrival.why is None
            and now < self._ready_at(arrival)
        ):
            return arrival  # its second look is not due: spare the lstat
        found = entry.stat(follow_symlinks=False)
        signature = signature_of(found)
        if arrival is not None and arrival.signature == signature:
            return arrival
        return Arrival(
            name=entry.name,
            signature=signature,
            since=now,
            regular=stat.S_ISREG(found.st_mode),
            ticket=None if self._hot else own_ticket(entry.name),
            hot=self._hot,
        )

    def _ready_at(self, arrival: Arrival) -> float:
        """When its silence will have lasted long enough, monotonic seconds."""
        if arrival.why is not None:
            return arrival.retry_at
        if not arrival.regular:
            return arrival.since  # there is no content to wait for
        if arrival.size == 0:
            return arrival.since + self._empty
        if arrival.ticket is not None:
            return arrival.since  # made by us: appears complete
        blind = arrival.blind or not self.leases
        return arrival.since + (max(self._settle, self._blind) if blind else self._settle)

    def _judge(self, arrival: Arrival, glance: Glance, now: float) -> None:
        ready_at = self._ready_at(arrival)
        if arrival.why is not None:
            glance.blocked.append(f"{self._shown}{display(arrival.name)} {arrival.why}.")
        if now >= ready_at:
            glance.ready.append(arrival)
            return
        glance.waiting += 1
        glance.settling += arrival.why is None
        glance.due = min(glance.due, ready_at)

    def confirm(self, arrival: Arrival) -> float | None:
        """The last question before the claim: unchanged since its look, and nobody writes?

        None when it may be claimed, else when to look again, monotonic seconds (infinite
        when only its writer can say). Raises OSError when the folder's disk fails.
        """
        path = self.folder / arrival.name
        now = time.monotonic()
        try:
            if signature_of(os.lstat(path)) != arrival.signature:
                return now  # its silence begins anew
        except FileNotFoundError:
            return now
        if not arrival.regular:
            return None
        writer = writer_of(path)
        arrival.held = writer is Writer.HOLDS
        arrival.blind = writer is Writer.UNKNOWN
        if arrival.held:
            return float("inf")  # closing it rings the bell
        ready_at = self._ready_at(arrival)
        return None if now >= ready_at else ready_at

    def taken(self, arrival: Arrival) -> None:
        """It is in the folder no more: its place is free for another."""
        self._known.pop(arrival.name, None)

    def block(self, arrival: Arrival, why: str) -> None:
        """It cannot be moved: try again after 5, 10, 20, 40, then every 60 seconds."""
        arrival.delay = min(max(arrival.delay * 2, _FIRST_RETRY), _LAST_RETRY)
        arrival.retry_at = time.monotonic() + arrival.delay
        arrival.why = why
