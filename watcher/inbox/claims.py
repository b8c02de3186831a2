"""A claimed file: its name carries its identity, and reading it is safe whatever it is.

    .claimed/<ticket>~<up to 180 bytes of the name it was dropped with>
    .claimed/<hot folder>@<digest of its preset>/<ticket>~<the same>
    .claimed/.<ticket>~<the same>    its old name, on the way out (``takeover``)

The ticket is in the name, so a crash between any two steps leaves a file that becomes the
very same jobs when it is found again. Reading trusts nothing: links are not followed,
pipes and devices not opened, sizes checked before memory is spent.
"""

import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from watcher.errors import SteadyError
from watcher.inbox.writers import Writer, writer_of
from watcher.log import harmless
from watcher.publish import disk_errors, disk_trouble, open_regular
from watcher.suffixes import INPUT_SUFFIXES, JOB_SUFFIXES

NAME_BYTES = 180  #: of a person's file name that are kept
ROOM = "@"  #: in the name of a folder: the claims of one hot folder under one preset
PRESET = "preset.yaml"  #: lies in such a folder: the preset's text as it was at the claim
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Files of our own making: api-<ticket>[+<batch it goes on with>][~<a person's file name>].<suffix>
_OWN_STEM = re.compile(rf"api-({_UUID})(?:\+({_UUID}))?(?:~(.{{1,120}}))?", re.DOTALL)
_CLAIM_NAME = re.compile(rf"({_UUID})~(.+)", re.DOTALL)

_READ_TRIES = 5
_READ_PAUSE = 0.15  #: seconds; all tries together stay below one second

Signature = tuple[int, int, int, int]  #: inode, size, mtime_ns, ctime_ns


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that is ours. ``name`` is for people and records; ``path`` is where it lies."""

    ticket: str
    name: str  #: valid UTF-8, one line, at most 180 bytes of the original
    suffix: str  #: lower case, with the dot
    source: str  #: "file", or "cli" for a file of our own making (the API has its row before)
    size: int  #: bytes, at the claim
    folder: Path
    entry: str  #: its name in ``folder``, as the file system has it
    resumes: str | None = None  #: the batch a file of our own making goes on with
    hot: str = ""  #: the hot folder it was dropped into, which then begins its ``name``

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder / self.entry

    @property
    def stem(self) -> str:
        """``name`` without its folder and its suffix."""
        return os.path.splitext(os.path.basename(self.name))[0]

    @property
    def starts(self) -> bool:
        """Is it a picture of a hot folder, which a job starts from?"""
        return bool(self.hot) and self.suffix in INPUT_SUFFIXES

    @property
    def preset(self) -> Path | None:
        """Where the text of its hot folder's preset lies."""
        return self.folder / PRESET if self.hot else None


def entry_of(ticket: str, name: str) -> str:
    """What the file dropped as ``name`` is called once it is claimed."""
    return f"{ticket}~{cut(name)}"


def claim_of(folder: Path, entry: str, size: int) -> Claim | None:
    """The claim that lies in ``folder`` as ``entry``; None when that is no claim's name."""
    match = _CLAIM_NAME.fullmatch(entry)
    if match is None:
        return None
    ticket, name = match.groups()
    stem, suffix = os.path.splitext(name)
    own = _OWN_STEM.fullmatch(stem) if own_ticket(name) == ticket else None
    hot = folder.name.rpartition(ROOM)[0]
    shown = display(own[3] + suffix if own and own[3] else name)
    return Claim(
        ticket=ticket,
        name=f"{hot}/{shown}" if hot else shown,
        suffix=suffix.lower(),
        source="cli" if own else "file",
        size=size,
        folder=folder,
        entry=entry,
        resumes=own[2] if own else None,
        hot=hot,
    )


def own_ticket(name: str) -> str | None:
    """The ticket in a well-formed name of ours (:func:`own_name`); None for all others."""
    stem, suffix = os.path.splitext(name)
    match = _OWN_STEM.fullmatch(stem) if suffix in JOB_SUFFIXES else None
    return match[1] if match else None


def own_name(ticket: str, suffix: str, resumes: str | None = None, name: str = "") -> str:
    """What a file of our own making is called: ``api-<ticket><suffix>``.

    ``resumes``: the ticket of the batch it goes on with. ``name``: a person's file name, which
    then names the batch and its pictures; without letters that a file name cannot have.
    """
    stem = os.path.splitext(re.sub(r"[\x00-\x1f\x7f/\\~]", "_", name))[0].strip(". ")
    kept = stem.encode("utf-8", "ignore")[:90].decode("utf-8", "ignore")
    more = (f"+{resumes}" if resumes else "") + (f"~{kept}" if kept else "")
    return f"api-{ticket}{more}{suffix}"


def display(name: str) -> str:
    """``name`` for people, records and logs: valid UTF-8, one line, no hidden controls.

    Whatever differs from the file system's name is shown with a backslash.
    """
    return harmless(os.fsencode(name).decode("utf-8", "backslashreplace"))


def cut(name: str) -> str:
    """``name`` in at most NAME_BYTES bytes, its suffix kept, no character cut in two."""
    raw = os.fsencode(name)
    if len(raw) <= NAME_BYTES:
        return name
    suffix = os.path.splitext(name)[1]
    end = NAME_BYTES - len(os.fsencode(suffix))
    while end > 0 and raw[end] & 0xC0 == 0x80:  # a continuation byte would open the rest
        end -= 1
    return os.fsdecode(raw[:end]) + suffix


def signature_of(found: os.stat_result) -> Signature:
    """What changes whenever the content may have changed."""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_claim(claim: Claim, limit: int) -> BinaryIO:
    """The content of ``claim`` as a buffered stream of at most ``limit`` bytes; close it.

    Raises SteadyError not_a_regular_file, too_large, empty_file, unreadable; folder_gone
    when the disk fails; FileNotFoundError when nothing lies there.
    """
    try:
        stream = open_regular(claim.path)
    except PermissionError:
        raise SteadyError("unreadable") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise SteadyError("not_a_regular_file") from None
        raise disk_trouble(error, "A claimed file cannot be read") from error
    size = os.fstat(stream.fileno()).st_size
    if 0 < size <= limit:
        return stream
    stream.close()
    if size == 0:
        raise SteadyError("empty_file")
    raise SteadyError("too_large", f"The file has {size:,} bytes; {limit:,} are allowed.")


def read_claim(claim: Claim, limit: int) -> bytes:
    """The whole content of ``claim``, unchanged from the first byte read to the last.

    A writer that kept the file open across the claim is waited for, less than a second.
    Raises as ``open_claim``.
    """
    for _ in range(_READ_TRIES):
        with open_claim(claim, limit) as stream, disk_errors("A claimed file cannot be read"):
            before = signature_of(os.fstat(stream.fileno()))
            data = stream.read(limit + 1)
            after = signature_of(os.fstat(stream.fileno()))
        if before == after and len(data) == before[1] and writer_of(claim.path) is not Writer.HOLDS:
            return data
        time.sleep(_READ_PAUSE)
    raise SteadyError("unreadable", "The file is still being written.")
