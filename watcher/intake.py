"""From a claimed file to recorded jobs: claim, count the try, read, parse, record.

Runs in one thread of the watcher. Every step is committed before the next begins, and
every id derives from the ticket in the claimed file's name, so a crash anywhere leaves a
file that the next start reads again into the very same jobs.
"""

import collections
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from watcher import jobfile
from watcher.errors import ErrorClass, Problem, SteadyError
from watcher.inbox import Claim, Inbox
from watcher.jobs import Batch, JobState, Limits, Priority, job_id_of, ticket_of_key
from watcher.log import say
from watcher.recipe import again, read_recipe
from watcher.store import JobStore, NewJob
from watcher.trouble import Troubles

logger = logging.getLogger("steady.intake")

#: Readings begun and never ended; the next one finds the file guilty and sets it aside unread.
MAX_TRIES = 2
#: For tables: judging a million rows takes long enough to be hit by kills it did not cause.
MAX_TRIES_TABLE = 9
FIRST_CHUNK = 20  #: rows of the first transaction, so that the first picture starts soon …
CHUNK = 2000  #: … and of every later one
MAX_PICTURE = 64 << 20  #: bytes of a picture that is dropped to be made again
MAX_TABLE = 4 << 30  #: bytes of a .csv or .jsonl
_AGAIN_SECONDS = 2.0


