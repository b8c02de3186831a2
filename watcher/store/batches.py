"""Batches: what one accepted file or POST became, from its reservation until it is forgotten.

Everything here is safe to repeat, by whoever comes back after a crash. Part of
:class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Mapping, Sequence
from typing import Any

from watcher.errors import SteadyError
from watcher.jobs import Batch, JobState
from watcher.store import imagenames
from watcher.store.database import Database
from watcher.store.entries import batch_of, to_json
from watcher.store.imagenames import Wish, default_place
from watcher.store.schema import AMISS, Row


class Batches(Database):
    """Batches, but for their jobs."""

    # -- batches before they are recorded

    def reserve(
        self,
        ticket: str,
        *,
        name: str,
        suffix: str,
        source: str,
        digest: str,
        key: str | None = None,
        image_name: bool | str = True,
        folder: str | None = None,
    ) -> tuple[Batch, bool]:
        """The API's row, before its file is published, and whether it is a new one.

        ``image_name`` True reserves ``ImgGen_HHMMSS`` for job 0, a text that name (``_2`` when
        it is taken in its folder), False nothing. Without ``folder`` it is the day's. A ticket
        that is known gets its existing row back. A crash after it leaves a row without a file
        (:meth:`stale_reservations`). Raises SteadyError key_conflict.
        """
        with self.write():
            row = self._batch_row("ticket", ticket)
            if row is not None:
                return _same(batch_of(row), digest), False
            now = self.now()
            day, default_name = default_place(now)
            folder = folder or day
            picture = None
            if image_name is not False:
                base = default_name if image_name is True else image_name
                wish = Wish(ticket, folder, base, everywhere=image_name is True)
                picture = imagenames.give(self, [wish])[0]
            rows = self.run(
                "INSERT INTO batches (ticket, name, suffix, source, created_at, digest, key,"
                " image_name, folder) VALUES (:ticket, :name, :suffix, :source, :now, :digest,"
                " :key, :picture, :folder) RETURNING *",
                ticket=ticket,
                name=name,
                suffix=suffix,
                source=source,
                now=now,
                digest=digest,
                key=key,
                picture=picture,
                folder=folder if picture else None,
            )
            return batch_of(rows[0]), True

    def repeated(self, ticket: str, digests: Sequence[str]) -> Batch | None:
        """The batch of a key that was used before; None where it is new.

        Raises SteadyError key_conflict when it was used for something else than has these digests.
        """
        batch = self.batch(ticket)
        return batch and _same(batch, *digests)

    def begin_reading(self, claim: str, *, name: str, suffix: str, source: str) -> Batch:
        """Have a row for the claimed file, committed before it is read.

        The row is the claim's own, or the one the API reserved for it. ``recorded_at`` set:
        this file was recorded before. ``claim`` of the answer differing from the one passed:
        another file holds this ticket.
        """
        file = {"claim": claim, "name": name, "suffix": suffix, "source": source}
        batch = self.begin_readings([file]).get(claim) or self.batch(claim)
        if batch is None:  # somebody has dropped it in this very moment
            raise SteadyError("batch_not_found")
        return batch

    def begin_readings(self, files: Sequence[Row]) -> dict[str, Batch]:
        """The same for many files in one transaction: batches by claim.

        ``files``: mappings with ``claim``, ``name``, ``suffix`` and ``source``. Left out: a file
        whose ticket is another file's.
        """
        claims = to_json([file["claim"] for file in files])
        now = self.now()
        ours = f"claim IN {self.each('claims')}"
        with self.write():
            rows = self.run(f"SELECT claim FROM batches WHERE {ours}", claims=claims)
            known = {row["claim"] for row in rows}
            self.run_many(
                _INSERT_BATCH, [{**f, "now": now} for f in files if f["claim"] not in known]
            )
            rows = self.run(f"SELECT * FROM batches WHERE {ours}", claims=claims)
        return {row["claim"]: batch_of(row) for row in rows}

    def adopt(
        self,
        claim: str,
        ticket: str,
        *,
        key: str | None = None,
        digest: str,
        file: Mapping[str, str] | None = None,
    ) -> Batch:
        """Give the batch of ``claim`` another ticket, that of its key; before it is recorded.

        When another claim's batch (or an API reservation) has the ticket, that one is returned:
        its ``claim`` differs, and this is a repeat. With ``file`` (``name``, ``suffix``, ``source``)
        this file goes on with that batch instead: its jobs stay as they are, and it counts as
        unrecorded, unarchived and not cancelled until the file was read to its end. Repeating it
        changes nothing. Raises SteadyError key_conflict when the batch came with other content.
        """
        words = {"ticket": ticket, "key": key, "digest": digest}
        keep = "key = COALESCE(:key, key), digest = COALESCE(digest, :digest)"
        with self.write():
            other = self._batch_row("ticket", ticket)
            if other is None:
                rows = self.run(
                    f"UPDATE batches SET ticket = :ticket, {keep}"
                    " WHERE claim = :claim AND recorded_at IS NULL RETURNING *",
                    claim=claim,
                    **words,
                )
                if not rows:
                    raise SteadyError("batch_not_found")
                return batch_of(rows[0])
            if other["claim"] == claim:
                return batch_of(self._set_batch(keep, **words))
            if file is None:
                return _same(batch_of(other), digest)
            self.run("DELETE FROM batches WHERE claim = :c AND recorded_at IS NULL", c=claim)
            goes_on = (
                "claim = :claim, name = :name, suffix = :suffix, source = :source,"
                " digest = :digest, key = COALESCE(key, :key), error = NULL, tries = 0,"
                " next_line = 0, refused_rows = 0, recorded_at = NULL, cancelled = 0, archived = 0,"
                " dismissed = 0"
            )
            return batch_of(self._set_batch(goes_on, claim=claim, **file, **words))

    def refuse(self, claim: str, error: Mapping[str, Any]) -> Batch:
        """Nothing of this file ran: keep the reason. Repeating it changes nothing."""
        with self.write():
            self.run(
                "UPDATE batches SET error = :error, recorded_at = :now"
                " WHERE claim = :claim AND recorded_at IS NULL",
                error=to_json(error),
                now=self.now(),
                claim=claim,
            )
            row = self._batch_row("claim", claim)
        if row is None:
            raise SteadyError("batch_not_found")
        return batch_of(row)

    def count_tries(self, claims: Sequence[str]) -> None:
        """Note that the process ended while it read these files."""
        with self.write():
            self.run(
                f"UPDATE batches SET tries = tries + 1 WHERE claim IN {self.each('claims')}"
                " AND recorded_at IS NULL",
                claims=to_json(claims),
            )

    def forget(self, claim: str) -> bool:
        """Drop the unrecorded row of a claim that turned out to be a repeat of another file."""
        return self._drop_unrecorded("claim = :one", claim)

    def sweep(self, ticket: str) -> bool:
        """Drop a reservation whose file never came; False when it came after all."""
        return self._drop_unrecorded("ticket = :one AND claim IS NULL", ticket)

    def _drop_unrecorded(self, which: str, one: str) -> bool:
        with self.write():
            return bool(
                self.run(
                    f"DELETE FROM batches WHERE {which} AND recorded_at IS NULL"
                    " AND n_queued + n_generating + n_completed + n_failed + n_cancelled = 0"
                    " RETURNING seq",
                    one=one,
                )
            )

    # -- batches once they are recorded

    def unarchive(self, ticket: str) -> None:
        """The file is to be put away (again)."""
        with self.write():
            self._set_batch("archived = 0", ticket=ticket)

    def batch(self, ticket: str) -> Batch | None:
        """The batch with this ticket."""
        rows = self.poll("SELECT * FROM batches WHERE ticket = :ticket", ticket=ticket)
        return batch_of(rows[0]) if rows else None

    def batches(self, before: str | None = None, limit: int = 50) -> list[Batch]:
        """The newest batches first; ``before``: the ticket of the last one already seen."""
        where = "WHERE seq < (SELECT seq FROM batches WHERE ticket = :before)" if before else ""
        values = {"before": before} if before else {}
        return self._batches(f"{where} ORDER BY seq DESC LIMIT :limit", limit=limit, **values)

    def keyed(self, begin: str, *, since: int, limit: int) -> list[Batch]:
        """Batches whose key begins so, newest first, of those made since and the latest 100,000."""
        return self._batches(
            "WHERE seq > (SELECT COALESCE(max(seq), 0) FROM batches) - 100000"
            " AND created_at >= :since AND substr(key, 1, :length) = :begin"
            " ORDER BY seq DESC LIMIT :limit",
            begin=begin,
            length=len(begin),
            since=since,
            limit=limit,
        )

    def refused(self, limit: int = 20) -> list[Batch]:
        """The newest batches that were refused, whole or some of their rows, and not dismissed."""
        found = f"INDEXED BY batches_amiss WHERE {AMISS['batches']} ORDER BY seq DESC LIMIT :limit"
        return self._batches(found, limit=limit)

    def progress(self, ticket: str) -> dict[JobState, int]:
        """How many jobs of the batch are in each state; counted by triggers, never by reading."""
        rows = self.poll("SELECT * FROM batches WHERE ticket = :ticket", ticket=ticket)
        if not rows:
            raise SteadyError("batch_not_found")
        return {state: rows[0][f"n_{state}"] for state in JobState}

    def span(self, ticket: str) -> tuple[int | None, int | None]:
        """When the batch's first job began and its last ended; None while none has. Reads them all."""
        rows = self.poll(
            "SELECT min(started_at) AS began, max(completed_at) AS ended FROM jobs"
            " WHERE ticket = :ticket",
            ticket=ticket,
        )
        return rows[0]["began"], rows[0]["ended"]

    def unarchived(self) -> list[Batch]:
        """Recorded or refused, no job open, file not put away yet; oldest first."""
        return self._batches(
            "INDEXED BY batches_unarchived WHERE archived = 0 AND recorded_at IS NOT NULL"
            " AND n_queued + n_generating = 0 ORDER BY seq LIMIT 1000"
        )

    def unrecorded(self) -> int:
        """Batches that came and were not read to their end yet; what they hold is not counted."""
        rows = self.poll("SELECT count(*) AS n FROM batches INDEXED BY batches_unrecorded"
                         " WHERE recorded_at IS NULL")  # fmt: skip
        return int(rows[0]["n"])

    def stale_reservations(self, older_than_us: int) -> list[Batch]:
        """Reservations of at least this age whose file has not come."""
        return self._batches(
            "INDEXED BY batches_unrecorded WHERE recorded_at IS NULL AND claim IS NULL"
            " AND created_at <= :before ORDER BY seq LIMIT 1000",
            before=self.now() - older_than_us,
        )

    # -- batches that are over for long

    def prunable(self, before: int, after: int = 0) -> list[tuple[int, Batch]]:
        """(place, batch) of those put away whose last job ended before then; ``after``: a place."""
        rows = self.poll(
            "SELECT * FROM batches AS b WHERE seq > :after AND archived = 1"
            " AND recorded_at < :before AND n_queued + n_generating = 0 AND NOT EXISTS"
            " (SELECT 1 FROM jobs WHERE ticket = b.ticket AND completed_at >= :before)"
            " ORDER BY seq LIMIT 100",
            before=before,
            after=after,
        )
        return [(row["seq"], batch_of(row)) for row in rows]

    def drop_jobs(self, ticket: str, ids: Sequence[str]) -> int:
        """Forget these jobs of a batch that is put away, but for pictures that a person rated; 0
        when one waits or runs again.

        Their picture names stay taken for ever.
        """
        with self.write():
            return len(
                self.run(
                    f"DELETE FROM jobs WHERE ticket = :ticket AND id IN {self.each('ids')}"
                    " AND rating <= 0"
                    " AND EXISTS (SELECT 1 FROM batches AS b WHERE b.ticket = :ticket"
                    " AND archived = 1 AND n_queued + n_generating = 0) RETURNING id",
                    ticket=ticket,
                    ids=to_json(ids),
                )
            )

    def drop_batch(self, ticket: str) -> bool:
        """Forget a batch of which no job is left, and what was told of it."""
        with self.write():
            gone = bool(
                self.run(
                    "DELETE FROM batches WHERE ticket = :ticket AND archived = 1 AND n_queued"
                    " + n_generating + n_completed + n_failed + n_cancelled = 0 RETURNING seq",
                    ticket=ticket,
                )
            )
            if gone:
                self.run(
                    "DELETE FROM deliveries WHERE ticket = :ticket AND state <> 'pending'",
                    ticket=ticket,
                )
            return gone

    def claims_begin(self, beginning: str) -> bool:
        """Is there a batch whose claimed file has a ticket with this beginning?"""
        return bool(
            self.poll(
                "SELECT 1 FROM batches WHERE claim >= :low AND claim < :high LIMIT 1",
                low=beginning,
                high=beginning + "g",
            )
        )

    def _batches(self, rest: str, **values: Any) -> list[Batch]:
        return [batch_of(row) for row in self.poll(f"SELECT * FROM batches {rest}", **values)]

    def _batch_row(self, column: str, value: str) -> Row | None:
        rows = self.run(f"SELECT * FROM batches WHERE {column} = :value", value=value)
        return rows[0] if rows else None

    def _set_batch(self, assignment: str, *, ticket: str | None, **values: Any) -> Row:
        rows = self.run(
            f"UPDATE batches SET {assignment} WHERE ticket = :ticket RETURNING *",
            ticket=ticket,
            **values,
        )
        if not rows:
            raise SteadyError("batch_not_found")
        return rows[0]


def _same(batch: Batch, *digests: str) -> Batch:
    """``batch``, which came with content of such a digest. Raises SteadyError key_conflict."""
    if batch.digest not in (None, *digests):
        raise SteadyError("key_conflict")
    return batch


#: A claimed file's row; one that was reserved for it becomes the file's.
_INSERT_BATCH = (
    "INSERT INTO batches (ticket, claim, name, suffix, source, created_at)"
    " VALUES (:claim, :claim, :name, :suffix, :source, :now)"
    " ON CONFLICT (ticket) DO UPDATE SET claim = COALESCE(batches.claim, excluded.claim),"
    " name = CASE WHEN batches.claim IS NULL AND batches.source = 'cli' THEN excluded.name"
    " ELSE batches.name END"
)
