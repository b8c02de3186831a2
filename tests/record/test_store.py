"""The record: what each transition may do, what survives what, who goes first."""

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from forked import server
from history import TRANSITIONS
from postgres import fresh_record
from store_children import (
    LOCAL,
    Clock,
    claim_all,
    claim_one,
    hold_lock,
    new_jobs,
    pause_and_die,
    put_batch,
    record_jobs,
    request,
    write_until_killed,
)

from watcher.errors import SteadyError
from watcher.jobs import (
    Job,
    JobState,
    Priority,
    job_ids_of,
    ticket_of_key,
)
from watcher.store import (
    Completion,
    JobFilter,
    JobStore,
    NewJob,
    Recording,
    Want,
    schema,
)
from watcher.store.claiming import BULK_TURN, _heads_of
from watcher.store.inputs import _WAITING

Opener = Callable[..., JobStore]


#: Where `make postgres` has started a server, the same holds there.
SERVER = os.environ.get("STEADY_DATABASE", "")


@pytest.fixture(params=["sqlite", "postgresql"] if SERVER else ["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty record of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'steady.db'}"
        return
    with fresh_record(SERVER) as record:
        yield record


@pytest.fixture
def opened(url: str) -> Iterator[Opener]:
    """Opens the record, as often as wanted, and closes whatever was opened."""
    stores: list[JobStore] = []

    def opener(**options: object) -> JobStore:
        stores.append(JobStore(url, synchronous="normal", **options))  # type: ignore[arg-type]
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


@pytest.fixture
def clock() -> Clock:
    """That of the record."""
    return Clock()


@pytest.fixture
def store(opened: Opener, clock: Clock) -> JobStore:
    return opened(clock=clock)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a SQLite record will lie, for what only files suffer."""
    return tmp_path / "steady.db"


def sqlite(file: Path, **options: object) -> JobStore:
    return JobStore(f"sqlite:///{file}", synchronous="normal", **options)  # type: ignore[arg-type]


def code(call: Callable[[], object]) -> str:
    """The code of the SteadyError that ``call`` raises."""
    with pytest.raises(SteadyError) as raised:
        call()
    return raised.value.code


def claim(store: JobStore) -> Job:
    job = claim_one(store)
    assert job is not None
    return job


def drain(store: JobStore, window_open: bool = True) -> list[str]:
    """Claim until nothing is left; the ids in order."""
    jobs = iter(lambda: claim_one(store, window_open=window_open), None)
    return [job.id for job in jobs]


def get(store: JobStore, id: str) -> Job:
    job = store.job(id)
    assert job is not None
    return job


# -- transitions

TO_STATE = {
    JobState.QUEUED: [],
    JobState.GENERATING: ["claim"],
    JobState.COMPLETED: ["claim", "complete"],
    JobState.FAILED: ["claim", "fail"],
    JobState.CANCELLED: ["cancel"],
}

#: action -> (the verb of TRANSITIONS, the state it leads to, how it is done)
ACTIONS: dict[str, tuple[str, JobState, Callable[[JobStore, Job], object]]] = {
    "claim": ("claim", JobState.GENERATING, lambda s, j: claim_one(s)),
    "complete": (
        "complete",
        JobState.COMPLETED,
        lambda s, j: s.complete(j.id, j.attempt, sha256="ab", bytes=3, facts={"a": 1}),
    ),
    "fail": (
        "fail",
        JobState.FAILED,
        lambda s, j: s.fail(j.id, j.attempt, "engine_failed", "broke", facts={}),
    ),
    "end_cancelled": (
        "cancel",
        JobState.CANCELLED,
        lambda s, j: s.fail(j.id, j.attempt, "cancelled", "", facts={}),
    ),
    "cancel": ("cancel", JobState.CANCELLED, lambda s, j: s.cancel(j.id)),
    "release": (
        "release",
        JobState.QUEUED,
        lambda s, j: s.release(j.id, j.attempt, why="x"),
    ),
    "retry": ("retry", JobState.QUEUED, lambda s, j: s.retry(j.id)),
}


def in_state(store: JobStore, state: JobState) -> Job:
    (id,) = put_batch(store)
    for action in TO_STATE[state]:
        ACTIONS[action][2](store, get(store, id))
    job = get(store, id)
    assert job.state is state
    return job


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", JobState)
def test_only_the_legal_transitions_happen(store: JobStore, state: JobState, action: str) -> None:
    before = in_state(store, state)
    verb, target, act = ACTIONS[action]
    try:
        act(store, before)
    except SteadyError as error:
        assert error.code == "wrong_state"
    after = get(store, before.id)
    if (state, action) == (JobState.GENERATING, "cancel"):
        assert after.state is JobState.GENERATING and after.cancel_requested  # the worker ends it
    elif state is JobState.QUEUED and action in ("end_cancelled", "fail"):
        assert after == before  # only a running job is ended by its worker
    elif TRANSITIONS.get((state, target)) == verb:
        assert after.state is target
        assert after.rev == before.rev + 1 == store.last_rev()
    else:
        assert after == before
        assert store.last_rev() == before.rev
    counts = store.counts()
    assert counts == {s: int(s is after.state) for s in JobState}
    assert store.progress(after.ticket) == counts


def test_every_transition_of_the_drawing_has_an_action() -> None:
    assert {(verb, to) for (_, to), verb in TRANSITIONS.items()} == {
        (verb, to) for verb, to, _ in ACTIONS.values()
    }


def test_a_late_worker_changes_nothing(store: JobStore, clock: Clock) -> None:
    put_batch(store)
    late = claim(store)
    clock.put(2)
    assert store.release(late.id, late.attempt, why="worker died", death=True)
    now = claim(store)
    assert (now.attempt, now.deaths) == (2, 1)
    for act in ("complete", "fail", "end_cancelled", "release"):
        assert ACTIONS[act][2](store, late) is None
    assert store.rename(late.id, late.attempt) is None
    assert get(store, now.id) == now
    clock.put(7)
    done = store.complete(now.id, now.attempt, sha256="ab", bytes=3, facts={"gpu": "none"})
    assert done is not None
    assert (done.sha256, done.bytes, done.completed_at) == ("ab", 3, 7)
    assert done.facts["gpu"] == "none"
    assert done.facts["attempts"] == [{"attempt": 1, "why": "worker died", "at": 2}]
    assert ACTIONS["complete"][2](store, now) is None  # once


def test_of_a_thousand_attempts_the_last_are_told(store: JobStore, clock: Clock) -> None:
    """All of them would be read at every look."""
    put_batch(store)
    for now in range(1, 300):
        clock.put(now)
        job = claim(store)
        assert store.release(job.id, job.attempt, why="no room")
    attempts = get(store, job.id).facts["attempts"]
    assert attempts[-1] == {"attempt": 299, "why": "no room", "at": 299}
    assert len(attempts) < 100


def test_line_ends_of_every_script_are_words_in_a_reason(store: JobStore) -> None:
    put_batch(store)
    job = claim(store)
    released = store.release(job.id, job.attempt, why="a\u2028b\u0085c")
    assert released is not None
    assert released.facts["attempts"][0]["why"] == "a\u2028b\u0085c"


def test_cancel_while_running_is_kept_until_the_worker_lets_go(
    store: JobStore, clock: Clock
) -> None:
    put_batch(store)
    job = claim(store)
    store.cancel(job.id)
    store.cancel(job.id)  # asking twice is fine
    assert store.cancels() == [(job.id, 1)]
    clock.put(4)
    back = store.release(job.id, 1, why="stopping")
    assert back is not None
    assert (back.state, back.completed_at, back.cancel_requested) == ("cancelled", 4, False)
    assert store.cancels() == []
    again = store.retry(job.id)
    assert (again.state, again.completed_at) == ("queued", None)


def test_a_picture_that_was_published_counts_even_if_it_was_cancelled(store: JobStore) -> None:
    put_batch(store)
    job = claim(store)
    store.cancel(job.id)
    done = store.complete(job.id, 1, sha256="0", bytes=1, facts={})
    assert done is not None and done.state is JobState.COMPLETED


def test_retry_keeps_who_the_job_is_and_clears_what_went_wrong(store: JobStore) -> None:
    (id,) = put_batch(store)
    job = claim(store)
    store.release(id, 1, why="died", death=True)
    claim(store)
    failed = store.fail(id, 2, "engine_failed", "broke", facts={"x": 1})
    assert failed is not None and failed.error_code == "engine_failed"
    assert store.archived(job.ticket)
    back = store.retry(id)
    assert (back.error_code, back.error_message, back.deaths, back.started_at) == (
        None,
        None,
        0,
        None,
    )
    assert (back.request, back.image_name, back.path) == (job.request, job.image_name, job.path)
    batch = store.batch(job.ticket)
    assert batch is not None and not batch.archived
    assert claim(store).attempt == 3  # the fence never goes back


def test_unknown_jobs_and_batches(store: JobStore) -> None:
    nobody = str(uuid.uuid4())
    assert store.job(nobody) is None and store.batch(nobody) is None
    for call in (store.cancel, store.retry):
        assert code(lambda call=call: call(nobody)) == "job_not_found"  # type: ignore[misc]
    assert code(lambda: store.reorder(nobody)) == "job_not_found"
    for batch_call in (
        store.progress, store.cancel_batch, store.pause_batch, store.resume_batch,
        store.retry_failed, store.withdraw,
        lambda t: record_jobs(store, t, [], first_index=0, final=True),
    ):  # fmt: skip
        assert code(lambda call=batch_call: call(nobody)) == "batch_not_found"  # type: ignore[misc]
    assert not store.archived(nobody)


def test_deleted_pictures_keep_their_row(store: JobStore, clock: Clock) -> None:
    job = in_state(store, JobState.COMPLETED)
    clock.put(8)
    deleted = store.mark_deleted(job.id)
    assert deleted is not None and deleted.deleted_at == 8
    assert store.mark_deleted(job.id) is None
    assert store.mark_deleted(in_state(store, JobState.FAILED).id) is None


@pytest.mark.parametrize("seed", range(3))
def test_counters_agree_with_the_rows_after_anything(
    store: JobStore, clock: Clock, seed: int
) -> None:
    dice = random.Random(seed)
    ids: list[str] = []
    seen = 0
    for step in range(150):
        clock.put(step)
        match dice.randrange(12):
            case 0 | 1:
                ids += put_batch(
                    store,
                    dice.randint(1, 5),
                    priority=dice.choice(list(Priority)),
                    not_before=dice.choice([None, None, step + 20]),
                )
            case 2 | 3 | 4:
                claim_one(store, window_open=dice.random() < 0.8)
            case 5:
                store.release_due()
            case _ if ids:
                job = get(store, dice.choice(ids))
                do = dice.choice(
                    [
                        *(act for name, (_, _, act) in ACTIONS.items() if name != "claim"),
                        lambda s, j: s.reorder(j.id, dice.choice(list(Priority)), "front"),
                        lambda s, j: s.cancel_batch(j.ticket),
                        lambda s, j: s.withdraw_all(),
                        lambda s, j: s.pause_batch(j.ticket),
                        lambda s, j: s.resume_batch(j.ticket),
                        lambda s, j: s.retry_failed(j.ticket),
                    ]
                )
                try:
                    do(store, job)
                except SteadyError as error:
                    assert error.code == "wrong_state"
            case _:
                pass
        changed = store.since(seen)
        assert [job.rev for job in changed] == sorted({job.rev for job in changed})
        seen = store.last_rev()
    jobs = [get(store, id) for id in ids]
    assert store.counts() == {s: sum(j.state is s for j in jobs) for s in JobState}
    for ticket in {job.ticket for job in jobs}:
        assert store.progress(ticket) == {
            s: sum(j.state is s for j in jobs if j.ticket == ticket) for s in JobState
        }
    assert len({job.rev for job in jobs}) == len(jobs)
    assert all(job.held is None for job in jobs if job.state is not JobState.QUEUED)


def test_whoever_follows_the_revs_misses_nothing(store: JobStore) -> None:
    put_batch(store, 120)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while job := claim_one(store):
                store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen, last = {}, 0
    while True:
        working = any(thread.is_alive() for thread in threads)
        for job in store.since(last, limit=10):
            assert job.rev > last  # nothing is ever committed behind a rev that was seen
            last = job.rev
            seen[job.id] = job.state
        if not working and last == store.last_rev():
            break
    assert not errors
    assert list(seen.values()) == [JobState.COMPLETED] * 120


# -- recording


def test_recording_again_gives_the_same_rows(store: JobStore, clock: Clock) -> None:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.yaml", suffix=".yaml", source="file")
    jobs = new_jobs(3)
    ids = record_jobs(store, ticket, jobs, first_index=0, final=True)
    rows = store.jobs_of(ticket)
    clock.put(LOCAL)
    assert record_jobs(store, ticket, jobs, first_index=0, final=True) == ids
    assert store.jobs_of(ticket) == rows
    assert ids == [job_ids_of(ticket)(k, None) for k in range(3)]
    batch = store.batch(ticket)
    assert batch is not None and (batch.jobs, batch.recorded_at, batch.tries) == (3, 1, 0)


def test_the_ids_of_a_batch_count_on_from_its_ticket() -> None:
    for ticket in ("00000007-8b1c-4c1e-9c0e-0123456789ab", "ffffffff-8b1c-4c1e-9c0e-0123456789ab"):
        ids = [job_ids_of(ticket)(k, None) for k in range(2_000)]
        assert ids[0] == ticket and len(set(ids)) == 2_000
        assert {uuid.UUID(id).version for id in ids[1:]} == {8}
        start = int(ticket[:8], 16)
        assert [int(id[:8], 16) for id in ids] == [(start + k) % 2**32 for k in range(2_000)]
    others = job_ids_of("00000006-8b1c-4c1e-9c0e-0123456789ab")(2, None)
    assert others[:8] == "00000008" and others != job_ids_of(
        "00000007-8b1c-4c1e-9c0e-0123456789ab"
    )(1, None)


def test_a_long_file_is_resumed_where_it_stood(opened: Opener, clock: Clock) -> None:
    store, ticket = opened(clock=clock), str(uuid.uuid4())
    store.begin_reading(ticket, name="a.csv", suffix=".csv", source="file")
    record_jobs(store,
        ticket, new_jobs(4), first_index=0, final=False, next_line=5, warnings=["w"],
    )  # fmt: skip
    assert [b.recorded_at for b in store.batches()] == [None]
    assert claim(store).id == ticket  # each chunk may run at once
    store.close()
    store = opened(clock=clock)
    store.count_tries([ticket])
    batch = store.begin_reading(ticket, name="a.csv", suffix=".csv", source="file")
    assert (batch.tries, batch.next_line, batch.jobs, batch.recorded_at) == (1, 5, 4, None)
    record_jobs(store,
        ticket, new_jobs(3), first_index=4, final=True, next_line=8, warnings=["w", "v"],
    )  # fmt: skip
    batch = store.begin_reading(ticket, name="a.csv", suffix=".csv", source="file")
    assert (batch.tries, batch.next_line, batch.jobs, batch.recorded_at) == (0, 8, 7, 1)
    assert batch.warnings == ("w", "v")
    assert [job.index for job in store.jobs_of(ticket)] == list(range(7))
    assert [job.index for job in store.jobs_of(ticket, after_index=2, limit=2)] == [3, 4]


def test_a_chunk_is_recorded_whole_or_not_at_all(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.csv", suffix=".csv", source="file")
    bad = [*new_jobs(3), NewJob.of(request(), not_before=2**70)]  # no database takes this integer
    with pytest.raises(Exception):  # noqa: B017 - each driver has its own
        record_jobs(store, ticket, bad, first_index=0, final=True)
    assert store.jobs_of(ticket) == []
    assert store.last_rev() == 0 and store.counts()[JobState.QUEUED] == 0
    ids = record_jobs(store, ticket, new_jobs(1), first_index=0, final=True)
    assert get(store, ids[0]).image_name == "ImgGen_102959"  # the name was not lost either


def test_the_request_comes_back_as_it_was(store: JobStore) -> None:
    asked = request(
        'Ünï "quoted" \n :colon %s {brace} 😀', label="row 1", metadata={"a": 1, "b": None, "c": "é"},
        guidance_scale=0.0, negative_prompt="", name="fox", folder="a/b", priority="bulk",
    )  # fmt: skip
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a", suffix=".json", source="cli")
    new = NewJob.of(asked, warnings=("no effect",), priority=Priority.BULK, not_before=77)
    (id,) = record_jobs(store, ticket, [new], first_index=0, final=True)
    job = get(store, id)
    assert job.request == asked
    assert (job.path, job.warnings, job.not_before, job.held) == (
        "a/b/fox.png", ("no effect",), 77, "not_before",
    )  # fmt: skip


def test_a_batch_says_what_is_said_of_its_jobs_once(store: JobStore) -> None:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a", suffix=".json", source="cli")
    jobs = [NewJob.of(request(), warnings=(word,)) for word in ("no effect", "long", "no effect")]
    ids = record_jobs(store, ticket, jobs, first_index=0, final=True, warnings=["left out"])
    for _ in ids:
        job = claim(store)
        found = ["long", "found by the worker"] if job.id == ids[2] else []
        store.complete(job.id, 1, sha256="0", bytes=1, facts={"warnings": found})
    assert get(store, ids[2]).warnings == ("no effect", "long", "found by the worker")
    (batch,) = (b for b in store.batches() if b.ticket == ticket)
    assert batch.warnings == ("left out", "no effect", "long", "found by the worker")


def test_a_reserved_name_is_found_again(store: JobStore, clock: Clock) -> None:
    ticket, midnight = str(uuid.uuid4()), datetime(2026, 11, 22, 23, 59, 59)
    words = {"name": "api", "suffix": ".json", "source": "http", "digest": "d"}
    clock.put(midnight)
    reserved, fresh = store.reserve(ticket, **words)
    assert (reserved.image_name, reserved.claim, reserved.jobs) == ("ImgGen_235959", None, 0)
    assert fresh and store.reserve(ticket, **words) == (reserved, False)
    other = words | {"digest": "other"}
    assert code(lambda: store.reserve(ticket, **other)) == "key_conflict"
    assert [b.ticket for b in store.stale_reservations(0)] == [ticket]
    assert store.stale_reservations(1_000) == []  # no time has passed
    begun = store.begin_reading(ticket, name="api", suffix=".json", source="http")
    assert (begun.claim, begun.tries) == (ticket, 0)
    assert store.stale_reservations(0) == [] and not store.sweep(ticket)
    clock.put(midnight + timedelta(seconds=5))
    record_jobs(store,
        ticket, [NewJob.of(request(), priority=Priority.INTERACTIVE), NewJob.of(request())],
        first_index=0, final=True,
    )  # fmt: skip
    first, second = store.jobs_of(ticket)
    assert first.path == "20261122/ImgGen_235959.png"  # the day of the answer, not of the reading
    assert second.path == "20261123/ImgGen_000004.png"


def test_reservations_without_a_file_are_swept_and_their_name_never_given_again(
    store: JobStore,
) -> None:
    words = {"name": "api", "suffix": ".json", "source": "http", "digest": "d"}
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    assert store.reserve(first, **words, image_name="Fox", folder="x")[0].image_name == "Fox"
    assert store.sweep(first) and store.batch(first) is None
    assert store.reserve(second, **words, image_name="fox", folder="x")[0].image_name == "fox_2"
    assert store.reserve(str(uuid.uuid4()), **words, image_name=False)[0].image_name is None


def test_a_batch_cancelled_before_it_was_read_never_runs(store: JobStore) -> None:
    ticket = str(uuid.uuid4())
    store.reserve(ticket, name="n", suffix=".json", source="http", digest="d")
    assert store.cancel_batch(ticket).cancelled
    store.begin_reading(ticket, name="n", suffix=".json", source="http")
    record_jobs(store, ticket, new_jobs(2), first_index=0, final=True)
    assert [(j.state, j.completed_at) for j in store.jobs_of(ticket)] == [("cancelled", 1)] * 2
    assert claim_one(store) is None
    assert [b.ticket for b in store.unarchived()] == [ticket]


def test_a_key_makes_a_repeat_harmless(store: JobStore) -> None:
    one, two, three = (str(uuid.uuid4()) for _ in range(3))
    words = {"name": "n.yaml", "suffix": ".yaml", "source": "file"}
    store.begin_reading(one, **words)
    night = ticket_of_key("night")
    mine = store.adopt(one, night, key="night", digest="d")
    assert (mine.ticket, mine.claim, mine.digest) == (night, one, "d")
    assert store.adopt(one, night, key="night", digest="d") == mine  # after a crash
    assert store.begin_reading(one, **words).ticket == mine.ticket
    record_jobs(store, mine.ticket, new_jobs(2), first_index=0, final=True)
    store.begin_reading(two, **words)
    assert code(lambda: store.adopt(two, night, key="night", digest="e")) == "key_conflict"
    other = store.adopt(two, night, key="night", digest="d")
    assert (other.claim, other.digest, other.recorded_at) == (one, "d", 1)
    assert store.forget(two) and not store.forget(two)
    assert not store.forget(one)  # recorded batches stay
    # an API file of the same key has the ticket in its name
    same = store.begin_reading(mine.ticket, **words)
    assert (same.claim, same.tries, same.jobs) == (one, 0, 2)
    late = ticket_of_key("other")
    assert code(lambda: store.adopt(three, late, key="other", digest="d")) == "batch_not_found"


def test_a_job_with_a_key_of_its_own_runs_once(store: JobStore) -> None:
    keyed = NewJob.of(request("keyed"), id=ticket_of_key("k1"))
    tickets = [str(uuid.uuid4()) for _ in range(2)]
    for ticket in tickets:
        store.begin_reading(ticket, name="n", suffix=".yaml", source="file")
        ids = record_jobs(
            store,
            ticket,
            [keyed, keyed, *new_jobs(1)],
            first_index=0,
            final=True,
        )
        assert ids[:2] == [keyed.id, keyed.id]
    assert store.counts()[JobState.QUEUED] == 3
    assert get(store, ticket_of_key("k1")).ticket == tickets[0]


def test_changed_rows_of_a_resumed_batch_come_last(store: JobStore) -> None:
    ticket = put_batch(store, 3)[0]
    new = [NewJob.of(request(f"new {k}"), id=str(uuid.uuid4())) for k in range(2)]
    old = new_jobs(3)
    ids = record_jobs(
        store,
        ticket,
        [old[0], new[0], old[2], new[1]],
        first_index=0,
        final=True,
    )
    assert [(j.index, j.id) for j in store.jobs_of(ticket)] == [
        (0, ids[0]), (1, job_ids_of(ticket)(1, None)), (2, ids[2]), (3, ids[3]), (4, ids[1]),
    ]  # fmt: skip


def test_refused_files_wait_for_their_sidecar(store: JobStore) -> None:
    store.listen({"somebody": ["batch.completed"]})
    claimed = str(uuid.uuid4())
    store.begin_reading(claimed, name="bad.yaml", suffix=".yaml", source="file")
    batch = store.refuse(claimed, {"code": "bad_yaml"})
    assert (batch.error, batch.recorded_at) == ({"code": "bad_yaml"}, 1)
    assert store.refuse(claimed, {"code": "other"}) == batch
    assert store.unarchived() == [batch]
    assert store.archived(batch.ticket) and not store.archived(batch.ticket)
    assert store.unarchived() == [] and len(store.deliveries()) == 1
    assert code(lambda: store.refuse(str(uuid.uuid4()), {})) == "batch_not_found"


def test_a_batch_is_put_away_when_its_last_job_ended(store: JobStore) -> None:
    ticket = put_batch(store, 2)[0]
    for last in (False, True):
        job = claim(store)
        assert store.unarchived() == [] and not store.archived(ticket)
        store.complete(job.id, 1, sha256="0", bytes=1, facts={})
        assert bool(store.unarchived()) is last
    assert store.archived(ticket)
    assert [b.ticket for b in store.batches()] == [ticket]


def test_batches_in_pages(store: JobStore) -> None:
    tickets = [put_batch(store)[0] for _ in range(5)]
    first = store.batches(limit=2)
    assert [b.ticket for b in first] == tickets[:2:-1]
    assert [b.ticket for b in store.batches(before=first[-1].ticket)] == tickets[2::-1]


# -- names


def names(store: JobStore, jobs: list[NewJob]) -> list[str]:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="n", suffix=".yaml", source="file")
    ids = record_jobs(store, ticket, jobs, first_index=0, final=True)
    return [get(store, id).path.removesuffix(".png") for id in ids]


def test_default_names_are_unique_for_ever_and_everywhere(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    assert names(store, new_jobs(2)) == ["20261122/ImgGen_102959", "20261122/ImgGen_102959_2"]
    clock.put(LOCAL + timedelta(days=1))
    assert names(store, new_jobs(1)) == ["20261123/ImgGen_102959_3"]
    squatter = NewJob.of(request(name="imggen_102959_4", folder="x"))
    assert names(store, [squatter]) == ["x/imggen_102959_4"]
    clock.put(LOCAL)
    assert names(store, new_jobs(1)) == ["20261122/ImgGen_102959_5"]


def test_given_names_are_unique_in_their_folder_in_any_case(store: JobStore) -> None:
    def named(*given: str, folder: str = "f") -> list[str]:
        return names(store, [NewJob.of(request(name=name, folder=folder)) for name in given])

    assert named("cat", "Cat", "CAT") == ["f/cat", "f/Cat_2", "f/CAT_3"]
    assert named("cat", folder="g") == ["g/cat"]
    assert named("cat", folder="F") == ["F/cat_4"]  # one folder on a case-insensitive disk
    assert named("dog_2", "dog", "dog", "dog") == ["f/dog_2", "f/dog", "f/dog_3", "f/dog_4"]
    assert named("dog") == ["f/dog_5"]
    assert named("straße", "STRASSE") == ["f/straße", "f/STRASSE_2"]
    assert named("caf\u00e9", "cafe\u0301") == ["f/caf\u00e9", "f/cafe\u0301_2"]
    assert named("猫", "猫") == ["f/猫", "f/猫_2"]


def test_files_of_many_dropped_twice(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    jobs = [NewJob.of(request(), stem=f"cats_{k:04d}") for k in (1, 2)]
    assert names(store, jobs) == ["20261122/cats_0001", "20261122/cats_0002"]
    assert names(store, jobs) == ["20261122/cats_0001_2", "20261122/cats_0002_2"]


def test_ten_thousand_pictures_in_one_second(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    given = names(store, new_jobs(2_000)) + names(store, new_jobs(8_000))
    assert len({name.casefold() for name in given}) == 10_000
    assert given[-1] == "20261122/ImgGen_102959_10000"
    words = {"name": "n", "suffix": ".json", "source": "http", "digest": "d"}
    reserved = [store.reserve(str(uuid.uuid4()), **words)[0].image_name for _ in range(20)]
    assert reserved == [f"ImgGen_102959_{10_001 + k}" for k in range(20)]


def test_a_strangers_file_makes_the_job_take_the_next_name(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    put_batch(store)
    put_batch(store, stem="cat")
    for expected in ("ImgGen_102959_2", "cat_2"):
        job = claim(store)
        assert job.attempt == 1
        moved = store.rename(job.id, 1)
        assert moved is not None
        assert moved.path == f"20261122/{expected}.png"
        assert moved.state is JobState.GENERATING
    again = store.rename(job.id, 1)
    assert again is not None and again.image_name == "cat_3"
    assert names(store, [NewJob.of(request(), stem="cat")]) == ["20261122/cat_4"]


def test_pictures_are_found_by_name(store: JobStore, clock: Clock) -> None:
    clock.put(LOCAL)
    ids = [put_batch(store, stem="Cat")[0]]
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="n", suffix=".yaml", source="file")
    ids += record_jobs(store,
        ticket, [NewJob.of(request(name="cat", folder="Zoo"))], first_index=0, final=True,
    )  # fmt: skip

    def found(*name: str) -> str | None:
        job = store.job_by_image(*name)
        return job and job.id

    assert found("CAT") == ids[1]  # the newest
    assert found("cat", "20261122") == ids[0]
    assert found("cat", "zoo") == ids[1]
    assert found("cat", "nowhere") is None and found("dog") is None
    assert {job.id for job in store.jobs(JobFilter(name="cAT"))} == set(ids)


# -- order


def test_classes_then_arrival(store: JobStore) -> None:
    bulk, normal = put_batch(store, 3, priority=Priority.BULK), put_batch(store, 2)
    quick, later = put_batch(store, priority=Priority.INTERACTIVE), put_batch(store, 2)
    expected = quick + normal + later + bulk
    assert [store.position(id) for id in expected] == list(range(8))
    assert store.position(bulk[-1], cap=3) == 3
    assert drain(store) == expected
    assert store.position(quick[0]) is None


def test_five_hundred_bulk_jobs_do_not_delay_a_person(store: JobStore) -> None:
    put_batch(store, 500, priority=Priority.BULK)
    claim(store)
    (mine,) = put_batch(store, priority=Priority.INTERACTIVE)
    assert claim(store).id == mine


def test_bulk_batches_take_turns_from_where_the_class_stands(opened: Opener) -> None:
    store = opened()
    a = put_batch(store, 20, priority=Priority.BULK)
    assert [claim(store).id for _ in range(5)] == a[:5]
    b = put_batch(store, 3, priority=Priority.BULK)
    expected = list(itertools.chain(*zip(a[5:8], b, strict=True))) + a[8:]
    first = [claim(store).id for _ in range(4)]
    store.close()
    assert first + drain(opened()) == expected  # kept over a restart


def test_chunks_of_one_bulk_batch_stay_in_line(store: JobStore) -> None:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="n", suffix=".csv", source="file")
    ids = []
    for first in (0, 4):
        ids += record_jobs(store,
            ticket, new_jobs(4, priority=Priority.BULK), first_index=first, final=first == 4,
        )  # fmt: skip
    other = put_batch(store, 2, priority=Priority.BULK)
    assert drain(store) == [ids[0], other[0], ids[1], other[1], *ids[2:]]


def test_bulk_never_starves(opened: Opener) -> None:
    store = opened()
    bulk = put_batch(store, 3, priority=Priority.BULK)
    quick = put_batch(store, 3 * BULK_TURN + 5, priority=Priority.INTERACTIVE)
    order = [claim(store).id for _ in range(BULK_TURN - 2)]
    store.close()
    order += drain(opened())
    assert [order.index(id) for id in bulk] == [BULK_TURN, 2 * BULK_TURN + 1, 3 * BULK_TURN + 2]
    assert [id for id in order if id in set(quick)] == quick


def test_several_are_claimed_as_one_after_the_other_would_be(store: JobStore) -> None:
    """Also where bulk has its turn within what is claimed at once."""

    def order(most: int) -> list[str]:
        bulk = put_batch(store, 3, priority=Priority.BULK)
        put_batch(store, BULK_TURN + 5)
        before = store.last_rev()
        claimed: list[Job] = []
        while jobs := [job for job in store.claim_many(most * [Want()]) if job]:
            assert [job.rev for job in jobs] == sorted(job.rev for job in jobs)
            claimed += jobs
        assert {(job.state, job.attempt, job.started_at) for job in claimed} == {
            (JobState.GENERATING, 1, 1)
        }
        assert store.last_rev() == before + len(claimed)
        for job in claimed:
            store.complete(job.id, 1, sha256="0", bytes=1, facts={})
        return ["bulk" if job.id in bulk else str(job.index) for job in claimed]

    one = order(1)
    assert one.index("bulk") == BULK_TURN
    assert order(7) == one
    assert order(100) == one


def test_pictures_recorded_together_are_each_fenced(store: JobStore) -> None:
    ids = put_batch(store, 3)
    assert [job and job.attempt for job in store.claim_many(3 * [Want()])] == [1, 1, 1]
    store.release(ids[1], 1, why="taken away")
    asked = [Completion(id, 1, f"sha-{id}", 5, {"n": k}) for k, id in enumerate(ids)]
    done = store.complete_many([*asked, asked[0]])
    assert [job.id if job else None for job in done] == [ids[0], None, ids[2], None]
    assert [get(store, id).sha256 for id in ids] == [f"sha-{ids[0]}", None, f"sha-{ids[2]}"]
    assert store.counts()[JobState.COMPLETED] == 2


def test_bulk_gets_no_turn_while_its_window_is_closed(store: JobStore) -> None:
    bulk = put_batch(store, 2, priority=Priority.BULK)
    quick = put_batch(store, BULK_TURN + 5, priority=Priority.INTERACTIVE)
    assert store.held(window_open=False) == 2 and store.held() == 0
    assert drain(store, window_open=False) == quick
    assert drain(store) == bulk


SECOND = 1_000_000


def of_models(store: JobStore, names: str, **fields: Any) -> list[str]:
    """A batch with a job of each of these models; their ids."""
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.yaml", suffix=".yaml", source="file")
    jobs = [NewJob.of(request(model=None if name == "-" else name), **fields) for name in names]
    return record_jobs(store, ticket, jobs)


def served(store: JobStore, clock: Clock | None = None, **how: Any) -> str:
    """The models of the jobs that one worker claims, in order, and who has it loaded then.

    Each takes a second of ``clock``.
    """
    order, warm = "", how.pop("warm", "a")
    while True:
        [job] = store.claim_many([Want(("", "a", "b", "c"), warm)], usual="a", **how)
        if job is None:
            return order
        assert job.model is not None
        store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
        order, warm = order + job.model, job.model
        if clock is not None:
            clock.at += SECOND


def test_within_a_class_the_loaded_model_goes_first(opened: Opener) -> None:
    store = opened()
    of_models(store, "ab" * 20)
    of_models(store, "c", priority=Priority.INTERACTIVE)
    assert served(store) == "c" + "a" * 20 + "b" * 20  # a was the first in its class
    of_models(store, "ab" * 3, priority=Priority.INTERACTIVE)
    claimed = []
    for _ in range(6):
        [job] = store.claim_many([Want(("a", "b"), warm="a", loaded="b")])
        assert job is not None
        store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
        claimed.append(job.model)
    assert claimed == [*"bbb", *"aaa"]  # for those who wait at the screen it is what is loaded
    of_models(store, "-b-b")
    assert store.waiting_models() == ["", "b"]
    assert served(store) == "aabb"  # whoever names none has the root's


def test_no_job_is_passed_by_for_longer_than_it_may_be(opened: Opener, clock: Clock) -> None:
    store = opened(clock=clock)
    ids = of_models(store, "b" + "a" * 200)
    order = served(store, clock, patience=60)
    assert order == "a" * 60 + "b" + "a" * 140
    of_models(store, "b" + "a" * 9)
    for _ in range(5):
        store.claim_many([Want(("a", "b"), "a")])
    store.close()
    store = opened(clock=clock)  # when it was first passed by is on record
    clock.at += 60 * SECOND
    [job] = store.claim_many([Want(("a", "b"), "a")])
    assert job is not None and job.model == "b"
    assert store.job(ids[0]) is not None


def test_of_the_loaded_model_the_loras_that_were_read_go_first(
    store: JobStore, clock: Clock
) -> None:

    def jobs(loras: str, **fields: Any) -> list[str]:
        """A batch with a job for each of these: upper case of model b, "-" without any LoRA."""
        ticket = str(uuid.uuid4())
        store.begin_reading(ticket, name="a.yaml", suffix=".yaml", source="file")
        asked = [
            {"model": "b" if each.isupper() else "a", "lora": None if each == "-" else
             [{"name": each.lower(), "weight": 1.0}, {"name": "off", "weight": 0.0}]}
            for each in loras
        ]  # fmt: skip
        new = [NewJob.of(request(**each), **fields) for each in asked]
        return record_jobs(store, ticket, new)

    def drawn(**how: Any) -> str:
        order, warm, loras = "", "a", ""
        while job := store.claim_many([Want(("a", "b"), warm, warm, loras)], **how)[0]:
            store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
            warm, loras = job.model or "", job.request.lora_names
            clock.at += SECOND
            order += loras.upper() if warm == "b" else loras or "-"
        return order

    ids = jobs("xyXyx-Xyx")
    assert drawn() == "xxx" + "yyy" + "-" + "XX"
    jobs("y" + "x" * 100)
    jobs("x")
    assert drawn(patience=60) == "y" + "x" * 101
    jobs("xy" + "x" * 100)
    assert drawn(patience=60) == "x" * 61 + "y" + "x" * 40  # none is passed by for ever
    jobs("xyx", priority=Priority.INTERACTIVE)
    assert drawn() == "xyx"  # who waits at the screen does not wait for a file less
    of_x = store.jobs(JobFilter(lora="x", models=("b",)))
    assert [job.id for job in of_x] == [ids[6], ids[2]]
    assert not store.jobs(JobFilter(lora="off")) and not store.jobs(JobFilter(lora="_"))
    assert len(store.jobs(JobFilter(models=("", "b")))) == 2


def test_what_a_worker_cannot_load_is_not_given_to_it(store: JobStore) -> None:
    of_models(store, "b" * 3 + "a")
    bulk = of_models(store, "b", priority=Priority.BULK)
    of_models(store, "a" * (BULK_TURN + 5), priority=Priority.INTERACTIVE)
    claimed = []
    while (job := store.claim_many([Want(("a",))])[0]) is not None:
        claimed.append(job.model)
    assert claimed == ["a"] * (BULK_TURN + 6)  # also where bulk, which it cannot make, has its turn
    assert get(store, bulk[0]).state is JobState.QUEUED
    assert store.waiting_models() == ["b"]


def test_reorder_within_and_between_classes(opened: Opener) -> None:
    store = opened()
    a, b, c, d = put_batch(store, 4)
    bulk = put_batch(store, 3, priority=Priority.BULK)
    store.reorder(c, position="front")
    store.reorder(a, position="back")
    store.reorder(bulk[2], position="front")
    store.reorder(bulk[0], position="back")
    store.reorder(d, Priority.INTERACTIVE)
    store.reorder(b, Priority.BULK)
    before = get(store, c)
    assert store.reorder(c) == before  # nothing asked, nothing changed
    (late,) = put_batch(store)
    store.close()
    store = opened()
    assert get(store, b).request.priority == "bulk"
    assert drain(store) == [d, c, a, late, bulk[2], b, bulk[1], bulk[0]]
    assert code(lambda: store.reorder(c, position="front")) == "wrong_state"


def test_a_released_job_keeps_its_place_and_a_retried_one_queues_anew(store: JobStore) -> None:
    first, second, third = put_batch(store, 3)
    store.release(claim(store).id, 1, why="x")
    assert store.position(first) == 0
    job = claim(store)
    store.fail(job.id, job.attempt, "engine_failed", "", facts={})
    store.retry(first)
    assert drain(store) == [second, third, first]


def test_a_cancelled_batch_whose_job_runs_again_is_no_more_cancelled(store: JobStore) -> None:
    first, second = put_batch(store, 2)
    ticket = get(store, first).ticket
    store.cancel_batch(ticket)
    store.retry(first)
    batch = store.batch(ticket)
    assert batch is not None and not batch.cancelled
    store.cancel_batch(ticket)
    assert store.retry_ended(ticket, [first, second]) == 2
    batch = store.batch(ticket)
    assert batch is not None and not batch.cancelled


def test_a_retry_of_what_cannot_start_says_so(store: JobStore) -> None:
    """It starts from a picture that was not made."""
    (source,) = put_batch(store)
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.yaml", suffix=".yaml", source="file")
    job = NewJob.of(request("from it", image=f"job:{source}"))
    (link,) = record_jobs(store, ticket, [job], first_index=0, final=True)
    store.cancel(source)
    assert get(store, link).state is JobState.FAILED
    answered = store.retry(link)
    assert answered == get(store, link)
    assert answered.state is JobState.FAILED


def test_retry_failed_takes_only_the_failed_ones(store: JobStore) -> None:
    ids = put_batch(store, 4, priority=Priority.BULK)
    for _ in range(3):
        job = claim(store)
        store.fail(job.id, 1, "engine_failed", "", facts={})
    store.cancel(ids[3])
    assert store.archived(ids[0])
    assert store.retry_failed(ids[0]) == 3
    assert store.retry_failed(ids[0]) == 0
    batch = store.batch(ids[0])
    assert batch is not None and not batch.archived
    assert drain(store) == ids[:3]
    assert get(store, ids[3]).state is JobState.CANCELLED


def test_the_next_job_is_one_look_into_its_index_for_each_model(file: Path) -> None:
    store = sqlite(file)
    put_batch(store, 20)
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("ANALYZE")  # figures about the table must not change the plan
        values = {"model0": "", "model1": "a", "best": 0, "worst": 2, "most": 3}
        plan = connection.execute(f"EXPLAIN QUERY PLAN {_heads_of(2)}", values)
        steps = [row[3] for row in plan]
    connection.close()
    assert any("INDEX jobs_by_model (model=? AND class>?" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or "SCAN jobs" in step]


def test_what_a_picture_was_waited_for_is_found_without_reading_the_backlog(file: Path) -> None:
    store = sqlite(file)
    put_batch(store, 20)
    some = f"{_WAITING} AND w.awaits IN {store.each('ids')} ORDER BY w.seq"
    store.close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        for statement, values in ((some, {"ids": '["a"]'}), (f"{_WAITING} ORDER BY w.seq", {})):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            assert "SEARCH w USING INDEX jobs_awaiting" in plan.fetchone()[3]


def test_a_paused_queue_gives_nothing(store: JobStore) -> None:
    ids = put_batch(store, 2)
    store.put("paused", {"by": "person", "reason": "", "since": 0})
    assert store.claim_many(2 * [Want()]) == [None, None]
    store.drop("paused")
    assert drain(store) == ids


# -- held back


def test_not_before(store: JobStore, clock: Clock) -> None:
    later, now = put_batch(store, not_before=50), put_batch(store)
    soon = put_batch(store, not_before=40)
    assert (store.held(), store.held_back()[0].not_before) == (2, 40)
    assert get(store, later[0]).held == "not_before"
    assert store.position(later[0]) is None
    assert drain(store) == now
    clock.put(39)
    assert store.release_due() == 0
    clock.put(40)
    assert store.release_due() == 1
    assert drain(store) == soon
    clock.put(50)
    assert store.release_due() == 1 and store.held_back() == []
    assert drain(store) == later


def test_a_held_job_can_be_cancelled_and_comes_back_held(store: JobStore, clock: Clock) -> None:
    (id,) = put_batch(store, not_before=50)
    assert store.cancel(id).held is None
    assert store.retry(id).held == "not_before"
    store.cancel(id)
    clock.put(60)
    assert store.retry(id).held is None


def test_paused_batches(store: JobStore) -> None:
    ids = put_batch(store, 3)
    running = claim(store)
    assert store.pause_batch(ids[0]).paused
    assert claim_one(store) is None
    assert store.release(running.id, 1, why="x").held == "paused"  # type: ignore[union-attr]
    store.cancel(ids[2])
    assert store.retry(ids[2]).held == "paused"
    record_jobs(store, ids[0], new_jobs(1), first_index=3, final=True)
    assert store.held() == 4 and claim_one(store) is None
    assert not store.resume_batch(ids[0]).paused
    assert drain(store) == [ids[0], ids[1], ids[2], job_ids_of(ids[0])(3, None)]


def test_resume_leaves_those_waiting_whose_time_has_not_come(store: JobStore) -> None:
    (id,) = put_batch(store, not_before=5_000)
    store.pause_batch(id)
    store.resume_batch(id)
    assert get(store, id).held == "not_before"


def test_the_pause_is_looked_at_by_the_claim_itself(opened: Opener) -> None:
    store, other = opened(), opened()
    put_batch(store)
    version = store.data_version()
    other.put("paused", {"by": "person", "reason": "é", "since": 3})
    until(lambda: store.data_version() != version)
    assert claim_one(store) is None
    assert store.get("paused") == {"by": "person", "reason": "é", "since": 3}
    other.drop("paused")
    assert store.get("paused") is None
    assert claim_one(store) is not None


def test_cancel_batch(store: JobStore) -> None:
    ids = put_batch(store, 3)
    running = claim(store)
    batch = store.cancel_batch(ids[0])
    assert batch.cancelled
    assert store.cancels() == [(running.id, 1)]
    assert [j.state for j in store.jobs_of(ids[0])] == ["generating", "cancelled", "cancelled"]
    store.cancel_batch(ids[0])
    assert [j.completed_at for j in store.jobs_of(ids[0])] == [None, 1, 1]


def test_all_that_waits_is_cancelled_and_what_runs_goes_on(store: JobStore) -> None:
    running, _ = put_batch(store, 2)
    assert claim(store).id == running
    [held] = put_batch(store, 1)
    store.pause_batch(held)
    unread = str(uuid.uuid4())
    store.reserve(unread, name="n", suffix=".json", source="http", digest="d")
    assert (store.withdraw_all(), store.withdraw_all()) == (2, 0)
    store.begin_reading(unread, name="n", suffix=".json", source="http")
    record_jobs(store, unread, new_jobs(1), first_index=0, final=True)
    found = {ticket: store.jobs_of(ticket) for ticket in (running, held, unread)}
    states = [[job.state.value for job in jobs] for jobs in found.values()]
    assert states == [["generating", "cancelled"], ["cancelled"], ["cancelled"]]
    assert store.cancels() == [] and claim_one(store) is None
    [later] = put_batch(store, 1)
    assert claim(store).id == later


# -- lists


def test_lists_in_pages_and_filtered(store: JobStore, clock: Clock) -> None:
    ids = []
    for now in (10, 20, 30):
        clock.put(now)
        ids += put_batch(store, 2)
    claim(store)

    def found(before: int | None = None, limit: int = 50, **words: object) -> list[str]:
        return [j.id for j in store.jobs(JobFilter(**words), before, limit)]  # type: ignore[arg-type]

    newest = ids[::-1]
    assert found() == newest
    assert found(limit=4) == newest[:4]
    assert found(before=get(store, newest[3]).seq) == newest[4:]
    assert found(state=JobState.GENERATING) == [ids[0]]
    assert found(state=JobState.QUEUED, limit=2) == newest[:2]
    assert found(ticket=ids[2]) == [ids[3], ids[2]]
    assert found(ticket=ids[2], before=get(store, ids[3]).seq) == [ids[2]]
    assert found(since=20) == newest[:4]
    assert found(until=20) == newest[4:]
    assert found(since=20, until=30) == newest[2:4]
    assert found(since=99) == [] and found(until=5) == []
    assert found(text="FOX 1") == [ids[5], ids[3], ids[1]]
    assert found(text="f%x") == [] and found(text="f_x") == []
    assert found(text="1", ticket=ids[0], state=JobState.QUEUED, since=1, until=11) == [ids[1]]
    assert [j.id for j in store.generating()] == [ids[0]]


def test_ids_may_be_shortened(store: JobStore) -> None:
    ids = put_batch(store, 40)
    for id in ids:
        assert [j.id for j in store.prefix(id.upper())] == [id]
        assert id in [j.id for j in store.prefix(id[:2], limit=50)]
        assert all(j.id.startswith(id[0]) for j in store.prefix(id[0]))
    assert store.prefix("") == [] and store.prefix("%") == [] and store.prefix("zz") == []


def test_durations_are_those_of_finished_pictures(store: JobStore, clock: Clock) -> None:
    put_batch(store, 2)
    clock.put(100)
    job = claim(store)
    clock.put(350)
    store.complete(job.id, 1, sha256="0", bytes=1, facts={})
    assert store.durations() == [(64, 64, 1, 100, 350)]


# -- other processes, threads, kills


@pytest.mark.parametrize(
    ("crowd", "jobs"), [(8, 600), pytest.param(16, 1_800, marks=pytest.mark.slow)]
)
def test_processes_open_a_fresh_record_and_claim_each_job_once(
    url: str, crowd: int, jobs: int
) -> None:
    barrier, queue = server().Barrier(crowd), server().Queue()
    children = [
        server().Process(target=claim_all, args=(url, barrier, queue, jobs, me))
        for me in range(crowd)
    ]
    for child in children:
        child.start()
    try:
        got = [queue.get(timeout=100)[1] for _ in children]
    finally:
        for child in children:
            child.join(10)
            child.kill()
    claimed = list(itertools.chain(*got))
    assert len(claimed) == len(set(claimed)) == jobs
    assert [id for id in claimed if " " in id] == []


@pytest.mark.parametrize("rounds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_what_was_acknowledged_survives_kill_9(file: Path, rounds: int) -> None:
    dice, url = random.Random(4), f"sqlite:///{file}"
    batches: list[list[str]] = []
    completed: set[str] = set()
    for round_ in range(rounds):
        hear, tell = os.pipe()
        child = server().Process(target=_tell, args=(url, server().reducer.DupFd(tell), round_))
        child.start()
        os.close(tell)
        with os.fdopen(hear) as said:
            for _, line in zip(range(dice.randint(1, 60)), said, strict=False):
                _note(line, batches, completed)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            for line in said:  # what it said before it died counts as well
                if line.endswith("\n"):
                    _note(line, batches, completed)
        with_store = sqlite(file)
        stored = {job.id: job for job in _all_jobs(with_store)}
        assert not {id for batch in batches for id in batch} - set(stored)
        assert all(stored[id].state is JobState.COMPLETED for id in completed)
        states = [job.state for job in stored.values()]
        assert with_store.counts() == {s: states.count(s) for s in JobState}
        assert all(b.jobs in (0, 3) for b in with_store.batches(limit=10_000))  # none torn
        for job in with_store.generating():
            assert with_store.release(job.id, job.attempt, why="killed", watcher_death=True)
        with_store.verify()
        with_store.close()
    assert batches and completed


def _tell(url: str, pipe: object, round_: int) -> None:
    write_until_killed(url, pipe.detach(), round_)  # type: ignore[attr-defined]


def _note(line: str, batches: list[list[str]], completed: set[str]) -> None:
    what, *ids = line.split()
    if what == "batch":
        batches.append(ids)
    elif what == "completed":
        assert ids[0] not in completed, "completed twice"
        completed.add(ids[0])


def _all_jobs(store: JobStore) -> list[Job]:
    jobs: list[Job] = []
    while page := store.jobs(before_seq=jobs[-1].seq if jobs else None, limit=1_000):
        jobs += page
    return jobs


def _run(*targets: Callable[[], object], within: float = 60) -> None:
    """Run each in a thread; fail if one raises or is not done in time."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(t,), daemon=True) for t in targets]
    for thread in threads:
        thread.start()
    until(lambda: not any(t.is_alive() for t in threads), within, "threads stalled")
    assert not errors, errors[0]


def test_forty_pollers_and_a_writer_never_stall(store: JobStore) -> None:
    ids = put_batch(store, 60)
    busy = threading.Event()
    polls = itertools.count()

    def poll() -> None:
        while not busy.is_set():
            assert store.job(ids[next(polls) % 60]) is not None
            store.counts()

    def write() -> None:
        try:
            while job := claim_one(store):
                store.complete(job.id, job.attempt, sha256="0", bytes=1, facts={})
        finally:
            busy.set()

    _run(write, *[poll] * 40)
    assert store.counts()[JobState.COMPLETED] == 60


def test_two_hundred_threads_share_the_pool(store: JobStore) -> None:
    ids = put_batch(store, 200)

    def visit(id: str) -> None:
        store.jobs(limit=2)
        store.cancel(id)
        store.since(0, limit=2)

    _run(*[lambda id=id: visit(id) for id in ids])  # type: ignore[misc]
    assert store.counts()[JobState.CANCELLED] == 200


def test_a_transaction_inside_a_transaction_is_a_mistake(store: JobStore) -> None:
    with store.write(), pytest.raises(RuntimeError), store.write():
        pass
    put_batch(store)


# -- a hostile disk


def test_the_disk_is_full_for_a_while(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        store = sqlite(disk / "steady.db")
        ids = put_batch(store, 5)
        with pytest.raises(SteadyError) as full:
            for _ in range(1_000):
                ids += put_batch(store, 50)
        assert full.value.code == "disk_full"
        assert store.counts()[JobState.QUEUED] == len(ids)  # acknowledged = stored
        assert get(store, ids[-1]).state is JobState.QUEUED  # reading goes on
        for _ in range(3):
            assert code(lambda: put_batch(store, 500)) == "disk_full"
        subprocess.run([*mount[:1], "-o", "remount,size=16m", str(disk)], check=True)
        ids += put_batch(store, 500)  # by itself, without reopening
        assert claim(store).id == ids[0]
        store.verify()
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_another_program_holds_the_lock(file: Path) -> None:
    store = sqlite(file, busy_seconds=0.2)
    (id,) = put_batch(store)
    locked, free = server().Event(), server().Event()
    child = server().Process(target=hold_lock, args=(file, locked, free))
    child.start()
    try:
        assert locked.wait(30)
        for _ in range(3):
            assert code(lambda: claim_one(store)) == "database_trouble"
        assert get(store, id).state is JobState.QUEUED
    finally:
        free.set()
        child.join()
    assert claim(store).id == id
    store.close()


def test_a_damaged_record_is_refused_and_left_alone(file: Path) -> None:
    store = sqlite(file)
    put_batch(store, 300)
    store.close()
    whole = file.read_bytes()
    for damaged in (b"\0" * 100 + whole[100:], b"prompt: a cat\n" * 400, whole[:2000]):
        file.write_bytes(damaged)
        assert code(lambda: sqlite(file)) == "database_damaged"
        assert file.read_bytes() == damaged
    file.write_bytes(whole)
    page = 4096
    with sqlite3.connect(file) as connection:
        root = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_place'"
        ).fetchone()[0]
    smashed = whole[: (root - 1) * page] + os.urandom(page) + whole[root * page :]
    file.write_bytes(smashed)
    store = sqlite(file)
    assert code(store.verify) == "database_damaged"
    assert code(lambda: put_batch(store)) == "database_damaged"
    assert store.counts()[JobState.QUEUED] == 300
    store.close()
    file.write_bytes(whole)
    store = sqlite(file)  # the copy restored, everything is there
    assert store.counts()[JobState.QUEUED] == 300
    store.close()


def test_damage_is_looked_for_after_an_unclean_stop(file: Path) -> None:
    store = sqlite(file)
    put_batch(store, 300)
    store.close()
    whole, page = file.read_bytes(), 4096
    with sqlite3.connect(file) as connection:
        root = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_place'"
        ).fetchone()[0]
    file.write_bytes(whole[: (root - 1) * page] + os.urandom(page) + whole[root * page :])
    sqlite(file).close()  # nothing to be suspicious of
    child = server().Process(target=pause_and_die, args=(f"sqlite:///{file}",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert code(lambda: sqlite(file)) == "database_damaged"


def test_a_newer_or_foreign_database_is_refused(file: Path) -> None:
    sqlite(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(SteadyError, match="version 99") as newer:
        sqlite(file)
    assert newer.value.code == "database_damaged"
    other = file.with_name("other.db")
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE somebody (x)")
    before = other.read_bytes()
    assert code(lambda: sqlite(other)) == "database_damaged"
    assert other.read_bytes() == before


def test_a_record_of_another_shape_is_refused_whatever_version_it_says(file: Path) -> None:
    sqlite(file).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("ALTER TABLE batches DROP COLUMN tries")
    before = file.read_bytes()
    with pytest.raises(SteadyError, match="lacks columns") as strange:
        sqlite(file)
    assert (strange.value.code, strange.value.kind.exit) == ("database_damaged", 4)
    assert file.read_bytes() == before
    more = file.with_name("more.db")
    sqlite(more).close()
    with contextlib.closing(sqlite3.connect(more)) as connection:
        connection.execute("ALTER TABLE jobs ADD COLUMN mine TEXT")
    sqlite(more).close()  # what a person added is theirs


#: Records as code of that version left them. 1: the first edition (18540e6), one job of each kind,
#: a table half read; 2 (a2ef549): the same, opened, rated, and two jobs more. 3 is what its own
#: statements make of 2: SQLite writes its full-text tables in no way that every SQLite reads back.
OLDER = {n: Path(__file__).parents[1] / f"record_of_version_{n}.sql" for n in (1, 2)}


def put_older(version: int, url: str, file: Path, *more: str) -> None:
    """Lay the record of an older version where the store will open its own; ``more``: done to it."""
    script = OLDER[min(version, 2)].read_text("utf-8")
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.executescript(script)
            for statement in itertools.chain(*schema.migrations(schema.SQLITE)[2:version], more):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")
            connection.commit()
        return
    import psycopg

    rows = re.findall(r'^INSERT INTO "(?!sqlite_)(?:.|\n)*?\);$', script, re.MULTILINE)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in itertools.chain(*schema.migrations(schema.POSTGRES)[:version]):
            connection.execute(statement)
        connection.execute("DELETE FROM queue; DELETE FROM job_counts")
        for row in rows:
            connection.execute(row)
        connection.execute("INSERT INTO settings VALUES ('schema_version', %s)", [str(version)])
        for table in ("jobs", "batches"):
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'seq'),"
                f" (SELECT max(seq) FROM {table}))"
            )
        for statement in more:
            connection.execute(statement)


def test_a_record_of_the_first_edition_opens_and_nothing_is_lost(
    url: str, opened: Opener, file: Path
) -> None:
    put_older(1, url, file)
    store = opened()
    first, failed, running = store.jobs_of("1a000000-0000-4000-8000-000000000000")
    assert (first.state, first.request.prompt, first.sha256) == (
        JobState.COMPLETED, "a cat, it's red", "0" * 64,
    )  # fmt: skip
    assert first.request.metadata == {"sku": "A-1"}
    assert [j.forwards for j in (first, failed, running)] == [8, 1, 3]  # computed on read
    assert [(j.row, j.model, j.rating) for j in (first, failed, running)] == [(None, None, 0)] * 3
    assert failed.error_code == "out_of_memory"
    assert (running.state, running.request.prompt) == (JobState.GENERATING, "a fox 狐")
    assert running.facts["attempts"][0]["why"] == "the service died"
    assert store.get("paused") == {"why": "person"}
    assert store.counts() == {
        JobState.QUEUED: 3, JobState.GENERATING: 1, JobState.COMPLETED: 1,
        JobState.FAILED: 1, JobState.CANCELLED: 0,
    }  # fmt: skip
    [half] = [b for b in store.batches() if b.claim and b.recorded_at is None]
    assert (half.name, half.next_line, half.jobs) == ("night.csv", 3, 3)
    [refused] = store.refused()
    assert refused.error == {"code": "bad_yaml", "message": "no"}
    done = store.complete(running.id, running.attempt, sha256="1", bytes=1, facts={})
    assert done is not None and done.rev == 14
    new = put_batch(store, 2, row=7)
    assert {job.row for job in map(store.job, new) if job} == {7}
    assert opened().counts() == store.counts()  # and again: it is migrated once


def test_a_record_of_version_2_opens_and_its_jobs_are_found(
    url: str, opened: Opener, file: Path
) -> None:
    put_older(2, url, file)
    store = opened()
    cat, owl, barn = (store.jobs(JobFilter(text=text)) for text in ("it's RED", "66", "barn"))
    assert [job.rating for job in cat] == [4] and [job.request.seed for job in owl + barn] == [7, 8]
    for _ in range(2):  # read row by row, then by the index
        for filter, found in (
            (JobFilter(text="ärzte"), owl), (JobFilter(text="PORTR"), barn),
            (JobFilter(text="owls.csv"), barn + owl), (JobFilter(size="64x128"), owl),
            (JobFilter(seed=8), barn), (JobFilter(lora="ink"), owl), (JobFilter(models=("base",)), owl),
            (JobFilter(text="a-1", rating=(4, 5)), cat),
        ):  # fmt: skip
            assert store.jobs(filter) == found
        while store.index_some(3):
            pass
    assert [row["job"] for row in store.poll("SELECT job FROM search ORDER BY job")] == [
        *range(1, 9)
    ]
    assert opened().jobs() == store.jobs()


def test_in_a_record_of_version_3_what_was_dismissed_is_told_once_more(
    url: str, opened: Opener, file: Path
) -> None:
    put_older(3, url, file, "INSERT INTO settings VALUES ('dismissed', '{\"rev\": 7}')")
    store = opened()
    assert store.get("dismissed") is None
    [failed], [refused] = store.failed(), store.refused()
    store.dismiss([failed.id])
    assert store.failed() == [] and store.refused() == [refused]
    store.dismiss(batches=[refused.ticket])
    assert store.refused() == []
    store.retry(failed.id)
    assert store.failed() == []
    store.cancel(failed.id)
    store.dismiss(all=True)
    assert opened().failed() == []


def test_jobs_come_in_the_order_of_their_rows(store: JobStore) -> None:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="a.csv", suffix=".csv", source="file")
    jobs = [job._replace(row=row) for job, row in zip(new_jobs(5), (1, 4, 4, 5, 9), strict=True)]
    ids = record_jobs(store, ticket, jobs, first_index=0, final=True)
    assert [job.id for job in store.jobs_by_row(ticket)] == ids
    moved = Recording(ticket, (), rows=[(0, 6), (1, None), (4, 2)])
    store.record_all([moved])
    order = [(job.row, job.index) for job in store.jobs_by_row(ticket)]
    assert order == [(2, 4), (4, 2), (5, 3), (6, 0), (None, 1)]
    assert [job.index for job in store.jobs_in_order(ticket)] == [0, 1, 2, 3, 4]


def test_no_row_is_rewritten_when_an_older_record_opens() -> None:
    """What each version adds to tables that have rows: a column without a test, in both databases."""
    for dialect in (schema.SQLITE, schema.POSTGRES):
        for statements in schema.migrations(dialect)[1:]:
            there = re.compile(r"\b(jobs|batches|image_names)\b")
            changed = [s for s in statements if there.search(s.partition("(")[0])]
            indexed = [s for s in changed if s.startswith("CREATE INDEX")]
            assert all(" WHERE " in s for s in indexed)  # reads; few rows go in
            added = [s for s in changed if s not in indexed and "CREATE TRIGGER" not in s]
            assert all(s.startswith("ALTER TABLE") for s in added)
            assert all(" ADD COLUMN " in s and "CHECK" not in s for s in added)


@pytest.mark.parametrize("version", OLDER)
def test_a_released_version_of_the_tables_is_never_changed(version: int) -> None:
    """A record that code of that version made is what the statements of today make."""
    asked = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    with contextlib.closing(sqlite3.connect(":memory:")) as old:
        old.executescript(OLDER[version].read_text("utf-8"))
        said = old.execute(asked).fetchall()
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        for statement in itertools.chain(*schema.migrations(schema.SQLITE)[:version]):
            new.execute(statement)
        assert new.execute(asked).fetchall() == said


def test_a_record_that_cannot_be_opened_is_trouble(file: Path) -> None:
    assert code(lambda: sqlite(file / "below" / "nothing.db")) == "database_trouble"
    file.mkdir()
    assert code(lambda: sqlite(file)) == "database_trouble"


def test_the_file_is_deleted_or_replaced_under_a_live_store(file: Path) -> None:
    store, away = sqlite(file), file.with_name("away.db")
    (id,) = put_batch(store)
    store.check()
    file.rename(away)
    assert code(store.check) == "database_trouble"
    assert not file.exists()
    file.write_bytes(b"")
    assert code(store.check) == "database_trouble"
    away.replace(file)
    store.check()  # brought back: nothing to do
    assert get(store, id).state is JobState.QUEUED
    store.close()
    store = sqlite(file)
    shutil.copy(file, away)
    away.replace(file)
    assert code(store.check) == "database_trouble"
    store.reopen()
    store.check()
    assert claim(store).id == id
    store.close()


def test_no_connection_brings_a_deleted_file_back(file: Path) -> None:
    store = sqlite(file)
    put_batch(store)
    for left in file.parent.glob("steady.db*"):
        left.unlink()
    codes: list[str] = []

    def look() -> None:
        try:
            store.jobs()
        except SteadyError as error:
            codes.append(error.code)

    _run(*[look] * 20)  # more connections than were open
    assert set(codes) <= {"database_trouble"}
    assert not file.exists()
    store.close()


def test_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c?d%20é'"
    folder.mkdir()
    store = sqlite(folder / "steady.db")
    put_batch(store)
    store.close()
    assert (folder / "steady.db").stat().st_size > 0


def test_a_server_without_its_driver_is_a_sentence_and_files_never_ask_for_it() -> None:
    code = """if True:
        import sys
        import api.app, watcher.service, watcher.cli
        from watcher.errors import SteadyError
        from watcher.store import JobStore
        JobStore("sqlite:///" + sys.argv[1]).close()
        assert "psycopg" not in sys.modules
        sys.modules["psycopg"] = None
        try:
            JobStore("postgresql+psycopg://steady@nowhere/steady")
        except SteadyError as error:
            print(error.code, error)
    """
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, "-c", code, f"{folder}/steady.db"],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    assert said.startswith("extra_missing ") and "pip install 'steadydiffusion[postgres]'" in said