class Intake:
    """Turns claims into batches. ``wake`` is called after every recording."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        store: JobStore,
        limits: Limits,
        max_queued: int,
        troubles: Troubles,
        now: Callable[[], int],
        checkpoint: Callable[[str], None],
        announce: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._store = store
        self._limits = limits
        self._max_queued = max_queued
        self._troubles = troubles
        self._now = now
        self._checkpoint = checkpoint
        self._announce = announce
        self._wake = wake
        self._claims: collections.deque[Claim] = collections.deque()
        self._stopping = threading.Event()
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake")

    def start(self) -> None:
        self._claims.extend(self._inbox.leftovers())
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._inbox.ring()
        self._thread.join()

    @property
    def quiet(self) -> bool:
        """Nothing is waiting to be claimed, settling or being read (for --once)."""
        return self._quiet.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = self._turn()
            except SteadyError as error:
                if error.kind.klass is not ErrorClass.ENVIRONMENT:
                    raise
                if self._troubles.report(error, seconds=_AGAIN_SECONDS * 2):
                    say(logger, "intake.trouble", logging.ERROR, code=error.code,
                        message=error.message)  # fmt: skip
                self._stopping.wait(_AGAIN_SECONDS)
                continue
            if not busy and not self._stopping.is_set():
                if self._inbox.settling == 0:
                    self._quiet.set()
                self._inbox.wait()

    def _turn(self) -> bool:
        """Claim what is ready and take one chunk of it. True when there is more to do."""
        if not self._claims:
            full = self._store.counts()[JobState.QUEUED] >= self._max_queued
            self._claims.extend(self._inbox.scan(0 if full else 1024))
        if not self._claims:
            return False
        self._quiet.clear()
        self.take(self._claims[0])
        self._claims.popleft()
        return True

    # -- one file

    def take(self, claim: Claim) -> None:
        """Record or refuse one claimed file.

        Raises SteadyError of class environment: the claim then stays where it is and is
        taken again later.
        """
        batch = self._store.begin_reading(
            claim.ticket, name=claim.name, suffix=claim.suffix, source=claim.source
        )
        self._checkpoint("tries_committed")
        if batch.error is not None:
            self._set_aside(claim, batch, dict(batch.error))
        elif batch.recorded_at is not None:
            self._already(claim, batch)
        elif batch.tries > (MAX_TRIES_TABLE if claim.suffix in jobfile.LINE_SUFFIXES else MAX_TRIES):
            self._refuse(claim, batch, SteadyError("crashed_service"))
        else:
            try:
                self._read(claim, batch)
            except SteadyError as error:
                if error.kind.klass is ErrorClass.ENVIRONMENT:
                    raise
                self._refuse(claim, batch, error)
        self._wake()

    def _already(self, claim: Claim, batch: Batch) -> None:
        """A file of ours dropped twice, or a file whose recording survived a crash."""
        if batch.archived:
            self._inbox.discard(claim.ticket)
            say(logger, "file.duplicate", ticket=batch.ticket, name=claim.name)
        else:
            self._announce()

    def _read(self, claim: Claim, batch: Batch) -> None:
        if claim.suffix in jobfile.LINE_SUFFIXES:
            self._record_lines(claim, batch)
            return
        parsed, digest = self._parse(claim, batch)
        self._checkpoint("parsed")
        if parsed.key is not None:
            kept = self._adopt_key(claim, parsed.key, digest)
            if kept is None:
                return
            batch = kept
        new = self._planned(batch, parsed.requests, first=0)
        self._store.record(
            batch.ticket, new, first_index=0, final=True, warnings=parsed.warnings,
            refused_rows=len(parsed.refused), now=self._now(), local=datetime.datetime.now(),
        )  # fmt: skip
        self._checkpoint("recorded")
        say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=len(new))

    def _parse(self, claim: Claim, batch: Batch) -> tuple[jobfile.Parsed, str]:
        """The whole file and its sha256; salted with the ticket, so always the same jobs."""
        picture = claim.suffix in jobfile.PICTURE_SUFFIXES
        data = self._inbox.read(claim, MAX_PICTURE if picture else jobfile.MAX_BYTES)
        suffix = claim.suffix
        digest = hashlib.sha256(data).hexdigest()
        if picture:
            data, suffix = _job_of_picture(data), ".json"
        parsed = jobfile.parse(
            data, suffix, self._limits, stem=_stem(claim, batch), now=_local(batch),
            salt=claim.ticket, priority=_priority(batch),
        )  # fmt: skip
        return parsed, digest

    def _adopt_key(self, claim: Claim, key: str, digest: str) -> Batch | None:
        """The batch of ``key``, or None when it was recorded before (this file is a repeat)."""
        mine = self._store.adopt_key(claim.ticket, key, digest=digest)
        if mine.claim == claim.ticket:
            return mine
        if mine.digest not in (None, digest):
            raise SteadyError("key_conflict")
        self._inbox.archive(
            claim.ticket, claim.name, claim.suffix, day=datetime.datetime.now().strftime("%Y%m%d"),
            result=[_json({"ticket": mine.ticket, "duplicate_of": mine.ticket, "jobs": []})],
        )  # fmt: skip
        say(logger, "file.duplicate", ticket=mine.ticket, name=claim.name)
        return None

    def _planned(
        self, batch: Batch, planned: Sequence[jobfile.Planned], *, first: int
    ) -> list[NewJob]:
        jobs = []
        for index, plan in enumerate(planned, first):
            own = plan.request.key if len(planned) > 1 or first else None
            job_id = ticket_of_key(own) if own else job_id_of(batch.ticket, index)
            jobs.append(
                NewJob(
                    request=jobfile.resolve(plan.request, self._limits, job_id),
                    stem=plan.stem,
                    warnings=plan.warnings,
                    priority=plan.priority,
                    not_before=plan.not_before,
                    id=job_id,
                )
            )
        return jobs

    # -- tables

    def _record_lines(self, claim: Claim, batch: Batch) -> None:
        """Pass one validates every row, pass two records in chunks that run at once."""
        begun = time.monotonic()
        pictures, refused, warnings = self._survey(claim, batch)
        self._checkpoint("parsed")
        index = row = 0
        chunk: list[jobfile.Planned] = []

        def record(*, final: bool) -> None:
            nonlocal index
            new = self._planned(batch, chunk, first=index)
            self._store.record(
                batch.ticket, new, first_index=index, final=final, next_line=row,
                warnings=warnings if final else (), refused_rows=refused,
                now=self._now(), local=datetime.datetime.now(),
            )  # fmt: skip
            index += len(new)
            chunk.clear()
            self._checkpoint("recorded" if final else "chunk_recorded")
            self._wake()

        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            lines = jobfile.read_lines(
                stream, claim.suffix, self._limits,
                stem=_stem(claim, batch) if pictures > 1 else "",
                digits=max(4, len(str(pictures))), now=_local(batch), salt=claim.ticket,
                priority=_priority(batch, pictures) or Priority.NORMAL,
            )  # fmt: skip
            for each in lines:
                if isinstance(each, jobfile.Row):
                    continue
                if (each.row or 0) <= batch.next_line:
                    index += 1
                    continue
                if each.row != row and len(chunk) >= (CHUNK if index else FIRST_CHUNK):
                    record(final=False)
                    if self._stopping.is_set():
                        return
                chunk.append(each)
                row = each.row or row
        record(final=True)
        say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=index,
            refused_rows=refused or None, seconds=round(time.monotonic() - begun, 2))  # fmt: skip

    def _survey(self, claim: Claim, batch: Batch) -> tuple[int, int, Sequence[str]]:
        """How many pictures and refused rows a table holds. Raises when none can be used."""
        pictures = refused = 0
        problems: list[Problem] = []
        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            lines = self._lines(stream, claim, batch)
            for each in lines:
                if isinstance(each, jobfile.Row):
                    refused += 1
                    problems += each.problems[: jobfile.MAX_PROBLEMS - len(problems)]
                else:
                    pictures += 1
        if not pictures:
            raise SteadyError("all_rows_refused" if refused else "empty_file", problems=problems)
        return pictures, refused, lines.warnings

    def _lines(self, stream: BinaryIO, claim: Claim, batch: Batch) -> jobfile.Lines:
        return jobfile.read_lines(
            stream, claim.suffix, self._limits, now=_local(batch), salt=claim.ticket
        )

    def refused_rows(self, batch: Batch) -> bytes | None:
        """The ``.refused.csv`` of a batch, read from its file once more; None without any."""
        claim = self._inbox.find(batch.claim or batch.ticket) if batch.refused_rows else None
        if claim is None:
            return None
        if claim.suffix in jobfile.LINE_SUFFIXES:
            with self._inbox.open_stream(claim, MAX_TABLE) as stream:
                lines = self._lines(stream, claim, batch)
                rows = [each for each in lines if isinstance(each, jobfile.Row)]
        else:
            rows = list(self._parse(claim, batch)[0].refused)
        return jobfile.dump_refused(rows)

    # -- setting aside

    def _refuse(self, claim: Claim, batch: Batch, error: SteadyError) -> None:
        problems = [dataclasses.replace(p, file=p.file or claim.name) for p in error.problems]
        full = SteadyError(error.code, error.message, problems=problems, remedy=error.remedy)
        body = {"file": claim.name, "ticket": batch.ticket} | full.as_dict()
        self._store.refuse(claim.ticket, body)
        say(logger, "file.refused", logging.WARNING, name=claim.name, code=error.code,
            message=error.message)  # fmt: skip
        self._set_aside(claim, batch, body)

    def _set_aside(self, claim: Claim, batch: Batch, body: dict[str, Any]) -> None:
        self._inbox.refuse(claim, body)
        self._store.archived(batch.ticket)


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, indent=1).encode() + b"\n"


def _stem(claim: Claim, batch: Batch) -> str:
    """What pictures of a file of many are named after; files of our making have no name."""
    return claim.stem if claim.source == "file" else os.path.splitext(batch.name)[0]


def _priority(batch: Batch, pictures: int = 1) -> Priority | None:
    """Who asks over HTTP waits at the screen; a table of many is bulk at every door."""
    if pictures > jobfile.FEW_JOBS:
        return Priority.BULK
    return Priority.INTERACTIVE if batch.source == "http" else None


def _local(batch: Batch) -> datetime.datetime:
    """When the batch came, so that ``{date}`` does not change when its file is read again."""
    return datetime.datetime.fromtimestamp(batch.created_at / 1e6).astimezone()


def _job_of_picture(data: bytes) -> bytes:
    """The job file that makes a dropped picture again."""
    recipe = read_recipe(data)
    if recipe is None or "request" not in recipe:
        raise SteadyError("no_recipe")
    return json.dumps(again(recipe)).encode()
