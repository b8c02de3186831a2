"""What others are told: an outbox, written in the transaction of what is told.

A crash leaves what was not told yet, and what was being told when it came: that is told once more
by the next start, so everything is told at least once. Part of :class:`watcher.store.JobStore`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from watcher.store.database import Database
from watcher.store.schema import Row


@dataclass(frozen=True)
class Delivery:
    """One event for one endpoint. Times are microseconds since 1970, UTC."""

    id: str  #: the same at every attempt
    event: str  #: batch.completed
    ticket: str
    endpoint: str
    attempt: int  #: this one, from 1
    created_at: int


class Deliveries(Database):
    """The outbox."""

    def archived(self, ticket: str, *, tell: Sequence[str] = ()) -> bool:
        """The file lies in done/ with its results; False when a retry made jobs open again.

        ``tell``: the endpoints that are told so.
        """
        with self.write():
            done = bool(
                self.run(
                    "UPDATE batches SET archived = 1 WHERE ticket = :ticket"
                    " AND recorded_at IS NOT NULL AND n_queued + n_generating = 0 RETURNING seq",
                    ticket=ticket,
                )
            )
            if done and tell:
                now = self._clock()
                self.insert(
                    "deliveries",
                    ["id", "event", "ticket", "endpoint", "next_at", "created_at"],
                    [(str(uuid.uuid4()), "batch.completed", ticket, e, now, now) for e in tell],
                )
            return done

    def next_delivery(self, now: int) -> Delivery | None:
        """The oldest that is due, its attempt counted; None when nothing is."""
        due = self.poll(
            "SELECT seq FROM deliveries WHERE state = 'pending' AND next_at <= :now"
            " ORDER BY next_at, seq LIMIT 1",
            now=now,
        )
        if not due:
            return None
        with self.write():
            rows = self.run(
                "UPDATE deliveries SET attempt = attempt + 1 WHERE seq = :seq"
                " AND state = 'pending' RETURNING *",
                seq=due[0]["seq"],
            )
        return _delivery_of(rows[0]) if rows else None

    def delivered(self, id: str, *, error: str | None = None, now: int) -> None:
        """It is told; with ``error``: it could not be, and is not tried again."""
        with self.write():
            self.run(
                "UPDATE deliveries SET state = :state, last_error = :error, delivered_at = :at"
                " WHERE id = :id",
                id=id,
                state="delivered" if error is None else "dead",
                error=error,
                at=now if error is None else None,
            )

    def last_end(self, ticket: str) -> int | None:
        """When the last of the batch's jobs ended; reads them all."""
        rows = self.poll("SELECT max(completed_at) AS t FROM jobs WHERE ticket = :t", t=ticket)
        end: int | None = rows[0]["t"]
        return end

    def undelivered(self) -> int:
        """How many are still to be told."""
        rows = self.poll("SELECT count(*) AS n FROM deliveries WHERE state = 'pending'")
        return int(rows[0]["n"])


def _delivery_of(row: Row) -> Delivery:
    return Delivery(
        row["id"], row["event"], row["ticket"], row["endpoint"], row["attempt"], row["created_at"]
    )
