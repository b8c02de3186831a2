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
from watcher.store.entries import job_of
from watcher.store.schema import READY, Row
from watcher.store.search import Searched

#: Jobs of better classes that may go first while bulk waits; then one bulk job has its turn.
BULK_TURN = 20
PATIENCE = 60.0  #: seconds

_BULK = Priority.BULK.level

#: The ready jobs, model by model.
_OF_MODEL = "INDEXED BY jobs_by_model WHERE state = 'queued' AND held IS NULL AND model"

# The first job of one model in the classes asked for: a look into the index.
_HEAD = f"""
SELECT * FROM (SELECT seq, model, class, rank, passed_at FROM jobs {_OF_MODEL} = :model{{k}}
    AND class BETWEEN :best AND :worst ORDER BY class, rank, seq LIMIT 1) AS m{{k}}"""


def _heads_of(models: int) -> str:
    """The same of so many models, bound as ``model0`` and on."""
    return " UNION ALL ".join(_HEAD.format(k=k) for k in range(models))


# The first job of one class, model and set of LoRAs.
_SAME_LORAS = """
SELECT seq, model, class, rank, passed_at FROM jobs INDEXED BY jobs_by_loras
WHERE state = 'queued' AND held IS NULL AND loras <> '' AND loras = :loras AND model = :model
    AND class = :class ORDER BY rank, seq LIMIT 1"""

_QUEUE = """
SELECT streak, bulk_time, EXISTS (SELECT 1 FROM settings WHERE key = 'paused') AS paused
FROM queue"""

_BULK_WAITS = f"SELECT 1 FROM jobs {READY} AND class = {_BULK} LIMIT 1"

_CLAIM = """
UPDATE jobs SET state = 'generating', attempt = attempt + 1, started_at = :now,
    model = CASE WHEN model = '' THEN :usual ELSE model END, rev = (SELECT rev FROM queue) + 1
WHERE seq = :seq RETURNING *"""


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
        wants: Sequence[Want],
        *,
        window_open: bool = True,
        usual: str = "",
        patience: float = PATIENCE,
    ) -> list[Job | None]:
        """A job for each free worker, now ``generating`` and its attempt counted; None for none.

        In one transaction. ``window_open`` False leaves the bulk class waiting. ``usual``: the
        model of jobs that named none. ``patience``: seconds a job may be passed by. A crash after
        it: the jobs are found by :meth:`generating`.
        """
        worst = _BULK if window_open else _BULK - 1
        jobs: list[Job | None] = []
        none_left = set[tuple[str, ...]]()  #: of these models
        with self.write():
            for want in wants:
                models = tuple(want.models)
                job = None
                if models not in none_left:
                    job = self._claim(want, worst, usual, int(patience * 1e6))
                if job is None:
                    none_left.add(models)
                jobs.append(job)
        return jobs

    def _claim(self, want: Want, worst: int, usual: str, patience: int) -> Job | None:
        now, queue = self.now(), self.run(_QUEUE)[0]
        firsts = [] if queue["paused"] else self._heads(want.models, 0, worst)
        if firsts and queue["streak"] >= BULK_TURN and worst >= _BULK:
            firsts = self._heads(want.models, _BULK, worst) or firsts
        if not firsts:
            return None
        first = row = min(firsts, key=_turn)
        waits = first["passed_at"]
        if waits is None or waits > now - patience:
            row = self._warmest(firsts, first, want, usual)
        if row["seq"] != first["seq"] and waits is None:
            self.run("UPDATE jobs SET passed_at = :now WHERE seq = :seq", now=now, seq=first["seq"])
        [claimed] = self.run(_CLAIM, now=now, usual=usual, seq=row["seq"])
        self._count_turn(queue, row, worst)
        if usual and not row["model"]:
            self._index_again([row["seq"]])
        return job_of(claimed)

    def _heads(self, models: Sequence[str], best: int, worst: int) -> list[Row]:
        """The first ready job of each of ``models`` in these classes."""
        if not models:
            return []
        named = {f"model{k}": model for k, model in enumerate(models)}
        return self.run(_heads_of(len(models)), **named, best=best, worst=worst)

    def _warmest(self, firsts: Sequence[Row], first: Row, want: Want, usual: str) -> Row:
        """Of the class of ``first``, whose turn it is, the job that is run with the least to load."""
        jumps = first["class"] == Priority.INTERACTIVE.level
        warm = (want.loaded if jumps else "") or want.warm
        ours = [row for row in firsts
                if row["class"] == first["class"] and (row["model"] or usual) == warm]  # fmt: skip
        if want.loras and not jumps:
            asked = {"loras": want.loras, "class": first["class"]}
            same = [row for each in ours
                       for row in self.run(_SAME_LORAS, model=each["model"], **asked)]  # fmt: skip
            ours = same or ours
        return min(ours, key=_turn, default=first)

    def _count_turn(self, queue: Row, row: Row, worst: int) -> None:
        """Remember that ``row`` was claimed: when bulk has its turn, and where it stands."""
        streak, bulk_time = queue["streak"], queue["bulk_time"]
        if row["class"] == _BULK:
            streak, bulk_time = 0, max(bulk_time, row["rank"])
        elif worst >= _BULK:
            streak += len(self.run(_BULK_WAITS))
        self.run(
            "UPDATE queue SET rev = rev + 1, streak = :streak, bulk_time = :bulk_time",
            streak=streak,
            bulk_time=bulk_time,
        )

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
