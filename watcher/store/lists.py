"""Lists of jobs: narrowed, the newest first, a page at a time.

Each page is a look into an index, whatever a list is narrowed to; but texts of one or two
characters, and jobs that the index of ``search.py`` does not have yet, are read row by row. Part of
:class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from watcher.jobs import Job, JobState
from watcher.store.entries import job_of
from watcher.store.imagenames import folded
from watcher.store.search import SEARCHED, Searched, Sought

PAGE = 1000  #: jobs read at once
_FEW = 5000  #: so many are as good as any number, where the shortest way is looked for


@dataclass(frozen=True)
class JobFilter:
    """What a list of jobs is narrowed to; None means any.

    ``text``: part of prompt, picture's name, file, label or metadata, in any case. ``since`` and
    ``until``: created then, microseconds, until not included. ``name``: the picture's name, in any
    case, any folder. ``pictured``: only those whose picture is there. ``models``: of one of these,
    "" for jobs that named none and wait. ``lora``: with this one among theirs. ``rating``: the
    lowest and the highest. ``size``: of the picture, ``1024x768``.
    """

    state: JobState | None = None
    text: str | None = None
    since: int | None = None
    until: int | None = None
    ticket: str | None = None
    name: str | None = None
    pictured: bool = False
    models: Sequence[str] = ()
    lora: str | None = None
    rating: tuple[int, int] | None = None
    seed: int | None = None
    size: str | None = None
    label: str | None = None

    @property
    def sought(self) -> Sought:
        """What of it the index of ``search.py`` knows."""
        said = {"seed": self.seed, "size": self.size, "lora": self.lora, "label": self.label}
        kinds = {kind: () if value is None else (value,) for kind, value in said.items()}
        return Sought.of(self.text, model=self.models, **kinds)


@dataclass
class _Narrowed:
    """What of a filter the rows of ``jobs`` say: conditions and the values they bind.

    ``hint``, ``order``: an index, and the order it has, which is always the newest first.
    ``bounds``: of ``seq``, as comparisons with values.
    """

    where: list[str]
    values: dict[str, Any]
    hint: str = ""
    order: str = "seq DESC"
    bounds: tuple[str, ...] = ()

    def conditions(self, key: str, *more: str) -> str:
        """The WHERE of a statement that goes by ``key``, which is the seq under another name."""
        every = [*(f"{key} {bound}" for bound in self.bounds), *self.where, *more]
        return f"WHERE {' AND '.join(every)}" if every else ""


def _rated(low: int, high: int) -> tuple[str, str]:
    """The condition for a rating from ``low`` to ``high``, and its index: few are rated at all."""
    condition = f"rating BETWEEN {low:d} AND {high:d}"
    if low > 0 or high < 0:
        return f"{condition} AND rating <> 0", "INDEXED BY jobs_rated"
    return condition, ""


class Lists(Searched):
    """Lists."""

    def jobs(
        self, filter: JobFilter = JobFilter(), before_seq: int | None = None, limit: int = 50
    ) -> list[Job]:
        """The newest jobs first; ``before_seq``: the seq of the last one already seen."""
        narrowed = self._narrowed(filter, before_seq)
        if narrowed is None:
            return []
        narrowed.values["limit"] = limit
        if sought := filter.sought:
            return self._found(filter, narrowed, sought, before_seq, limit)
        return self._page(f"jobs {narrowed.hint} {narrowed.conditions('seq')}", narrowed)

    def all_jobs(self, filter: JobFilter) -> Iterator[Job]:
        """The same without end, a page in memory at a time."""
        before: int | None = None
        while page := self.jobs(filter, before_seq=before, limit=PAGE):
            yield from page
            before = page[-1].seq

    def _narrowed(self, filter: JobFilter, before_seq: int | None) -> _Narrowed | None:
        """The same in SQL; None when no job can be meant."""
        found = _Narrowed([], {})
        where, values, bounds = found.where, found.values, []
        if filter.rating is not None:
            rated, found.hint = _rated(*filter.rating)
            where.append(rated)
        if filter.state is not None:
            where.append("state = :state")
            values["state"] = filter.state.value
        if filter.pictured:
            where.append("state = 'completed' AND deleted_at IS NULL")
        if filter.ticket is not None:
            where.append("ticket = :ticket")
            values["ticket"] = filter.ticket
            found.order, found.hint = "idx DESC", ""  # the same order, and there is an index for it
        if filter.name is not None:
            where.append("id IN (SELECT job_id FROM image_names WHERE folded = :name)")
            values["name"] = folded(filter.name)
        # created_at grows with seq but for jumps of the clock: its index says where to look.
        for moment, compared, bound, order in (
            (filter.since, ">=", "low", "created_at, seq"),
            (filter.until, "<", "high", "created_at DESC, seq DESC"),
        ):
            if moment is None:
                continue
            where.append(f"created_at {compared} :{bound}_at")
            values[f"{bound}_at"] = moment
            first = self.poll(
                f"SELECT seq FROM jobs WHERE created_at {compared} :moment ORDER BY {order} LIMIT 1",
                moment=moment,
            )
            if not first:
                return None
            bounds.append(f"{'>=' if bound == 'low' else '<='} :{bound}")
            values[bound] = first[0]["seq"]
        if before_seq is not None:
            bounds.append("< :before_seq")
            values["before_seq"] = before_seq
        found.bounds = tuple(bounds)
        return found

    def _found(
        self,
        filter: JobFilter,
        narrowed: _Narrowed,
        sought: Sought,
        before_seq: int | None,
        limit: int,
    ) -> list[Job]:
        """Of the jobs that the index does not have yet, row by row; then of all others."""
        top = int(self.poll("SELECT COALESCE(max(job), 0) AS top FROM search")[0]["top"])
        narrowed.values["top"] = top
        seqs: list[int] = []
        before, more = before_seq, before_seq is None or before_seq > top + 1
        while more and len(seqs) < limit and (rest := self._narrowed(filter, before)):
            rows = self.poll(
                f"SELECT {SEARCHED} FROM jobs {rest.hint} {rest.conditions('seq', 'seq > :top')}"
                f" ORDER BY {rest.order} LIMIT {PAGE}",
                **rest.values,
                top=top,
            )
            seqs += [row["seq"] for row in rows if sought.fits(row)]
            more = len(rows) == PAGE
            before = rows[-1]["seq"] if rows else None
        some = ", ".join(map(str, seqs[:limit]))
        found = self._jobs(f"WHERE seq IN ({some}) ORDER BY seq DESC") if seqs else []
        if len(found) < limit:
            narrowed.values["limit"] = limit - len(found)
            narrowed.bounds += ("<= :top",)
            found += self._page(self._way(narrowed, sought), narrowed)
        return found

    def _way(self, narrowed: _Narrowed, sought: Sought) -> str:
        """How to go through jobs that the index has: what comes behind FROM.

        A server finds its way alone. In a file: along the index that has the fewest, be it one of
        ``search`` or one of ``jobs``.
        """
        checks, values = sought.conditions()
        narrowed.values |= values
        if self._file is None:
            narrowed.order = "seq DESC"
            joined = "search JOIN jobs ON jobs.seq = search.job"
            return f"{joined} {narrowed.conditions('search.job', *checks)}"
        self._enclose(narrowed)
        ways = {}
        for index, words in sought.matches().items():
            narrowed.values[index] = words
            match = f"{index} MATCH :{index}"
            bounds = " ".join(f"AND {index}.rowid {bound}" for bound in narrowed.bounds)
            ways[f"{index} WHERE {match} {bounds}"] = (
                f"{index} CROSS JOIN search ON search.job = {index}.rowid CROSS JOIN jobs"
                f" ON jobs.seq = search.job"
                f" {narrowed.conditions(f'{index}.rowid', match, *checks)}",
                f"{index}.rowid DESC",
            )
        if narrowed.where:
            ways[f"jobs {narrowed.hint} {narrowed.conditions('seq')}"] = (
                f"jobs {narrowed.hint} CROSS JOIN search ON search.job = seq"
                f" {narrowed.conditions('seq', *checks)}",
                narrowed.order,
            )
        if not ways:
            ways[""] = (
                "search CROSS JOIN jobs ON jobs.seq = search.job"
                f" {narrowed.conditions('search.job', *checks)}",
                "search.job DESC",
            )
        shortest = min(ways, key=lambda way: self._few(way, narrowed) if len(ways) > 1 else 0)
        way, narrowed.order = ways[shortest]
        return way

    def _enclose(self, narrowed: _Narrowed) -> None:
        """Bound it by the newest and the oldest row that the conditions of ``jobs`` hold for.

        What is done lies far behind what waits: without this, who looks for a common word among
        what is done would pass all of its jobs that wait, which may be most of a million.
        """
        if not narrowed.where:
            return
        found = f"FROM jobs {narrowed.hint} {narrowed.conditions('seq')} ORDER BY"
        backwards = narrowed.order.removesuffix(" DESC")
        for order, sign, name in ((narrowed.order, "<=", "newest"), (backwards, ">=", "oldest")):
            rows = self.poll(f"SELECT seq {found} {order} LIMIT 1", **narrowed.values)
            narrowed.values[name] = rows[0]["seq"] if rows else 0
            narrowed.bounds += (f"{sign} :{name}",)

    def _few(self, way: str, narrowed: _Narrowed) -> int:
        """How many rows lie on it; more than enough are told alike."""
        sql = f"SELECT count(*) AS n FROM (SELECT 1 FROM {way} LIMIT {_FEW})"
        return int(self.poll(sql, **narrowed.values)[0]["n"])

    def _page(self, way: str, narrowed: _Narrowed) -> list[Job]:
        sql = f"SELECT jobs.* FROM {way} ORDER BY {narrowed.order} LIMIT :limit"
        return [job_of(row) for row in self.poll(sql, **narrowed.values)]

    def _jobs(self, rest: str, **values: Any) -> list[Job]:
        return [job_of(row) for row in self.poll(f"SELECT * FROM jobs {rest}", **values)]
