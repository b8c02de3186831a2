"""Tables: judged whole, then recorded in chunks that run at once.

Nothing of a table runs before its last row was judged: a file that turns out to be torn at
row 90,000 is refused as a whole, and the pictures' names need their number. The jobs made
meanwhile wait in a file without a name, so that no row is read twice. A crash takes that file
away; the rows after the last that is on record are then judged anew.
"""

import contextlib
import logging
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from watcher import jobfile
from watcher.checkpoints import reached
from watcher.errors import SteadyError, ValueFault
from watcher.inbox import Claim
from watcher.intake.reading import each_of, stem_of
from watcher.intake.recording import Made, Recorder
from watcher.intake.resume import Standing
from watcher.jobfile.naming import numbered
from watcher.jobfile.planner import PlannedJob
from watcher.jobfile.problems import MAX_PROBLEMS
from watcher.jobfile.rows import RowIterator
from watcher.jobfile.tables import Row
from watcher.jobs import Batch, Priority
from watcher.log import say
from watcher.parts import Part
from watcher.publish import disk_errors
from watcher.refused import RefusedRows, kept_line
from watcher.store import NewJob, Recording

logger = logging.getLogger("steady.intake")

#: Rows of the first transaction, so that the first picture starts soon …
FIRST_CHUNK = jobfile.FEW_JOBS
CHUNK = 2000  #: … and of every later one
_IN_MEMORY = 1 << 20  #: bytes of judged rows that need no file
_UNKEPT = "A table cannot be kept while it is judged"


class Stopped(Exception):
    """The service stops in the middle of judging a table; nothing of it was recorded yet."""


@dataclass(frozen=True)
class Chunk:
    """What is recorded in one transaction.

    ``row``: the last of the file's rows it comes from. ``before``: pictures of the rows before it.
    """

    row: int
    before: int
    made: Made


