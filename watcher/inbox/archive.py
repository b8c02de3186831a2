"""Where claimed files go in the end: ``done/`` with their results, ``refused/`` with a reason.

    done/YYYYMMDD/<stem>~<ticket8><suffix>    its jobs ended; beside it .result.json, .result.csv
    done/YYYYMMDD/<stem>~<ticket8>.refused.csv    rows of it that could not run, with the reason
    refused/<name>                            nothing of it ran; beside it <name>.error.json

Every step may be done again: a crash between any two is finished by the next call.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from watcher import publish
from watcher.checkpoints import reached
from watcher.folder import Folder, real_folder
from watcher.inbox.claims import PRESET, ROOM, Claim, claim_of, cut, own_ticket
from watcher.publish import disk_errors
from watcher.suffixes import JOB_SUFFIXES

MARK = ".steady"  #: tells our inbox from the bare mount point below it
#: Its rooms: half-written files, files in work, finished ones, refused ones; and refused rows.
TMP, CLAIMED, DONE, REFUSED, ROWS = ".tmp", ".claimed", "done", "refused", ".rows"
_WORDS = b"This folder is the inbox of SteadyDiffusion.\n"  #: what the mark says
_OURS = "watcher-"  #: begins the names of our own temporary files
_STALE_SECONDS = 3600.0  #: age of a submitter's temporary file that nobody publishes any more
_MOST_ALIKE = 9  #: refused files of one name that are numbered; later ones carry their ticket


class Shelves:
    """The folders inside ``inbox``, and what is put into them; any thread. Part of ``Inbox``."""

    def __init__(self, inbox: Path, *, ways: tuple[publish.Way, ...]) -> None:
        self.folder = inbox
        self._home = Folder(inbox, name="inbox", mark=MARK, fresh=lambda: _WORDS)
        self._tmp = inbox / TMP
        self._claimed = inbox / CLAIMED
        self._done = inbox / DONE
        self._refused = inbox / REFUSED
        self._ways = ways
        self._synced: set[Path] = set()  #: folders whose own names are known to be durable
        self._refusing = threading.Lock()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, the inbox is ours and has all its folders; SteadyError folder_gone, disk_full."""
        self._home.guard()
        with disk_errors("The inbox cannot be written"):
            self._make_rooms()
            yield

    def _make_rooms(self) -> None:
        """Create the folders that are missing; NotADirectoryError when one is something else."""
        for folder in (self._tmp, self._claimed, self._done, self._refused):
            self._make(folder)

    def _make(self, folder: Path) -> None:
        """A folder whose name outlives a power cut, so that what is moved into it does."""
        if real_folder(folder) or folder not in self._synced:
            publish.sync_folder(folder.parent)
            self._synced.add(folder)

    def _room(self, name: str, preset: bytes) -> Path:
        """Where files of the hot folder ``name`` are claimed to, with its preset beside them.

        The room is named after the preset's content, so what a claimed file was to become is
        known as long as the file lies there, whatever happens to the preset meanwhile.
        """
        digest = hashlib.sha256(preset).hexdigest()[:16]
        room = self._claimed / f"{name}{ROOM}{digest}"
        self._make(room)
        if not os.path.lexists(room / PRESET):
            self._write(room / PRESET, [preset])
            reached("preset_kept")
        return room

    def _sweep(self) -> None:
        """Remove what nobody needs any more: rooms without a file, and temporary files nobody
        will publish, ours at once, submitters' after an hour.
        """
        for room in self._rooms("*"):
            with contextlib.suppress(OSError):
                if os.listdir(room) in ([], [PRESET]):
                    (room / PRESET).unlink(missing_ok=True)
                    room.rmdir()
                    self._synced.discard(room)
        mine = self._temporary()
        with contextlib.suppress(OSError):  # what is left does no harm
            mine.write_bytes(b"")
            now = os.lstat(mine).st_mtime  # the file system's own clock
            with os.scandir(self._tmp) as entries:
                for entry in entries:
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    if entry.name.startswith(_OURS) or age > _STALE_SECONDS:
                        os.unlink(entry.path)

    def archive(
        self,
        claim_ticket: str,
        name: str,
        suffix: str,
        *,
        day: str,
        beside: Iterable[tuple[str, Iterable[bytes]]] = (),
    ) -> None:
        """Move a finished file to ``done/<day>/`` and write its results beside it.

        ``<stem>~<ticket8><suffix>``, and ``<stem>~<ticket8><end>`` of each ``beside`` (end, pieces,
        which are streamed), which is removed when there are no pieces. May be called again after a
        crash at any step, and after a retry on another day: the results are then written anew where
        the file lies. Raises SteadyError folder_gone or disk_full.
        """
        stem = _stem_in_done(claim_ticket, name)
        file = stem + suffix
        with self._writing():
            source = self._find(claim_ticket, name)
            home = self._day_of(file, day)
            if source is not None:
                self._move(source, home / file)
                self._forget_reason(name)
            reached("archived_moved")
            for end, parts in beside:
                path, pieces = home / f"{stem}{end}", iter(parts)
                first = next(pieces, None)
                if first is None:
                    path.unlink(missing_ok=True)
                else:
                    self._write(path, itertools.chain([first], pieces))
            reached("sidecar_written")

    def keep_refused(self, ticket: str, rows: Iterable[bytes]) -> None:
        """Have the rows of a batch that cannot be used here, as lines; over those of before.

        A crash leaves those of before, or these. Raises SteadyError folder_gone or disk_full.
        """
        with self._writing():
            path = refused_rows(self.folder, ticket)
            self._make(path.parent)
            self._write(path, rows)

    def discard(self, claim_ticket: str) -> None:
        """Remove a claimed file that is not kept (our own making, or recorded before).

        Durable and idempotent. Raises SteadyError folder_gone or disk_full.
        """
        with self._writing():
            for path in self._all_of(claim_ticket):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            publish.sync_folder(self._claimed)  # its batch may be forgotten: it must not come back
            reached("archived_moved")

    def refuse(self, claim: Claim, body: dict[str, Any]) -> Path:
        """Move a file of which nothing ran to ``refused/``, ``<name>.error.json`` beside it.

        A taken name gets ``_2``, ``_3``, …. The reason is written first and names the
        ticket, so a second call after a crash finds its place again. A file of our own
        making becomes ``submitted-<ticket><suffix>``. Returns where the file lies. Raises
        SteadyError folder_gone or disk_full.
        """
        name = claim.entry.partition("~")[2]
        if own_ticket(name):
            # back in the inbox it must be a plain new file, not a repeat of this ticket
            name = _submitted(claim.ticket, claim.suffix)
        said = {"file": claim.name, "ticket": claim.ticket} | body
        text = json.dumps(said, ensure_ascii=False, indent=1)
        with self._writing(), self._refusing:
            path = self._place(name, claim.ticket)
            self._write(_reason_beside(path), [text.encode("utf-8", "backslashreplace"), b"\n"])
            reached("sidecar_written")
            if os.path.lexists(claim.path):
                self._move(claim.path, path)
            reached("refused_moved")
        return path

    def _forget_reason(self, name: str) -> None:
        """Remove why a file ``name`` was refused, once it was mended, taken and is no longer there."""
        path = self._refused / os.path.basename(name)
        with self._refusing, contextlib.suppress(OSError):
            if not os.path.lexists(path):
                _reason_beside(path).unlink(missing_ok=True)

    def put_away(self, claim: Claim) -> bool:
        """Does the file of ``claim`` lie in ``done/`` as well? SteadyError folder_gone."""
        with self._writing():
            return _kept_in(self._done, claim.ticket, claim.name, claim.suffix) is not None

    def _in_work(self, ticket: str) -> Path | None:
        """Where the claimed file of our own making with this ticket lies, if it does."""
        for suffix in JOB_SUFFIXES:
            path = self._claimed / f"{ticket}~api-{ticket}{suffix}"
            if os.path.lexists(path):
                return path
        return None

    def _find(self, ticket: str, name: str) -> Path | None:
        """Where the claimed file lies, or None when it was moved before."""
        preset, _, plain = name.rpartition("/")
        for room in self._rooms(glob.escape(preset)) if preset else [self._claimed]:
            path = room / f"{ticket}~{plain}"
            if os.path.lexists(path):
                return path
        if "\\" in name:  # shown differently from what the file system has: look for it
            return next(self._all_of(ticket), None)
        return None

    def _rooms(self, name: str) -> Iterator[Path]:
        """The rooms of hot folders whose name fits the pattern ``name``."""
        return self._claimed.glob(f"{name}{ROOM}*/")

    def _all_of(self, ticket: str) -> Iterator[Path]:
        ours = self._in_work(ticket)
        if ours is not None:
            yield ours
            return
        for path in claimed_paths(self._claimed):
            if path.name.startswith(f"{ticket}~"):
                yield path

    def _day_of(self, file: str, day: str) -> Path:
        """The day's folder, or the one into which an earlier archiving put ``file``."""
        today = self._done / day
        if not os.path.lexists(today / file):
            with os.scandir(self._done) as days:
                for entry in days:
                    if os.path.lexists(os.path.join(entry.path, file)):
                        return self._done / entry.name
        self._make(today)
        return today

    def _place(self, name: str, ticket: str) -> Path:
        """The first name in ``refused/`` that is free, or where an earlier call began."""
        *numbered, last = _places_of(self._refused, name, ticket)
        for path in numbered:
            if not os.path.lexists(path) or _ticket_in(_reason_beside(path)) == ticket:
                return path
        return last

    def _move(self, source: Path, target: Path) -> None:
        """Give a claimed file its last name; finishes what an earlier call began."""
        try:
            publish.publish(source, target, ways=self._ways)
        except FileExistsError:
            # The target is ours, of a call that was cut off: the other name of the same
            # file (link, then death) or an empty reservation (copy, then death).
            if not os.path.samestat(os.lstat(source), os.lstat(target)):
                os.replace(source, target)
            publish.sync_folder(target.parent)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(source)
        publish.sync_folder(source.parent)

    def _temporary(self) -> Path:
        return self._tmp / f"{_OURS}{uuid.uuid4().hex}"

    def _write(self, path: Path, parts: Iterable[bytes]) -> None:
        publish.replace(path, parts, temporary=self._temporary())


