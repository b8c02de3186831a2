"""The rules a finished root must keep, read from the record, the folders and the engine's log.

``faults(root, log)`` lists every broken rule in words; an empty list is the promise kept.
"""

import collections
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from engines import read_log

from watcher.dispatch import BACKLOG
from watcher.jobs import JobState
from watcher.pictures.recipe import read_recipe

#: (from, to) -> the verb. Everything else is illegal; the store's statements guard it.
TRANSITIONS: dict[tuple[JobState, JobState], str] = {
    (JobState.QUEUED, JobState.GENERATING): "claim",
    (JobState.QUEUED, JobState.CANCELLED): "cancel",
    (JobState.QUEUED, JobState.FAILED): "fail",
    (JobState.GENERATING, JobState.COMPLETED): "complete",
    (JobState.GENERATING, JobState.FAILED): "fail",
    (JobState.GENERATING, JobState.CANCELLED): "cancel",
    (JobState.GENERATING, JobState.QUEUED): "release",
    (JobState.FAILED, JobState.QUEUED): "retry",
    (JobState.CANCELLED, JobState.QUEUED): "retry",
}
ENDED = {"completed", "failed", "cancelled"}
#: Renderings that one kill may cost: pictures that wait to be encoded and published, the one in
#: work and the one handed out early.
IN_HAND = BACKLOG + 2


Row = dict[str, Any]


@contextlib.contextmanager
def behind(root: Path) -> Iterator[Any]:
    """The record of ``root`` itself, behind the product's back: a connection that gives dicts."""
    url = server_of(root)
    if url is not None:
        with _OPENING:
            session = _session(url)
        yield session
        return
    with contextlib.closing(sqlite3.connect(root / "steady.db", timeout=10)) as file, file:
        file.row_factory = lambda cursor, row: dict(
            zip([column[0] for column in cursor.description], row, strict=True)
        )
        yield file


_OPENING = threading.Lock()  #: one session a record, though several threads ask for the first


@functools.cache
def _session(url: str) -> Any:
    import psycopg

    return psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row)


def server_of(root: Path) -> str | None:
    """libpq's address of the record, where it is on a server."""
    database = json.loads((root / "config.yaml").read_text()).get("database", "")
    return database.replace("+psycopg", "") if "://" in database else None


def rows(root: Path, sql: str, *given: object) -> list[Row]:
    """Ask the record; ``?`` in the question for each thing ``given``."""
    with behind(root) as connection:
        if server_of(root) is not None:
            sql = sql.replace("%", "%%").replace("?", "%s")
        found: list[Row] = connection.execute(sql, given).fetchall()
        return found


def no_record_yet(error: Exception) -> bool:
    """Did ``rows`` fail since no watcher has run here yet?"""
    return any(
        words in str(error) for words in ("no such table", "unable to open", "does not exist")
    )


def pictures(root: Path) -> list[Path]:
    outputs = root / "outputs"
    return [
        p
        for p in outputs.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(outputs).parts)
    ]


def faults(root: Path, *, expected: int, log: Path | None = None, kills: int = 0) -> list[str]:
    """Broken rules of a root in which everything should have ended as completed.

    ``expected`` jobs; the engine's ``log`` may show at most what ``kills`` may cost.
    """
    found: list[str] = []
    jobs = rows(root, "SELECT * FROM jobs")
    if len(jobs) != expected:
        found.append(f"{len(jobs)} jobs in the record, not {expected}")
    for job in jobs:
        if job["state"] != "completed":
            found.append(f"{job['id']} is {job['state']} ({job['error_code']})")
    for name in ("id", "rev", "path"):
        doubled = [v for v, n in collections.Counter(j[name] for j in jobs).items() if n > 1]
        if doubled:
            found.append(f"{name} twice: {doubled[:3]}")
    found += _picture_faults(root, {job["path"]: job for job in jobs})
    found += _folder_faults(root)
    if log is not None and log.exists():
        found += _render_faults(log, kills)
    if server_of(root) is None and rows(root, "PRAGMA quick_check")[0]["quick_check"] != "ok":
        found.append("the database is damaged")
    counted = {r["state"]: r["n"] for r in rows(root, "SELECT state, n FROM job_counts") if r["n"]}
    real = dict(collections.Counter(job["state"] for job in jobs))
    if counted != real:
        found.append(f"counters say {counted}, the rows {real}")
    return found


