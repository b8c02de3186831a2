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

# The first jobs of one model in the classes asked for: a look into the index.
_HEAD = f"""
SELECT * FROM (SELECT seq, model, loras, class, rank, passed_at FROM jobs {_OF_MODEL} = :model{{k}}
    AND class BETWEEN :best AND :worst ORDER BY class, rank, seq LIMIT :most) AS m{{k}}"""


def _heads_of(models: int) -> str:
    """The same of so many models, bound as ``model0`` and on."""
    return " UNION ALL ".join(_HEAD.format(k=k) for k in range(models))


# The first job of one class, model and set of LoRAs.
_SAME_LORAS = """
SELECT seq, model, loras, class, rank, passed_at FROM jobs INDEXED BY jobs_by_loras
WHERE state = 'queued' AND held IS NULL AND loras <> '' AND loras = :loras AND model = :model
    AND class = :class ORDER BY rank, seq LIMIT 1"""

_QUEUE = f"""
SELECT rev, streak, bulk_time, EXISTS (SELECT 1 FROM settings WHERE key = 'paused') AS paused,
    EXISTS (SELECT 1 FROM jobs {READY} AND class = {_BULK}) AS bulk_waits FROM queue"""

_CLAIM = """
UPDATE jobs SET state = 'generating', attempt = attempt + 1, started_at = :now,
    model = CASE WHEN model = '' THEN :usual ELSE model END, rev = :rev
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


class _Heads:
    """The first jobs of the models of ``most`` wants, read once in a transaction."""

    def __init__(self, record: Searched, worst: int, most: int) -> None:
        self._record = record
        self._worst = worst
        self._most = most
        self._rows: dict[tuple[int, tuple[str, ...]], list[Row]] = {}
        self.taken = set[int]()  #: by the wants before

    def of(self, models: Sequence[str], best: int) -> list[Row]:
        """Of each model the first job that is left in the class ``best`` and those behind it."""
        key = best, tuple(models)
        if models and key not in self._rows:
            found = self._record.run(
                _heads_of(len(models)),
                **{f"model{k}": model for k, model in enumerate(models)},
                best=best, worst=self._worst, most=self._most,
            )  # fmt: skip
            self._rows[key] = sorted(found, key=_turn, reverse=True)
        left = (row for row in self._rows.get(key, ()) if row["seq"] not in self.taken)
        return list({row["model"]: row for row in left}.values())


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
            queue = self.run(_QUEUE)[0]
            heads = _Heads(self, worst, len(wants))
            for want in () if queue["paused"] else wants:
                firsts = heads.of(want.models, 0)
                if firsts and queue["streak"] >= BULK_TURN and worst >= _BULK:
                    firsts = heads.of(want.models, _BULK) or firsts
                if not firsts:
                    jobs.append(None)
                    continue
                first, row = self._best(firsts, want, usual)
                waits = first["passed_at"]
                if waits is not None and waits <= now - int(patience * 1e6):
                    row = first
                if row["seq"] != first["seq"] and waits is None:
                    first["passed_at"] = now
                    self.run("UPDATE jobs SET passed_at = :now WHERE seq = :seq",
                             now=now, seq=first["seq"])  # fmt: skip
                queue["rev"] += 1
                [claimed] = self.run(_CLAIM, now=now, seq=row["seq"], usual=usual, rev=queue["rev"])
                heads.taken.add(row["seq"])
                self._count_turn(queue, row, worst)
                if claimed["model"] != row["model"]:
                    self._index_again(row["seq"])
                jobs.append(job_of(claimed))
            if any(jobs):
                self.run("UPDATE queue SET rev = :rev, streak = :streak, bulk_time = :bulk_time",
                         **{name: queue[name] for name in ("rev", "streak", "bulk_time")})  # fmt: skip
        return jobs or [None] * len(wants)

    def _count_turn(self, queue: Row, row: Row, worst: int) -> None:
        """What the queue remembers of the claim of ``row``."""
        if row["class"] == _BULK:
            queue["streak"] = 0
            queue["bulk_time"] = max(queue["bulk_time"], row["rank"])
            queue["bulk_waits"] = None  # it may have been the last of them
            return
        if queue["bulk_waits"] is None:
            queue["bulk_waits"] = self.run(_QUEUE)[0]["bulk_waits"]
        if queue["bulk_waits"] and worst >= _BULK:
            queue["streak"] += 1

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
