"""Finding the pictures that a job file names, for one reading of it.

A name stands for a picture beside the file, in its own ``.zip`` or below ``inputs/``; for what a
picture is (``sha256:…``); or for one that is made here (``job:…``, or by name). What is found is
judged, noted and copied by :class:`watcher.inputs.Inputs`; a crash leaves notes without copies,
or all of it.
"""

import errno
import fnmatch
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from watcher import publish
from watcher.checkpoints import reached
from watcher.errors import SteadyError
from watcher.inputs import Inputs, judged, no_such_picture, shortened
from watcher.jobfile.bundle import Bundle
from watcher.jobfile.sources import Found
from watcher.jobs import Job, JobState, input_digest, input_job
from watcher.suffixes import INPUT_SUFFIXES, MAX_PICTURE, suffix_of

if TYPE_CHECKING:
    from watcher.pictures.source import Source

_MOST = 100_000  #: pictures that one pattern may match
_AT_ONCE, _FEW = 16 << 20, 32  #: bytes and pictures that are copied together
_NAME_KEPT = 300  #: characters of a name that are kept beside the sha256
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Finder:
    """Finds what one file names, for one reading of it. See Pictures.

    Args:
        ticket: under which what is copied is noted.
        beside: a folder whose pictures go before those of the root.
        copies: what is found is copied; those who only look ahead copy nothing.
        most: pictures that one pattern may match.
    """

    def __init__(
        self,
        inputs: Inputs,
        ticket: str | None = None,
        *,
        beside: Path | None = None,
        copies: bool = True,
        most: int = _MOST,
    ) -> None:
        self._inputs = inputs
        self._ticket = ticket
        self._beside = beside
        self._copies = copies
        self._most = most
        self._bundle: Bundle | None = None
        noted = inputs.store.inputs_of(ticket) if ticket and inputs.store else {}
        self._known = {name: digest for name, digest in noted.items() if inputs.has(digest)}
        self._found: dict[str, Found] = {}
        self._waiting: dict[str, tuple[str, bytes]] = {}  #: by name, not copied yet …
        self._held = 0  #: … and the bytes of them
        self.sent = False  #: something beside was found

    def inside(self, bundle: Bundle) -> "Finder":
        """What lies in ``bundle`` goes first."""
        self._bundle = bundle
        return self

    def matches(self, pattern: str) -> Sequence[str]:
        """The names of pictures that match, in order. One that is a name itself stands for it."""
        _check_name(pattern := re.sub(r"(\*\*/)+", "**/", pattern.removeprefix("./")))
        inside = self._bundle.names if self._bundle else []
        known = [*self._known, *inside]
        if pattern in known or self._path(pattern) is not None:
            return [pattern]
        found = {name for name in known if _matches(name, pattern)}
        for folder in self._folders():
            pictures = (
                path.relative_to(folder).as_posix()
                for path in folder.glob(pattern)
                if suffix_of(path.name) in INPUT_SUFFIXES and not path.name.startswith(".")
            )
            try:
                found.update(itertools.islice(pictures, 2 * self._most))
            except OSError as error:
                raise _not_read(pattern, error) from None
            except ValueError:  # what is no pattern matches nothing
                pass
        if not found:
            raise SteadyError("input_missing", "No picture matches this pattern.")
        if len(found) > self._most:
            raise SteadyError("too_many_jobs", f"More than {self._most} pictures match.")
        return sorted(found)

    def find(self, name: str) -> Found:
        """The picture ``name``, judged; copied at the next :meth:`flush` at the latest."""
        if name not in self._found:
            if len(self._found) >= _MOST:
                self._found.clear()
            self._found[name] = self._look_up(name)
        return self._found[name]

    def flush(self) -> None:
        """Copy what was found. A crash in here leaves notes without copies, or all of it."""
        if not self._waiting:
            return
        with self._inputs.blameless():
            if self._ticket is not None and self._inputs.store is not None:
                noted = [(name, digest) for name, (digest, _) in self._waiting.items()]
                self._inputs.store.note_inputs(self._ticket, noted)
                reached("input_noted")
            for digest, data in self._waiting.values():
                self._inputs.copy(digest, data)
        self._waiting.clear()
        self._held = 0

    # -- one name

    def _look_up(self, name: str) -> Found:
        if digest := input_digest(name):
            return self._of_content(name, digest)
        if name.startswith("job:"):
            return self._of_job(name)
        _check_name(name := name.removeprefix("./"))
        if suffix_of(name) in INPUT_SUFFIXES and (data := self._bytes_of(name)) is not None:
            return self._judged(name, data)
        store = self._inputs.store
        job = store.job_by_image(name, made=True) if store and "/" not in name else None
        if store is None or job is None:
            raise no_such_picture(name)
        found, newest = self._of_made(job), store.job_by_image(name)
        if newest is None or newest.id == job.id or newest.state.ended:
            return found
        words = f"`{shortened(name)}` is a picture there is; a later job of this name still waits."
        return replace(found, warning=f"{words} Start from that one by `job:{newest.id}`.")

    def _bytes_of(self, name: str) -> bytes | None:
        """The picture of a path: what was copied for this file before, else what lies there."""
        if name in self._known and (data := self._inputs.read(self._known[name])) is not None:
            return data
        if self._bundle and (inside := self._bundle.picture(name)) is not None:
            return inside
        path = self._path(name)
        if path is None:
            return None
        return _read(path, name)

    def _path(self, name: str) -> Path | None:
        """Where the picture lies; SteadyError bad_reference for a link that leads out."""
        for folder in self._folders():
            try:
                path = Path(os.path.realpath(folder / name, strict=True))
                home = Path(os.path.realpath(folder, strict=True))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _not_read(name, error) from None
            if not path.is_relative_to(home):
                raise SteadyError("bad_reference", "This leads out of the folder of pictures.")
            self.sent = self.sent or folder == self._beside
            return path
        return None

    def _folders(self) -> list[Path]:
        return [each for each in (self._beside, self._inputs.folder) if each is not None]

    def _judged(self, name: str, data: bytes) -> Found:
        digest = hashlib.sha256(data).hexdigest()
        source = judged(data, f"`{shortened(name)}`")
        self._wait(name, digest, data)
        reference = f"sha256:{digest} {name[-_NAME_KEPT:]}"
        return Found(reference, source.size, Path(name).stem, _animated(name, source))

    def _wait(self, name: str, digest: str, data: bytes) -> None:
        """Have it copied soon, together with others, unless it was for this very file."""
        if not self._copies or self._known.get(name) == digest:
            return
        self._waiting[name] = digest, data
        self._held += len(data)
        if self._held > _AT_ONCE or len(self._waiting) >= _FEW:
            self.flush()

    def _of_content(self, name: str, digest: str) -> Found:
        data = self._inputs.read(digest)
        called = name.partition(" ")[2]
        source = input_job(name)
        if data is None and source and self._inputs.store:
            job = self._inputs.store.job(source)
            data = self._inputs.of_job(job) if job else None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise no_such_picture(name)
        stem = Path(called).stem if called and not source else (source or digest)[:8]
        self._wait(name, digest, data)
        picture = judged(data)
        return Found(name, picture.size, stem, _animated(called or name, picture))

    def _of_job(self, name: str) -> Found:
        store, id_ = self._inputs.store, input_job(name)
        if id_ is None:
            raise SteadyError("bad_reference", "`job:` wants the id of a job.")
        if store is None:
            return Found(name, None, id_[:8])
        job = store.job(id_)
        if job is None:
            raise SteadyError("input_missing", "There is no job with this id.")
        return self._of_made(job)

    def _of_made(self, job: Job) -> Found:
        """The picture of another job: as it is, or as it will be."""
        size = job.request.final_size
        if job.state in (JobState.QUEUED, JobState.GENERATING):
            return Found(f"job:{job.id}", size, job.image_name)
        data = self._inputs.of_job(job) if job.state is JobState.COMPLETED else None
        if data is None:
            gone = "was deleted or changed" if job.state is JobState.COMPLETED else "is not made"
            words = f"The picture of job {job.id} {gone}."
            raise SteadyError("input_missing", words, remedy="Run that job again first.")
        digest = str(job.sha256)
        self._wait(f"job:{job.id}", digest, data)
        return Found(f"sha256:{digest} job:{job.id}", judged(data).size, job.image_name)


