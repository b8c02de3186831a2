"""Claiming: which waiting job a free worker is given next. Part of :class:`watcher.store.JobStore`.

Order: class, rank, seq; but within a class a job of the model that the worker has loaded goes
before those of others, and among these one of the LoRAs it read last, for as long as none has been
passed by for longer than it may be. When a job was first passed by is in its row, so a restart
changes nothing.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    AND class = :class AND seq NOT IN ({taken}) ORDER BY rank, seq LIMIT 1"""

_QUEUE = """
SELECT rev, streak, bulk_time, EXISTS (SELECT 1 FROM settings WHERE key = 'paused') AS paused
FROM queue"""

_BULK_WAITS = f"""
SELECT 1 FROM jobs {READY} AND class = {_BULK} AND seq NOT IN ({{taken}}) LIMIT 1"""

# ``{rows}``: of each job its seq, and how manieth it is.
_CLAIM = """
UPDATE jobs SET state = 'generating', attempt = attempt + 1, started_at = :now,
    model = CASE WHEN model = '' THEN :usual ELSE model END, rev = :rev + n.column2
FROM (VALUES {rows}) AS n WHERE jobs.seq = n.column1"""


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

    def look(self, sql: str, **values: Any) -> list[Row]:
        """What ``sql`` finds but for the jobs that are taken."""
        taken = ", ".join(map(str, self.taken)) or "0"
        return self._record.run(sql.format(taken=taken), **values)


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

        In one transaction, each as if claimed by itself. ``window_open`` False leaves the bulk
        class waiting. ``usual``: the model of jobs that named none. ``patience``: seconds a job
        may be passed by. A crash after it: the jobs are found by :meth:`generating`.
        """
        worst = _BULK if window_open else _BULK - 1
        chosen: list[Row | None] = []
        with self.write():
            now, queue = self.now(), self.run(_QUEUE)[0]
            heads = _Heads(self, worst, len(wants))
            for want in () if queue["paused"] else wants:
                firsts = heads.of(want.models, 0)
                if firsts and queue["streak"] >= BULK_TURN and worst >= _BULK:
                    firsts = heads.of(want.models, _BULK) or firsts
                if not firsts:
                    chosen.append(None)
                    continue
                first, row = _best(firsts, want, usual, heads)
                waits = first["passed_at"]
                if waits is not None and waits <= now - int(patience * 1e6):
                    row = first
                if row["seq"] != first["seq"] and waits is None:
                    first["passed_at"] = now
                    self.run("UPDATE jobs SET passed_at = :now WHERE seq = :seq",
                             now=now, seq=first["seq"])  # fmt: skip
                heads.taken.add(row["seq"])
                _count_turn(queue, row, worst, heads)
                chosen.append(row)
            jobs = self._take([row for row in chosen if row], queue, now, usual)
        return [jobs[row["seq"]] if row else None for row in chosen] or [None] * len(wants)

    def _take(self, rows: Sequence[Row], queue: Row, now: int, usual: str) -> dict[int, Job]:
        """Claim the jobs of ``rows`` in this order; by their seq."""
        if not rows:
            return {}
        pairs = ", ".join(f"({row['seq']}, {k})" for k, row in enumerate(rows, 1))
        self.run(_CLAIM.format(rows=pairs), now=now, usual=usual, rev=queue["rev"])
        self.run(
            "UPDATE queue SET rev = rev + :count, streak = :streak, bulk_time = :bulk_time",
            count=len(rows), streak=queue["streak"], bulk_time=queue["bulk_time"],
        )  # fmt: skip
        if usual and (unnamed := [row["seq"] for row in rows if not row["model"]]):
            self._index_again(unnamed)
        some = ", ".join(str(row["seq"]) for row in rows)
        claimed = self.run(f"SELECT * FROM jobs WHERE seq IN ({some})")
        return {row["seq"]: job_of(row) for row in claimed}

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


def _best(firsts: Sequence[Row], want: Want, usual: str, heads: _Heads) -> tuple[Row, Row]:
    """The job whose turn it is, and the one that is run with the least to load."""
    first = min(firsts, key=_turn)
    jumps = first["class"] == Priority.INTERACTIVE.level
    warm = (want.loaded if jumps else "") or want.warm
    ours = [row for row in firsts
            if row["class"] == first["class"] and (row["model"] or usual) == warm]  # fmt: skip
    if ours and want.loras and not jumps:
        asked = {"loras": want.loras, "class": first["class"]}
        same = [row for each in ours
                   for row in heads.look(_SAME_LORAS, model=each["model"], **asked)]  # fmt: skip
        ours = same or ours
    return first, min(ours, key=_turn) if ours else first


def _count_turn(queue: Row, row: Row, worst: int, heads: _Heads) -> None:
    """What the queue remembers of the claim of ``row``."""
    if row["class"] == _BULK:
        queue["streak"] = 0
        queue["bulk_time"] = max(queue["bulk_time"], row["rank"])
        queue["waits"] = None  # it may have been the last of them
    elif worst >= _BULK:
        if queue.get("waits") is None:
            queue["waits"] = len(heads.look(_BULK_WAITS))
        queue["streak"] += queue["waits"]
