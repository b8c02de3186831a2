"""Between the record and the workers: what is claimed and what failed is never lost sight of."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from conftest import until
from engines import read_log
from store_children import record_jobs, request

from watcher import checkpoints
from watcher.dispatch import BACKLOG, STREAK, Choosing, Dispatcher
from watcher.errors import Trouble
from watcher.executor import NO_FILES, Files, Picture, WorkerSpec
from watcher.executor.local import LocalExecutor
from watcher.finish import Finisher
from watcher.inbox.watch import Inbox
from watcher.jobs import Job, JobState
from watcher.pace import RunWindow
from watcher.parts import Shared
from watcher.pictures.outputs import Outputs
from watcher.previews import Previews
from watcher.store import JobStore, NewJob, Want

TICKET = "019b0000-0000-7000-8000-000000000001"


class Desk:
    """A dispatcher and all it works with; ``turn`` is a turn of the watcher's main thread."""

    def __init__(self, folder: Path, *devices: str, recovers: bool = True, **how: Any) -> None:
        self.folder = folder
        self.log = folder / "engine.log"
        self.store = JobStore(f"sqlite:///{folder / 'steady.db'}", busy_seconds=0.05)
        outputs = Outputs(folder / "outputs")
        outputs.open()
        self.inbox = Inbox(folder / "inbox", settle=0.1, rescan=1.0)
        self.inbox.open(first=True)
        spec = WorkerSpec("engines:Scripted", "none", options={"log": str(self.log)}, name="one")
        self.executor = LocalExecutor(spec, devices, launch=forked.launch)
        shared = Shared(self.store, self.inbox, wake=self.executor.wake)
        self.finisher = Finisher(shared, outputs=outputs, **how)
        self.finisher.start()
        if recovers:
            self.finisher.recover()
        self.troubles = 0
        self.before_files: Callable[[], None] = lambda: None
        self.dispatcher = Dispatcher(
            shared,
            executor=self.executor,
            finisher=self.finisher,
            window=RunWindow(),
            files_of=self._files_of,
            previews=Previews(folder / ".steady"),
            choosing=Choosing(usual="one"),
        )

    def _files_of(self, job: Job) -> Files:
        self.before_files()
        return NO_FILES

    def put(self, *prompts: str) -> None:
        """One batch of these."""
        self.store.begin_reading(TICKET, name="a.yaml", suffix=".yaml", source="http")
        jobs = [NewJob.of(request(prompt), forwards=1) for prompt in prompts]
        record_jobs(self.store, TICKET, jobs, first_index=0, final=True)

    def jobs(self) -> list[Job]:
        return self.store.jobs_of(TICKET)

    def count(self, state: JobState) -> int:
        return self.store.counts()[state]

    def turn(self) -> None:
        try:
            self.dispatcher.turn()
        except Trouble:
            self.troubles += 1

    def until(self, condition: Callable[[], Any]) -> None:
        def turned() -> Any:
            self.turn()
            return condition()

        until(turned, what=str(self.store.counts()))

    def lock(self) -> sqlite3.Connection:
        """Another program has the record locked until it rolls back."""
        other = sqlite3.connect(self.folder / "steady.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        return other

    def close(self) -> None:
        self.dispatcher.stop(0)
        self.finisher.stop()
        self.inbox.close()
        self.store.close()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Desk]]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    made: list[Desk] = []

    def make(*devices: str, **how: bool) -> Desk:
        made.append(Desk(tmp_path, *devices, **how))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_was_claimed_when_the_record_got_into_trouble_is_run_all_the_same(
    desk: Callable[..., Desk],
) -> None:
    """Between the claim and the order to the worker: of both jobs, and the second is not to wait
    for ever because of the first."""
    here = desk("cpu", "cpu")
    here.executor.start()
    here.until(lambda: len(here.executor.wants()) == 2)
    here.put("a", "b")
    locks: list[sqlite3.Connection] = []

    def lock_once() -> None:
        if not locks:
            locks.append(here.lock())

    here.before_files = lock_once
    here.until(lambda: here.troubles)
    assert here.count(JobState.GENERATING) == 2
    assert not here.dispatcher.idle
    locks[0].rollback()
    here.until(lambda: here.count(JobState.COMPLETED) == 2)
    assert all(not job.deaths for job in here.jobs())


