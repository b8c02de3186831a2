"""Pictures that jobs start from: which batch needs which, and who waits for another's picture.

A row here is written before the copy of the picture is, so a copy without a row is nobody's, and
a row without its copy is made good when its file is read again. Part of
:class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from watcher.errors import ERRORS
from watcher.jobs import PICTURE_FIELDS, JobState, input_digest, input_job
from watcher.store.database import Database
from watcher.store.entries import to_json
from watcher.store.schema import Row

#: What a job that waits is held by.
HELD = """CASE WHEN EXISTS (SELECT 1 FROM batches AS b WHERE b.ticket = jobs.ticket
    AND b.paused = 1) THEN 'paused' WHEN awaits IS NOT NULL THEN 'input'
    WHEN not_before > :now THEN 'not_before' ELSE NULL END"""

#: Without the hint SQLite takes the index of the lists, and reads the whole backlog.
_WAITING = """SELECT w.id, w.request, w.awaits, s.state, s.sha256, s.deleted_at
    FROM jobs AS w INDEXED BY jobs_awaiting LEFT JOIN jobs AS s ON s.id = w.awaits
    WHERE w.state = 'queued' AND w.awaits IS NOT NULL
    AND (s.id IS NULL OR s.state IN ('completed', 'failed', 'cancelled'))"""


def awaited(request: Mapping[str, Any]) -> str | None:
    """The id of the first job whose picture a request still waits for."""
    for field in PICTURE_FIELDS:  # asked of every row of a table
        reference = request.get(field)
        if reference and not input_digest(reference):
            return input_job(reference)
    return None


class JobInputs(Database):
    """Inputs, and jobs that wait for them."""

    def inputs_of(self, ticket: str) -> dict[str, str]:
        """What was copied for a batch, or a claimed file that is being read: sha256 by name."""
        rows = self.poll("SELECT name, sha256 FROM inputs WHERE ticket = :ticket", ticket=ticket)
        return {row["name"]: row["sha256"] for row in rows}

    def note_inputs(self, ticket: str, named: Sequence[tuple[str, str]]) -> None:
        """A batch needs these (name, sha256) from now on. Twice is as good as once.

        They are about to be copied, so whoever reads the file got further than before: what ends
        the process in a folder of thousands is hardly the file, and its try is given back.
        """
        with self.write():
            self.run_many(
                "INSERT INTO inputs (ticket, name, sha256) VALUES (:ticket, :name, :sha256)"
                " ON CONFLICT DO NOTHING",
                [{"ticket": ticket, "name": name, "sha256": digest} for name, digest in named],
            )
            self.run(
                "UPDATE batches SET tries = tries - 1"
                " WHERE claim = :ticket AND recorded_at IS NULL AND tries > 0",
                ticket=ticket,
            )

    def waiting_for(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Which of these jobs others wait for, and the tickets of those."""
        rows = self.poll(
            "SELECT DISTINCT awaits, ticket FROM jobs INDEXED BY jobs_awaiting"
            f" WHERE state = 'queued' AND awaits IN {self.each('ids')}",
            ids=to_json(ids),
        )
        return [(row["awaits"], row["ticket"]) for row in rows]

    def forget_notes(self) -> None:
        """Forget what batches needed that are not on record any more. Reads every note."""
        with self.write():
            self.run(
                "DELETE FROM inputs WHERE NOT EXISTS (SELECT 1 FROM batches AS b"
                " WHERE b.ticket = inputs.ticket OR b.claim = inputs.ticket)"
            )

    def forget_inputs(self, digests: Sequence[str], drop: Callable[[str], None]) -> int:
        """``drop`` each of these that no batch needs; how many. Nothing is noted meanwhile."""
        with self.write():
            needed = {
                row["sha256"]
                for row in self.run(
                    f"SELECT sha256 FROM inputs WHERE sha256 IN {self.each('digests')}",
                    digests=to_json(digests),
                )
            }
            gone = [digest for digest in digests if digest not in needed]
            for digest in gone:
                drop(digest)
            return len(gone)

    # -- inside a transaction

    def _take_inputs(self, batches: Sequence[Row]) -> None:
        """What was noted for a file belongs to its batch, where that has a ticket of its own."""
        for row in batches:
            if row["claim"] not in (None, row["ticket"]):
                both = {"ticket": row["ticket"], "claim": row["claim"]}
                self.run(
                    "INSERT INTO inputs (ticket, name, sha256) SELECT :ticket, name, sha256"
                    " FROM inputs WHERE ticket = :claim ON CONFLICT DO NOTHING",
                    **both,
                )
                self.run("DELETE FROM inputs WHERE ticket = :claim", claim=row["claim"])

    def _settle(self, sources: Sequence[str] | None) -> None:
        """Who waits for a picture that is made goes on; who waits for one that will not be, fails.

        ``sources``: of these jobs only; None: of any.
        """
        which = "" if sources is None else f" AND w.awaits IN {self.each('ids')}"
        while sources is None or sources:
            values = {} if sources is None else {"ids": to_json(sources)}
            rows = self.run(f"{_WAITING}{which} ORDER BY w.seq", **values)
            sources = [other for row in rows if (other := self._settle_one(row))]
            which = f" AND w.awaits IN {self.each('ids')}"

    def _settle_one(self, row: Row) -> str | None:
        """One that waited; the job whose waiters are to be looked at next."""
        if row["state"] != JobState.COMPLETED or row["deleted_at"] is not None:
            why = "was deleted" if row["deleted_at"] else row["state"] or "forgotten"
            message = f"{ERRORS['input_failed'].what} (Job {row['awaits']}: {why}.)"
            self._turn(
                "state = 'failed', held = NULL, completed_at = :now, error_message = :message,"
                " error_code = :code",
                row["id"],
                code="input_failed",
                message=message,
            )
            return str(row["id"])
        request = json.loads(row["request"])
        for field in PICTURE_FIELDS:
            if input_job(request.get(field)) == row["awaits"]:
                request[field] = f"sha256:{row['sha256']} job:{row['awaits']}"
        other = awaited(request)
        self.run(
            "UPDATE jobs SET request = :request, awaits = :other WHERE id = :id",
            request=to_json(request),
            other=other,
            id=row["id"],
        )
        self._turn(f"held = {HELD}", row["id"])
        return other

    def _turn(self, assignment: str, id: str, **values: Any) -> None:
        self.run(
            f"UPDATE jobs SET {assignment}, rev = (SELECT rev FROM queue) + 1 WHERE id = :id",
            id=id,
            now=self.now(),
            **values,
        )
        self.run("UPDATE queue SET rev = rev + 1")
