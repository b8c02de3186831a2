"""The folder as an interface: files land, are claimed, and end in ``done/`` or ``refused/``.

    inbox/x.yaml                        somebody's file, or api-<ticket>.json of our own making
    inbox/.claimed/<ticket>~x.yaml      ours: the rename is the claim, the name carries the id
    inbox/done/YYYYMMDD/x~<ticket8>.yaml    all its jobs ended; .result.json beside it
    inbox/refused/x.yaml                nothing of it ran; x.yaml.error.json says why

A job file is always in exactly one of these, and leaves ``inbox/`` before any row of the
record exists. The folder is the truth: events only ring a bell (``bell``), readiness is
judged by looking (``arrivals``), nothing that matters is kept in memory. All moves stay
inside ``inbox/``, which is therefore one file system. Knows nothing of what files mean.
"""

import contextlib
import errno
import json
import os
import re
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from watcher import publish
from watcher.arrivals import (
    Arrival,
    Arrivals,
    Writer,
    display,
    ignore_lease_signal,
    own_ticket,
    signature_of,
    writer_of,
)
from watcher.bell import Bell
from watcher.errors import SteadyError
from watcher.lock import RootLock, held, holder

__all__ = [
    "JOB_SUFFIXES",
    "Claim",
    "Inbox",
    "RootLock",
    "held",
    "holder",
    "ignore_lease_signal",
    "submit",
]

#: What is taken, in any case; everything else is left alone.
JOB_SUFFIXES = frozenset(
    {".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".png", ".webp", ".jpg", ".jpeg"}
)

MARKER = ".steady"  #: lies in every inbox of ours: an empty mount point has none
_CANARY = ".steady-canary"
_TMP, _CLAIMED, _DONE, _REFUSED = ".tmp", ".claimed", "done", "refused"

_CHUNK = 256  #: claims that share one pair of syncs
_NAME_BYTES = 180  #: of a person's file name that are kept
_STALE_SECONDS = 3600.0  #: age of a submitter's temporary file that nobody will publish any more
_DOUBT_SECONDS = 60.0  #: between proofs that a silent bell still works
_CLAIM_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})~(.+)", re.DOTALL)

