"""From what a file says to the record: new jobs, jobs to run again, repeats of a key.

Every id derives from the ticket or from a person's key, so recording a file again after a
crash finds its jobs there already.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from watcher import jobfile
from watcher.checkpoints import reached
from watcher.inbox import Claim
from watcher.intake.reading import Reading
from watcher.intake.resume import Standing
from watcher.intake.suspect import Suspect
from watcher.jobfile.fields import seeded
from watcher.jobfile.planner import PlannedJob
from watcher.jobs import PICTURE_FIELDS, Batch, JobRequest, Priority, job_ids_of, ticket_of_key
from watcher.log import say
from watcher.parts import Part, Shared
from watcher.refused import kept_line
from watcher.results import day_of
from watcher.store import NewJob, Recording

logger = logging.getLogger("steady.intake")

#: The place of a job on record, and the row of the new file it stands for now.
Row = tuple[int, int | None]


class Made(NamedTuple):
    """What a file becomes on record.

    ``new``: jobs to record. ``again``: ids of jobs on record that are to run again. ``rows``:
    those on record whose row is another one now.
    """

    new: list[NewJob]
    again: list[str]
    rows: list[Row]


class Recorder(Part):
    """Puts what ``reading`` reads on record."""

    def __init__(self, shared: Shared, *, reading: Reading, suspect: Suspect) -> None:
        super().__init__(shared)
        self.reading = reading
        self.suspect = suspect

    # -- a whole file

    def whole(self, claim: Claim, batch: Batch) -> None:
        """Record a file that is no table, in one transaction.

        Raises SteadyError: what is wrong with the file (nothing of it is on record then), or
        the environment's trouble.
        """
        with self.suspect.reading(claim.ticket):
            parsed, digest = self.reading.whole(claim, batch)
        reached("parsed")
        resume = claim.resumes is not None or parsed.resume
        ticket = claim.resumes or (ticket_of_key(parsed.key) if parsed.key is not None else None)
        if ticket is not None:
            kept = self.adopt(claim, ticket, parsed.key, digest, resume=resume)
            if kept is None:
                return
            if kept.ticket != batch.ticket:  # what is drawn is drawn anew, for the batch itself
                parsed, _ = self.reading.whole(claim, kept)
            batch = kept
        standing = self.standing(batch) if resume and batch.jobs else None
        made = self.jobs(batch, parsed.requests, standing=standing)
        if parsed.refused:
            self.refuse(batch, map(kept_line, parsed.refused))
        self.again(batch, made.again)
        if standing is not None:
            made.rows.extend((index, None) for index in standing.gone())
        first = standing.next_index if standing else 0
        self._store.record_all([recording(batch, parsed, digest, made, first_index=first)])
        reached("recorded")
        say(logger, "file.recorded", ticket=batch.ticket, name=claim.name, jobs=len(made.new),
            again=len(made.again) or None)  # fmt: skip

    def refuse(self, batch: Batch, rows: Iterable[bytes]) -> None:
        """Keep the rows that cannot be used, before any job of their file is on record."""
        self._inbox.keep_refused(batch.ticket, rows)
        reached("refused_kept")

    def jobs(
        self,
        batch: Batch,
        planned: Sequence[PlannedJob],
        *,
        first: int = 0,
        standing: Standing | None = None,
        named: dict[str, str] | None = None,
    ) -> Made:
        """What becomes of ``planned``; ``first``: the number, from 0, of its first in the file.

        ``named``: ids of the file's jobs before them, by the name they were given; added to.
        """
        named = {} if named is None else named
        jobs: list[NewJob] = []
        again: list[str] = []
        rows: list[Row] = []
        ids, at_screen = job_ids_of(batch.ticket), batch.source == "http"
        for index, plan in enumerate(planned, first):
            job_id, fresh = ids(index, plan.request), True
            name, plan.request = plan.request.name, _linked(plan.request, named)
            if standing is not None:
                verdict = standing.judge(plan.request, plan.row)
                job_id, fresh = verdict.new or verdict.there or job_id, verdict.new is not None
                if verdict.moved is not None:
                    rows.append((verdict.moved, plan.row))
                if verdict.again:
                    again.append(verdict.again)
            if name:
                named[name] = job_id
            if not fresh:
                continue
            # Who asks over HTTP for a few pictures waits at the screen; many are bulk everywhere.
            unsaid = plan.request.priority is None and plan.priority is Priority.NORMAL
            jobs.append(
                NewJob.of(
                    seeded(plan.request, job_id),
                    forwards=self.reading.limits.forwards(plan.request),
                    stem=plan.stem,
                    warnings=plan.warnings,
                    priority=Priority.INTERACTIVE if unsaid and at_screen else plan.priority,
                    not_before=plan.not_before,
                    id=job_id,
                    row=plan.row,
                )
            )
        return Made(jobs, again, rows)

    # -- keys and batches that go on

    def adopt(
        self, claim: Claim, ticket: str, key: str | None, digest: str, *, resume: bool
    ) -> Batch | None:
        """The batch of a key, this file's own; None when the file is a mere repeat.

        Under ``resume`` a batch that another file began goes on with this one. Raises SteadyError
        key_conflict.
        """
        if resume:
            known = self._store.batch(ticket)
            before = known.claim if known and known.claim != claim.ticket else None
            earlier = self._inbox.find(before) if before else None
            if earlier is not None:  # its jobs are on record: this file speaks for them now
                self._put_by(earlier, earlier.ticket, {"continued_in": ticket})
            http = known is not None and known.source == "http" and claim.source == "cli"
            source = "http" if http else claim.source
            name = claim.stem if source == "http" else claim.name
            file = {"name": name, "suffix": claim.suffix, "source": source}
            return self._store.adopt(claim.ticket, ticket, key=key, digest=digest, file=file)
        mine = self._store.adopt(claim.ticket, ticket, key=key, digest=digest)
        if mine.claim == claim.ticket:
            return mine
        self._store.forget(claim.ticket)
        self._put_by(claim, mine.ticket, {"duplicate_of": mine.ticket})
        say(logger, "file.duplicate", ticket=mine.ticket, name=claim.name)
        return None

    def _put_by(self, claim: Claim, ticket: str, said: dict[str, Any]) -> None:
        """Move a file that has nothing (more) to say to done/."""
        self._store.sync()
        if claim.source != "file":
            self._inbox.discard(claim.ticket)
            return
        body = json.dumps({"ticket": ticket} | said | {"jobs": []}, ensure_ascii=False, indent=1)
        self._inbox.archive(
            claim.ticket, claim.name, claim.suffix, day=day_of(self._store.now()),
            beside=[(f"{claim.suffix}.result.json", [body.encode() + b"\n"])],
        )  # fmt: skip

    def standing(self, batch: Batch) -> Standing:
        """What of the batch is on record."""
        return Standing(batch.ticket, self._store.jobs_in_order(batch.ticket))

    def again(self, batch: Batch, ids: Sequence[str]) -> None:
        """Let jobs that ended without a picture run once more."""
        if ids:
            self._store.retry_ended(batch.ticket, ids)
            reached("retried")


def _linked(request: JobRequest, named: Mapping[str, str]) -> JobRequest:
    """``request`` with the ids of those jobs of its file whose pictures it starts from."""
    if not any(map(request.__dict__.get, PICTURE_FIELDS)):
        return request
    links = {f: f"job:{named[r]}" for f in PICTURE_FIELDS if (r := getattr(request, f)) in named}
    return request.model_copy(update=links) if links else request


def recording(
    batch: Batch,
    parsed: jobfile.Parsed,
    digest: str,
    made: Made,
    *,
    first_index: int = 0,
) -> Recording:
    """All of a whole file, as the record is told it."""
    return Recording(
        batch.ticket, made.new, first_index=first_index, final=True, warnings=parsed.warnings,
        refused_rows=len(parsed.refused), digest=digest, rows=made.rows, axes=parsed.axes,
    )  # fmt: skip