class Spool:
    """Judged chunks in order; on the disk of ``folder``, in a file without a name, if many."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115
        self._rows = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115
        self._chunks = 0
        self.pictures = 0  #: that the whole table asks for, also those on record
        self.refused = 0  #: rows that cannot be used, also those judged before
        self.warnings: Sequence[str] = ()

    def put(self, chunk: Chunk) -> None:
        """Raises SteadyError disk_full or folder_gone."""
        jobs = [tuple(job) for job in chunk.made.new]
        with disk_errors(_UNKEPT):
            pickle.dump((chunk.row, chunk.before, jobs, *chunk.made[1:]), self._file, protocol=5)
        self._chunks += 1

    def refuse(self, row: Row) -> None:
        """Add a row that cannot be used. Raises SteadyError disk_full or folder_gone."""
        with disk_errors(_UNKEPT):
            self._rows.write(kept_line(row))
        self.refused += 1

    def rows(self) -> Iterator[bytes]:
        """Those rows, as they are kept."""
        with disk_errors(_UNKEPT):
            self._rows.seek(0)
            yield from self._rows

    def __iter__(self) -> Iterator[tuple[Chunk, bool]]:
        """Each chunk, and whether it is the last; an empty one when all are on record."""
        if not self._chunks:
            yield Chunk(0, self.pictures, Made([], [], [])), True
            return
        with disk_errors(_UNKEPT):
            self._file.seek(0)
        for left in reversed(range(self._chunks)):
            with disk_errors(_UNKEPT):
                row, before, jobs, again, rows = pickle.load(self._file)  # noqa: S301  # ours alone
            yield Chunk(row, before, Made([*map(NewJob._make, jobs)], again, rows)), not left

    def close(self) -> None:
        """The files go, and all that was judged."""
        self._file.close()
        self._rows.close()


class Tables(Part):
    """Records .csv, .tsv and .jsonl.

    ``between`` is called at every row: what it does then happens before the rest of the table.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        state: Path,
        stopping: threading.Event,
        between: Callable[[], None],
    ) -> None:
        super().__init__(recorder.shared)
        self._between = between
        self._reading = recorder.reading
        self._recorder = recorder
        self._state = state
        self._stopping = stopping

    def record(self, claim: Claim, batch: Batch) -> None:
        """Judge all rows, then record them; goes on where an earlier call was cut off.

        Returns early when the service stops between two chunks. Raises SteadyError: what is
        wrong with the whole file, or the environment's trouble; Stopped.
        """
        begun = time.monotonic()
        digest = None
        if claim.source != "file":  # it may carry a key: another content is then a conflict
            digest = self._reading.digest(claim)
        if claim.resumes is not None:
            resumed = self._recorder.adopt(claim, claim.resumes, None, digest or "", resume=True)
            batch = resumed or batch
        standing = None
        if claim.resumes is not None and batch.jobs:
            standing = self._recorder.standing(batch)
        with contextlib.closing(Spool(self._state)) as spool:
            with self._recorder.suspect.reading(claim.ticket):
                self._judge(claim, batch, standing, spool)
            reached("parsed")
            if spool.refused:
                self._recorder.refuse(batch, spool.rows())
            fresh = self._record(claim, batch, standing, spool, digest)
        if fresh is not None:
            say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=fresh,
                refused_rows=spool.refused or None,
                seconds=round(time.monotonic() - begun, 2))  # fmt: skip

    def _judge(self, claim: Claim, batch: Batch, standing: Standing | None, spool: Spool) -> None:
        """Every row of the table: its jobs into ``spool``, but for those on record already."""
        problems: list[ValueFault] = []
        chunk: list[PlannedJob] = []
        named: dict[str, str] = {}
        # Rows that were judged before stay what they became, whatever would become of them now.
        judged = batch.next_line if standing is None else 0
        if judged:
            self._take_up(batch, spool, named)

        def put(seen: int) -> None:
            # A first chunk that is full tells that there are more than a few, as later ones do.
            usual = Priority.BULK if spool.pictures > jobfile.FEW_JOBS else Priority.NORMAL
            for plan in chunk:
                if plan.request.priority is None:
                    plan.priority = usual
            before = seen - len(chunk)
            made = self._recorder.jobs(batch, chunk, first=before, standing=standing, named=named)
            spool.put(Chunk(chunk[-1].row or 0, before, made))
            chunk.clear()
            if self._stopping.is_set():
                raise Stopped

        with self._reading.open(claim) as stream:
            lines = self._reading.lines(stream, claim, batch)
            for each in self._rows(lines, judged, batch, spool, named):
                if isinstance(each, Row):
                    spool.refuse(each)
                    problems += each.problems[: MAX_PROBLEMS - len(problems)]
                    continue
                seen, spool.pictures = spool.pictures, spool.pictures + 1
                full = CHUNK if seen > len(chunk) else FIRST_CHUNK
                if len(chunk) >= full and each.row != chunk[-1].row:
                    put(seen)
                chunk.append(each)
        if chunk:
            put(spool.pictures)
        if not spool.pictures and not judged:
            code = "all_rows_refused" if spool.refused else "empty_file"
            raise SteadyError(code, problems=problems)
        spool.warnings = lines.warnings

    def _rows(
        self, lines: RowIterator, judged: int, batch: Batch, spool: Spool, named: dict[str, str]
    ) -> Iterator[PlannedJob | Row]:
        """Those of ``lines`` behind row ``judged``; what goes before the table comes between.

        Those up to it count as well where they made nothing, since their key was used before.
        """
        passed = 0
        for each in each_of(lines):
            self._between()
            if ((each.number if isinstance(each, Row) else each.row) or 0) > judged:
                yield each
            elif isinstance(each, PlannedJob):
                passed += 1
                spool.pictures = max(spool.pictures, passed)
                if each.request.name and (own := each.request.own_id(batch.ticket)):
                    named.setdefault(each.request.name, own)

    def _take_up(self, batch: Batch, spool: Spool, named: dict[str, str]) -> None:
        """Take from the record what became of the rows that were judged before."""
        for job in self._store.jobs_in_order(batch.ticket):
            self._between()
            spool.pictures = job.index + 1
            if job.request.name:
                named[job.request.name] = job.id
        for row in RefusedRows(self._inbox.folder).of(batch.ticket):
            if row.number <= batch.next_line:
                spool.refuse(row)

    def _record(
        self,
        claim: Claim,
        batch: Batch,
        standing: Standing | None,
        spool: Spool,
        digest: str | None,
    ) -> int | None:
        """The number of new jobs; None when the service stops before the last chunk."""
        fresh = 0
        name_of = numbered(stem_of(claim, batch), spool.pictures)
        start = None if standing is None else standing.next_index
        for chunk, last, first, jobs in _ahead(_with_names(spool, name_of, start)):
            self._recorder.again(batch, chunk.made.again)
            if last and standing is not None:
                chunk.made.rows.extend((index, None) for index in standing.gone())
            self._store.record_all(
                [
                    Recording(
                        batch.ticket, jobs, first_index=first, final=last, next_line=chunk.row,
                        warnings=spool.warnings if last else (), refused_rows=spool.refused,
                        digest=digest, rows=chunk.made.rows,
                    )
                ]
            )  # fmt: skip
            fresh += len(jobs)
            reached("recorded" if last else "chunk_recorded")
            self._wake()
            self._between()
            if not last and self._stopping.is_set():
                return None
        return fresh


#: A chunk, whether it is the last, the place of its first job in the batch, and its jobs.
_Named = tuple[Chunk, bool, int, list[NewJob]]


def _with_names(
    spool: Spool, name_of: Callable[[int], str | None], start: int | None
) -> Iterator[_Named]:
    """Each chunk with its jobs named; ``start``: the place of the first where a batch goes on."""
    fresh = 0
    for chunk, last in spool:
        first = chunk.before if start is None else start + fresh
        new = enumerate(chunk.made.new, first + 1)
        jobs = [job.named(name_of(number)) for number, job in new]
        fresh += len(jobs)
        yield chunk, last, first, jobs


def _ahead(items: Iterator[_Named]) -> Iterator[_Named]:
    """Each of ``items``; the next one is made while the record takes this one."""
    with ThreadPoolExecutor(1, "ahead") as helper:
        following = helper.submit(next, items, None)
        while (item := following.result()) is not None:
            following = helper.submit(next, items, None)
            yield item