def claimed_files(inbox: Path) -> list[str]:
    """The names of the files in work. Raises OSError, but not for a folder that is not there."""
    with contextlib.suppress(FileNotFoundError):
        return [path.name for path in claimed_paths(inbox / CLAIMED)]
    return []


def claimed_paths(claimed: Path) -> Iterator[Path]:
    """Every file in work: in the folder ``claimed`` itself and in the rooms of hot folders."""
    return (path for path in files_in_rooms(claimed) if not path.name.startswith("."))


def files_in_rooms(claimed: Path) -> Iterator[Path]:
    """The same, and the old names of some on their way out (``takeover``)."""
    with os.scandir(claimed) as entries:
        for entry in entries:
            if "~" in entry.name:
                yield claimed / entry.name
            elif ROOM in entry.name and entry.is_dir(follow_symlinks=False):
                yield from (Path(entry.path, n) for n in os.listdir(entry.path) if "~" in n)


def done_files(inbox: Path) -> Iterator[Path]:
    """Everything in ``done/``, without an order."""
    for path in sorted((inbox / DONE).glob("[0-9]*/*~*")):
        if path.parent.is_dir() and not path.parent.is_symlink():
            yield path


def file_of(inbox: Path, ticket: str, name: str = "", suffix: str = "") -> Claim | None:
    """The claimed file with this ticket, in work or, with its name, in ``done/``; None without one.

    Raises OSError.
    """
    for path in claimed_paths(inbox / CLAIMED):
        if path.name.startswith(f"{ticket}~"):
            return claim_of(path.parent, path.name, os.lstat(path).st_size)
    if not name:
        return None
    kept = _kept_in(inbox / DONE, ticket, name, suffix)
    return None if kept is None else Claim(ticket, name, suffix, "file", 0, kept.parent, kept.name)


