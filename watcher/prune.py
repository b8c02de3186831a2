"""Tidying away what is old: finished batches of the record, their files, thumbnails, inputs and
uploads.

Kill-safe by its order: of a batch first the jobs that somebody might run again, so that what has
begun to go stays on its way; then pictures and their jobs, then its own row, last its files. A prune
that was cut off finds the batch, or files without one, and goes on. Never touches a batch with a job
that waits or runs, a picture that a person rated with its job and the files of its batch, nor any
picture unless told.
"""

import contextlib
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from watcher.checkpoints import reached
from watcher.errors import Failure, SteadyError
from watcher.inbox import done_files, drop_done
from watcher.inputs import Inputs
from watcher.jobs import Batch, Job
from watcher.pictures.outputs import Outputs
from watcher.refused import RefusedRows
from watcher.store import JobStore

_CHUNK = 500  #: jobs that leave the record at once


@dataclass
class Pruned:
    """What went, or would go."""

    batches: int = 0
    jobs: int = 0
    pictures: int = 0
    files: int = 0
    inputs: int = 0


class Pruner:
    """Prunes one root; may run beside a watcher, which only ever looks at younger things."""

    def __init__(
        self,
        store: JobStore,
        outputs: Outputs,
        inbox: Path,
        inputs: Inputs,
        uploads: Path,
    ) -> None:
        self._store = store
        self._outputs = outputs
        self._inbox = inbox
        self._inputs = inputs
        self._uploads = uploads
        self._refused = RefusedRows(inbox)

    def prune(self, before: int, *, images: bool = False, dry_run: bool = False) -> Pruned:
        """Everything that ended before the moment ``before`` (microseconds UTC).

        ``images``: the pictures too. Raises SteadyError folder_gone, database_trouble.
        """
        pruned = Pruned()
        after = 0
        while found := self._store.prunable(before, after):
            after = found[-1][0]
            for _, batch in found:
                if dry_run:
                    self._count(batch, pruned, images)
                elif self._drop_jobs(batch, pruned, images, made=False):
                    self._drop_jobs(batch, pruned, images, made=True)
                    if not self._store.drop_batch(batch.ticket):
                        continue  # a rated picture is left, which its files speak of
                    pruned.batches += 1
                    reached("batch_dropped")
                    pruned.files += drop_done(self._inbox, batch.claim or batch.ticket, batch.name)
                    reached("files_dropped")
        if not dry_run:
            pruned.files += self._drop_orphans(before) + self._drop_uploads(before)
            self._refused.sweep(before, self._store.batch)
            pruned.inputs = self._inputs.sweep(before)
        return pruned

    def _going(self, batch: Batch) -> Iterator[list[Job]]:
        """The jobs of ``batch`` that nobody rated, in chunks."""
        after = -1
        while jobs := self._store.jobs_of(batch.ticket, after, limit=_CHUNK):
            after = jobs[-1].index
            yield [job for job in jobs if job.rating <= 0]

    def _count(self, batch: Batch, pruned: Pruned, images: bool) -> None:
        """What would go."""
        before = pruned.jobs
        for going in self._going(batch):
            pruned.jobs += len(going)
            pruned.pictures += images * sum(job.pictured for job in going)
        pruned.batches += pruned.jobs - before == batch.jobs

    def _drop_jobs(self, batch: Batch, pruned: Pruned, images: bool, *, made: bool) -> bool:
        """Those with pictures, or those without; False when somebody runs one of them again."""
        for chunk in self._going(batch):
            going = [job for job in chunk if job.pictured is made]
            for job in going:
                self._drop_files(job, pruned, images)
            reached("pictures_dropped")
            gone = self._store.drop_jobs(batch.ticket, [job.id for job in going])
            if going and not gone:
                return False
            pruned.jobs += gone
            reached("jobs_dropped")
        return True

    def _drop_files(self, job: Job, pruned: Pruned, images: bool) -> None:
        with contextlib.suppress(Failure):  # its folder leads elsewhere: nothing is touched there
            if images and job.pictured:
                pruned.pictures += self._outputs.delete(job)
        with contextlib.suppress(SteadyError, OSError):
            self._outputs.thumbnail(job).unlink(missing_ok=True)

    def _drop_orphans(self, before: int) -> int:
        """Files in ``done/`` as old that no batch speaks for: repeats, and a cut-off prune's."""
        number = 0
        for path in done_files(self._inbox):
            match = re.search(r"~([0-9a-f]{8})\.", path.name)
            if not match or not _is_older(path, before):
                continue
            if not self._store.claims_begin(match[1]):
                path.unlink(missing_ok=True)
                number += 1
                with contextlib.suppress(OSError):  # other files are left in it
                    path.parent.rmdir()
        return number

    def _drop_uploads(self, before: int) -> int:
        """What clients of OpenAI's Batch API uploaded as long ago, and said with a batch, unless
        the record has that batch."""
        kept = set[str]()
        for note in self._uploads.glob("batch_*.json"):
            with contextlib.suppress(ValueError, KeyError):
                ticket = str(uuid.UUID(note.stem.removeprefix("batch_")))
                if self._store.batch(ticket) is not None or not _is_older(note, before):
                    kept |= {note.stem, json.loads(note.read_bytes())["input_file_id"]}
        number = 0
        for path in self._uploads.glob("*"):
            if path.name.partition(".")[0] not in kept and _is_older(path, before):
                path.unlink(missing_ok=True)
                number += 1
        return number


def _is_older(path: Path, moment: int) -> bool:
    return path.lstat().st_mtime_ns // 1000 < moment
