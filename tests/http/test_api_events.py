"""Server-sent events, with the real process: order, replay, restarts, and a quick stop."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest
from doors import Bench, Running, Stream, running

from api.door import Door
from api.events import Feed
from api.views import Views


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One root for all: every test leaves the queue empty."""
    with Bench(tmp_path_factory.mktemp("root")) as bench:
        yield bench


@pytest.fixture(scope="module")
def service(bench: Bench) -> Iterator[Running]:
    with running(bench.config.root) as service:
        yield service
        assert "Traceback" not in service.log.read_text()


def test_transitions_arrive_in_order_with_growing_ids(bench: Bench, service: Running):
    stream = Stream(service, "/events")
    assert stream.answer.getheader("content-type").startswith("text/event-stream")
    assert stream.answer.getheader("cache-control") == "no-cache"
    assert stream.next("queue")["data"]["counts"]["generating"] == 0
    posted = bench.post()["job_id"]
    bench.watcher.take_in()
    seen = stream.until(lambda job: job["state"] == "queued")
    job = bench.watcher.claim()
    seen += stream.until(lambda job: job["state"] == "generating")
    bench.watcher.finish(job)
    seen += stream.until(lambda job: job["state"] == "completed")
    assert {event["data"]["id"] for event in seen} == {posted}
    ids = [int(event["id"]) for event in seen]
    assert ids == sorted(set(ids))
    assert [event["data"]["rev"] for event in seen] == ids
    assert stream.next("queue")["data"]["counts"]["completed"] >= 1
    stream.close()


def test_steps_come_from_the_pulse_and_have_no_id(bench: Bench, service: Running):
    bench.post()
    bench.watcher.take_in()
    job = bench.watcher.claim()
    stream = Stream(service, f"/jobs/{job.id}/events")
    assert stream.next("job")["data"]["state"] == "generating"
    for step in (1, 5):
        entry = {"job_id": job.id, "attempt": 1, "step": step, "steps": 8, "started_at": 1}
        bench.watcher.pulse(running=[entry])
        event = stream.next("step")
        assert (event["data"]["step"], event["data"]["steps"]) == (step, 8)
        assert "id" not in event
    bench.watcher.finish(job)
    assert stream.next("job")["data"]["state"] == "completed"
    assert stream.next() is None, "the stream of one job ends with the job"
    again = Stream(service, f"/jobs/{job.id}/events", after=stream.last_id)
    assert again.answer.status == 204, "a browser must not come back for ever"


def test_a_stream_of_an_ended_job_tells_it_and_ends(bench: Bench, service: Running):
    job = bench.done()
    stream = Stream(service, f"/jobs/{job.id}/events")
    assert stream.next("job")["data"]["state"] == "completed"
    assert stream.next() is None
    unknown = Stream(service, "/jobs/550e8400-e29b-41d4-a716-446655440000/events")
    assert unknown.answer.status == 404


def test_a_stream_of_a_job_not_yet_read_follows_it_into_the_record(bench: Bench, service: Running):
    posted = bench.post()["job_id"]
    stream = Stream(service, f"/jobs/{posted}/events")
    bench.watcher.take_in()
    assert stream.until(lambda job: job["state"] == "queued")[-1]["data"]["id"] == posted
    bench.watcher.finish()
    assert stream.until(lambda job: job["state"] == "completed")


@pytest.mark.parametrize("junk", ["", "x", "-1", "9" * 40, "1.5"])
def test_a_strange_last_event_id_is_taken_for_none(bench: Bench, service: Running, junk: str):
    stream = Stream(service, "/events", after=junk)
    assert stream.answer.status == 200
    assert stream.next("queue")
    stream.close()


def test_what_was_missed_is_replayed_also_over_a_restart(bench: Bench):
    root = bench.config.root
    with running(root) as first:
        stream = Stream(first, "/events")
        stream.next("queue")
        bench.post()
        bench.watcher.take_in()
        stream.until(lambda job: job["state"] == "queued")
        assert first.stop() < 5
        assert first.process.returncode == 0
        assert stream.next("job") is None
    job = bench.watcher.finish()
    bench.post()
    bench.watcher.take_in()
    with running(root) as second:
        back = Stream(second, "/events", after=stream.last_id)
        missed = [back.next("job"), back.next("job")]
        assert missed[0]["data"]["id"] == job.id
        assert missed[0]["data"]["state"] == "completed"
        assert missed[1]["data"]["state"] == "queued"
        back.close()
    bench.watcher.finish()


