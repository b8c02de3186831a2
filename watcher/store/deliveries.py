"""What others are told: an outbox, written in the transaction of what is told.

That a job ended is written by a trigger (schema.py), everything else by what is here. A crash
leaves what was not told yet, and what was being told when it came: that is told once more by the
next start, so everything is told at least once. Part of :class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from watcher.errors import SteadyError
from watcher.jobs import Batch, Job, JobState
from watcher.store.database import Database
from watcher.store.entries import batch_of, job_of, to_json

DeliveryState = Literal["pending", "delivered", "dead"]

KEPT = 10_000  #: deliveries of each ended state that are kept; older ones go
_CHUNK = 1000


@dataclass(frozen=True)
class Delivery:
    """One event for one endpoint. Times are microseconds since 1970, UTC."""

    seq: int
    id: str  #: the same at every attempt
    event: str  #: job.completed, batch.completed, ...
    ticket: str  #: empty when it is about no batch
    job_id: str | None
    endpoint: str
    state: DeliveryState
    attempt: int  #: attempts begun so far
    next_at: int
    created_at: int  #: when it happened
    ended_at: int | None
    last_status: int | None  #: of HTTP
    last_error: str | None
    body: str  #: JSON: the row of the job or batch as it was, or what else is to be said

    def job(self) -> Job:
        """The job as it was."""
        return job_of(json.loads(self.body))

    def batch(self) -> tuple[Batch, dict[JobState, int]]:
        """The batch as it was, and how many of its jobs stood where."""
        row = json.loads(self.body)
        return batch_of(row), {state: row[f"n_{state}"] for state in JobState}


class Deliveries(Database):
    """The outbox."""

    def listen(self, who: Mapping[str, Iterable[str]]) -> None:
        """From now on these endpoints hear of these events, and no others."""
        with self.write():
            self.run("DELETE FROM listeners")
            pairs = {(event, endpoint) for endpoint, events in who.items() for event in events}
            self.insert("listeners", ["event", "endpoint"], sorted(pairs))

    def listening(self) -> list[str]:
        """Who hears of anything, beside those whom jobs name."""
        rows = self.poll("SELECT DISTINCT endpoint FROM listeners ORDER BY endpoint")
        return [row["endpoint"] for row in rows]

    def tell(self, event: str, body: Mapping[str, Any]) -> int:
        """Let those who listen hear of ``event``; how many they are."""
        with self.write():
            return self._tell(event, body)

    def archived(self, ticket: str) -> bool:
        """The file lies in done/ with its results; False when that is known, or a retry made jobs
        open again.

        Those who listen are told once, and the addresses that its jobs named: of a refused file
        two threads may say so.
        """
        with self.write():
            rows = self.run(
                "UPDATE batches SET archived = 1 WHERE ticket = :ticket AND archived = 0"
                " AND recorded_at IS NOT NULL AND n_queued + n_generating = 0 RETURNING *",
                ticket=ticket,
            )
            for row in rows:
                self._tell("batch.completed", row, ticket)
            return bool(rows)

    def _tell(self, event: str, body: Mapping[str, Any], ticket: str = "") -> int:
        found = self.run(
            "SELECT endpoint FROM listeners WHERE event = :event UNION SELECT endpoint"
            " FROM deliveries WHERE ticket = :ticket AND ticket <> '' AND job_id IS NOT NULL"
            " AND endpoint NOT IN (SELECT endpoint FROM listeners)",
            event=event,
            ticket=ticket,
        )
        now = self.now()
        self.insert(
            "deliveries",
            ["id", "event", "ticket", "endpoint", "next_at", "created_at", "body"],
            [
                (f"msg_{uuid.uuid4().hex}", event, ticket, r["endpoint"], now, now, to_json(body))
                for r in found
            ],
        )
        return len(found)

    # -- delivering

    def due_endpoints(self) -> list[str]:
        """Who is to be told something. Two looks into an index for each that waits."""
        first = (
            "SELECT min(endpoint) FROM deliveries INDEXED BY deliveries_queued"
            " WHERE state = 'pending'"
        )
        rows = self.poll(
            f"WITH RECURSIVE waiting (endpoint) AS ({first} UNION ALL SELECT ({first}"
            " AND endpoint > w.endpoint) FROM waiting AS w WHERE w.endpoint IS NOT NULL)"
            " SELECT w.endpoint FROM waiting AS w WHERE EXISTS (SELECT 1 FROM deliveries AS d"
            " INDEXED BY deliveries_queued WHERE d.state = 'pending' AND d.endpoint = w.endpoint"
            " AND d.next_at <= :now)",
            now=self.now(),
        )
        return [row["endpoint"] for row in rows]

    def next_delivery(self, endpoint: str) -> Delivery | None:
        """The oldest that is due there, its attempt counted; None when nothing is.

        What happened to one job is told in order: the next thing waits for the one before.
        """
        due = self.poll(
            "SELECT seq FROM deliveries AS d INDEXED BY deliveries_queued WHERE state = 'pending'"
            " AND endpoint = :endpoint AND next_at <= :now AND NOT EXISTS (SELECT 1 FROM deliveries"
            " AS b INDEXED BY deliveries_in_order WHERE b.state = 'pending' AND b.endpoint ="
            " d.endpoint AND b.job_id = d.job_id AND b.seq < d.seq) ORDER BY seq LIMIT 1",
            endpoint=endpoint,
            now=self.now(),
        )
        if not due:
            return None
        with self.write():
            rows = self.run(
                "UPDATE deliveries SET attempt = attempt + 1 WHERE seq = :seq"
                " AND state = 'pending' RETURNING *",
                seq=due[0]["seq"],
            )
        return Delivery(**rows[0]) if rows else None

    def attempted(
        self,
        id: str,
        *,
        status: int | None = None,
        error: str | None = None,
        again_at: int | None = None,
    ) -> None:
        """It is told; with ``error``: it could not be, and is tried ``again_at``, or given up."""
        state = "delivered" if error is None else "dead" if again_at is None else "pending"
        with self.write():
            self.run(
                "UPDATE deliveries SET state = :state, last_status = :status, last_error = :error,"
                " next_at = COALESCE(:again, next_at), ended_at = :ended WHERE id = :id",
                id=id,
                state=state,
                status=status,
                error=error,
                again=again_at,
                ended=None if state == "pending" else self.now(),
            )

    def silence(self, endpoint: str, error: str) -> None:
        """Tell it nothing more: it listens no longer, and what waits for it is given up."""
        with self.write():
            self.run("DELETE FROM listeners WHERE endpoint = :endpoint", endpoint=endpoint)
        while self.give_up(endpoint, error) == _CHUNK:
            pass

    def give_up(self, endpoint: str, error: str, *, due: int = 2**62) -> int:
        """End the oldest that wait there and were due before ``due``; how many, _CHUNK at most."""
        with self.write():
            return len(
                self.run(
                    "UPDATE deliveries SET state = 'dead', ended_at = :now,"
                    " last_error = COALESCE(last_error, :error) WHERE seq IN (SELECT seq FROM"
                    " (SELECT seq, next_at FROM deliveries INDEXED BY deliveries_queued"
                    " WHERE state = 'pending' AND endpoint = :endpoint ORDER BY seq"
                    f" LIMIT {_CHUNK}) AS oldest WHERE next_at < :due) RETURNING seq",
                    endpoint=endpoint,
                    error=error,
                    due=due,
                    now=self.now(),
                )
            )

    def resend(self, id: str) -> Delivery:
        """Try it anew from the first attempt, with the same id. SteadyError ``delivery_not_found``."""
        with self.write():
            rows = self.run(
                "UPDATE deliveries SET state = 'pending', attempt = 0, next_at = :now,"
                " ended_at = NULL WHERE id = :id RETURNING *",
                id=id,
                now=self.now(),
            )
        if not rows:
            raise SteadyError("delivery_not_found")
        return Delivery(**rows[0])

    def thin_out(self, *, kept: int = KEPT) -> None:
        """Forget those that ended long ago, but for the newest of each state."""
        for state in ("delivered", "dead"):
            gone = _CHUNK
            while gone == _CHUNK:
                with self.write():
                    gone = len(
                        self.run(
                            "DELETE FROM deliveries WHERE seq IN (SELECT seq FROM deliveries"
                            " INDEXED BY deliveries_ended WHERE state = :state AND ended_at IS NOT"
                            f" NULL ORDER BY ended_at DESC LIMIT {_CHUNK} OFFSET {kept})"
                            " RETURNING seq",
                            state=state,
                        )
                    )

    # -- looking

    def deliveries(
        self,
        *,
        state: DeliveryState | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Delivery]:
        """The newest first, a page at a time."""
        only = "" if state is None else "AND state = :state"
        if state in ("delivered", "dead"):
            only += " AND ended_at IS NOT NULL"  # as the index of those that are over has it
        rows = self.poll(
            f"SELECT * FROM deliveries WHERE seq < :before {only} ORDER BY seq DESC LIMIT :limit",
            before=before_seq or 2**62,
            limit=limit,
            **({} if state is None else {"state": state}),
        )
        return [Delivery(**row) for row in rows]

    def given_up(self, since: int) -> dict[str, tuple[int, str]]:
        """endpoint -> how many were given up since then, and what was wrong with the last."""
        rows = self.poll(
            "SELECT endpoint, last_error FROM deliveries INDEXED BY deliveries_ended"
            " WHERE state = 'dead' AND ended_at IS NOT NULL AND ended_at >= :since"
            " ORDER BY ended_at LIMIT :most",
            since=since,
            most=KEPT,
        )
        found: dict[str, tuple[int, str]] = {}
        for row in rows:
            number, _ = found.get(row["endpoint"], (0, ""))
            found[row["endpoint"]] = (number + 1, row["last_error"] or "")
        return found
