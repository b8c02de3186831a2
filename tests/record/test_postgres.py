"""The record on a server: one watcher, a standby behind it, doors on other machines.

Two roots stand for two machines that share inbox and outputs. `make postgres` runs this with a
server of its own; started otherwise it brings one up for itself.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from history import behind, faults, pictures, renders, rows
from postgres import cluster, fresh_record
from roots import SERVER, Root
from torture import _free_port

from watcher import live
from watcher.store import JobStore

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]

START = 60  #: seconds until a process is up, on a machine that does other things as well
HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with contextlib.ExitStack() as ends:
        yield SERVER or ends.enter_context(cluster())


@pytest.fixture
def record(server: str) -> Iterator[str]:
    with fresh_record(server) as url:
        yield url


@pytest.fixture
def machines(record: str, make_root: Callable[..., Root]) -> tuple[Root, Root]:
    """Two roots with one record, one inbox and one outputs."""
    one = make_root("one", database=record)
    shared = {"inbox": str(one.inbox), "outputs": str(one.folder / "outputs")}
    options = {"engine_options": {"log": str(one.log)}}
    return one, make_root("two", database=record, **shared, **options)


@pytest.fixture
def store(record: str) -> Iterator[JobStore]:
    opened = JobStore(record)
    yield opened
    opened.close()


Process = subprocess.Popen[bytes]


def leads(store: JobStore, process: Process) -> bool:
    return store.leader().get("pid") == process.pid and live.seen(store)["alive"]


def both(machines: tuple[Root, Root], store: JobStore) -> tuple[Process, Process]:
    """A watcher that leads and a standby that is known to the doors."""
    one, two = machines
    first = one.watch()
    until(lambda: leads(store, first), START)
    second = two.watch(standby=True)
    until(lambda: live.seen(store)["standbys"] == 1, START)
    return first, second


def in_the_middle(root: Root) -> None:
    """Two jobs, the first of them being made."""
    root.drop("two.yaml", "- prompt: a steps=2 sleep=1\n- prompt: b steps=2\n")
    until(lambda: [e for e in _engine(root) if e["event"] == "start"], START)


def _engine(root: Root) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in root.log.read_text().splitlines()]
    return []


def test_a_second_watcher_that_is_no_standby_says_who_has_the_record(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    one, two = machines
    first = one.watch()
    until(lambda: leads(store, first), START)
    assert two.watch().wait(30) == 4
    assert f"process {first.pid} on " in two.said.read_text()


def test_a_standby_takes_over_within_five_seconds_of_a_kill(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    one, two = machines
    first, second = both(machines, store)
    assert '"watcher.standby"' in two.said.read_text() or "standby" in two.said.read_text()
    in_the_middle(one)
    first.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    until(lambda: store.leader().get("pid") == second.pid, 60)
    print(f"taken over after {time.monotonic() - begun:.2f} s")
    one.wait_for("completed", "completed")
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    one.finish()
    assert faults(one.folder, expected=2, log=one.log, kills=1) == []


def test_a_standby_that_is_told_to_stop(machines: tuple[Root, Root], store: JobStore) -> None:
    first, second = both(machines, store)
    second.send_signal(signal.SIGTERM)
    assert second.wait(10) == 0
    assert live.seen(store)["standbys"] == 0 and leads(store, first)


def test_a_frozen_watcher_keeps_its_place_until_it_is_killed(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    one, _two = machines
    first, second = both(machines, store)
    in_the_middle(one)
    first.send_signal(signal.SIGSTOP)
    time.sleep(2)
    assert store.leader()["pid"] == first.pid
    first.send_signal(signal.SIGKILL)
    until(lambda: store.leader().get("pid") == second.pid, 60)
    one.wait_for("completed", "completed")
    second.send_signal(signal.SIGTERM)
    second.wait(30)
    one.finish()
    assert faults(one.folder, expected=2, log=one.log, kills=1) == []


def test_a_watcher_that_was_given_up_and_thaws_writes_nothing_any_more(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    """Frozen, and its session lost: as a machine that was cut off and comes back."""
    one, _two = machines
    first, second = both(machines, store)
    in_the_middle(one)
    first.send_signal(signal.SIGSTOP)
    with behind(one.folder) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND classid = 1398031450 AND granted AND pid <> pg_backend_pid()"
            " AND objid = CAST(CAST(hashtext(current_schema()) AS bit(32)) AS bigint)"
        )
    until(lambda: store.leader().get("pid") == second.pid, 60)
    one.wait_for("completed", "completed")
    made = {path: path.read_bytes() for path in pictures(one.folder)}
    revs = [row["rev"] for row in rows(one.folder, "SELECT rev FROM jobs ORDER BY seq")]
    first.send_signal(signal.SIGCONT)
    assert first.wait(30) == 4  # no standby: there is another watcher
    assert "watcher.replaced" in one.said.read_text()
    assert leads(store, second)
    assert {path: path.read_bytes() for path in pictures(one.folder)} == made
    assert revs == [row["rev"] for row in rows(one.folder, "SELECT rev FROM jobs ORDER BY seq")]
    second.send_signal(signal.SIGTERM)
    second.wait(30)
    assert faults(one.folder, expected=2, log=one.log, kills=1) == []


def test_a_watcher_whose_session_was_lost_takes_its_lock_again(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    """A server that was started anew, say: nobody else took the place, so nothing happens."""
    one, two = machines
    first = one.watch()
    until(lambda: leads(store, first), START)
    mark = store.leader()["mark"]
    with behind(one.folder) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND classid = 1398031450 AND granted AND pid <> pg_backend_pid()"
        )
    one.drop("one.yaml", "prompt: a steps=2\n")
    one.wait_for("completed")
    time.sleep(3)  # a look at the record every two seconds
    assert two.watch().wait(30) == 4
    assert store.leader()["mark"] == mark


def test_doors_elsewhere_know_how_the_watcher_is(
    machines: tuple[Root, Root], store: JobStore
) -> None:
    one, two = machines
    port = _free_port()
    two.spawn("-m", "api", "--root", str(two.folder), "--port", str(port))
    first = one.watch()
    until(lambda: leads(store, first), START)

    def health() -> dict[str, Any]:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{port}/health"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.loads(answer.read()))
        return {"watcher": {}, "workers": []}

    until(lambda: health()["watcher"] == {"alive": True, "state": "running", "standbys": 0}, 30)
    until(lambda: [w["state"] for w in health()["workers"]] == ["ready"], 30)
    body = json.dumps({"prompt": "over there steps=2"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate-image", body, {"content-type": "application/json"}
    )
    job = json.loads(urllib.request.urlopen(request, timeout=10).read())["job_id"]
    one.wait_for("completed")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/image/{job}", timeout=10) as picture:
        assert picture.read() == pictures(one.folder)[0].read_bytes()
    said = subprocess.run(
        [sys.executable, "-m", "watcher.cli", "--root", str(two.folder), "status", "--json"],
        env=two.environment(), cwd=HOUSE, capture_output=True, timeout=60,
    )  # fmt: skip
    assert json.loads(said.stdout)["watcher"] == "running", said
    first.send_signal(signal.SIGKILL)
    until(lambda: health()["watcher"]["alive"] is False, live.STALE_SECONDS + 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_jobs_and_two_watchers(machines: tuple[Root, Root], store: JobStore) -> None:
    """The one that works is killed in the middle; none is lost, none doubled."""
    one, _two = machines
    first, second = both(machines, store)
    one.drop("many.csv", "prompt\n" + "".join(f"row-{i} steps=1\n" for i in range(10_000)))
    done = "SELECT n FROM job_counts WHERE state = 'completed'"
    until(lambda: rows(one.folder, done)[0]["n"] > 3_000, 400)
    first.send_signal(signal.SIGKILL)
    until(lambda: store.leader().get("pid") == second.pid, 60)
    until(lambda: rows(one.folder, done)[0]["n"] == 10_000, 800)
    second.send_signal(signal.SIGTERM)
    second.wait(60)
    one.finish(120)
    assert faults(one.folder, expected=10_000, log=one.log, kills=1) == []
    assert sum(renders(one.log).values()) <= 10_002