def refused_rows(inbox: Path, ticket: str) -> Path:
    """Where the rows of a batch lie that could not be used, if there were any."""
    return inbox / ROWS / f"{ticket}.jsonl"


def lies_refused(inbox: Path, ticket: str, name: str, suffix: str) -> bool:
    """Does the file that was refused under ``ticket`` still lie in ``refused/``: neither mended and
    taken back, nor removed? True also where nobody can tell.
    """
    if "\\" in name:  # shown differently from what the file system has
        return True
    refused = inbox / REFUSED
    return any(
        os.path.lexists(path) and _ticket_in(_reason_beside(path)) in (ticket, None)
        for plain in (os.path.basename(name), _submitted(ticket, suffix))
        for path in _places_of(refused, plain, ticket)
    ) or not os.access(refused, os.R_OK)


def _places_of(refused: Path, name: str, ticket: str) -> Iterator[Path]:
    """Where a refused file of this name may lie, in the order in which a free one is looked for."""
    stem, suffix = os.path.splitext(name)
    for end in ("", *(f"_{number}" for number in range(2, _MOST_ALIKE + 1)), f"~{ticket}"):
        yield refused / f"{stem}{end}{suffix}"


def _submitted(ticket: str, suffix: str) -> str:
    """What a refused file of our own making is called."""
    return f"submitted-{ticket}{suffix}"


def drop_done(inbox: Path, claim_ticket: str, name: str) -> int:
    """Remove an archived file with everything beside it; how many files."""
    number = 0
    beginning = _stem_in_done(claim_ticket, name) + "."
    for day in (inbox / DONE).glob("[0-9]*"):
        if day.is_symlink() or not day.is_dir():
            continue
        for path in day.iterdir():
            if path.name.startswith(beginning):
                path.unlink(missing_ok=True)
                number += 1
        with contextlib.suppress(OSError):  # other files are left in it
            day.rmdir()
    return number


def _kept_in(done: Path, ticket: str, name: str, suffix: str) -> Path | None:
    file = _stem_in_done(ticket, name) + suffix
    with os.scandir(done) as days:
        paths = [Path(day.path, file) for day in days]
    return next((path for path in paths if os.path.lexists(path)), None)


def _stem_in_done(claim_ticket: str, name: str) -> str:
    """What a file and its results are called in ``done/``, without their suffixes."""
    plain = os.path.splitext(os.path.basename(name))[0].replace(
        "\\", "_"
    )  # a backslash is for people alone
    return f"{cut(plain)}~{claim_ticket[:8]}"


def _reason_beside(path: Path) -> Path:
    return path.with_name(path.name + ".error.json")


def _ticket_in(sidecar: Path) -> str | None:
    try:
        body = json.loads(sidecar.read_bytes())
    except (OSError, ValueError):
        return None
    return body.get("ticket") if isinstance(body, dict) else None
