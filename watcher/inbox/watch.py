"""The watcher's side of the inbox: hear of files, claim what is ready, read it.

Nothing that matters is kept in memory: a crash between two steps leaves what ``leftovers`` finds
at the next start.
"""

import contextlib
import errno
import functools
import logging
import os
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from watcher import publish
from watcher.checkpoints import reached
from watcher.errors import SteadyError
from watcher.folder import is_read_only
from watcher.inbox import takeover
from watcher.inbox.archive import CLAIMED, DONE, REFUSED, Shelves, file_of
from watcher.inbox.arrivals import Arrival, Arrivals, Glance
from watcher.inbox.bell import Bell, deaf
from watcher.inbox.claims import Claim, claim_of, entry_of, open_claim, read_claim
from watcher.inbox.hot import ArrivalsOf, HotFolders
from watcher.inbox.writers import leases_work
from watcher.log import say
from watcher.publish import disk_errors, disk_trouble, reason

__all__ = ["Inbox", "deaf"]

logger = logging.getLogger("steady.inbox")

_CANARY = ".steady-canary"
_CHUNK = 256  #: claims that share one pair of syncs
_DOUBT_SECONDS = 60.0  #: between proofs that a silent bell still works

#: One file cannot be moved (sticky folder, read-only, in use): its own matter, not the disk's.
_UNMOVABLE = {
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY, errno.ETXTBSY),
    errno.EXDEV,  # a hot folder that is a mount of its own
}