#: One file cannot be moved (sticky folder, read-only, in use): its own matter, not the disk's.
_UNMOVABLE = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY, errno.ETXTBSY}


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that is ours. ``name`` is for people and records; ``path`` is where it lies."""

    ticket: str
    name: str  #: valid UTF-8, one line, at most 180 bytes of the original
    suffix: str  #: lower case, with the dot
    source: str  #: "file", or "cli" for files of our own making (the API reserves its rows before)
    size: int  #: bytes, at the claim
    folder: Path
    entry: str  #: its name in ``folder``, as the file system has it

    @property
    def path(self) -> Path:
        return self.folder / self.entry

    @property
    def stem(self) -> str:
        """``name`` without its suffix."""
        return os.path.splitext(self.name)[0]


def submit(
    inbox: Path,
    data: bytes,
    suffix: str,
    ticket: str,
    *,
    ways: tuple[publish.Way, ...] = publish.WAYS,
) -> Path:
    """Put ``data`` into ``inbox`` as ``api-<ticket><suffix>``, whole or not at all, durably.

    Any process may call this, with or without a watcher. The same ticket again is fine and
    changes nothing. Raises SteadyError disk_full or folder_gone. A crash leaves at most a
    temporary file, which the watcher sweeps.
    """
    final = inbox / f"api-{ticket}{suffix}"
    temporary = inbox / _TMP / f"submit-{uuid.uuid4().hex}"
    with _disk("The inbox cannot be written"):
        inbox.mkdir(exist_ok=True)
        temporary.parent.mkdir(exist_ok=True)
        try:
            publish.write_synced(temporary, data)
            try:
                publish.publish(temporary, final, ways=ways)
            except FileExistsError:
                if os.lstat(final).st_size == 0:
                    # a copying publish died between reserving the name and filling it
                    os.replace(temporary, final)
                    publish.sync_folder(inbox)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return final


class Inbox:
    """The watcher's side of the folder. One instance a process; opened under the RootLock.

    ``wait``, ``scan`` and ``read`` belong to one thread (the intake); ``ring``, ``health``,
    ``archive``, ``discard`` and ``refuse`` may be called from any.

    Args:
        settle: seconds a file must lie unchanged (at least 10 where leases do not work).
        rescan: seconds between looks that no event asked for.
        checkpoint: called with the step's name after ``claimed``, ``claim_synced``,
            ``archived_moved``, ``sidecar_written``, ``refused_moved``.
        ways: how files are published, see ``publish``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settle: float,
        rescan: float,
        checkpoint: Callable[[str], None] = lambda _step: None,
        ways: tuple[publish.Way, ...] = publish.WAYS,
        settle_blind: float = 10.0,
        empty_grace: float = 30.0,
        room: int = 20_000,
    ) -> None:
        self._folder = folder
        self._rescan = rescan
        self._checkpoint = checkpoint
        self._ways = ways
        self._bell = Bell(folder)
        self._arrivals = Arrivals(
            folder,
            suffixes=JOB_SUFFIXES,
            settle=settle,
            settle_blind=settle_blind,
            empty_grace=empty_grace,
            room=room,
        )
        self._first = False
        self._home: _Place | None = None  #: where the inbox lay when it was last ours
        self._here: _Place | None = None  #: what is watched now; None while it is gone
        self._gone: str | None = None  #: why there is no inbox at the moment, in words
        self._ready: deque[Arrival] = deque()  #: settled in the last look, not yet claimed
        self._unsynced: list[Claim] = []  #: renamed, not yet handed out
        self._notices: list[str] = []
        self._blocked: list[str] = []
        self._waiting = 0
        self._settling = 0
        self._due = 0.0
        self._look_seconds = 0.0
        self._looked_at = float("-inf")
        self._doubted_at = float("-inf")
        self._subscribed_at = float("-inf")
        self._closed = threading.Event()

    # -- the watch

    def open(self, *, first: bool = True) -> None:
        """Make the folders, leave the mark, hear the bell. Troubles that may heal do not raise.

        ``first``: nothing in the record says that files of ours lie here, so a folder
        without the mark is made ours. With False such a folder is taken for the mount
        point of a disk that is absent, and only looked at until the mark appears.
        """
        self._first = first
        with contextlib.suppress(SteadyError):
            if first:
                with _disk("The inbox cannot be made"):
                    self._folder.mkdir(parents=True, exist_ok=True)
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
        until = min(self._looked_at + self._rescan, self._due)
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
        return self._settling + len(self._ready)

    def health(self) -> dict[str, Any]:
        """``watch`` (events | polling), ``problems`` and ``notices`` in words, ``waiting`` files."""
        problems = []
        if self._gone is not None:
            problems.append(self._gone)
        elif self._bell.trouble is not None:
            problems.append(
                f"{self._bell.trouble} The inbox is looked at every {self._rescan:g} seconds instead."
            )
        if time.monotonic() - self._bell.overflowed_at < 2 * self._rescan:
            problems.append("Too many changes at once: events were lost, the folder is looked through.")
        if not self._arrivals.leases and self._gone is None:
            problems.append(
                "Open files cannot be told from finished ones here, so each waits longer;"
                " write elsewhere, then move the file in."
            )
        watching = self._here is not None and self._bell.trouble is None
        return {
            "watch": "events" if watching else "polling",
            "problems": problems + self._blocked,
            "notices": list(self._notices),
            "waiting": self._waiting + len(self._ready),
            "overflows": self._bell.overflows,
        }

    def _tend(self) -> None:
        """Is the inbox still the folder that is watched, and does the watch live? Mend both.

        Raises SteadyError folder_gone or disk_full.
        """
        try:
            place = _place_of(self._folder)
        except OSError as error:
            raise self._lost(
                f"The inbox is not there ({os.strerror(error.errno or 0)})."
            ) from error
        if place != self._here:
            self._move_in(place)
        elif not self._bell.alive and self._since_subscribing() >= min(self._rescan, 5.0):
            self._subscribe()

    def _lost(self, words: str) -> SteadyError:
        self._here = None
        self._gone = words
        self._waiting = self._settling = 0
        self._ready.clear()
        self._due = float("inf")
        self._arrivals.forget()
        self._bell.unsubscribe()
        return SteadyError("folder_gone", words)

    def _move_in(self, place: "_Place") -> None:
        """Another folder, or the old one again, lies under our path: is it ours?"""
        self._here = None
        self._ready.clear()
        self._arrivals.forget()
        mark = self._folder / MARKER
        if not os.path.lexists(mark):
            home = self._home
            known = self._first if home is None else place.device == home.device
            if not known:
                raise self._lost(
                    "The inbox is there but without its mark, as if its disk were absent."
                    f" If it is the right folder, create an empty file `{MARKER}` in it."
                )
        try:
            for name in (_TMP, _CLAIMED, _DONE, _REFUSED):
                _real_folder(self._folder / name)
            if not os.path.lexists(mark):
                mark.write_bytes(b"This folder is the inbox of SteadyDiffusion.\n")
        except OSError as error:
            failure = _environment(error, "The inbox cannot be used")
            self._lost(failure.message)
            raise failure from error
        self._home = self._here = place
        self._gone = None
        self._subscribe()
        self._sweep_tmp()
        self._bell.ring()  # subscribe first, look second: nothing falls between

    def _since_subscribing(self) -> float:
        return time.monotonic() - self._subscribed_at

    def _subscribe(self) -> None:
        self._subscribed_at = time.monotonic()
        if self._bell.subscribe():
            self._prove()

    def _prove(self) -> None:
        """Make a change ourselves: does the bell ring, and are leases known here?"""
        self._doubted_at = time.monotonic()
        canary = self._folder / _CANARY
        try:
            self._bell.hears(lambda: canary.write_bytes(b""))
            self._arrivals.leases = writer_of(canary) is Writer.NONE
        except OSError:
            pass  # read-only or full: shown when it matters
        finally:
            with contextlib.suppress(OSError):
                os.unlink(canary)

    def _sweep_tmp(self) -> None:
        """Remove temporary files nobody will publish: ours at once, submitters' after an hour."""
        mine = self._folder / _TMP / f"watcher-{uuid.uuid4().hex}"
        try:
            mine.write_bytes(b"")
            now = os.lstat(mine).st_mtime  # the file system's own clock
            with os.scandir(self._folder / _TMP) as entries:
                for entry in entries:
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    if entry.name.startswith("watcher-") or age > _STALE_SECONDS:
                        os.unlink(entry.path)
        except OSError:
            pass  # what is left does no harm

    # -- claiming

    def scan(self, limit: int = 4 * _CHUNK) -> list[Claim]:
        """Take what is ready: at most ``limit`` claims, durable, oldest first; [] when none.

        Call again until it returns []: a look at a big folder is used up before the next
        begins. Also mends the watch; ``limit=0`` does only that. Raises SteadyError
        folder_gone or disk_full; claims made before the error are handed out later.
        A crash leaves claimed files to ``leftovers``.
        """
        self._tend()
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
            glance = self._arrivals.look(begun)
        except OSError as error:
            self._looked_at = time.monotonic()
            raise self._lost(
                f"The inbox cannot be read ({os.strerror(error.errno or 0)})."
            ) from error
        self._looked_at = time.monotonic()
        self._look_seconds = self._looked_at - begun
        self._ready.extend(glance.ready)
        self._waiting, self._settling, self._due = glance.waiting, glance.settling, glance.due
        self._notices, self._blocked = glance.notices, glance.blocked
        silent = glance.fresh and not rang and self._bell.trouble is None
        if (silent or self._bell.trouble) and begun - self._doubted_at > _DOUBT_SECONDS:
            # a file came and no bell rang, or nothing rang when last tried: ask again
            self._prove()
            if self._bell.trouble:
                self._subscribe()

    def _claim_chunk(self, size: int) -> None:
        try:
            for _ in range(size):
                if not self._ready:
                    break
                arrival = self._ready.popleft()
                claim = self._claim(arrival)
                if claim is not None:
                    self._unsynced.append(claim)
                    self._checkpoint("claimed")
        except OSError as error:
            raise _environment(error, "A file cannot be claimed") from error
        self._sync_claims()
        self._checkpoint("claim_synced")

    def _sync_claims(self) -> None:
        """Both folders, before any row: else a power cut could put a file back that ran."""
        with _disk("The inbox cannot be written"):
            publish.sync_folder(self._folder / _CLAIMED)
            publish.sync_folder(self._folder)

    def _claim(self, arrival: Arrival) -> Claim | None:
        now = time.monotonic()
        if not self._arrivals.confirm(arrival, now):
            self._due = min(self._due, now + 0.05 if arrival.ticket else self._due)
            return None
        ticket = arrival.ticket or str(uuid.uuid4())
        if arrival.ticket and self._in_work(arrival.ticket):
            return None  # a repeat; judged when the first has ended
        name = _cut(arrival.name, _NAME_BYTES)
        entry = f"{ticket}~{name}"
        source, target = self._folder / arrival.name, self._folder / _CLAIMED / entry
        try:
            os.rename(source, target)
        except FileNotFoundError:
            if not os.path.lexists(source):
                return None  # taken back in this very moment
            _real_folder(target.parent)
            os.rename(source, target)
        except OSError as error:
            if error.errno not in _UNMOVABLE:
                raise
            self._arrivals.block(
                arrival, f"cannot be taken ({os.strerror(error.errno or 0)}) and does not run", now
            )
            return None
        if arrival.ticket and arrival.size == 0 and os.lstat(target).st_size == 0:
            os.unlink(target)  # a name reserved by a submitter that died; it holds nothing
            return None
        return _claim_of(self._folder / _CLAIMED, entry, arrival.size)

    def _in_work(self, ticket: str) -> bool:
        return any(
            os.path.lexists(self._folder / _CLAIMED / f"{ticket}~api-{ticket}{suffix}")
            for suffix in JOB_SUFFIXES
        )

    def leftovers(self) -> list[Claim]:
        """Everything in ``.claimed``, oldest claim first: at start, what an earlier run left.

        [] while the inbox is gone.
        """
        found: list[tuple[int, Claim]] = []
        folder = self._folder / _CLAIMED
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _CLAIM_NAME.fullmatch(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        claim = _claim_of(folder, entry.name, status.st_size)
                        found.append((status.st_ctime_ns, claim))
        except OSError:
            return []
        found.sort(key=lambda pair: (pair[0], pair[1].entry))
        return [claim for _, claim in found]

    # -- reading

    def read(self, claim: Claim, limit: int) -> bytes:
        """The whole content, at most ``limit`` bytes; the size is checked before memory is spent.

        Raises SteadyError not_a_regular_file, too_large, empty_file, unreadable (also when
        it never stops changing), or folder_gone.
        """
        for _ in range(5):
            with self.open_stream(claim, limit) as stream:
                before = signature_of(os.fstat(stream.fileno()))
                with _disk("A claimed file cannot be read"):
                    data = stream.read(limit + 1)
                after = signature_of(os.fstat(stream.fileno()))
            if before == after and len(data) == before[1]:
                return data
            self._closed.wait(0.15)  # a writer that kept the file open across the claim
        raise SteadyError("unreadable", "The file kept changing while it was read.")

    def open_stream(self, claim: Claim, limit: int) -> BinaryIO:
        """The content as a buffered stream, for tables; errors as ``read``. The caller closes."""
        flags = os.O_RDONLY
        for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
            flags |= getattr(os, name, 0)
        try:
            # opening a device may already do something: look first
            if not stat.S_ISREG(os.lstat(claim.path).st_mode):
                raise SteadyError("not_a_regular_file")
            fd = os.open(claim.path, flags)
        except PermissionError:
            raise SteadyError("unreadable") from None
        except FileNotFoundError:
            self._tend()
            raise SteadyError("unreadable", "The file was taken away before it was read.") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise SteadyError("not_a_regular_file") from None
            raise _environment(error, "A claimed file cannot be read") from error
        stream = os.fdopen(fd, "rb")
        status = os.fstat(fd)
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = SteadyError("not_a_regular_file")
        elif status.st_size == 0:
            problem = SteadyError("empty_file")
        elif status.st_size > limit:
            problem = SteadyError(
                "too_large", f"The file has {status.st_size:,} bytes; {limit:,} are allowed."
            )
        if problem is not None:
            stream.close()
            raise problem
        return stream

    # -- setting aside

    def archive(
        self,
        claim_ticket: str,
        name: str,
        suffix: str,
        *,
        day: str,
        result: Iterable[bytes],
        table: Iterable[bytes] | None = None,
        refused: Iterable[bytes] | None = None,
    ) -> None:
        """Move a finished file to ``done/<day>/`` and write its results beside it.

        ``<stem>~<ticket8><suffix>``, ``….result.json`` (pieces of ``result``, streamed),
        ``….result.csv`` (``table``), ``….refused.csv`` (``refused``). May be called again
        after a crash at any step, and after a retry on another day: the results are then
        written anew where the file lies. Raises SteadyError folder_gone or disk_full.
        """
        self._guard()
        stem = f"{_cut(_file_stem(name), _NAME_BYTES)}~{claim_ticket[:8]}"
        with _disk("The inbox cannot be written"):
            source = self._claimed(claim_ticket, name)
            home = self._done_folder(stem + suffix, day)
            if source is not None:
                self._move(source, home / (stem + suffix))
            self._checkpoint("archived_moved")
            for ending, parts in (
                (".refused.csv", refused),
                (".result.csv", table),
                (f"{suffix}.result.json", result),
            ):
                if parts is not None:
                    self._write(home / (stem + ending), parts)
            self._checkpoint("sidecar_written")

    def discard(self, claim_ticket: str) -> None:
        """Remove a claimed file that is not kept (our own making, or recorded before).

        Idempotent. Raises SteadyError folder_gone.
        """
        self._guard()
        with _disk("The inbox cannot be written"):
            for path in self._claimed_any(claim_ticket):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            self._checkpoint("archived_moved")

    def refuse(self, claim: Claim, body: dict[str, Any]) -> Path:
        """Move a file of which nothing ran to ``refused/``, ``<name>.error.json`` beside it.

        A taken name gets ``_2``, ``_3``, …. The reason is written first and names the
        ticket, so a second call after a crash finds its place again. Returns where the
        file lies. Raises SteadyError folder_gone or disk_full.
        """
        self._guard()
        name = claim.entry.partition("~")[2]
        if own_ticket(name, JOB_SUFFIXES):
            # back in the inbox it must be a plain new file, not a repeat of this ticket
            name = f"submitted-{claim.ticket}{claim.suffix}"
        body = {"file": claim.name, "ticket": claim.ticket} | body
        with _disk("The inbox cannot be written"):
            path = self._refused_place(name, claim.ticket)
            sidecar = path.with_name(path.name + ".error.json")
            text = json.dumps(body, ensure_ascii=False, indent=1)
            self._write(sidecar, [text.encode("utf-8", "backslashreplace"), b"\n"])
            self._checkpoint("sidecar_written")
            if os.path.lexists(claim.path):
                self._move(claim.path, path)
            self._checkpoint("refused_moved")
        return path

    def _guard(self) -> None:
        """Never write into what may be an empty mount point."""
        try:
            place = _place_of(self._folder)
        except OSError:
            place = None
        if place is None or place != self._here:
            self._bell.ring()
            raise SteadyError("folder_gone", self._gone or "The inbox is not there.")

    def _claimed(self, ticket: str, name: str) -> Path | None:
        """Where the claimed file lies, or None when it was moved before."""
        path = self._folder / _CLAIMED / f"{ticket}~{name}"
        if os.path.lexists(path):
            return path
        if "\\" in name:  # shown differently from what the file system has: look for it
            return next(self._claimed_any(ticket), None)
        return None

    def _claimed_any(self, ticket: str) -> Iterator[Path]:
        folder = self._folder / _CLAIMED
        for suffix in JOB_SUFFIXES:
            path = folder / f"{ticket}~api-{ticket}{suffix}"
            if os.path.lexists(path):
                yield path
                return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(f"{ticket}~"):
                    yield folder / entry.name

    def _done_folder(self, file: str, day: str) -> Path:
        """The day's folder, or the one where an earlier archiving put ``file``."""
        done = self._folder / _DONE
        today = done / day
        if not os.path.lexists(today / file):
            with os.scandir(done) as days:
                for entry in days:
                    if os.path.lexists(os.path.join(entry.path, file)):
                        return Path(entry.path)
        _real_folder(today)
        return today

    def _refused_place(self, name: str, ticket: str) -> Path:
        folder = self._folder / _REFUSED
        stem, suffix = os.path.splitext(name)
        number = 1
        while True:
            path = folder / (name if number == 1 else f"{stem}_{number}{suffix}")
            sidecar = path.with_name(path.name + ".error.json")
            if not os.path.lexists(path) or _ticket_in(sidecar) == ticket:
                return path
            number += 1

    def _move(self, source: Path, target: Path) -> None:
        """Give a claimed file its last name; finishes what an earlier call began."""
        try:
            publish.publish(source, target, ways=self._ways)
        except FileExistsError:
            # Ours: both names of one file, or a reservation, of a publish that was cut off.
            if os.path.samestat(os.lstat(source), os.lstat(target)):
                os.unlink(source)
            else:
                os.replace(source, target)
            publish.sync_folder(target.parent)
        publish.sync_folder(source.parent)

    def _write(self, path: Path, parts: Iterable[bytes]) -> None:
        """``publish.replace`` for content that comes in pieces."""
        temporary = self._folder / _TMP / f"watcher-{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                publish.sync_fd(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        publish.sync_folder(path.parent)


@dataclass(frozen=True)
class _Place:
    """Which folder a path leads to: ``device`` says which disk through which mount."""

    device: tuple[int, int]
    inode: int


def _place_of(folder: Path) -> _Place:
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return _Place((found.st_dev, _mount_of(folder)), found.st_ino)


def _mount_of(folder: Path) -> int:
    """The id of the mount, where the system tells it: bind mounts share a device number."""
    if not hasattr(os, "O_PATH"):
        return 0
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key == "mnt_id":
                    return int(value)
    except (FileNotFoundError, PermissionError):
        pass  # no /proc
    finally:
        os.close(fd)
    return 0


def _real_folder(path: Path) -> None:
    """Make ``path`` a folder; one that is a link could lead our writes anywhere."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"`{path.name}` must be a real folder")


def _claim_of(folder: Path, entry: str, size: int) -> Claim:
    ticket, _, name = entry.partition("~")
    ours = own_ticket(name, JOB_SUFFIXES) == ticket
    return Claim(
        ticket=ticket,
        name=display(name),
        suffix=os.path.splitext(name)[1].lower(),
        source="cli" if ours else "file",
        size=size,
        folder=folder,
        entry=entry,
    )


def _cut(name: str, most: int) -> str:
    """``name`` in at most ``most`` bytes, its suffix kept, no character cut in two."""
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    stem, suffix = os.path.splitext(name)
    room = most - len(os.fsencode(suffix))
    kept = os.fsencode(stem)[:room]
    while kept and (os.fsencode(stem)[len(kept) : len(kept) + 1] or b"a")[0] & 0xC0 == 0x80:
        kept = kept[:-1]
    return os.fsdecode(kept) + suffix


def _file_stem(name: str) -> str:
    """The display name's stem as part of a new file name."""
    return os.path.splitext(name)[0].replace("\\", "_").replace("/", "_")


def _ticket_in(sidecar: Path) -> str | None:
    try:
        body = json.loads(sidecar.read_bytes())
    except (OSError, ValueError):
        return None
    return body.get("ticket") if isinstance(body, dict) else None


@contextlib.contextmanager
def _disk(what: str) -> Iterator[None]:
    """OSErrors of the file system become environment errors: nothing is lost, all waits."""
    try:
        yield
    except OSError as error:
        raise _environment(error, what) from error


def _environment(error: OSError, what: str) -> SteadyError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = os.strerror(error.errno) if error.errno else str(error)
    return SteadyError("disk_full" if full else "folder_gone", f"{what}: {reason}.")
