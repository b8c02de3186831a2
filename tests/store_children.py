"""What the other processes of test_store.py do. Imported by them, so it stands by itself."""

import os
import signal
import sqlite3
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from watcher.errors import SteadyError
from watcher.jobs import Job, JobRequest, Priority, job_ids_of
from watcher.store import JobStore, NewJob, Recording, Want

LOCAL = datetime(2026, 11, 22, 10, 29, 59)


class Clock:
    """The time of a record, in microseconds: it stands where it was put."""

    def __init__(self, at: datetime | int = 1) -> None:
        self.put(at)

    def put(self, at: datetime | int) -> None:
        self.at = at if isinstance(at, int) else int(at.timestamp() * 1e6)

    def __call__(self) -> int:
        return self.at


def request(prompt: str = "a fox", **fields: Any) -> JobRequest:
    """A resolved request."""
    return JobRequest(
        prompt=prompt, width=64, height=64, num_inference_steps=2, seed=7, format="png", **fields
    )


def new_jobs(count: int, **fields: Any) -> list[NewJob]:
    return [NewJob.of(request(f"fox {k}"), **fields) for k in range(count)]


def record_jobs(
    store: JobStore,
    ticket: str,
    jobs: Sequence[NewJob],
    **how: Any,
) -> list[str]:
    """Put the jobs of one batch on record; their ids, by their place where they have none."""
    id_of, first = job_ids_of(ticket), how.get("first_index", 0)
    named = [j._replace(id=j.id or id_of(n, None)) for n, j in enumerate(jobs, first)]
    store.record_all([Recording(ticket, named, **how)])
    return [job.id for job in named]


def claim_one(store: JobStore, *, window_open: bool = True) -> Job | None:
    """The next job, now ``generating``."""
    return store.claim_many([Want()], window_open=window_open)[0]


def put_batch(store: JobStore, count: int = 1, **fields: Any) -> list[str]:
    """A recorded batch of ``count`` jobs; their ids (the first is the ticket)."""
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.yaml", suffix=".yaml", source="file")
    return record_jobs(store, ticket, new_jobs(count, **fields), first_index=0, final=True)


def claim_all(url: str, barrier: Any, queue: Any, jobs: int, me: int) -> None:
    """Open a fresh record at the same moment as the others; one fills it, all empty it."""
    barrier.wait(60)
    try:
        store = JobStore(url, synchronous="normal", checkpointer=me == 0, busy_seconds=60)
    except SteadyError as error:
        queue.put((me, [f"opening: {error}"]))
        barrier.abort()
        return
    barrier.wait(60)
    if me == 0:
        for _ in range(jobs // 100):
            put_batch(store, 100)
    mine: list[str] = []
    while sum(n for state, n in store.counts().items() if state != "queued") < jobs:
        job = claim_one(store)
        if job is None:
            continue
        done = store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={"by": me})
        mine.append(job.id if done else f"fenced {job.id}")
    queue.put((me, mine))
    store.close()


def write_until_killed(url: str, told: int, round_: int) -> None:
    """Record, claim and complete for ever; say each thing only once it is stored."""
    store = JobStore(url, synchronous="normal", busy_seconds=30)

    def say(*words: object) -> None:
        os.write(told, (" ".join(map(str, words)) + "\n").encode())

    while True:
        say("batch", *put_batch(store, 3, stem=f"r{round_}", priority=Priority.NORMAL))
        job = claim_one(store)
        if job is not None:
            say("claimed", job.id, job.attempt)
            if store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={}):
                say("completed", job.id)


def hold_lock(path: Path, locked: Any, free: Any) -> None:
    """Another program's transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    locked.set()
    free.wait(60)
    connection.execute("ROLLBACK")
    connection.close()


def pause_and_die(url: str) -> None:
    """A stop that is no clean one: the log is left beside the file."""
    JobStore(url, synchronous="normal").put("paused", {})
    os.kill(os.getpid(), signal.SIGKILL)
