"""What a finished batch says of itself: ``.result.json`` for programs, ``.result.csv`` for people.

Both are made piece by piece, so a million jobs never lie in memory at once. Pure: where the
jobs come from and where the pieces go is others' business.
"""

import csv
import datetime
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watcher.jobs import Batch, Job, JobState

COLUMNS = ("row", "label", "state", "picture", "seed", "error", "prompt", "id")
_PIECE = 1 << 16  #: characters


def result_json(
    batch: Batch, counts: Mapping[JobState, int], jobs: Iterable[Job]
) -> Iterator[bytes]:
    """The whole result file of ``batch``, in pieces."""
    head = {
        "ticket": batch.ticket,
        "file": batch.name,
        "created_at": _iso(batch.created_at),
        "counts": {state.value: n for state, n in counts.items() if n},
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
    """A job's entry in a result file: id, place, state, picture, seed, label, error."""
    entry: dict[str, Any] = {
        "id": job.id,
        "index": job.index,
        "state": job.state.value,
        "picture": job.path if job.state is JobState.COMPLETED else None,
        "seed": job.request.seed,
    }
    if job.request.label is not None:
        entry["label"] = job.request.label
    if job.request.metadata:
        entry["metadata"] = job.request.metadata
    if job.error_code:
        entry["error"] = {"code": job.error_code, "message": job.error_message}
    if job.warnings:
        entry["warnings"] = list(job.warnings)
    return entry


def result_csv(jobs: Iterable[tuple[int | None, Job]]) -> Iterator[bytes]:
    """The same as a table, one line a job: the row of the file it came from (if known), and it.

    UTF-8 with a byte order mark, as spreadsheets want it. A cell that a spreadsheet would take
    for a formula begins with an apostrophe.
    """
    out = io.StringIO("\ufeff")
    out.seek(0, io.SEEK_END)
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row, job in jobs:
        error = f"{job.error_code}: {job.error_message}" if job.error_code else ""
        picture = job.path if job.state is JobState.COMPLETED else ""
        asked = job.request
        cells = [asked.label or "", job.state.value, picture, asked.seed, error, asked.prompt]
        writer.writerow([row or "", *map(_cell, cells), job.id])
        if out.tell() > _PIECE:
            yield _taken(out)
    yield _taken(out)


def _cell(value: Any) -> Any:
    """Text that is data stays data in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _taken(out: io.StringIO) -> bytes:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text.encode("utf-8", "replace")


def day_of(moment: int) -> str:
    """YYYYMMDD in local time of ``moment`` (microseconds UTC)."""
    return datetime.datetime.fromtimestamp(moment / 1e6).strftime("%Y%m%d")


def _iso(moment: int) -> str:
    return datetime.datetime.fromtimestamp(moment / 1e6).astimezone().isoformat()
