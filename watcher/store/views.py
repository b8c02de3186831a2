"""Looking at the record: one job, lists in pages, figures. Nothing here changes anything.

Pages go by key, never by offset, and figures are counted by triggers, so no look grows with
the record. Lists are in ``lists.py``. Part of :class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from watcher.jobs import Job, JobState, Priority
from watcher.store.entries import job_of
from watcher.store.imagenames import folded
from watcher.store.lists import PAGE, JobFilter, Lists
from watcher.store.schema import AMISS, READY

_LAST = 2**31 - 1  #: in place of a row that is not known
_IDX = 2**32 - 1  #: the half of a packed (row, idx) that is the idx


@dataclass(frozen=True)
class Hour:
    """What was made in one hour: ``start`` (microseconds UTC), pictures, mean seconds of each."""

    start: int
    pictures: int
    wait: float
    run: float


@dataclass(frozen=True)
class Spread:
    """Times of some jobs: their ``total`` in seconds, and how many were within each bound."""

    total: float
    within: tuple[int, ...]


@dataclass(frozen=True)
class Tally:
    """What :meth:`JobQueries.tally` counted, up to ``rev``: ``count`` jobs, their waits and runs."""

    rev: int
    count: int
    wait: Spread
    run: Spread


class JobQueries(Lists):
    """Every question the record answers about jobs."""

    def job(self, id: str) -> Job | None:
        """The job with this id. The fastest look there is; meant for polling."""
        rows = self.poll("SELECT * FROM jobs WHERE id = :id", id=id)
        return job_of(rows[0]) if rows else None

    def job_by_image(
        self, name: str, folder: str | None = None, *, made: bool = False
    ) -> Job | None:
        """Whose picture has this name, in any case; of several folders the newest job's.

        ``made``: the newest whose picture is there, where one is. The file's suffix may stand
        behind the name.
        """
        stem, dot, suffix = name.rpartition(".")
        found = self._named(name, folder, made)
        if found is None and dot and (found := self._named(stem, folder, made)):
            found = found if found.path.endswith("." + suffix.lower()) else None
        return found

    def _named(self, name: str, folder: str | None, made: bool) -> Job | None:
        where = "n.folded = :name" + (" AND n.folder = :folder" if folder is not None else "")
        values = {"name": folded(name)} | ({"folder": folded(folder)} if folder is not None else {})
        there = "(j.state = 'completed' AND j.deleted_at IS NULL) DESC, " if made else ""
        rows = self.poll(
            "SELECT j.* FROM image_names AS n JOIN jobs AS j ON j.id = n.job_id"
            f" WHERE {where} ORDER BY {there}j.seq DESC LIMIT 1",
            **values,
        )
        return job_of(rows[0]) if rows else None

    def generating(self) -> list[Job]:
        """Every job that was handed out and has not come back."""
        return self._jobs("INDEXED BY jobs_generating WHERE state = 'generating' ORDER BY seq")

    def cancels(self) -> list[tuple[str, int]]:
        """(id, attempt) of running jobs somebody wants cancelled."""
        rows = self.poll(
            "SELECT id, attempt FROM jobs WHERE state = 'generating' AND cancel_requested = 1"
        )
        return [(row["id"], row["attempt"]) for row in rows]

    def jobs_of(self, ticket: str, after_index: int = -1, limit: int = PAGE) -> list[Job]:
        """The batch's jobs in its own order, a page at a time."""
        return self._jobs(
            "INDEXED BY jobs_by_place WHERE ticket = :ticket AND idx > :after"
            " ORDER BY idx LIMIT :limit",
            ticket=ticket,
            after=after_index,
            limit=limit,
        )

    def jobs_in_order(self, ticket: str) -> Iterator[Job]:
        """All of them, a page in memory at a time."""
        after = -1
        while page := self.jobs_of(ticket, after_index=after):
            yield from page
            after = page[-1].index

    def jobs_by_row(self, ticket: str) -> Iterator[Job]:
        """All of them in the order of the rows they come from; those of no known row go last.

        That is their order in the batch as well, but for a batch whose file came again with its
        rows in another order. Eight bytes a job in memory (some 50 in that case).
        """
        places = array("q")
        after = -1
        while page := self.poll(
            "SELECT row, idx FROM jobs INDEXED BY jobs_by_place WHERE ticket = :ticket"
            " AND idx > :after ORDER BY idx LIMIT 10000",
            ticket=ticket,
            after=after,
        ):
            places.extend((row["row"] or _LAST) << 32 | row["idx"] for row in page)
            after = page[-1]["idx"]
        if all(place < later for place, later in itertools.pairwise(places)):
            yield from self.jobs_in_order(ticket)
            return
        ordered = [place & _IDX for place in sorted(places)]
        for start in range(0, len(ordered), PAGE):
            wanted = ordered[start : start + PAGE]
            some = f"INDEXED BY jobs_by_place WHERE ticket = :ticket AND idx IN ({', '.join(map(str, wanted))})"
            found = {job.index: job for job in self._jobs(some, ticket=ticket)}
            yield from (found[index] for index in wanted if index in found)

    def prefix(self, id_prefix: str, limit: int = 2) -> list[Job]:
        """Jobs whose id begins so; two are enough to see that it is not unique."""
        start = id_prefix.lower()
        if not re.fullmatch(r"[0-9a-f-]{1,36}", start):
            return []
        return self._jobs(
            "WHERE id >= :start AND id < :stop ORDER BY id LIMIT :limit",
            start=start,
            stop=start + "g",  # greater than any hexadecimal digit
            limit=limit,
        )

    def neighbours(self, seq: int) -> tuple[str | None, str | None]:
        """The ids of the jobs recorded just before and just after the row ``seq``."""
        older = self.poll("SELECT id FROM jobs WHERE seq < :seq ORDER BY seq DESC LIMIT 1", seq=seq)
        newer = self.poll("SELECT id FROM jobs WHERE seq > :seq ORDER BY seq LIMIT 1", seq=seq)
        return (older[0]["id"] if older else None, newer[0]["id"] if newer else None)

    def failed_of(self, ticket: str, limit: int = 50) -> list[Job]:
        """The batch's failed jobs, the newest first. Reads the failed ones of all batches."""
        return self._jobs(
            "INDEXED BY jobs_by_state WHERE state = 'failed' AND ticket = :ticket"
            " ORDER BY seq DESC LIMIT :limit",
            ticket=ticket,
            limit=limit,
        )

    def failed(self, limit: int = 50) -> list[Job]:
        """The failed jobs that nobody has dismissed, the newest first."""
        found = f"INDEXED BY jobs_amiss WHERE {AMISS['jobs']} ORDER BY seq DESC LIMIT :limit"
        return self._jobs(found, limit=limit)

    def upcoming(self, limit: int = 50) -> list[Job]:
        """The ready jobs in the order in which they will run (but for bulk's turns)."""
        return self._jobs(f"{READY} ORDER BY class, rank, seq LIMIT :limit", limit=limit)

    def held_back(self, limit: int = 50) -> list[Job]:
        """Queued jobs that may not run yet, those whose time comes first at the front."""
        return self._jobs(
            "INDEXED BY jobs_held WHERE state = 'queued' AND held IS NOT NULL"
            " ORDER BY held, not_before LIMIT :limit",
            limit=limit,
        )

    def ready_by_class(self) -> dict[Priority, int]:
        """How many ready jobs wait in each class. Reads the index of the ready ones."""
        rows = self.poll(f"SELECT class, count(*) AS n FROM jobs {READY} GROUP BY class")
        counted = {row["class"]: row["n"] for row in rows}
        return {each: counted.get(each.level, 0) for each in Priority}

    def hours(self, since: int, most: int = 50_000) -> list[Hour]:
        """Pictures made since then (microseconds UTC), hour by hour.

        Looks only at the ``most`` latest transitions, so that it never reads a whole record.
        """
        hour = 3_600_000_000
        rows = self.poll(
            "SELECT completed_at / :hour AS h, count(*) AS n,"
            " avg(started_at - created_at) AS wait, avg(completed_at - started_at) AS run"
            " FROM jobs INDEXED BY jobs_by_rev WHERE rev > :rev AND state = 'completed'"
            " AND completed_at >= :since AND started_at IS NOT NULL GROUP BY 1 ORDER BY 1",
            hour=hour,
            rev=self.last_rev() - most,
            since=since,
        )
        return [
            Hour(int(r["h"]) * hour, int(r["n"]), float(r["wait"]) / 1e6, float(r["run"]) / 1e6)
            for r in rows
        ]

    def pictures_before(self, end: int, begin_of: Callable[[int], int]) -> tuple[int, int] | None:
        """The newest stretch of pictures whose jobs came before ``end``: (its begin, how many).

        ``begin_of``: where the stretch that a moment lies in begins. None: there are no more.
        Reads an index alone.
        """
        pictured = (
            "FROM jobs INDEXED BY jobs_pictured WHERE state = 'completed' AND deleted_at IS NULL"
        )
        newest = self.poll(
            f"SELECT created_at AS at {pictured} AND created_at < :end"
            " ORDER BY created_at DESC LIMIT 1",
            end=end,
        )
        if not newest:
            return None
        begin = begin_of(int(newest[0]["at"]))
        rows = self.poll(
            f"SELECT count(*) AS n {pictured} AND created_at >= :begin AND created_at < :end",
            begin=begin,
            end=end,
        )
        return begin, int(rows[0]["n"])

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        rows = self.poll("SELECT state, n FROM job_counts")
        counted = {row["state"]: row["n"] for row in rows}
        return {state: counted[state] for state in JobState}

    def position(self, id: str, cap: int = 10_000) -> int | None:
        """How many ready jobs go before this one: 0 is next, ``cap`` means that or more.

        None when it is not waiting its turn (held back, running, ended, unknown). Turns that
        bulk gets while better classes wait are not foreseen.
        """
        # Three ranges of the index. As one comparison of (class, rank, seq) it would be bounded by
        # the class alone, and read the whole class behind the job.
        rows = self.poll(
            "SELECT (SELECT count(*) FROM ("
            f" SELECT 1 FROM jobs {READY} AND class < j.class"
            f" UNION ALL SELECT 1 FROM jobs {READY} AND class = j.class AND rank < j.rank"
            f" UNION ALL SELECT 1 FROM jobs {READY} AND class = j.class AND rank = j.rank"
            " AND seq < j.seq LIMIT :cap) AS ahead) AS n"
            " FROM jobs AS j WHERE j.id = :id AND j.state = 'queued' AND j.held IS NULL",
            id=id,
            cap=cap,
        )
        return int(rows[0]["n"]) if rows else None

    def since(self, rev: int, limit: int = 1000) -> list[Job]:
        """Jobs that changed after ``rev``, each as it is now, in the order of their last change."""
        return self._jobs(
            "INDEXED BY jobs_by_rev WHERE rev > :rev ORDER BY rev LIMIT :limit",
            rev=rev,
            limit=limit,
        )

    def last_rev(self) -> int:
        """The rev of the latest transition; 0 in an empty record."""
        return int(self.poll("SELECT rev FROM queue")[0]["rev"])

    def durations(self) -> list[tuple[int, int, int, int, int]]:
        """(width, height, forwards, started_at, completed_at) of completed jobs, newest first."""
        return [
            (*job.request.final_size, job.forwards, job.started_at, job.completed_at)
            for job in self.jobs(JobFilter(state=JobState.COMPLETED), limit=200)
            if job.started_at is not None and job.completed_at is not None
        ]

    def waiting_sizes(self) -> list[tuple[int, int, int]]:
        """(width, height, forwards) of the 500 oldest queued jobs and the 500 newest."""
        few = "WHERE state = 'queued' ORDER BY seq"
        jobs = {
            job.seq: job for order in ("", " DESC") for job in self._jobs(f"{few}{order} LIMIT 500")
        }
        return [(*j.request.final_size, j.forwards) for j in jobs.values()]

    def last_waiting(self, ticket: str) -> Job | None:
        """The batch's last job that waits its turn."""
        jobs = self._jobs(
            "INDEXED BY jobs_by_place WHERE ticket = :ticket AND state = 'queued'"
            " AND held IS NULL ORDER BY idx DESC LIMIT 1",
            ticket=ticket,
        )
        return jobs[0] if jobs else None

    def held(self, *, window_open: bool = True) -> int:
        """How many queued jobs may not run now: held back, or bulk while its window is closed."""
        rows = self.poll(
            "SELECT count(*) AS n FROM jobs INDEXED BY jobs_held"
            " WHERE state = 'queued' AND held IS NOT NULL"
        )
        if not window_open:
            rows += self.poll(
                f"SELECT count(*) AS n FROM jobs {READY} AND class = {Priority.BULK.level}"
            )
        return sum(row["n"] for row in rows)

    def waiting_since(self) -> int | None:
        """When the oldest job that waits was created, also if it is to wait; None when none does."""
        rows = self.poll("SELECT created_at FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1")
        return int(rows[0]["created_at"]) if rows else None

    def arrivals(self) -> list[tuple[str, bool, int]]:
        """(source, refused?, how many) of all batches that were read. Reads every batch."""
        rows = self.poll(
            "SELECT source, CASE WHEN error IS NULL THEN 0 ELSE 1 END AS refused, count(*) AS n"
            " FROM batches WHERE recorded_at IS NOT NULL GROUP BY 1, 2"
        )
        return [(row["source"], bool(row["refused"]), row["n"]) for row in rows]

    def tally(self, after: int, bounds: Sequence[float]) -> Tally:
        """How long jobs took that were completed after the rev ``after``.

        ``bounds`` in seconds. Beginning with 0 it reads every completed job once (a second at a
        million); going on from the answer's ``rev`` only what is new. A picture's deletion does
        not count its job again.
        """
        limits = {f"b{n}": int(bound * 1e6) for n, bound in enumerate(bounds)}
        spans = {"wait": "started_at - created_at", "run": "completed_at - started_at"}
        sums = ", ".join(
            f"COALESCE(sum({span}), 0) AS {name}, "
            + ", ".join(
                f"COALESCE(sum(CASE WHEN {span} <= :{bound} THEN 1 ELSE 0 END), 0) AS {name}_{bound}"
                for bound in limits
            )
            for name, span in spans.items()
        )
        rev = self.last_rev()
        new = "AND rev > :after AND deleted_at IS NULL" if after else ""
        row = self.poll(
            f"SELECT count(*) AS n, {sums} FROM jobs WHERE state = 'completed'"
            f" AND started_at IS NOT NULL AND rev <= :rev {new}",
            rev=rev,
            **limits,
            **({"after": after} if after else {}),
        )[0]
        wait, run = (
            Spread(row[name] / 1e6, tuple(int(row[f"{name}_{bound}"]) for bound in limits))
            for name in spans
        )
        return Tally(rev, int(row["n"]), wait, run)
