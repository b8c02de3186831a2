"""The record: every job, what became of it, and what comes next.

One method per transition, each one guarded statement in one short transaction: a statement
whose guard does not hold changes nothing and says so (None, or a SteadyError). So there is
nothing to undo after a crash: a transition is in the record or it is not. Times are
microseconds since 1970, UTC. Knows no files, no HTTP and no models.

Order: class, rank, seq (and see claiming.py). ``rank`` is the rev a job got when it came (plain
arrival order), or, in the bulk class, its start time in a fair queue between batches.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from watcher.jobs import Batch, Job, Priority
from watcher.store import imagenames
from watcher.store.claiming import PATIENCE as PATIENCE, Claiming, Want as Want
from watcher.store.deliveries import (
    Deliveries,
    Delivery as Delivery,
    DeliveryState as DeliveryState,
)
from watcher.store.entries import batch_of, job_of, to_json, with_warnings
from watcher.store.inputs import HELD
from watcher.store.lists import JobFilter as JobFilter
from watcher.store.moves import Moves
from watcher.store.record import Record
from watcher.store.recording import NewJob as NewJob, Recorded, Recording as Recording
from watcher.store.schema import AMISS
from watcher.store.views import JobQueries

_BULK = Priority.BULK.level
_HISTORY = 4000  #: characters that are told of earlier attempts: every look reads them

# A fresh start for a failed or cancelled job, in its new place among those who wait.
_RETRY = f"""state = 'queued', held = {HELD}, deaths = 0, watcher_deaths = 0,
    cancel_requested = 0, started_at = NULL, completed_at = NULL, error_code = NULL,
    error_message = NULL, facts = NULL, passed_at = NULL, dismissed = 0"""

# A batch whose jobs run again; of a file that is still being read, all else stays cancelled.
_OPEN_AGAIN = "archived = 0, cancelled = CASE WHEN recorded_at IS NULL THEN cancelled ELSE 0 END"

_UNREAD = "recorded_at IS NULL AND error IS NULL"  #: a batch of which more may be read


@dataclass(frozen=True)
class Completion:
    """What is recorded of a published picture, and which attempt made it."""

    id: str
    attempt: int
    sha256: str
    bytes: int
    facts: Mapping[str, Any]


class JobStore(Recorded, Moves, Claiming, Deliveries, JobQueries, Record):
    """The record. Safe to share between threads; any number of processes may have it open.

    JobStore(url, *, synchronous="full", clock=now_us, checkpointer=True, busy_seconds=10.0):
    opens and migrates; SteadyError ``database_damaged``, ``database_trouble``, ``disk_full``
    (from every method; the last two heal by themselves).
    """

    # -- a job's life

    def complete(
        self, id: str, attempt: int, *, sha256: str, bytes: int, facts: Mapping[str, Any]
    ) -> Job | None:
        """The picture is published. None: another attempt owns the job, or it ended already."""
        return self.complete_many([Completion(id, attempt, sha256, bytes, facts)])[0]

    def complete_many(self, done: Sequence[Completion]) -> list[Job | None]:
        """The same for several pictures in one transaction, in their order.

        In as many statements as for one: a server's answers are waited for four times.
        """
        if not done:
            return []
        values = {
            f"{name}{k}": to_json(value) if name == "facts" else value
            for k, each in enumerate(done)
            for name, value in vars(each).items()
        }
        rows = ", ".join(
            f"(:id{k}, :attempt{k}, :sha256{k}, :bytes{k}, :facts{k}, {k + 1})"
            for k in range(len(done))
        )
        with self.write():
            ids = self.run(
                "UPDATE jobs SET state = 'completed', completed_at = :now, sha256 = n.column3,"
                " bytes = n.column4, facts = n.column5, cancel_requested = 0,"
                f" rev = n.column6 + (SELECT rev FROM queue) FROM (VALUES {rows}) AS n"
                " WHERE jobs.id = n.column1 AND jobs.attempt = n.column2"
                " AND jobs.state = 'generating' RETURNING jobs.id",
                now=self.now(),
                **values,
            )
            if not ids:
                return [None] * len(done)
            found = {
                (row["id"], row["attempt"]): job_of(row)
                for row in self.run(
                    f"SELECT * FROM jobs WHERE id IN {self.each('ids')}",
                    ids=to_json([row["id"] for row in ids]),
                )
            }
            self.run("UPDATE queue SET rev = :rev", rev=max(job.rev for job in found.values()))
            self._settle([id for id, _ in found])
            ended = [found.pop((each.id, each.attempt), None) for each in done]
            for job in ended:
                if job is not None and job.facts.get("warnings"):  # of the worker
                    self._warn(job)
            return ended

    def _warn(self, job: Job) -> None:
        """Let the batch of ``job`` say what is said of the job."""
        known = self.run("SELECT warnings FROM batches WHERE ticket = :t", t=job.ticket)
        self.run(
            "UPDATE batches SET warnings = :warnings WHERE ticket = :ticket",
            warnings=with_warnings(known[0]["warnings"], job.warnings),
            ticket=job.ticket,
        )

    def fail(
        self,
        id: str,
        attempt: int,
        code: str,
        message: str,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> Job | None:
        """It ended without a picture; ``cancelled`` when ``code`` says so. None: fenced."""
        cancelled = code == "cancelled"
        with self.write():
            return self._move(
                "state = :state, completed_at = :now, error_code = :code,"
                " error_message = :message, facts = :facts, cancel_requested = 0",
                "id = :id AND attempt = :attempt AND state = 'generating'",
                id=id,
                attempt=attempt,
                state="cancelled" if cancelled else "failed",
                code=None if cancelled else code,
                message=None if cancelled else message,
                facts=to_json(facts or {}),
            )

    def release(
        self,
        id: str,
        attempt: int,
        *,
        why: str,
        death: bool = False,
        watcher_death: bool = False,
    ) -> Job | None:
        """Back to the queue in its old place; cancelled when that was asked. None: fenced.

        ``why`` is kept in ``facts["attempts"]``, of hundreds the last. ``death``, ``watcher_death``: count one.
        """
        line = to_json({"attempt": attempt, "why": why, "at": self.now()}) + "\n"
        with self.write():
            return self._move(
                "state = CASE WHEN cancel_requested = 1 THEN 'cancelled' ELSE 'queued' END,"
                " completed_at = CASE WHEN cancel_requested = 1 THEN :now ELSE NULL END,"
                f" held = CASE WHEN cancel_requested = 1 THEN NULL ELSE {HELD} END,"
                " cancel_requested = 0, started_at = NULL, passed_at = NULL,"
                " deaths = deaths + :death,"
                " watcher_deaths = watcher_deaths + :watcher,"
                " history = CASE WHEN length(history) < :most THEN history ELSE '' END || :line",
                "id = :id AND attempt = :attempt AND state = 'generating'",
                id=id,
                attempt=attempt,
                death=int(death),
                watcher=int(watcher_death),
                line=line,
                most=_HISTORY,
            )

    def rename(self, id: str, attempt: int) -> Job | None:
        """A stranger's file has the picture's path: take the next name. None: fenced.

        The row changes first, so a crash before the picture is written leaves a name without
        a picture, never a picture without a name.
        """
        with self.write():
            rows = self.run(
                "SELECT * FROM jobs WHERE id = :id AND attempt = :attempt AND state = 'generating'",
                id=id,
                attempt=attempt,
            )
            if not rows:
                return None
            row = rows[0]
            name = imagenames.next_of(self, id, row["folder"], row["image_name"])
            suffix = row["path"].rpartition(".")[2]
            job = self._move(
                "image_name = :name, path = :path",
                "id = :id",
                id=id,
                name=name,
                path=f"{row['folder']}/{name}.{suffix}",
            )
            self._index_again([row["seq"]])
            return job

    def cancel(self, id: str) -> Job:
        """A waiting job ends here; a running one is flagged for its worker to see.

        SteadyError ``job_not_found``, ``wrong_state`` (ended already).
        """
        with self.write():
            job = self._move(
                "state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END,"
                " completed_at = CASE WHEN state = 'queued' THEN :now ELSE completed_at END,"
                " cancel_requested = CASE WHEN state = 'queued' THEN 0 ELSE 1 END, held = NULL",
                "id = :id AND state IN ('queued', 'generating')",
                id=id,
            )
            return job or self._refused(id)

    def retry(self, id: str) -> Job:
        """A person wants an ended job again: same id, seed, name and path.

        SteadyError ``job_not_found``, ``wrong_state`` (not failed or cancelled).
        """
        ended = "id = :id AND state IN ('failed', 'cancelled')"
        with self.write():
            rows = self.run(f"SELECT * FROM jobs WHERE {ended}", id=id)
            old = job_of(rows[0]) if rows else self._refused(id)
            rank = self._rank(old, old.priority, None)
            self._set_batch(_OPEN_AGAIN, ticket=old.ticket)
            self._move(f"{_RETRY}, rank = :rank", ended, id=id, rank=rank)
            self._settle(None)  # it fails again at once if what it starts from has failed
            return job_of(self.run("SELECT * FROM jobs WHERE id = :id", id=id)[0])

    def reorder(
        self,
        id: str,
        priority: Priority | None = None,
        position: Literal["front", "back"] | None = None,
    ) -> Job:
        """Move a waiting job to another class, or to the front or back of its class.

        SteadyError ``job_not_found``, ``wrong_state`` (not queued).
        """
        with self.write():
            rows = self.run("SELECT * FROM jobs WHERE id = :id AND state = 'queued'", id=id)
            job = job_of(rows[0]) if rows else self._refused(id)
            if position is None and priority in (None, job.priority):
                return job
            priority = priority or job.priority
            rank = self._rank(job, priority, position)
            place = {"class": priority.level, "rank": rank}
            moved = self._move("class = :class, rank = :rank", "id = :id", id=id, **place)
            return moved or self._refused(id)

    def rate(self, id: str, rating: int) -> Job:
        """What a person thinks of the picture: REJECTED, 0 for nothing, 1..MAX_RATING.

        No transition: it has no rev, and nobody is told. SteadyError ``job_not_found``,
        ``wrong_state`` (no picture).
        """
        with self.write():
            rows = self.run(
                "UPDATE jobs SET rating = :rating WHERE id = :id AND state = 'completed'"
                " RETURNING *",
                id=id,
                rating=rating,
            )
            return job_of(rows[0]) if rows else self._refused(id)

    def dismiss(
        self, jobs: Sequence[str] = (), batches: Sequence[str] = (), *, all: bool = False
    ) -> None:
        """A person has seen that these, or all, went wrong. A job that fails again is told again.

        No transition: it has no rev. What is unknown or went well stays as it is.
        """
        with self.write():
            for table, key, some in (("jobs", "id", jobs), ("batches", "ticket", batches)):
                meant = "" if all else f" AND {key} IN {self.each('some')}"
                self.run(
                    f"UPDATE {table} SET dismissed = 1 WHERE {AMISS[table]}{meant}",
                    **({} if all else {"some": to_json(some)}),
                )

    def mark_deleted(self, id: str) -> Job | None:
        """A person deleted the picture; the row stays. None: there was none to delete."""
        with self.write():
            return self._move(
                "deleted_at = :now",
                "id = :id AND state = 'completed' AND deleted_at IS NULL",
                id=id,
            )

    def pause_after_failures(self, reason: str) -> None:
        """Hand out no further job until somebody resumes; people are told."""
        with self.write():
            self._put("paused", {"by": "failures", "reason": reason, "since": self.now()})
            self._tell("queue.paused", {"reason": reason})

    # -- many at once

    def release_due(self) -> int:
        """Let jobs run whose ``not_before`` has come; how many. Cheap when there are none."""
        due = "state = 'queued' AND held = 'not_before' AND not_before <= :now"
        held = f"SELECT 1 FROM jobs INDEXED BY jobs_held WHERE {due} LIMIT 1"
        if not self.poll(held, now=self.now()):
            return 0
        with self.write():
            return self._move_many("held = NULL", due)

    def cancel_batch(self, ticket: str) -> Batch:
        """All of it: waiting jobs end, running ones are flagged, unread ones never start."""
        with self.write():
            batch = batch_of(self._set_batch("cancelled = 1", ticket=ticket))
            self._end_waiting("ticket = :ticket", ticket=ticket)
            self._move_many(
                "cancel_requested = 1",
                "ticket = :ticket AND state = 'generating' AND cancel_requested = 0",
                ticket=ticket,
            )
            return batch

    def _end_waiting(self, which: str, **values: Any) -> int:
        number = self._move_many(
            "state = 'cancelled', held = NULL, completed_at = :now",
            f"{which} AND state = 'queued'",
            **values,
        )
        self._settle(None)
        return number

    def withdraw(self, ticket: str) -> None:
        """End what of a batch has not begun: waiting jobs, and those still to be read.

        A job that is claimed in between runs on. SteadyError ``batch_not_found``.
        """
        with self.write():
            self._end_waiting("ticket = :ticket", ticket=ticket)
            self._set_batch(
                f"cancelled = CASE WHEN {_UNREAD} THEN 1 ELSE cancelled END", ticket=ticket
            )

    def withdraw_all(self) -> int:
        """The same of every batch that came; how many jobs waited. What runs is left alone."""
        with self.write():
            self.run(f"UPDATE batches SET cancelled = 1 WHERE {_UNREAD}")
            return self._end_waiting("TRUE")

    def pause_batch(self, ticket: str) -> Batch:
        """Its waiting jobs are held back, also those still to be read."""
        with self.write():
            batch = batch_of(self._set_batch("paused = 1", ticket=ticket))
            self._move_many(
                "held = 'paused', passed_at = NULL",
                "ticket = :ticket AND state = 'queued'",
                ticket=ticket,
            )
            return batch

    def resume_batch(self, ticket: str) -> Batch:
        """Its jobs wait in their old places again."""
        with self.write():
            batch = batch_of(self._set_batch("paused = 0", ticket=ticket))
            self._move_many(
                f"held = {HELD}",
                "ticket = :ticket AND state = 'queued' AND held = 'paused'",
                ticket=ticket,
            )
            return batch

    def retry_failed(self, ticket: str) -> int:
        """Every failed job of the batch again; how many."""
        return self._retry_many(ticket, "state = 'failed'")

    def retry_ended(self, ticket: str, ids: Sequence[str]) -> int:
        """Those of ``ids`` that failed or were cancelled again; how many. Meant for thousands."""
        which = f"state IN ('failed', 'cancelled') AND id IN {self.each('ids')}"
        return self._retry_many(ticket, which, ids=to_json(ids))

    def _retry_many(self, ticket: str, which: str, **values: Any) -> int:
        with self.write():
            batch = self._set_batch("ticket = ticket", ticket=ticket)
            bulk_time = self.run("SELECT bulk_time FROM queue")[0]["bulk_time"]
            start = max(bulk_time, batch["last_rank"])
            count = self._move_many(
                f"{_RETRY}, rank = n.k + CASE WHEN class = {_BULK} THEN :start"
                " ELSE (SELECT rev FROM queue) END",
                f"ticket = :ticket AND {which}",
                ticket=ticket,
                start=start,
                **values,
            )
            if count:
                self._settle(None)
                self._set_batch(
                    f"{_OPEN_AGAIN}, last_rank = :rank", ticket=ticket, rank=start + count
                )
            return count