def test_twenty_reconnections_miss_nothing(bench: Bench, service: Running):
    newest = bench.done()
    caught_up = Stream(service, "/events", after="0")
    caught_up.until(lambda told: told["rev"] == newest.rev)
    caught_up.close()
    last_id, reconnections = str(newest.rev), 0
    for n in range(40):
        bench.post(prompt=f"number {n}")
    bench.watcher.take_in()
    seen: dict[str, dict] = {}
    finished = 0
    while len([job for job in seen.values() if job["state"] == "completed"]) < 40:
        stream = Stream(service, "/events", after=last_id)
        reconnections += 1
        for _ in range(5):
            if finished < 40 and reconnections % 2:
                bench.watcher.finish()
                finished += 1
            event = stream.next("job")
            job = event["data"]
            assert int(event["id"]) > int(last_id)
            assert job["rev"] > seen.get(job["id"], {"rev": 0})["rev"]
            seen[job["id"]] = job
            last_id = event["id"]
            if finished == 40 and event["data"]["rev"] == bench.store.last_rev():
                break
        stream.close()
        if reconnections > 500:
            pytest.fail("no end")
    assert reconnections >= 20 or finished == 40
    for job in bench.store.jobs(limit=40):
        assert seen[job.id]["rev"] == job.rev
        assert seen[job.id]["state"] == job.state


def test_forty_streams_see_the_same(bench: Bench, service: Running):
    streams = [Stream(service, "/events") for _ in range(40)]
    for stream in streams:
        assert stream.next("queue")
    job = bench.done()
    for stream in streams:
        assert stream.until(lambda told: told["state"] == "completed")[-1]["data"]["id"] == job.id
        stream.close()


def test_sigterm_with_six_open_streams_ends_at_once_and_well(bench: Bench):
    bench.post()
    bench.watcher.take_in()
    job = bench.watcher.claim()
    times = []
    for _ in range(3):  # the machine may be busy: the best of three tells what it costs
        with running(bench.config.root) as service:
            paths = ["/events"] * 5 + [f"/jobs/{job.id}/events"]
            streams = [Stream(service, path) for path in paths]
            for stream in streams:
                assert stream.next()
            times.append(service.stop())
            assert service.process.returncode == 0
            assert all(stream.next("never") is None for stream in streams)
            assert "Traceback" not in service.log.read_text()
        if times[-1] < 1:
            break
    bench.watcher.finish(job)
    assert min(times) < max(1, 20 * seconds_of_a_process()), times


def seconds_of_a_process() -> float:
    """What starting and ending an empty Python costs now: 0.03 s on a machine at rest."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return time.monotonic() - begun


def test_who_comes_after_a_silence_is_told_the_present(bench: Bench, service: Running):
    stream = Stream(service, "/events")
    before = stream.next("queue")["data"]["counts"]["completed"]
    stream.close()
    bench.done()
    late = Stream(service, "/events")
    while late.next("queue")["data"]["counts"]["completed"] != before + 1:
        pass


def test_a_stream_that_begins_while_the_service_stops_gets_no_id(bench: Bench):
    """Nothing was looked up yet: any id would make the client replay all there ever was."""

    async def told(after: int | None) -> list[bytes]:
        door = Door(bench.config, bench.store)
        door.stopping.bind()
        door.stopping.set()
        feed = Feed(door, Views(door).brief)
        return [event async for event in feed.listen(after)]

    bench.done()
    assert asyncio.run(told(None)) == []
    assert asyncio.run(told(1)) == []


def test_a_call_is_looked_up_when_its_own_batch_moved(bench: Bench):
    """One of a thousand that wait asks nothing of the record when another's picture is done."""

    async def told() -> None:
        door = Door(bench.config, bench.store)
        door.stopping.bind()
        feed = Feed(door, Views(door).brief)

        async def after(change: Callable[[], object]) -> int:
            before = feed.rev
            change()
            while feed.rev == before:
                await anext(turns)
            return before

        async with feed.running(), aclosing(feed.turns(0.1)) as turns:
            await anext(turns)
            mine, other = (bench.post()["job_id"] for _ in range(2))
            await after(bench.watcher.take_in)
            before = await after(bench.watcher.finish)
            assert feed.moved(mine, before) and not feed.moved(other, before)
            before = await after(bench.watcher.finish)
            assert feed.moved(other, before) and not feed.moved(mine, before)
            assert feed.moved("of long ago", -1), "nobody knows any more"
            door.stopping.set()

    asyncio.run(told())