def _picture_faults(root: Path, by_path: dict[str, Row]) -> list[str]:
    found = []
    seen = set()
    for picture in pictures(root):
        name = str(picture.relative_to(root / "outputs"))
        seen.add(name)
        job = by_path.get(name)
        data = picture.read_bytes()
        recipe = read_recipe(data) or {}
        if job is None:
            found.append(f"{name} belongs to no job (made by {recipe.get('job_id')})")
        elif recipe.get("job_id") != job["id"]:
            found.append(f"{name} was made by {recipe.get('job_id')}, not {job['id']}")
        elif hashlib.sha256(data).hexdigest() != job["sha256"]:
            found.append(f"{name} is not what the record says")
    found += [f"{path} is missing" for path in by_path if path not in seen]
    return found


def _folder_faults(root: Path) -> list[str]:
    found = []
    for folder in ("inbox/.claimed", "inbox/.tmp", "outputs/.tmp"):
        found += [
            f"left in {folder}: {p.name}"
            for p in (root / folder).iterdir()
            if not p.name.startswith("submit-")  # of an API that died; swept after an hour
            and not (p.is_dir() and os.listdir(p) == ["preset.yaml"])  # goes at the next start
        ]
    for result in (root / "inbox" / "done").rglob("*.result.json"):
        body = json.loads(result.read_bytes())
        ticket = body["ticket"]
        told = {(j["id"], j["state"]) for j in body["jobs"]}
        real = {
            (r["id"], r["state"])
            for r in rows(root, "SELECT id, state FROM jobs WHERE ticket = ?", ticket)
        }
        if told != real:
            found.append(f"{result.name} tells {len(told)} jobs, the record {len(real)}")
    refusing = "SELECT claim, refused_rows FROM batches WHERE refused_rows > 0 AND archived = 1"
    for batch in rows(root, refusing):
        given_back = (root / "inbox" / "done").rglob(f"*~{batch['claim'][:8]}.refused.csv")
        lines = [line for path in given_back for line in csv.reader(io.StringIO(path.read_text()))]
        if len(lines) - 1 != batch["refused_rows"]:
            found.append(f"{len(lines) - 1} of {batch['refused_rows']} refused rows came back")
    # A reservation whose file never came was never acknowledged; it is swept in the end.
    unarchived = rows(
        root,
        "SELECT ticket FROM batches WHERE archived = 0"
        " AND NOT (recorded_at IS NULL AND claim IS NULL)",
    )
    found += [f"batch {r['ticket']} was never archived" for r in unarchived]
    return found


def untold(root: Path, told: Iterable[tuple[str, str, str]]) -> list[str]:
    """Events of a finished root that somebody who hears of everything was never ``told``, or was
    told as two. Each is its type, the id of its job or batch, and the id of the message."""
    ids = collections.defaultdict(set)
    for event, about, id_ in told:
        ids[event, about].add(id_)
    jobs = rows(root, "SELECT id, state FROM jobs")
    batches = rows(root, "SELECT ticket FROM batches WHERE archived = 1")
    wanted = {(f"job.{job['state']}", job["id"]) for job in jobs}
    wanted |= {("batch.completed", batch["ticket"]) for batch in batches}
    left = rows(root, "SELECT id, state, last_error FROM deliveries WHERE state <> 'delivered'")
    found = [f"{event} was never told" for event in sorted(wanted - ids.keys())]
    found += [f"{event} was told as {len(some)}" for event, some in ids.items() if len(some) > 1]
    return found + [f"in the outbox: {row}" for row in left]


def renders(log: Path) -> collections.Counter[tuple[str, int]]:
    """How often each (prompt, seed) was rendered to the end."""
    return collections.Counter(
        (entry["prompt"], entry["seed"]) for entry in read_log(log) if entry["event"] == "finish"
    )


def _render_faults(log: Path, kills: int) -> list[str]:
    """A kill costs at most what was rendered and not yet published, and what a worker had."""
    extra = sum(n - 1 for n in renders(log).values())
    return [f"{extra} renders too many after {kills} kills"] if extra > IN_HAND * kills else []


def legal(before: str, after: str) -> bool:
    """May a job be seen in ``after`` when it was last seen in ``before``?"""
    return before == after or (JobState(before), JobState(after)) in TRANSITIONS
