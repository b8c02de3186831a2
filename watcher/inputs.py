"""Pictures that jobs start from, kept by content.

The bytes of one are judged and copied to ``.steady/inputs/<sha256>`` before any job of its file is
on record, so that what is changed or deleted later changes nothing.

A crash leaves a temporary file, a copy that no batch needs (both go with :meth:`Inputs.sweep`),
or a note without its copy, which is made when the file is read again.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from watcher import publish
from watcher.checkpoints import reached
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobs import PICTURE_FIELDS, Job, input_digest, input_job
from watcher.publish import disk_errors
from watcher.suffixes import INPUT_SUFFIXES, PICTURE_FORMATS, suffix_of

if TYPE_CHECKING:
    from watcher.pictures.source import Source
    from watcher.store import JobStore

_SWEPT_AT_ONCE = 500
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Inputs:
    """The pictures of one root. ``store`` is None where there is no record yet.

    Any process may keep pictures.
    """

    def __init__(
        self,
        config: Config,
        store: "JobStore | None",
    ) -> None:
        self.folder = config.inputs
        self.store = store
        self._outputs = config.outputs
        self._kept = config.state / "inputs"
        self._durable = False  #: the folder itself
        #: Around what the disk does for a file that is read: it is not to blame for an end then.
        self.blameless: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    # -- by content

    def keep(self, data: bytes, called: str = "") -> tuple[str, "Source"]:
        """Judge a picture and have its bytes here: its reference, ``sha256:…``, and what it is.

        Raises SteadyError bad_picture, as :func:`judged` does; disk_full, folder_gone.
        """
        source, digest = judged(data, called), hashlib.sha256(data).hexdigest()
        with self.blameless():
            self.copy(digest, data)
        return f"sha256:{digest}", source

    def job_from(self, data: bytes, name: str, preset: Mapping[str, Any]) -> bytes:
        """The job that a picture put under a preset is, as JSON; the picture is kept.

        ``name``: of its file, empty for none. Raises SteadyError bad_picture, missing_field.
        """
        if preset.get("prompt") is None:
            words = "There is no `prompt` for the pictures that are put under it."
            raise SteadyError("missing_field", words)
        reference, _ = self.keep(data, f"`{shortened(name)}`" if name else "")
        called = name.translate({ord("{"): "(", ord("}"): ")"})  # no placeholder
        job = {"image": f"{reference} {called}".rstrip()}
        if name and preset.get("name") is None:
            job["name"] = "{image}"
        return json.dumps(job).encode()

    def copy(self, digest: str, data: bytes) -> None:
        """Have ``data``, whose sha256 is known, under it, whole and durable."""
        final = self._kept / digest
        with disk_errors("A picture cannot be kept"):
            self._kept.mkdir(parents=True, exist_ok=True)
            if not self._durable:  # names of folders, too, are lost with the power
                for folder in (self._kept, self._kept.parent):
                    publish.sync_folder(folder.parent)
                self._durable = True
            with contextlib.suppress(FileNotFoundError):
                os.utime(final)  # wanted anew: it is not old any more
                publish.sync_folder(self._kept)  # whoever gave it the name may have died of it
                return
            temporary = self._kept / f"new-{uuid.uuid4().hex}"
            publish.write_synced(temporary, data)
            reached("input_written")
            os.replace(temporary, final)
            publish.sync_folder(self._kept)
            reached("input_copied")

    def has(self, digest: str) -> bool:
        """Is the picture of this sha256 here?"""
        return (self._kept / digest).is_file()

    def read(self, digest: str) -> bytes | None:
        """The picture of this sha256; None when it is not here."""
        try:
            return (self._kept / digest).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise publish.disk_trouble(error, "A picture cannot be read") from error

    def of_job(self, job: Job) -> bytes | None:
        """The picture that ``job`` made, as it was made; None when it is not there any more."""
        try:
            data = (self._outputs / job.path).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == job.sha256 else None

    def files(self, job: Job) -> dict[str, Any]:
        """The files a job needs, for its worker. Raises SteadyError input_missing."""
        found: dict[str, Any] = {}
        for field in PICTURE_FIELDS:
            reference = getattr(job.request, field)
            digest = input_digest(reference)
            if digest is not None:
                self._ensure(job, reference, digest)
                found[field] = str(self._kept / digest)
            elif reference is not None:
                raise no_such_picture(reference)
        return found

    def _ensure(self, job: Job, reference: str, digest: str) -> None:
        """See to it that the copy is there: one of another job's picture may be made now, for a job
        that came in the very moment when that was completed."""
        if self.has(digest):
            return
        source = input_job(reference)
        made = self.store.job(source) if source and self.store else None
        if made is None or made.sha256 != digest or not self._keep_made(made, job.ticket):
            raise no_such_picture(reference)

    def keep_made(self, jobs: Sequence[Job]) -> None:
        """Copy those of the pictures of ``jobs`` that others wait for.

        Before the record says that they are made: whoever deletes one after that changes nothing.
        """
        if self.store is None:
            return
        made = {job.id: job for job in jobs}
        for id, ticket in self.store.waiting_for(list(made)):
            self._keep_made(made[id], ticket)

    def _keep_made(self, job: Job, ticket: str) -> bool:
        """Copy the picture of ``job`` for a batch; False when it is not there any more."""
        data = self.of_job(job)
        if data is None or self.store is None:
            return False
        self.store.note_inputs(ticket, [(f"job:{job.id}", str(job.sha256))])
        self.copy(str(job.sha256), data)
        return True

    def sweep(self, before: int) -> int:
        """Remove copies that no batch needs and nobody asked for since ``before`` (us); how many."""
        old = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._kept) as entries:
            for entry in entries:
                if entry.stat().st_mtime_ns // 1000 < before:
                    old.append(entry.name)
        copies = [name for name in old if _DIGEST.fullmatch(name)]

        def drop(name: str) -> None:
            path = self._kept / name
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns // 1000 < before:  # nobody has asked for it meanwhile
                    path.unlink()

        for name in set(old) - set(copies):
            drop(name)
        if self.store is None:
            return 0
        self.store.forget_notes()
        parts = range(0, len(copies), _SWEPT_AT_ONCE)
        return sum(self.store.forget_inputs(copies[at : at + _SWEPT_AT_ONCE], drop) for at in parts)


def judged(data: bytes, called: str = "") -> "Source":
    """What the picture in ``data`` is.

    Raises SteadyError bad_picture, which says ``called`` for it; without that its words need a name
    before them.
    """
    from watcher.pictures.source import look_at  # Pillow: most commands look at no picture

    try:
        return look_at(data)
    except SteadyError as error:
        raise SteadyError(error.code, f"{called} {error.message}".lstrip()) from None


def no_such_picture(name: str) -> SteadyError:
    """What to say where no picture has this name."""
    known = suffix_of(name) in INPUT_SUFFIXES or ":" in name
    kinds = "" if known else f" Files are {', '.join(PICTURE_FORMATS)}."
    return SteadyError("input_missing", f"There is no picture `{shortened(name)}`.{kinds}")


def shortened(name: str) -> str:
    """A name as people are told it."""
    return name if len(name) <= 80 else f"{name[:40]}…{name[-36:]}"
