"""Alive, ready, in numbers: each reason flips when exactly that thing is broken and mended."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from doors import HERE, Bench
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from api.models import Health
from watcher import live
from watcher.log import now_us
from watcher.store import JobStore


@pytest.fixture
def bench(root: Path) -> Iterator[Bench]:
    with Bench(root, min_free_disk=0) as bench:
        bench.watcher.pulse()
        until(lambda: bench.client.get("/ready").status_code == 200)
        yield bench


def reasons(bench: Bench) -> set[str]:
    answer = bench.client.get("/ready")
    if answer.status_code == 200:
        assert answer.json() == {"ready": True}
        return set()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    body = answer.json()
    assert all(fault["remedy"] for fault in body["errors"])
    return {fault["code"] for fault in body["errors"]}


def flips(bench: Bench, code: str) -> None:
    until(lambda: reasons(bench) == {code}, what=f"/ready says {code} and nothing else")


def mended(bench: Bench) -> None:
    bench.watcher.pulse()
    until(lambda: not reasons(bench), what="/ready is content again")


def test_the_watcher_that_stopped_beating(bench: Bench):
    path = bench.config.state / "live.json"
    pulse = json.loads(path.read_text())
    pulse["updated_at"] -= int((live.STALE_SECONDS + 1) * 1e6)
    path.write_text(json.dumps(pulse))
    flips(bench, "watcher_down")
    assert bench.client.get("/health").json()["watcher"]["alive"] is False
    mended(bench)
    path.unlink()
    flips(bench, "watcher_down")
    path.write_text("{half a pu")
    flips(bench, "watcher_down")
    mended(bench)
    bench.watcher.pulse(state="stopped")
    flips(bench, "watcher_down")


@pytest.mark.parametrize("state", ["off", "loading", "leaving", "waiting", "dying", "stopped"])
def test_the_model_that_is_not_loaded(bench: Bench, state: str):
    bench.watcher.pulse(workers=[{"slot": 0, "state": state}])
    flips(bench, "model_loading")
    bench.watcher.pulse(workers=[{"slot": 0, "state": state}, {"slot": 1, "state": "busy"}])
    until(lambda: not reasons(bench))
    bench.watcher.pulse(workers=[{"slot": 0, "state": "unloaded"}])
    until(lambda: not reasons(bench))


def test_a_model_that_loads_says_for_how_long(bench: Bench):
    slot = {"slot": 0, "state": "loading", "loading_seconds": 12.3, "load_seconds": 31.0}
    bench.watcher.pulse(workers=[slot])
    flips(bench, "model_loading")
    told = bench.client.get("/ready").json()
    assert told["detail"] == "The model is loading: 12 s so far, 31 s the last time."
    page = bench.client.get("/", headers={"accept": "text/html"}).text
    assert '<span class="dot wait"></span>The model is loading: 12 s so far' in page


@pytest.mark.parametrize("code", ["model_missing", "device_lost", "worker_unavailable"])
def test_trouble_the_watcher_tells_of(bench: Bench, code: str):
    trouble = {"code": code, "message": "It is so.", "remedy": "Do this.", "since": now_us()}
    bench.watcher.pulse(trouble=[trouble])
    flips(bench, code)
    told = bench.client.get("/health").json()
    assert told["status"] == "degraded"
    assert told["reasons"] == [{"code": code, "message": "It is so.", "remedy": "Do this."}]
    mended(bench)


def test_a_worker_that_does_not_run_beside_one_that_does(bench: Bench):
    trouble = {"code": "device_lost", "message": "It is so.", "remedy": "Do this.", "slot": 1}
    bench.watcher.pulse(warnings=[trouble])
    health = until(
        lambda: (told := bench.client.get("/health").json())["status"] == "degraded" and told
    )
    assert bench.client.get("/ready").status_code == 200
    told = {k: trouble[k] for k in ("code", "message", "remedy")}
    assert health["reasons"] == bench.client.get("/attention").json()["reasons"] == [told]


def test_the_queue_paused_by_failures_but_not_by_a_person(bench: Bench):
    bench.client.post("/queue/pause")
    assert reasons(bench) == set()
    bench.store.put("paused", {"by": "failures", "reason": "5 in a row", "since": now_us()})
    flips(bench, "repeated_failures")
    bench.client.post("/queue/resume")
    mended(bench)


def test_the_outputs_that_are_gone(bench: Bench):
    away = bench.config.root / "away"
    bench.config.outputs.rename(away)
    flips(bench, "folder_gone")
    away.rename(bench.config.outputs)
    mended(bench)


def test_the_disk_under_its_floor(root: Path):
    with Bench(root, min_free_disk=2**60) as bench:
        bench.watcher.pulse()
        flips(bench, "disk_full")


def test_the_record_that_cannot_be_written(bench: Bench):
    hurried = create_app(bench.config, _impatient(bench))
    # another writer that does not end
    with bench.store.write(), TestClient(hurried, base_url=HERE) as client:
        bench.watcher.pulse()
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert {f["code"] for f in answer.json()["errors"]} == {"database_trouble"}
        assert client.get("/health").status_code == 200
        refused = client.post("/generate-image", json={"prompt": "a"})
        assert refused.status_code == 503
        assert refused.json()["code"] == "database_trouble"
        assert refused.headers["retry-after"]
    mended(bench)


def _impatient(bench: Bench) -> JobStore:
    return JobStore(bench.config.database_url, checkpointer=False, busy_seconds=0.2)


def test_a_service_that_stops_is_not_ready_and_takes_nothing(bench: Bench):
    bench.app.state.door.stopping.set()
    assert "stopping" in reasons(bench)
    answer = bench.client.post("/generate-image", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")


def test_health_tells_words_and_no_paths(bench: Bench):
    bench.watcher.pulse(
        model={"name": "/home/ann/models/mine", "starter": False, "model": "/home/ann/x"},
        inbox={
            "watch": "polling",
            "problems": ["No events here."],
            "notices": ["job.txt looks meant"],
        },
    )
    told = until(
        lambda: (b := bench.client.get("/health").json())["notices"] and b, what="notices told"
    )
    Health.model_validate(told)
    assert told["notices"] == ["job.txt looks meant"]
    assert told["reasons"][0]["code"] == "inbox_degraded"
    assert "/home" not in json.dumps(told)
    assert told["model"]["name"] == "mine"
    assert reasons(bench) == set()


def test_a_jobs_facts_hold_no_paths(bench: Bench):
    bench.post()
    bench.watcher.take_in()
    job = bench.watcher.claim()
    facts = {"model": "/home/ann/models/mine", "details": {"folder": "/home/ann"}, "device": "cpu"}
    bench.store.complete(job.id, 1, sha256="0" * 64, bytes=1, facts=facts)
    told = bench.client.get(f"/jobs/{job.id}")
    assert told.json()["facts"] == {"model": "mine", "device": "cpu"}
    assert "/home" not in told.text


# -- metrics


def figures(client: TestClient) -> dict[str, dict[tuple, float]]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("steady_")
        assert family.documentation
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_figures_equal_the_record_and_survive_restarts(bench: Bench):
    for n in range(6):
        bench.post(prompt=f"secret {n}", name=f"name-{n}")
    bench.watcher.take_in()
    for _ in range(3):
        bench.watcher.finish()
    bench.watcher.fail()
    first = figures(bench.client)
    counts = {state.value: n for state, n in bench.store.counts().items()}
    assert {dict(k)["status"]: v for k, v in first["steady_jobs"].items()} == counts
    finished = {dict(k)["outcome"]: v for k, v in first["steady_jobs_finished_total"].items()}
    assert finished == {"completed": 3, "failed": 1, "cancelled": 0}
    assert first["steady_job_duration_seconds_count"][()] == 3
    assert first["steady_queue_wait_seconds_bucket"][(("le", "+Inf"),)] == 3
    assert first["steady_inbox_files_total"][(("result", "accepted"), ("source", "http"))] == 6
    assert first["steady_queue_oldest_age_seconds"][()] > 0
    assert first["steady_watcher_up"][()] == 1
    assert first["steady_model_loaded"][()] == 1
    assert first["steady_paused"][()] == 0

    job = bench.watcher.finish()
    bench.client.delete(f"/jobs/{job.id}/image")
    bench.watcher.finish()
    second = figures(bench.client)
    again = figures(TestClient(create_app(bench.config, bench.store), base_url=HERE))
    for name in ("steady_job_duration_seconds_count", "steady_queue_wait_seconds_count"):
        assert again[name][()] == 5
        assert second[name][()] == 4  # made and deleted between two looks
    totals = [f["steady_job_duration_seconds_sum"][()] for f in (first, second, again)]
    assert totals == sorted(totals)

    text = bench.client.get("/metrics").text
    assert "secret" not in text and "name-" not in text and job.id not in text


def test_figures_without_a_watcher_or_a_disk(bench: Bench):
    (bench.config.state / "live.json").unlink()
    bench.config.outputs.rename(bench.config.root / "away")
    until(lambda: figures(bench.client)["steady_watcher_up"][()] == 0)
    assert set(figures(bench.client)["steady_disk_free_bytes"]) == {(("dir", "inbox"),)}


def test_health_stays_quick_while_the_record_is_locked(bench: Bench):
    with bench.store.write():
        begun = time.monotonic()
        for _ in range(10):
            assert bench.client.get("/health").status_code == 200
        assert time.monotonic() - begun < 30
