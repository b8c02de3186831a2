"""How a job changes its state or place: one guarded statement, and the next rev.

Everything here runs inside a transaction of the caller, so a crash leaves nothing of it. Part of
:class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from typing import Any, Literal

from watcher.errors import SteadyError
from watcher.jobs import Job, Priority
from watcher.store.batches import Batches
from watcher.store.entries import job_of
from watcher.store.inputs import JobInputs
from watcher.store.schema import READY

#: What can be done with a job in this state, where something else was asked for.
_INSTEAD = {
    "queued": "It waits for its turn; it can be cancelled, or moved to the front.",
    "generating": "Its picture is being made; it can be cancelled.",
    "completed": "Its picture is made. For another like it: `steady submit PICTURE`, or with a"
    " `--seed` of your own.",
    "failed": "It is over; it can be run again: `steady retry`.",
    "cancelled": "It is over; it can be run again: `steady retry`.",
}


class Moves(JobInputs, Batches):
    """Moving one job, or many."""

    def _move(self, assignment: str, guard: str, **values: Any) -> Job | None:
        """The one guarded statement of a transition, and the next rev; ``:now`` is bound."""
        rows = self.run(
            f"UPDATE jobs SET {assignment}, rev = (SELECT rev FROM queue) + 1"
            f" WHERE {guard} RETURNING *",
            now=self.now(),
            **values,
        )
        if not rows:
            return None
        self.run("UPDATE queue SET rev = rev + 1")
        job = job_of(rows[0])
        if job.state.ended:
            self._settle([job.id])
        return job

    def _move_many(self, assignment: str, guard: str, **values: Any) -> int:
        """The same for every job the guard lets through, in order, each with its own rev."""
        moved = len(
            self.run(
                f"UPDATE jobs SET {assignment}, rev = n.k + (SELECT rev FROM queue)"
                " FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS k FROM jobs"
                f" WHERE {guard}) AS n WHERE jobs.seq = n.seq RETURNING jobs.seq",
                now=self.now(),
                **values,
            )
        )
        if moved:
            self.run("UPDATE queue SET rev = rev + :moved", moved=moved)
        return moved

    def _refused(self, id: str) -> Job:
        """Why a guarded statement changed nothing; always raises."""
        rows = self.run("SELECT state FROM jobs WHERE id = :id", id=id)
        if not rows:
            raise SteadyError("job_not_found")
        state = rows[0]["state"]
        raise SteadyError("wrong_state", f"The job is {state}.", remedy=_INSTEAD[state])

    def _rank(
        self, job: Job, priority: Priority, position: Literal["front", "back"] | None
    ) -> float:
        """A place in a class: the first, the last, or that of a newcomer."""
        ready = f"FROM jobs {READY} AND class = {priority.level}"
        if position == "front":
            sql = f"SELECT COALESCE(min(rank), 1) - 1 AS rank {ready}"
        elif priority is not Priority.BULK:
            sql = "SELECT rev + 1 AS rank FROM queue"
        elif position == "back":
            sql = f"SELECT COALESCE(max(rank), 0) + 1 AS rank {ready}"
        else:
            bulk_time = self.run("SELECT bulk_time FROM queue")[0]["bulk_time"]
            batch = self._set_batch(
                "last_rank = 1 + CASE WHEN last_rank > :bulk_time THEN last_rank"
                " ELSE :bulk_time END",
                ticket=job.ticket,
                bulk_time=bulk_time,
            )
            return float(batch["last_rank"])
        return float(self.run(sql)[0]["rank"])
