"""Claiming: which waiting job a free worker is given next. Part of :class:`watcher.store.JobStore`.

Order: class, rank, seq; but within a class a job of the model that the worker has loaded goes
before those of others, and among these one of the LoRAs it read last, for as long as none has been
passed by for longer than it may be. When a job was first passed by is in its row, so a restart
changes nothing.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Sequence
from typing import NamedTuple

from watcher.jobs import Job, Priority
from watcher.store.entries import job_of, to_json
from watcher.store.schema import READY, Row
from watcher.store.search import Searched

#: Jobs of better classes that may go first while bulk waits; then one bulk job has its turn.
BULK_TURN = 20
PATIENCE = 60.0  #: seconds

_BULK = Priority.BULK.level

#: The ready jobs, model by model.
_OF_MODEL = "INDEXED BY jobs_by_model WHERE state = 'queued' AND held IS NULL AND model"

# Of each model the first job in the classes asked for: one look into the index for each. None
# while the queue is paused.
_FIRSTS = f"""
SELECT j.seq, j.model, j.loras, j.class, j.rank, j.passed_at, queue.streak
FROM queue, {{models}} AS m JOIN jobs AS j ON j.seq = (
    SELECT seq FROM jobs {_OF_MODEL} = m.value AND class BETWEEN :best AND :worst
    ORDER BY class, rank, seq LIMIT 1)
WHERE NOT EXISTS (SELECT 1 FROM settings WHERE key = 'paused')"""

# The first job of one class, model and set of LoRAs.
_SAME_LORAS = """
SELECT seq, model, loras, class, rank, passed_at FROM jobs INDEXED BY jobs_by_loras
WHERE state = 'queued' AND held IS NULL AND loras <> '' AND loras = :loras AND model = :model
    AND class = :class ORDER BY rank, seq LIMIT 1"""

_CLAIM = """
UPDATE jobs SET state = 'generating', attempt = attempt + 1, started_at = :now,
    model = CASE WHEN model = '' THEN :usual ELSE model END, rev = (SELECT rev FROM queue) + 1
WHERE seq = :seq RETURNING *"""

_CLAIMED = f"""
UPDATE queue SET rev = rev + 1,
    streak = CASE WHEN :class < {_BULK} AND :worst >= {_BULK}
          AND EXISTS (SELECT 1 FROM jobs {READY} AND class = {_BULK})
        THEN streak + 1 WHEN :class < {_BULK} THEN streak ELSE 0 END,
    bulk_time = CASE WHEN :class = {_BULK} AND :rank > bulk_time THEN :rank ELSE bulk_time END"""


class Want(NamedTuple):
    """A free worker: the models it may be given jobs of, the one it stays with, the one it has.

    The name "" is that of jobs that named none. ``warm`` and ``loaded`` differ after an
    interactive job of another model, which changes nothing about where bulk goes on. ``loras``:
    those of its last job, "" for none.
    """

    models: Sequence[str] = ("",)
    warm: str = ""
    loaded: str = ""
    loras: str = ""


class Claiming(Searched):
    """Claiming."""

    def claim_many(
        self,
        now: int,
        wants: Sequence[Want],
        *,
        window_open: bool = True,
        usual: str = "",
        patience: float = PATIENCE,
    ) -> list[Job | None]:
        """A job for each free worker, now ``generating`` and its attempt counted; None for none.

        In one transaction, each as if claimed by itself. ``window_open`` False leaves the bulk
        class waiting. ``usual``: the model of jobs that named none. ``patience``: seconds a job
        may be passed by. A crash after it: the jobs are found by :meth:`generating`.
        """
        worst = _BULK if window_open else _BULK - 1
        jobs: list[Job | None] = []
        with self.write():
            for want in wants:
                firsts = self._firsts(want, worst)
                if not firsts:
                    jobs.append(None)
                    continue
                first, row = self._best(firsts, want, usual)
                waits = first["passed_at"]
                if waits is not None and waits <= now - int(patience * 1e6):
                    row = first
                if row["seq"] != first["seq"] and waits is None:
                    self.run("UPDATE jobs SET passed_at = :now WHERE seq = :seq",
                             now=now, seq=first["seq"])  # fmt: skip
                [claimed] = self.run(_CLAIM, now=now, seq=row["seq"], usual=usual)
                self.run(_CLAIMED, **{"class": row["class"], "rank": row["rank"], "worst": worst})
                if claimed["model"] != row["model"]:
                    self._index_again(row["seq"])
                jobs.append(job_of(claimed))
        return jobs

    def _firsts(self, want: Want, worst: int) -> list[Row]:
        """The first job of each model; those of the bulk class alone when that has its turn."""
        sql = _FIRSTS.format(models=self.each("models"))
        models = to_json(list(want.models))
        found = self.run(sql, models=models, best=0, worst=worst)
        if found and found[0]["streak"] >= BULK_TURN and worst >= _BULK:
            return self.run(sql, models=models, best=_BULK, worst=worst) or found
        return found

    def _best(self, firsts: Sequence[Row], want: Want, usual: str) -> tuple[Row, Row]:
        """The job whose turn it is, and the one that is run with the least to load."""
        first = min(firsts, key=_turn)
        jumps = first["class"] == Priority.INTERACTIVE.level
        warm = (want.loaded if jumps else "") or want.warm
        ours = [row for row in firsts
                if row["class"] == first["class"] and (row["model"] or usual) == warm]  # fmt: skip
        if ours and want.loras and not jumps:
            asked = {"loras": want.loras, "class": first["class"]}
            same = [row for each in ours
                       for row in self.run(_SAME_LORAS, model=each["model"], **asked)]  # fmt: skip
            ours = same or ours
        return first, min(ours, key=_turn) if ours else first

    def waiting_models(self) -> list[str]:
        """The models of the ready jobs, by name; "" for jobs that named none."""
        after = f"SELECT min(model) FROM jobs {_OF_MODEL}"
        rows = self.poll(
            f"WITH RECURSIVE m(model) AS ({after} >= '' UNION ALL SELECT ({after} > m.model)"
            " FROM m WHERE m.model IS NOT NULL) SELECT model FROM m WHERE model IS NOT NULL"
        )
        return [row["model"] for row in rows]


def _turn(row: Row) -> tuple[int, float, int]:
    return row["class"], row["rank"], row["seq"]
