"""What a finished batch says of itself: ``.result.json`` for programs, ``.result.csv`` for people.

Both are made piece by piece, so a million jobs never lie in memory at once. Only reads; where the
pieces go is others' business.
"""

import contextlib
import datetime
import functools
import io
import itertools
import json
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from watcher.describe import describe_job, nonzero_counts, zoned_time
from watcher.inbox import file_of, open_claim
from watcher.jobfile import MAX_TABLE
from watcher.jobfile.tables import csv_pieces, guarded, written
from watcher.jobs import Batch, Job, JobState
from watcher.log import now_us
from watcher.modelnames import lora_words
from watcher.pictures.container import NotAPicture, with_rating
from watcher.store import JobStore
from watcher.suffixes import FORMS

#: What a result table says of each job, before the columns of its input.
COLUMNS = ("row", "state", "picture", "seed", "model", "lora", "error", "id")
_LOOKED_AT = 1000  #: jobs whose metadata names the columns where the input has none
_EARLIEST = (1980, 1, 1, 0, 0, 0)  #: what a zip can say
_CHUNK = 1 << 18  #: bytes of a picture


def result_json(
    batch: Batch, counts: Mapping[JobState, int], jobs: Iterable[Job]
) -> Iterator[bytes]:
    """The whole result file of ``batch``, in pieces."""
    head = {
        "ticket": batch.ticket,
        "file": batch.name,
        "created_at": zoned_time(batch.created_at, "auto"),
        "counts": nonzero_counts(counts),
        "warnings": list(batch.warnings),
    }
    yield json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}").encode()
    yield b',\n "jobs": ['
    comma = b"\n  "
    for job in jobs:
        yield comma + json.dumps(result_of(job), ensure_ascii=False).encode()
        comma = b",\n  "
    yield b"\n ]\n}\n"


def result_of(job: Job) -> dict[str, Any]:
    """A job's entry in a result file: id, place, row, state, picture, seed, model, label, error."""
    told = describe_job(job, zoned_time)
    entry = {
        **{name: told[name] for name in ("id", "index", "state")},
        "row": job.row,
        "picture": told["path"] if job.state is JobState.COMPLETED else None,
        "seed": job.request.seed,
        "model": told["model"],
    }
    if job.request.lora:
        entry["lora"] = lora_words(job.request.lora)
    if job.request.label is not None:
        entry["label"] = job.request.label
    if job.request.metadata:
        entry["metadata"] = job.request.metadata
    if job.error_code:
        entry["error"] = {"code": job.error_code, "message": job.error_message}
    if told["warnings"]:
        entry["warnings"] = told["warnings"]
    return entry


def result_table(store: JobStore, inbox: Path, batch: Batch) -> Iterator[bytes]:
    """:func:`result_csv` of ``batch`` as it is now, with the columns of its file.

    Wherever that lies: in work or in ``done/``. Raises SteadyError when it is there and cannot be
    read.
    """
    jobs, claim = store.jobs_by_row(batch.ticket), None
    if FORMS.get(batch.suffix) in (".csv", ".tsv"):
        with contextlib.suppress(OSError):
            claim = file_of(inbox, batch.claim or batch.ticket, batch.name, batch.suffix)
    if claim is None:
        yield from result_csv(jobs)
        return
    with open_claim(claim, MAX_TABLE) as stream:
        yield from result_csv(jobs, *written(stream, batch.suffix))


def zip_pieces(
    pictures: Iterable[tuple[Job, BinaryIO]], table: tuple[str, Iterable[bytes]] | None = None
) -> Iterator[bytes]:
    """``pictures`` (job and its opened file) and ``table`` (name, content) as a zip, in pieces.

    Each picture has its path below the outputs folder and the time it was made.
    """
    outbox = _Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def packed(name: str, moment: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
            # a zip has local time, from 1980 on
            entry = zipfile.ZipInfo(name, max(time.localtime(moment / 1e6)[:6], _EARLIEST))
            with archive.open(entry, "w", force_zip64=True) as target:
                for piece in pieces:
                    target.write(piece)
                    yield outbox.take()

        for job, file in pictures:
            yield from packed(job.path, job.completed_at or job.created_at, exported(job, file))
        if table is not None:
            yield from packed(table[0], now_us(), table[1])
    yield outbox.take()


def exported(job: Job, file: BinaryIO) -> Iterator[bytes]:
    """A picture as it leaves the house, in pieces: with what a person thinks of it inside."""
    if job.rating:
        data = file.read()
        try:
            yield with_rating(data, job.rating)
        except NotAPicture:  # somebody wrote into it: it goes as it is
            yield data
        return
    yield from iter(functools.partial(file.read, _CHUNK), b"")


class _Outbox(io.RawIOBase):
    """Where zipfile writes: collects bytes until they are sent."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def result_csv(
    jobs: Iterable[Job],
    columns: Sequence[str] | None = None,
    rows: Iterable[tuple[int, Sequence[str]]] = (),
) -> Iterator[bytes]:
    """The same as a table, one line a job: what became of it, then every column of its input.

    ``jobs`` and ``rows`` (number and cells of each row of the input) come in the order of the rows.
    A column of ours whose name the input has as well is called ``result_<name>``. A job whose row
    is not known gives what it has under the columns' names; without ``columns`` they are label,
    prompt and the names of the metadata. UTF-8 with a byte order mark, as
    spreadsheets want it. A cell that a spreadsheet would take for a formula begins with an
    apostrophe.
    """
    if columns is None:
        first = list(itertools.islice(jobs := iter(jobs), _LOOKED_AT))
        jobs = itertools.chain(first, jobs)
        names = (name for job in first for name in job.request.metadata or ())
        columns = list(dict.fromkeys(["label", "prompt", *names]))
    taken = {name.strip().lower() for name in columns}
    ours = [f"result_{name}" if name in taken else name for name in COLUMNS]
    header = [*ours, *map(guarded, columns)]
    return csv_pieces(header, _result_lines(jobs, columns, rows))


def _result_lines(
    jobs: Iterable[Job], columns: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]
) -> Iterator[list[Any]]:
    """What became of each job, and the cells of the row it came from."""
    at, row_by_row = 0, iter(rows)
    cells: Sequence[str] = ()
    for job in jobs:
        while job.row is not None and at < job.row:
            at, cells = next(row_by_row, (job.row, ()))
        own = cells if cells and at == job.row else _said(job, columns)
        error = f"{job.error_code}: {job.error_message}" if job.error_code else ""
        picture = job.path if job.state is JobState.COMPLETED else ""
        lora = lora_words(job.request.lora) if job.request.lora else ""
        model = job.model or job.request.model or ""
        told = [
            job.row or "",
            job.state.value,
            picture,
            job.request.seed,
            model,
            lora,
            error,
            job.id,
        ]
        empty = [""] * (len(columns) - len(own))
        yield [*told, *own[: len(columns)], *empty]


def _said(job: Job, columns: Iterable[str]) -> list[Any]:
    """What the job itself has under each column's name: a member of its metadata, or a field."""
    fields = job.request.model_dump()
    own = fields["metadata"] or {}
    return [own.get(name, fields.get(name.strip().lower())) for name in columns]


def day_of(moment: int) -> str:
    """YYYYMMDD in local time of ``moment`` (microseconds UTC)."""
    return datetime.datetime.fromtimestamp(moment / 1e6).strftime("%Y%m%d")
