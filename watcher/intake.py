"""From a claimed file to recorded jobs: claim, count the try, read, parse, record.

Runs in one thread of the watcher. Every step is committed before the next begins, and
every id derives from the ticket in the claimed file's name, so a crash anywhere leaves a
file that the next start reads again into the very same jobs.
"""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from watcher import jobfile
from watcher.errors import ErrorClass, Problem, SteadyError
from watcher.inbox import Claim, Inbox
from watcher.jobs import Batch, Job, JobState, Limits, Priority, job_id_of, ticket_of_key
from watcher.log import say
from watcher.recipe import again, read_recipe
from watcher.resume import Standing
from watcher.store import JobStore, NewJob
from watcher.trouble import Troubles
from watcher.wildcards import Wildcards

logger = logging.getLogger("steady.intake")

#: Readings begun and never ended; the next one finds the file guilty and sets it aside unread.
MAX_TRIES = 2
#: For tables: judging a million rows takes long enough to be hit by kills it did not cause.
MAX_TRIES_TABLE = 9
FIRST_CHUNK = 20  #: rows of the first transaction, so that the first picture starts soon …
CHUNK = 2000  #: … and of every later one
MAX_PICTURE = 64 << 20  #: bytes of a picture that is dropped to be made again
MAX_TABLE = 4 << 30  #: bytes of a .csv or .jsonl
AHEAD = 20_000  #: claims that may wait to be read, about a kilobyte each
_LOOK_SECONDS = 1.0  #: between looks while claims are waiting
_AGAIN_SECONDS = 2.0
_SWEEP_SECONDS = 60.0  #: between looks for reservations whose file never came
_SWEEP_AGE = 600_000_000  #: microseconds a reservation waits for its file


class _Stopped(Exception):
    """The service stops in the middle of judging a table; nothing of it was recorded yet."""


