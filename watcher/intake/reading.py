"""What a claimed file says: its jobs, the rows that cannot be used, the digest of its bytes.

Only reads, and copies the pictures that jobs start from: whatever goes wrong in here leaves no
more than copies. Reading again gives the same jobs, as long as models, limits and word lists are the
same: everything drawn is drawn from the ticket, ``{date}`` is the day the file came, and pictures
are those that were copied.
Knows nothing of the record.
"""

import contextlib
import datetime
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from watcher import jobfile
from watcher.errors import SteadyError
from watcher.finder import Finder
from watcher.inbox import Claim
from watcher.inbox.watch import Inbox
from watcher.inputs import Inputs
from watcher.jobfile.planner import Planner, Template
from watcher.jobfile.presets import in_preset, read_preset
from watcher.jobfile.rows import RowIterator
from watcher.jobs import Batch
from watcher.limits import Limits
from watcher.publish import disk_trouble, of_the_disk
from watcher.suffixes import MAX_PICTURE
from watcher.wildcards import Wildcards

_T = TypeVar("_T")
logger = logging.getLogger("steady.intake")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Let a fault of ours in here end the reading of this one file: it is refused, the others run.

    One of its disk is trouble, and waited for.
    """
    try:
        yield
    except (SteadyError, MemoryError):
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno is not None and of_the_disk(fault):
            raise disk_trouble(fault, "A file cannot be read") from fault
        logger.exception("file.unread")
        raise SteadyError("internal") from fault


def each_of(lines: Iterable[_T]) -> Iterator[_T]:
    """Each of ``lines``, one at a time; a fault of ours while one is read refuses their file."""
    with _refusing():
        yield from lines


class Reading:
    """Reads claimed files of ``inbox`` as jobs within ``limits``. Any thread."""

    def __init__(self, *, inbox: Inbox, limits: Limits, root: Path, inputs: Inputs) -> None:
        self.limits = limits
        self._inbox = inbox
        self._root = root
        self.inputs = inputs

    @_refusing()
    def whole(self, claim: Claim, batch: Batch) -> tuple[jobfile.Parsed, str]:
        """All of a file that is no table, and its sha256. The pictures it names are copied.

        Raises SteadyError: what is wrong with the file, or the environment's trouble.
        """
        most = MAX_PICTURE if claim.starts else jobfile.most_bytes(claim.suffix)
        data, suffix, preset = self._inbox.read(claim, most), claim.suffix, self._preset(claim)
        digest = hashlib.sha256(data).hexdigest()
        if preset is not None and claim.starts:
            data, suffix = self._job_from(data, claim, preset), ".json"
        planner, stem = self._planner(claim, batch, preset), stem_of(claim, batch)
        keyed = claim.resumes is not None or batch.key is not None
        return jobfile.parse(data, suffix, planner, stem=stem, keyed=keyed), digest

    def _job_from(self, data: bytes, claim: Claim, preset: Template) -> bytes:
        """The job that a picture dropped into a hot folder is. Raises SteadyError."""
        try:
            return self.inputs.job_from(data, claim.name, preset.values)
        except SteadyError as error:
            if error.code == "missing_field":
                raise in_preset(error, claim.hot) from None
            raise

    def open(self, claim: Claim) -> BinaryIO:
        """The bytes of a table; the caller closes."""
        return self._inbox.open_stream(claim, jobfile.MAX_TABLE)

    @_refusing()
    def lines(self, stream: BinaryIO, claim: Claim, batch: Batch) -> RowIterator:
        """The rows of a table, one at a time; as :meth:`whole`."""
        planner = self._planner(claim, batch, self._preset(claim))
        return jobfile.read_lines(stream, claim.suffix, planner)

    def _planner(self, claim: Claim, batch: Batch, preset: Template | None) -> Planner:
        return Planner(
            self.limits, now=_local(batch), salt=batch.ticket, wildcards=Wildcards(self._root),
            preset=preset, pictures=Finder(self.inputs, claim.ticket),
        )  # fmt: skip

    def _preset(self, claim: Claim) -> Template | None:
        """What holds for every job of the hot folder that ``claim`` was dropped into.

        Raises SteadyError bad_preset.
        """
        if claim.preset is None:
            return None
        try:
            return read_preset(claim.preset.read_bytes(), self.limits)
        except SteadyError as error:
            raise in_preset(error, claim.hot) from error
        except OSError as error:
            raise disk_trouble(error, "A preset cannot be read") from error

    @_refusing()
    def digest(self, claim: Claim) -> str:
        """The sha256 of a table."""
        found = hashlib.sha256()
        with self.open(claim) as stream:
            while part := stream.read(1 << 20):
                found.update(part)
        return found.hexdigest()


def stem_of(claim: Claim, batch: Batch) -> str:
    """What pictures of a file of many are named after; files of our making have no name."""
    if claim.source == "file":
        return claim.stem
    stem = batch.name if batch.source == "http" else os.path.splitext(batch.name)[0]
    return "" if stem.startswith(f"api-{claim.ticket}") else stem


def _local(batch: Batch) -> datetime.datetime:
    """When the batch came, so that ``{date}`` does not change when its file is read again."""
    return datetime.datetime.fromtimestamp(batch.created_at / 1e6).astimezone()