def _check_name(name: str) -> None:
    """Raises SteadyError bad_reference for what is no name of a picture in our folders."""
    if name.startswith("data:"):
        words = "This is no picture that is written into a job here."
        remedy = "Over HTTP write data:image/png;base64,…; a file names one below inputs/."
        raise SteadyError("bad_reference", words, remedy=remedy)
    if _ADDRESS.match(name):
        words = "Addresses are never fetched."
        raise SteadyError("bad_reference", words)
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(not p.strip(". ") for p in parts):
        words = "A picture is named from the folder of pictures on, without `..` and `\\`."
        raise SteadyError("bad_reference", words)


def _matches(name: str, pattern: str) -> bool:
    """As a folder is searched: ``*`` stays within a part, ``**`` stands for any folders or none."""
    ours = name.split("/")
    ends = {0}  #: how many parts of the name what was looked at so far may stand for
    for part in pattern.split("/"):
        if part == "**":
            ends = set(range(min(ends, default=len(ours)), len(ours)))
        else:
            ends = {n + 1 for n in ends if n < len(ours) and fnmatch.fnmatchcase(ours[n], part)}
    return len(ours) in ends


def _read(path: Path, name: str) -> bytes:
    """A regular file of at most MAX_PICTURE. Raises SteadyError bad_reference and as _not_read."""
    try:
        with publish.open_regular(path) as file:
            return file.read(MAX_PICTURE + 1)
    except OSError as error:
        raise _not_read(name, error, reading=True) from None


def _not_read(name: str, error: OSError, *, reading: bool = False) -> SteadyError:
    """Why the picture ``name`` cannot be read: unreadable, bad_reference, or trouble of the disk."""
    if publish.of_the_disk(error, reading=reading):
        return publish.disk_trouble(error, "A picture cannot be read")
    code = "bad_reference" if error.errno in (errno.ELOOP, errno.ENAMETOOLONG) else "unreadable"
    return SteadyError(code, f"`{shortened(name)}` cannot be read: {error.strerror}.")


def _animated(name: str, source: "Source") -> str | None:
    """What to say of a picture that is several."""
    words = "holds several pictures; the first is used."
    return f"`{shortened(name)}` {words}" if source.several else None