class Inbox(Shelves):
    """The watcher's side of the folder. One instance a process; opened under the root's lock.

    ``wait``, ``scan``, ``read`` and ``open_stream`` belong to one thread (the intake);
    ``ring``, ``health``, ``archive``, ``discard`` and ``refuse`` may be called from any.

    Args:
        settle: seconds a file must lie unchanged.
        rescan: seconds between looks that no event asked for.
        ways: how files are published, see ``publish``.
        arrivals: looks at a folder, see ``Arrivals``.
        presets: folder whose ``NAME.yaml`` makes ``NAME/`` in the inbox a hot folder (``hot``);
            without one, the folder ``presets`` beside the inbox.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle: float,
        rescan: float,
        ways: tuple[publish.Way, ...] = publish.WAYS,
        arrivals: ArrivalsOf = Arrivals,
        presets: Path | None = None,
    ) -> None:
        super().__init__(folder, ways=ways)
        self._rescan = rescan
        self._bell = Bell(folder)
        arrivals_of = functools.partial(arrivals, settle=settle)
        self._arrivals = arrivals_of(folder)
        self._hot = HotFolders(folder, presets or folder.parent / "presets", arrivals_of)
        self._watched: object = None  #: the hot folders that events are heard of
        self._ready: deque[Arrival] = deque()  #: settled in the last look, not yet claimed
        self._unsynced: list[Claim] = []  #: not yet handed out
        self._doubled: dict[
            Path, tuple[Path, Arrivals, Arrival]
        ] = {}  #: by old name (``takeover``)
        self._said: set[str] = set()
        self._owing = False  #: the leftovers could not be read when they were asked for
        self._seen = Glance()  #: in the last look, and what was put off since
        self._looked_at = float("-inf")
        self._look_seconds = 0.0
        self._doubted_at = float("-inf")
        self._subscribed_at = float("-inf")
        self._closed = threading.Event()

    # -- the watch

    def open(self, *, first: bool = True) -> None:
        """Make the folders, leave the mark, hear the bell. Troubles that may heal do not raise.

        ``first``: nothing in the record says that files of ours lie here, so a folder
        without the mark is made ours. With False such a folder is taken for the mount
        point of an absent disk, and not written to until the mark appears. A folder that is
        not there at all is made anew.
        """
        with contextlib.suppress(SteadyError):
            with disk_errors("The inbox cannot be made"):
                self._home.found(first=first)
            self._tend()

    def close(self) -> None:
        """Stop watching. Files stay as they are; the next start goes on."""
        self._closed.set()
        self._bell.ring()
        self._bell.unsubscribe()

    def ring(self) -> None:
        """End a ``wait``; any thread."""
        self._bell.ring()

    def wait(self, timeout: float | None = None) -> None:
        """Return when a look is worth while: bell, a file settled, or ``rescan`` s passed."""
        if self._ready or self._unsynced:
            return
        now = time.monotonic()
        until = min(self._looked_at + self._rescan, self._seen.due)
        if timeout is not None:
            until = min(until, now + timeout)
        if self._bell.wait(max(0.0, until - now)):
            # In a burst the bell never stops: spend at most a third of the time on looking.
            pause = self._looked_at + min(2 * self._look_seconds, 1.0) - time.monotonic()
            if pause > 0:
                self._closed.wait(pause)

    @property
    def settling(self) -> int:
        """Job files that are seen and will be ready by themselves."""
        return self._seen.settling + len(self._ready)

    def health(self) -> dict[str, Any]:
        """``watch`` (events | polling), ``problems`` and ``notices`` in words, ``waiting`` files,
        ``hot`` folders.
        """
        problems = []
        gone, deaf = self._home.gone, self._bell.trouble
        listening = self._home.held and self._bell.alive and deaf is None
        if gone is not None:
            problems.append(gone)
        elif deaf is not None:
            problems.append(f"{deaf} The inbox is looked at every {self._rescan:g} s instead.")
        elif self._home.held and not listening:
            problems.append("The watch of the inbox ended; it is begun anew.")
        if time.monotonic() - self._bell.overflowed_at < 2 * self._rescan:
            problems.append("So many changes at once that events were lost; all files are seen.")
        if gone is None and is_read_only(self.folder):
            problems.append("The inbox is on a read-only disk; nothing can be taken from it.")
        if gone is None and not self._arrivals.leases:
            problems.append(
                "Open files cannot be told from finished ones here, so each waits longer;"
                " write elsewhere, then move the file in."
            )
        return {
            "watch": "events" if listening else "polling",
            "problems": problems + self._seen.blocked,
            "notices": list(self._seen.notices),
            "waiting": self._seen.waiting + len(self._ready),
            "overflows": self._bell.overflows,
            "hot": sorted(self._hot.folders),
        }

    def _tend(self) -> None:
        """Is the inbox still the folder that is watched, and does the watch live? Mend both.

        Raises SteadyError folder_gone or disk_full.
        """
        try:
            moved = self._home.visit()
        except SteadyError:
            self._leave()
            raise
        if moved:
            self._move_in()
        elif not self._bell.alive and self._subscribed_at + self._rescan <= time.monotonic():
            self._subscribe()

    def _leave(self) -> None:
        """Forget what was seen in a folder that is not there any more."""
        self._looked_at = time.monotonic()
        self._seen = Glance(notices=self._seen.notices, blocked=self._seen.blocked)
        self._ready.clear()
        self._arrivals.forget()
        self._hot.forget()
        self._bell.unsubscribe()
        self._bell.hush()
        self._say_changes()

    def _move_in(self) -> None:
        self._ready.clear()
        self._arrivals.forget()
        self._hot.forget()
        try:
            self._make_rooms()
            self._home.settle()
        except OSError as error:
            failure = disk_trouble(error, "The inbox cannot be used")
            self._home.lose(failure.message)
            self._leave()
            raise failure from error
        self._subscribe()
        self._sweep()
        self._bell.ring()  # subscribe first, look second: nothing falls between

    def _say_changes(self) -> None:
        """Log what is new in ``health``, and what is over."""
        health = self.health()
        now = {*health["problems"], *health["notices"]}
        for words in [*health["problems"], *health["notices"]]:
            if words not in self._said:
                say(logger, "inbox.notice", logging.WARNING, message=words)
        for words in self._said - now:
            say(logger, "inbox.over", message=words)
        self._said = now

    def _subscribe(self) -> None:
        self._subscribed_at = time.monotonic()
        self._watched = dict(self._hot.places)
        if self._bell.subscribe(self._hot.places):
            self._prove()

    def _prove(self) -> None:
        """Make a change ourselves: does the bell ring, and are leases known here?"""
        self._doubted_at = time.monotonic()
        canary = self.folder / _CANARY
        with contextlib.suppress(OSError):  # read-only or full: said when it matters
            self._bell.hears(lambda: canary.write_bytes(b""))
            self._arrivals.leases = self._hot.leases = leases_work(canary)
        with contextlib.suppress(OSError):
            os.unlink(canary)

    # -- claiming

    def scan(self, limit: int = 4 * _CHUNK) -> list[Claim]:
        """Take what is ready: at most ``limit`` claims, durable, oldest first; [] when none.

        Call again until it returns []: what one look found is used up before the next look.
        Also mends the watch; ``limit=0`` looks and mends only. Raises SteadyError
        folder_gone or disk_full; claims made before the error are handed out later.
        A crash leaves claimed files to ``leftovers``.
        """
        self._tend()
        if self._owing:
            self._unsynced.extend(self.leftovers())
        if not self._ready:
            self._look()
        while self._ready and len(self._unsynced) < limit:
            self._claim_chunk(min(_CHUNK, limit - len(self._unsynced)))
        if self._unsynced:
            self._sync_claims()
        claims, self._unsynced = self._unsynced, []
        return claims

    def _look(self) -> None:
        rang = self._bell.hush()
        begun = time.monotonic()
        try:
            hot = self._hot.look(begun)
            glance = self._arrivals.look(begun, {DONE, REFUSED, *self._hot.names})
        except OSError as error:
            failure = self._home.lose(f"The inbox cannot be read ({reason(error)}).")
            self._leave()
            raise failure from error
        glance.add(hot)
        if self._watched != self._hot.places:
            self._subscribe()
            self._bell.ring()  # subscribe first, look second
        self._looked_at = time.monotonic()
        self._look_seconds = self._looked_at - begun
        self._ready.extend(glance.ready)
        self._seen = glance
        silent = glance.fresh > 0 and not rang  # a file came, and no bell had rung
        if (silent or self._bell.trouble) and begun - self._doubted_at > _DOUBT_SECONDS:
            if not self._bell.trouble:
                self._prove()
            if self._bell.trouble:
                self._subscribe()
        self._say_changes()

    def _claim_chunk(self, size: int) -> None:
        with disk_errors("A file cannot be claimed"):
            for _ in range(min(size, len(self._ready))):
                claim = self._claim(self._ready.popleft())
                if claim is not None:
                    self._unsynced.append(claim)
                    reached("claimed")
        self._sync_claims()
        reached("claim_synced")

    def _sync_claims(self) -> None:
        """Before any row: the new names are durable, then the old ones go, durably. So a power cut
        leaves one of them at least, and none that comes back when its file has run.
        """
        with disk_errors("The inbox cannot be written"):
            for room in {claim.folder for claim in self._unsynced}:
                publish.sync_folder(room)
            for source in list(self._doubled):
                self._take(source)
            takeover.sync({self.folder / claim.hot for claim in self._unsynced})

    def _claim(self, arrival: Arrival) -> Claim | None:
        """Give it its name in ``.claimed``; None when it has to wait or went away."""
        arrivals = self._hot.folders[arrival.hot] if arrival.hot else self._arrivals
        source = arrivals.folder / arrival.name
        if source in self._doubled:
            return None  # trouble came before ``_take``, which goes on with it
        again_at = arrivals.confirm(arrival)
        room = self.folder / CLAIMED
        if again_at is None and arrival.hot:
            preset = self._hot.preset(arrival.hot)
            if preset is None:
                again_at = time.monotonic() + self._rescan  # being written: heard of, or seen then
            else:
                room = self._room(arrival.hot, preset)
        if again_at is not None:
            self._seen.put_off(again_at)
            return None
        target = room / entry_of(arrival.ticket or str(uuid.uuid4()), arrival.name)
        if arrival.ticket and (self._in_work(arrival.ticket) or os.path.lexists(target)):
            self._seen.put_off()
            return None  # a repeat: judged when the first has ended
        link = publish.by_link if arrival.size > 0 and publish.by_link in self._ways else None
        try:
            try:
                doubled = takeover.begin(source, target, link=link)
            except FileNotFoundError:
                if not os.path.lexists(source):
                    return None  # taken back in this very moment
                self._make_rooms()
                doubled = takeover.begin(source, target, link=link)
        except OSError as error:
            self._block(arrivals, arrival, error)
            return None
        if doubled:
            self._doubled[source] = target, arrivals, arrival
        else:
            arrivals.taken(arrival)
        if arrival.ticket and arrival.size == 0 and os.lstat(target).st_size == 0:
            os.unlink(target)  # a name reserved by a submitter that died; it holds nothing
            return None
        return claim_of(target.parent, target.name, arrival.size)

    def _take(self, source: Path) -> None:
        """Remove the old name of a claim. What was taken back, or cannot be moved, is none."""
        target, arrivals, arrival = self._doubled[source]
        try:
            takeover.end(source, target)
            arrivals.taken(arrival)
        except OSError as error:
            self._home.guard()
            if os.path.lexists(source):
                self._block(arrivals, arrival, error)
            target.unlink(missing_ok=True)
            self._unsynced = [claim for claim in self._unsynced if claim.path != target]
        del self._doubled[source]
        reached("claim_taken")

    def _block(self, arrivals: Arrivals, arrival: Arrival, error: OSError) -> None:
        if error.errno not in _UNMOVABLE:
            raise error
        arrivals.block(arrival, f"cannot be taken and does not run ({reason(error)})")
        self._seen.waiting += 1

    def leftovers(self) -> list[Claim]:
        """Everything in ``.claimed``, oldest claim first: at start, what an earlier run left.

        While the inbox is gone they are owed: the first ``scan`` after it is back gives them.
        """
        self._owing = True
        try:
            self._home.guard()
            found = takeover.leftovers(self.folder)
        except (OSError, SteadyError):
            return []
        self._owing = False
        return found

    def find(self, ticket: str, name: str = "", suffix: str = "") -> Claim | None:
        """The claim with this ticket, while its file lies in ``.claimed``; with the name it was
        archived under also when it lies in ``done/``.
        """
        try:
            self._home.guard()
            return file_of(self.folder, ticket, name, suffix)
        except (OSError, SteadyError):
            return None

    def holds(self, ticket: str) -> bool:
        """Is the file of our own making with this ticket here, waiting or in work?

        Raises SteadyError folder_gone when nobody can say.
        """
        self._home.guard()
        here = any(self.folder.glob(f"api-{ticket}*")) or self._in_work(ticket) is not None
        self._home.guard()
        return here

    # -- reading

    def read(self, claim: Claim, limit: int) -> bytes:
        """The whole content, at most ``limit`` bytes; the size is checked before memory is spent.

        Raises SteadyError not_a_regular_file, too_large, empty_file, unreadable (also when
        it never stops changing or was taken away), or folder_gone.
        """
        try:
            return read_claim(claim, limit)
        except FileNotFoundError:
            raise self._vanished() from None

    def open_stream(self, claim: Claim, limit: int) -> BinaryIO:
        """The content as a buffered stream, for tables; errors as ``read``. The caller closes."""
        try:
            return open_claim(claim, limit)
        except FileNotFoundError:
            raise self._vanished() from None

    def _vanished(self) -> SteadyError:
        try:
            self._home.guard()
        except SteadyError as gone:
            return gone
        return SteadyError("unreadable", "The file was taken away before it was read.")
