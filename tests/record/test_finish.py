"""Pictures that arrive faster than the disk takes them, and batches that are put away."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from store_children import put_batch, record_jobs

from watcher import checkpoints, executor as ex
from watcher.errors import ValueFault
from watcher.finish import MOST_THREADS, THREADS, Finisher
from watcher.inbox import refused_rows
from watcher.inbox.watch import Inbox
from watcher.jobfile.tables import Row
from watcher.jobs import Job, JobState, ticket_of_key
from watcher.parts import Shared
from watcher.pictures.outputs import Outputs
from watcher.refused import kept_line
from watcher.store import JobStore, Want

JOBS = 100


class Disk:
    """A disk on which every picture waits until ``lets_go`` is set, having been written."""

    def __init__(self) -> None:
        self.lets_go = threading.Event()
        self.waiting = 0
        self._lock = threading.Lock()

    def checkpoint(self, step: str) -> None:
        if step == "tmp_written":
            with self._lock:
                self.waiting += 1
            assert self.lets_go.wait(60)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(f"sqlite:///{tmp_path / 'steady.db'}", synchronous="normal")
    yield store
    store.close()


@pytest.fixture
def finisher(
    tmp_path: Path, store: JobStore, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Finisher]:
    monkeypatch.setattr(checkpoints, "after", disk.checkpoint)
    outputs = Outputs(tmp_path / "outputs")
    outputs.open()
    inbox = Inbox(tmp_path / "inbox", settle=0.1, rescan=1.0)
    inbox.open(first=True)
    shared = Shared(store, inbox)
    finisher = Finisher(shared, outputs=outputs)
    finisher.start()
    yield finisher
    disk.lets_go.set()
    finisher.stop()
    inbox.close()


def picture(job: Job) -> ex.Picture:
    rgb = random.Random(job.id).randbytes(64 * 64 * 3)
    return ex.Picture(0, job.id, job.attempt, (64, 64), rgb, {}, {})


def threads() -> int:
    return sum(thread.name.startswith("finish-") for thread in threading.enumerate())


def test_two_threads_save_pictures_and_more_where_a_queue_grows(
    store: JobStore, finisher: Finisher, disk: Disk
) -> None:
    put_batch(store, JOBS)
    jobs = [job for job in store.claim_many(JOBS * [Want()]) if job]
    assert threads() == THREADS
    for job in jobs[: 2 * THREADS]:
        finisher.finish(job, picture(job))
    until(lambda: disk.waiting == THREADS, what="both threads at work")
    assert threads() == THREADS  # what two can hold back is no queue
    for job in jobs[2 * THREADS :]:
        finisher.finish(job, picture(job))
    until(lambda: disk.waiting == MOST_THREADS, what="all threads at work")
    assert threads() == MOST_THREADS
    assert finisher.busy == JOBS
    disk.lets_go.set()
    until(lambda: finisher.busy == 0, 60, "all recorded")
    assert store.counts()[JobState.COMPLETED] == JOBS


@pytest.mark.parametrize("source", ["file", "http"])
def test_a_table_of_refused_rows_stays_where_the_rows_themselves_are_gone(
    tmp_path: Path, store: JobStore, finisher: Finisher, source: str
) -> None:
    """As of batches from before rows were kept, when one of their jobs is run again."""
    ticket, inbox = ticket_of_key("old"), tmp_path / "inbox"
    kept = refused_rows(inbox, ticket)
    kept.parent.mkdir()
    kept.write_bytes(kept_line(Row(1, 2, {"prompt": "a boat"}, (ValueFault("bad_shape", "no"),))))
    store.begin_reading(ticket, name="old.csv", suffix=".csv", source=source)
    record_jobs(store, ticket, [], first_index=0, final=True, refused_rows=1)
    until(lambda: store.batch(ticket).archived)
    kept.unlink()
    store.unarchive(ticket)
    until(lambda: store.batch(ticket).archived)
    [table] = (inbox / "done").rglob("old~*.refused.csv")
    assert "a boat" in table.read_text()