class Intake:
    """Turns claims into batches. ``wake`` is called after every recording."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        store: JobStore,
        limits: Limits,
        root: Path,
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
        self._root = root
        self._max_queued = max_queued
        self._troubles = troubles
        self._now = now
        self._checkpoint = checkpoint
        self._announce = announce
        self._wake = wake
        self._claims: collections.deque[Claim] = collections.deque()
        self._spared: set[str] = set()  #: claims whose last reading was ended by their surroundings
        self._swept = float("-inf")
        self._look_at = 0.0  #: when to look again although claims are waiting
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
        self._claim()
        if not self._claims:
            self._sweep()
            return False
        self._quiet.clear()
        self.take(self._claims[0])
        self._claims.popleft()
        return True

    def _claim(self) -> None:
        """Claim what is ready, ahead of the reading: who asks over HTTP goes before files.

        A backlog of files would else keep a person at the screen waiting, and the watch of the
        inbox unmended.
        """
        begun = time.monotonic()
        if self._claims and begun < self._look_at:
            return
        left = self._max_queued - self._store.counts()[JobState.QUEUED]
        room = min(AHEAD - len(self._claims), left)
        found = self._inbox.scan(max(0, room))
        self._claims.extend(claim for claim in found if claim.source == "file")
        self._claims.extendleft(claim for claim in reversed(found) if claim.source != "file")
        now = time.monotonic()
        self._look_at = now + max(_LOOK_SECONDS, 5 * (now - begun))

    def _sweep(self) -> None:
        """Drop reservations of an API that died before it could publish the file.

        Old ones only, and only while the folder itself says that the file is not there.
        """
        if time.monotonic() - self._swept < _SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        for batch in self._store.stale_reservations(_SWEEP_AGE):
            if not self._inbox.holds(batch.ticket, batch.suffix):
                self._store.sweep(batch.ticket)
                say(logger, "reservation.swept", ticket=batch.ticket)

    # -- one file

    def take(self, claim: Claim) -> None:
        """Record or refuse one claimed file.

        Raises SteadyError of class environment: the claim then stays where it is and is
        taken again later, and the try does not count: a file is guilty when it takes the
        process along, not when the disk is full.
        """
        if claim.ticket in self._spared:
            self._store.spare(claim.ticket)
            self._spared.discard(claim.ticket)
            say(logger, "intake.again", name=claim.name)
        try:
            self._take(claim)
        except SteadyError:
            self._spared.add(claim.ticket)
            raise
        except _Stopped:
            with contextlib.suppress(SteadyError):
                self._store.spare(claim.ticket)
        self._wake()

    def _take(self, claim: Claim) -> None:
        batch = self._store.begin_reading(
            claim.ticket, name=claim.name, suffix=claim.suffix, source=claim.source
        )
        self._checkpoint("tries_committed")
        if batch.error is not None:
            self._set_aside(claim, batch, dict(batch.error))
        elif batch.recorded_at is not None:
            self._already(claim, batch)
        elif batch.tries > (
            MAX_TRIES_TABLE if claim.suffix in jobfile.LINE_SUFFIXES else MAX_TRIES
        ):
            self._refuse(claim, batch, SteadyError("crashed_service"))
        else:
            try:
                self._read(claim, batch)
            except SteadyError as error:
                if error.kind.klass is ErrorClass.ENVIRONMENT:
                    raise
                self._refuse(claim, batch, error)

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
        resume = claim.resumes is not None or parsed.resume
        ticket = claim.resumes or (ticket_of_key(parsed.key) if parsed.key is not None else None)
        if ticket is not None:
            kept = self._adopt(claim, ticket, parsed.key, digest, resume=resume)
            if kept is None:
                return
            if kept.ticket != batch.ticket:  # what is drawn is drawn anew, for the batch itself
                parsed, _ = self._parse(claim, kept)
            batch = kept
        standing = self._standing(batch) if resume and batch.jobs else None
        new, again = self._planned(batch, parsed.requests, first=0, standing=standing)
        self._again(batch, again)
        self._store.record(
            batch.ticket, new, first_index=standing.next_index if standing else 0, final=True,
            warnings=parsed.warnings, refused_rows=len(parsed.refused), digest=digest,
            now=self._now(), local=datetime.datetime.now(),
        )  # fmt: skip
        self._checkpoint("recorded")
        say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=len(new),
            again=len(again) or None)  # fmt: skip

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
            salt=batch.ticket, wildcards=Wildcards(self._root),
            keyed=claim.resumes is not None or batch.key is not None,
        )  # fmt: skip
        return parsed, digest

    def _adopt(
        self, claim: Claim, ticket: str, key: str | None, digest: str, *, resume: bool
    ) -> Batch | None:
        """The batch of a key, this file's own; None when the file is a mere repeat.

        Under ``resume`` a batch that another file began goes on with this one.
        """
        known = self._store.batch(ticket)
        if resume:
            before = known.claim if known and known.claim != claim.ticket else None
            earlier = self._inbox.find(before) if before else None
            if earlier is not None:  # its jobs are on record: this file speaks for them now
                self._put_by(earlier, earlier.ticket, {"continued_in": ticket})
            http = known is not None and known.source == "http" and claim.source == "cli"
            return self._store.take_over(
                claim.ticket, ticket, name=claim.name, suffix=claim.suffix,
                source="http" if http else claim.source, digest=digest, key=key,
            )  # fmt: skip
        mine = known if key is None else self._store.adopt_key(claim.ticket, key, digest=digest)
        if mine is not None and mine.claim == claim.ticket:
            return mine
        if mine is None or mine.digest not in (None, digest):
            raise SteadyError("key_conflict")
        self._store.forget(claim.ticket)
        self._put_by(claim, mine.ticket, {"duplicate_of": mine.ticket})
        say(logger, "file.duplicate", ticket=mine.ticket, name=claim.name)
        return None

    def _put_by(self, claim: Claim, ticket: str, said: dict[str, Any]) -> None:
        """Move a file that has nothing (more) to say to done/."""
        if claim.source != "file":
            self._inbox.discard(claim.ticket)
            return
        self._inbox.archive(
            claim.ticket, claim.name, claim.suffix, day=datetime.datetime.now().strftime("%Y%m%d"),
            result=[_json({"ticket": ticket} | said | {"jobs": []})],
        )  # fmt: skip

    def _standing(self, batch: Batch) -> Standing:
        def jobs() -> Iterator[Job]:
            after = -1
            while page := self._store.jobs_of(batch.ticket, after_index=after):
                yield from page
                after = page[-1].index

        return Standing(batch.ticket, jobs())

    def _again(self, batch: Batch, ids: Sequence[str]) -> None:
        if ids:
            self._store.retry_ended(batch.ticket, ids, self._now())
            self._checkpoint("retried")

    def _planned(
        self,
        batch: Batch,
        planned: Sequence[jobfile.Planned],
        *,
        first: int,
        standing: Standing | None = None,
    ) -> tuple[list[NewJob], list[str]]:
        """The jobs to record, and the ids of those on record that are to run again."""
        jobs, again = [], []
        for index, plan in enumerate(planned, first):
            own = plan.request.key if len(planned) > 1 or first else None
            job_id = ticket_of_key(own) if own else job_id_of(batch.ticket, index)
            if standing is not None:
                verdict = standing.judge(plan.request)
                if verdict.again:
                    again.append(verdict.again)
                if verdict.new is None:
                    continue
                job_id = job_id if own else verdict.new
            jobs.append(
                NewJob(
                    request=jobfile.resolve(plan.request, self._limits, job_id),
                    stem=plan.stem,
                    warnings=plan.warnings,
                    priority=_priority(batch, plan),
                    not_before=plan.not_before,
                    id=job_id,
                )
            )
        return jobs, again

    # -- tables

    def _record_lines(self, claim: Claim, batch: Batch) -> None:
        """Pass one validates every row, pass two records in chunks that run at once."""
        begun = time.monotonic()
        digest = None
        if claim.source != "file":  # it may carry a key: another content is then a conflict
            with self._inbox.open_stream(claim, MAX_TABLE) as stream:
                digest = _digest(stream)
        if claim.resumes is not None:
            resumed = self._adopt(claim, claim.resumes, None, digest or "", resume=True)
            batch = resumed or batch
        pictures, refused, warnings = self._survey(claim, batch)
        self._checkpoint("parsed")
        standing = self._standing(batch) if claim.resumes is not None and batch.jobs else None
        index = row = fresh = 0
        chunk: list[jobfile.Planned] = []

        def record(*, final: bool) -> None:
            nonlocal index, fresh
            new, again = self._planned(batch, chunk, first=index, standing=standing)
            self._again(batch, again)
            first = index if standing is None else standing.next_index + fresh
            self._store.record(
                batch.ticket, new, first_index=first, final=final, next_line=row,
                warnings=warnings if final else (), refused_rows=refused, digest=digest,
                now=self._now(), local=datetime.datetime.now(),
            )  # fmt: skip
            index += len(chunk)
            fresh += len(new)
            chunk.clear()
            self._checkpoint("recorded" if final else "chunk_recorded")
            self._wake()

        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            lines = jobfile.read_lines(
                stream, claim.suffix, self._limits,
                stem=_stem(claim, batch) if pictures > 1 else "",
                digits=max(4, len(str(pictures))), now=_local(batch), salt=batch.ticket,
                wildcards=Wildcards(self._root),
                priority=Priority.BULK if pictures > jobfile.FEW_JOBS else Priority.NORMAL,
            )  # fmt: skip
            for each in lines:
                if isinstance(each, jobfile.Row):
                    continue
                if standing is None and (each.row or 0) <= batch.next_line:
                    index += 1
                    continue
                if each.row != row and len(chunk) >= (CHUNK if index else FIRST_CHUNK):
                    record(final=False)
                    if self._stopping.is_set():
                        return
                chunk.append(each)
                row = each.row or row
        record(final=True)
        say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=fresh,
            refused_rows=refused or None, seconds=round(time.monotonic() - begun, 2))  # fmt: skip

    def _survey(self, claim: Claim, batch: Batch) -> tuple[int, int, Sequence[str]]:
        """How many pictures and refused rows a table holds. Raises when none can be used."""
        pictures = refused = 0
        problems: list[Problem] = []
        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            lines = self._lines(stream, claim, batch)
            for each in lines:
                if self._stopping.is_set():
                    raise _Stopped
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
            stream, claim.suffix, self._limits, now=_local(batch), salt=batch.ticket,
            wildcards=Wildcards(self._root),
        )  # fmt: skip

    def refused_rows(self, batch: Batch) -> Iterable[bytes] | None:
        """The ``.refused.csv`` of a batch, read from its file once more; None without any."""
        claim = self._inbox.find(batch.claim or batch.ticket) if batch.refused_rows else None
        return None if claim is None else jobfile.refused_csv(lambda: self._bad(claim, batch))

    def plans(self, batch: Batch) -> Iterator[jobfile.Planned]:
        """What the rows of a table asked for, read from its file once more, wherever it lies."""
        claim = self._inbox.find(batch.claim or batch.ticket, batch.name, batch.suffix)
        if claim is None:
            return
        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            for each in self._lines(stream, claim, batch):
                if isinstance(each, jobfile.Planned):
                    yield each

    def _bad(self, claim: Claim, batch: Batch) -> Iterator[jobfile.Row]:
        if claim.suffix in jobfile.LINE_SUFFIXES:
            with self._inbox.open_stream(claim, MAX_TABLE) as stream:
                for each in self._lines(stream, claim, batch):
                    if isinstance(each, jobfile.Row):
                        yield each
        else:
            yield from self._parse(claim, batch)[0].refused

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


def _digest(stream: BinaryIO) -> str:
    """The sha256 of everything in ``stream``."""
    found = hashlib.sha256()
    while part := stream.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def _stem(claim: Claim, batch: Batch) -> str:
    """What pictures of a file of many are named after; files of our making have no name."""
    stem = claim.stem if claim.source == "file" else os.path.splitext(batch.name)[0]
    return "" if claim.source != "file" and stem == f"api-{claim.ticket}" else stem


def _priority(batch: Batch, plan: jobfile.Planned) -> Priority:
    """Who asks over HTTP for a few pictures waits at the screen; many are bulk at every door."""
    unsaid = plan.request.priority is None and plan.priority is Priority.NORMAL
    return Priority.INTERACTIVE if unsaid and batch.source == "http" else plan.priority


def _local(batch: Batch) -> datetime.datetime:
    """When the batch came, so that ``{date}`` does not change when its file is read again."""
    return datetime.datetime.fromtimestamp(batch.created_at / 1e6).astimezone()


def _job_of_picture(data: bytes) -> bytes:
    """The job file that makes a dropped picture again."""
    recipe = read_recipe(data)
    if recipe is None or "request" not in recipe:
        raise SteadyError("no_recipe")
    return json.dumps(again(recipe)).encode()
