"""Recording: the jobs of a file, and how far it is read, in one transaction.

Safe to repeat: a file that is read again after a crash gets the very same rows, for every id
derives from its ticket. A crash leaves a whole chunk on record or nothing of it. Part of
:class:`watcher.store.JobStore`.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from watcher.errors import SteadyError
from watcher.jobs import SUFFIXES, JobRequest, Priority
from watcher.store import imagenames
from watcher.store.entries import batch_of, to_json, with_warnings
from watcher.store.imagenames import Wish, default_place
from watcher.store.inputs import JobInputs, awaited
from watcher.store.schema import Row

#: What the request column leaves out: it has a column of its own or is the same for all.
_OWN_COLUMN = {"prompt", "count", "priority", "not_before", "key"}
#: What of the column each job has of its own; the rest is mostly that of the job before.
_OWN = ("seed", "name", "label", "negative_prompt", "metadata")
_SHARED = tuple(f for f in JobRequest.model_fields if f not in {*_OWN, *_OWN_COLUMN})
_shared_of = itemgetter(*_SHARED)


def _request_column(request: JobRequest) -> str:
    """What a request says, as JSON."""
    said = request.__dict__
    values = _shared_of(said)
    try:
        text = _shared_json(values)
    except TypeError:  # a list or a mapping is among them
        text = _shared_json.__wrapped__(values)
    for field in _OWN:
        if (value := said[field]) is not None:
            text += f'"{field}":{value if type(value) is int else to_json(value)},'
    return f"{{{text[:-1]}}}"


@lru_cache(maxsize=1000)
def _shared_json(values: tuple[Any, ...]) -> str:
    """The members of the column that jobs share, each with a comma behind it."""
    said = zip(_SHARED, values, strict=True)
    return "".join(f'"{field}":{to_json(value)},' for field, value in said if value is not None)


class NewJob(NamedTuple):
    """One job about to be recorded, in the words of its row.

    ``request``: JSON of what the person asked, resolved (size, steps and seed set), without
    what has a column of its own. ``name``: the picture's base name, None for ``ImgGen_HHMMSS``.
    ``folder``: None for the day's. ``not_before`` in microseconds. ``row``: of the file, from 1, if
    it has any.
    """

    prompt: str
    request: str
    suffix: str
    forwards: int | None
    name: str | None = None
    folder: str | None = None
    priority: Priority = Priority.NORMAL
    not_before: int | None = None
    warnings: tuple[str, ...] = ()
    id: str = ""
    row: int | None = None
    model: str = ""
    loras: str = ""  #: see JobRequest.lora_names
    awaits: str | None = None  #: the job whose picture it starts from, while that is not made

    @classmethod
    def of(
        cls,
        request: JobRequest,
        *,
        stem: str | None = None,
        priority: Priority = Priority.NORMAL,
        not_before: int | None = None,
        warnings: tuple[str, ...] = (),
        id: str = "",
        row: int | None = None,
        forwards: int | None = None,
    ) -> "NewJob":
        """``request`` is resolved; its own name wins over ``stem``.

        ``forwards``: as its model counts them; None where that is not known.
        """
        return cls(
            prompt=request.prompt,
            request=_request_column(request),
            suffix=SUFFIXES[request.format or "png"],
            forwards=forwards,
            name=request.name or stem,
            folder=request.folder,
            priority=priority,
            not_before=not_before,
            warnings=warnings,
            id=id,
            row=row,
            model=request.model or "",
            loras=request.lora_names if request.lora else "",
            awaits=awaited(request.__dict__),
        )

    def named(self, stem: str | None) -> "NewJob":
        """The same with a name, if it has none."""
        place = 4  # _replace takes four times as long
        return self if self.name else NewJob._make((*self[:place], stem, *self[place + 1 :]))


@dataclass(frozen=True)
class Recording:
    """Jobs of a batch, and how far its file is read.

    ``next_line``: rows of the file dealt with so far. ``final``: that was all of it. ``digest``:
    sha256 of the file, if known. ``rows``: places of the batch whose jobs are on record already,
    with the row of its new file each of them stands for (None for no row). ``axes``: see Batch.
    """

    ticket: str
    jobs: Sequence[NewJob]
    first_index: int = 0
    final: bool = True
    next_line: int = 0
    warnings: Sequence[str] = ()
    refused_rows: int = 0
    digest: str | None = None
    rows: Sequence[tuple[int, int | None]] = ()
    axes: Mapping[str, Sequence[Any]] | None = None


#: A job with its ticket and its place in the batch.
_Fresh = tuple[str, int, NewJob]


_REPEATED = "Jobs whose `key` was used before are not made again."
_TAKEN = (
    "Jobs whose `key` was used before, for something else, are not made: give them another key."
)

#: Of a new job, in the order in which its row gives them.
_COLUMNS = (
    "id", "ticket", "idx", "state", "rev", "class", "rank", "held", "not_before", "image_name",
    "folder", "path", "prompt", "request", "created_at", "warnings", "row", "forwards", "model",
    "loras", "awaits",
)  # fmt: skip


class Recorded(JobInputs):
    """Recording."""

    def record_all(self, recordings: Sequence[Recording]) -> None:
        """Put jobs of one batch or of many on record in one transaction: all or none.

        Their names, folders and paths are fixed here and never change (but see
        ``JobStore.rename``). Jobs that are recorded already are left alone. A file that comes
        here has proved readable, so its tries count anew. A batch that was cancelled meanwhile is
        recorded as cancelled, a paused one is held.
        """
        with self.write():
            now = self.now()
            batches = {
                row["ticket"]: row
                for row in self.run(
                    f"SELECT * FROM batches WHERE ticket IN {self.each('tickets')}",
                    tickets=to_json([each.ticket for each in recordings]),
                )
            }
            if len(batches) < len({each.ticket for each in recordings}):
                raise SteadyError("batch_not_found")
            fresh, said = self._fresh(recordings, batches)
            told = {
                each.ticket: _batch_columns(each, batches[each.ticket], said[each.ticket], now)
                for each in recordings
            }
            if fresh:
                self._insert(fresh, batches, told, now)
            self._take_inputs([batches[each.ticket] for each in recordings if each.final])
            self.run_many(_TELL_BATCH, list(told.values()))
            self.run_many(
                "UPDATE jobs SET row = :row WHERE ticket = :ticket AND idx = :idx",
                [
                    {"ticket": each.ticket, "idx": index, "row": row}
                    for each in recordings
                    for index, row in each.rows
                ],
            )
            if any(job.awaits for *_, job in fresh):
                self._settle(None)  # some were made, or failed, while the file was read

    def _fresh(
        self,
        recordings: Sequence[Recording],
        batches: Mapping[str, Row],
    ) -> tuple[list[_Fresh], dict[str, set[str]]]:
        """The jobs that are not on record, each in its batch and place; and what is to be told to
        the batches of others, by ticket.
        """
        asked = to_json([job.id for recording in recordings for job in recording.jobs])
        known = {
            row["id"]: (row["ticket"], row["prompt"], row["request"])
            for row in self.run(
                f"SELECT id, ticket, prompt, request FROM jobs WHERE id IN {self.each('ids')}",
                ids=asked,
            )
        }
        found: list[_Fresh] = []
        said: dict[str, set[str]] = {}
        for recording in recordings:
            fresh, words = [], said.setdefault(recording.ticket, set())
            for index, job in enumerate(recording.jobs, recording.first_index):
                content = recording.ticket, job.prompt, job.request
                before = known.setdefault(job.id, content)  # one named twice in a file is one job
                if before is content:
                    fresh.append((recording.ticket, index, job))
                elif before != content:
                    words.add(_REPEATED if before[1:] == content[1:] else _TAKEN)
            if fresh and batch_of(batches[recording.ticket]).jobs:
                fresh = self._places(recording.ticket, fresh)
            found += fresh
        return found, said

    def _places(self, ticket: str, fresh: list[_Fresh]) -> list[_Fresh]:
        """Changed rows of a resumed batch come after its old ones: their places are taken."""
        taken = {
            row["idx"]
            for row in self.run(
                "SELECT idx FROM jobs WHERE ticket = :ticket AND idx BETWEEN :low AND :high",
                ticket=ticket,
                low=fresh[0][1],
                high=fresh[-1][1],
            )
        }
        if not taken:
            return fresh
        last = self.run("SELECT max(idx) AS n FROM jobs WHERE ticket = :t", t=ticket)[0]["n"]
        end = max(last, fresh[-1][1])
        placed = []
        for _, index, job in fresh:
            if index in taken:
                end += 1
                index = end
            placed.append((ticket, index, job))
        return placed

    def _insert(
        self,
        fresh: Sequence[_Fresh],
        batches: Mapping[str, Row],
        told: Mapping[str, Row],
        now: int,
    ) -> None:
        """The rows of the jobs; adds to ``told`` what their batches have to know of them."""
        queue = self.run(
            "UPDATE queue SET rev = rev + :count RETURNING rev, bulk_time", count=len(fresh)
        )[0]
        rev = queue["rev"] - len(fresh)
        wishes, rows = [], list[tuple[Any, ...]]()
        day, default_name = default_place(now)
        for ticket, _, job in fresh:
            if not (job.id == ticket and batches[ticket]["image_name"]):
                base = job.name or default_name
                wishes.append(Wish(job.id, job.folder or day, base, everywhere=not job.name))
        names = iter(zip(wishes, imagenames.give(self, wishes), strict=True))
        for ticket, index, job in fresh:
            batch, tell = batches[ticket], told[ticket]
            if job.id == ticket and batch["image_name"]:
                folder, picture = batch["folder"], batch["image_name"]
            else:
                wish, picture = next(names)
                folder = wish.folder
            rev += 1
            rank = float(rev)
            if job.priority is Priority.BULK:
                # Start-time fair queueing: each batch's jobs are one unit apart, and a batch
                # starts at the point the class has reached, so batches take turns.
                rank = tell["rank"] = max(queue["bulk_time"], tell["rank"]) + 1
            later = job.not_before is not None and job.not_before > now
            held = "input" if job.awaits else "not_before" if later else None
            held = "paused" if batch["paused"] else held
            tell["fresh"] += 1
            warnings = to_json(job.warnings) if job.warnings else None
            path = f"{folder}/{picture}{job.suffix}"
            rows.append(
                (job.id, ticket, index, "queued", rev, job.priority.level, rank, held,
                 job.not_before, picture, folder, path, job.prompt, job.request, now, warnings,
                 job.row, job.forwards, job.model, job.loras, job.awaits)
            )  # fmt: skip
        self.insert("jobs", _COLUMNS, rows)
        self.run("UPDATE job_counts SET n = n + :n WHERE state = 'queued'", n=len(rows))
        for ticket in {ticket for ticket, *_ in fresh if batches[ticket]["cancelled"]}:
            self.run(
                "UPDATE jobs SET state = 'cancelled', held = NULL, completed_at = :now"
                " WHERE ticket = :ticket AND state = 'queued'",
                ticket=ticket,
                now=now,
            )


def _batch_columns(recording: Recording, batch: Row, words: Iterable[str], now: int) -> Row:
    """What a recording tells its batch, before its jobs are counted; ``words`` in any case."""
    said = [*sorted(words), *recording.warnings]
    said += [w for job in recording.jobs for w in job.warnings]
    return {
        "ticket": recording.ticket,
        "digest": recording.digest,
        "axes": to_json(recording.axes) if recording.axes else None,
        "line": recording.next_line,
        "warnings": with_warnings(batch["warnings"], said),
        "refused": recording.refused_rows,
        "final": int(recording.final),
        "now": now,
        "rank": batch["last_rank"],
        "fresh": 0,
    }


_TELL_BATCH = (
    "UPDATE batches SET next_line = CASE WHEN next_line < :line THEN :line ELSE next_line END,"
    " warnings = :warnings, refused_rows = :refused, tries = 0,"
    " recorded_at = CASE WHEN :final = 1 THEN COALESCE(recorded_at, :now) ELSE recorded_at END,"
    " archived = CASE WHEN :fresh > 0 THEN 0 ELSE archived END,"
    " digest = COALESCE(digest, :digest), axes = COALESCE(:axes, axes), last_rank = :rank,"
    " n_queued = n_queued + :fresh"
    " WHERE ticket = :ticket"
)