def test_what_is_being_saved_meanwhile_is_not_taken_back(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = desk("cpu")
    here.executor.start()
    here.put("a", "b")
    lets_go, locks, asked = threading.Event(), list[sqlite3.Connection](), list[int]()
    monkeypatch.setattr(
        checkpoints, "after", lambda step: step != "tmp_written" or lets_go.wait(60)
    )

    def fail_for_the_second() -> None:
        asked.append(1)
        if len(asked) == 2:
            until(lambda: here.finisher.busy)
            locks.append(here.lock())
            raise OSError(5, "Input/output error")

    here.before_files = fail_for_the_second
    here.until(lambda: here.troubles)
    locks[0].rollback()
    here.until(lambda: [job.state for job in here.jobs()] == [JobState.GENERATING, JobState.QUEUED])
    lets_go.set()
    here.until(lambda: here.count(JobState.COMPLETED) == 2)
    assert [job.attempt for job in here.jobs()] == [1, 2]


def test_what_was_claimed_in_trouble_waits_again_when_the_service_stops(
    desk: Callable[..., Desk],
) -> None:
    here = desk("cpu")
    here.executor.start()
    here.put("a")
    locks: list[sqlite3.Connection] = []
    here.before_files = lambda: locks.append(here.lock())
    here.until(lambda: here.troubles)
    locks[0].rollback()
    here.dispatcher.stop(0)
    (job,) = here.jobs()
    assert (job.state, job.watcher_deaths) == (JobState.QUEUED, 0)


def test_a_stop_leaves_alone_what_a_watcher_before_left_unsettled(
    desk: Callable[..., Desk],
) -> None:
    """Its picture may lie in outputs, which were not to be had; until then nothing else is begun."""
    here = desk("cpu", recovers=False)
    here.executor.start()
    here.put("a", "b")
    here.store.claim_many([Want()])
    here.until(here.executor.wants)
    here.turn()
    here.dispatcher.stop(0)
    assert (here.count(JobState.GENERATING), here.count(JobState.QUEUED)) == (1, 1)


def test_files_that_cannot_be_read_cost_no_job(desk: Callable[..., Desk]) -> None:
    here = desk("cpu")
    here.executor.start()
    here.put("a")
    errors = [OSError(5, "Input/output error")]

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    here.before_files = fail_once
    here.until(lambda: here.count(JobState.COMPLETED))
    (said,) = here.jobs()[0].facts["attempts"]
    assert said["why"] == "The files of a job cannot be read (Input/output error)."


def test_pictures_that_are_all_blank_pause_the_queue(desk: Callable[..., Desk]) -> None:
    here = desk("cpu")
    here.executor.start()
    here.put(*["blank"] * 30)
    here.until(lambda: here.store.get("paused"))
    here.until(lambda: here.dispatcher.idle)
    assert STREAK <= here.count(JobState.FAILED) <= STREAK + BACKLOG + 2
    assert here.store.get("paused")["reason"] == "5 jobs in a row failed: internal"


def test_failures_between_pictures_do_not_pause_it(desk: Callable[..., Desk]) -> None:
    here = desk("cpu")
    here.executor.start()
    here.put(*["blank", "raise", "fine"] * 5)
    here.until(lambda: here.count(JobState.QUEUED) + here.count(JobState.GENERATING) == 0)
    here.until(lambda: here.dispatcher.idle)
    assert here.store.get("paused") is None


def test_a_picture_that_is_slowly_saved_still_lies_between_failures(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted in the order in which they were drawn, not in that of the disk."""
    lets_go = threading.Event()

    def slow(step: str) -> None:
        if step == "tmp_written":
            assert lets_go.wait(60)

    monkeypatch.setattr(checkpoints, "after", slow)
    here = desk("cpu")
    here.executor.start()
    here.put(*["raise"] * (STREAK - 1), "fine", "raise")
    here.until(lambda: here.count(JobState.FAILED) == STREAK)
    here.turn()
    lets_go.set()
    here.until(lambda: here.dispatcher.idle)
    here.turn()
    assert here.store.get("paused") is None


def test_the_queue_is_paused_also_when_the_record_is_busy_at_that_moment(
    desk: Callable[..., Desk],
) -> None:
    here = desk("cpu")
    here.put(*["blank"] * STREAK)
    for job in here.store.claim_many(STREAK * [Want()]):
        assert job is not None
        here.finisher.finish(job, Picture(0, *job.who, (64, 64), bytes(64 * 64 * 3), {}, {}))
    until(lambda: here.count(JobState.FAILED) == STREAK and not here.finisher.busy)
    lock = here.lock()
    here.turn()
    assert here.troubles == 1
    lock.rollback()
    here.turn()
    assert here.store.get("paused")


def test_a_failed_job_tells_of_the_engine_that_it_failed_in(desk: Callable[..., Desk]) -> None:
    here = desk("cpu", "other")
    here.executor.start()
    here.until(lambda: len(here.executor.wants()) == 2)
    here.put("raise a", "raise b")
    here.until(lambda: here.count(JobState.FAILED) == 2)
    device_of = {e["pid"]: e["device"] for e in read_log(here.log) if e["event"] == "load"}
    ran_on = {e["prompt"]: device_of[e["pid"]] for e in read_log(here.log) if e["event"] == "start"}
    assert len(set(ran_on.values())) == 2
    assert {job.request.prompt: job.facts["device"] for job in here.jobs()} == ran_on


def test_a_batch_that_met_a_fault_is_told_of_and_put_away_by_a_later_try(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = desk("cpu", stuck_seconds=0.0)
    told: list[str] = []

    def break_once(step: str) -> None:
        if step == "archived_files" and not told:
            told.append("broken")
            raise OSError(5, "Input/output error")
        told.extend(each["message"] for each in here.finisher.stuck)

    monkeypatch.setattr(checkpoints, "after", break_once)
    here.executor.start()
    here.put("a")
    here.until(lambda: here.count(JobState.COMPLETED) and not here.store.unarchived())
    words = "The batch `a.yaml` cannot be put away: [Errno 5] Input/output error"
    assert told[:2] == ["broken", words]
    here.until(lambda: here.finisher.stuck == [])
