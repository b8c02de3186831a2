"""Slots on a real Ray cluster: head and nodes are processes, the cable between two machines is
a cable between two network namespaces, and each is killed or cut while a job runs.

`make ray` runs this in a network namespace of its own that has loopback alone. Times to
recovery are printed.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import Cluster, Machine, link
from conftest import until
from engines import expected, read_log
from history import faults, pictures, renders
from PIL import Image
from roots import Root

from watcher.previews import Previews
from watcher.store import JobStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

HEAD = "10.77.0.1"  #: reachable over every cable, and when each of them is cut


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with one slot."""
    assert [name for _, name in socket.if_nameindex()] == ["lo"], "run this by `make ray`"
    link(f"addr add {HEAD}/32 dev lo")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        made = Cluster(Path(folder), address=HEAD, cpus=1)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def root(cluster: Cluster, make_root: Callable[..., Root]) -> Root:
    """A root whose watcher joins the cluster."""
    made = make_root(**cluster.settings)
    made.extra |= cluster.environment
    return made


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str, float], None]:
    """Print a time that was measured, also when the test is green."""

    def print_it(what: str, seconds: float) -> None:
        with capsys.disabled():
            print(f"\n    {what}: {seconds:.1f} s", flush=True)

    return print_it


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """While this exists, jobs of the prompt ``a held=...`` stay at their first step."""
    path = tmp_path / "held"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def begun(root: Root, prompt: str, times: int = 1) -> bool:
    """Has the engine begun this prompt so many times, and come a step further?"""
    log = [e["event"] for e in read_log(root.log) if e.get("prompt") == prompt]
    return log.count("start") == times and log[-1] == "step"


def long(letter: str, held: Path) -> str:
    return f"{letter} steps=3 held={held}"


def slots(root: Root, state: str) -> list[dict[str, Any]]:
    return [w for w in root.pulse().get("workers", ()) if w["state"] == state]


def busy(root: Root) -> dict[str, Any]:
    """The one slot that works; the pulse may be a tenth of a second behind."""
    [slot] = until(lambda: slots(root, "busy"), what="a busy slot")
    return dict(slot)


def warm(root: Root, count: int = 1) -> None:
    until(lambda: len(slots(root, "ready")) == count, 90, f"{count} warm slots; {root.said}")


def sound(root: Root, jobs: int, kills: int = 0) -> None:
    """Every rule kept, as soon as the last batch is put away."""
    with contextlib.suppress(pytest.fail.Exception):
        until(lambda: not faults(root.folder, expected=jobs, log=root.log, kills=kills))
    assert faults(root.folder, expected=jobs, log=root.log, kills=kills) == []


def cancel(root: Root, job_id: str) -> None:
    record = JobStore(f"sqlite:///{root.folder / 'steady.db'}")
    record.cancel(job_id)
    record.close()


def test_jobs_run_on_an_actor_and_the_watcher_alone_makes_their_pictures(root: Root) -> None:
    watcher = root.watch()
    root.drop("three.json", json.dumps([{"prompt": f"p{i} steps=2"} for i in range(3)]))
    root.wait_for(*["completed"] * 3, timeout=90)
    [slot] = until(lambda: slots(root, "ready"))
    actor = psutil.Process(slot["actor_pid"])
    assert [child.pid for child in actor.children()] == [slot["pid"]]
    assert {e["pid"] for e in read_log(root.log)} == {slot["pid"]}
    assert watcher.pid not in [parent.pid for parent in actor.parents()]
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    until(lambda: not actor.is_running(), what="the end of the actor")
    sound(root, 3)


def test_a_killed_actor_costs_one_rendering(
    root: Root, held: Path, say: Callable[..., None]
) -> None:
    root.watch()
    warm(root)
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 30, "the start")
    killed = time.monotonic()
    os.kill(busy(root)["actor_pid"], signal.SIGKILL)
    until(lambda: begun(root, long("a", held), 2), 60, "the second start")
    say("actor killed: its job runs again after", time.monotonic() - killed)
    held.unlink()
    [job] = root.wait_for("completed", timeout=60)
    assert (job["attempt"], job["deaths"]) == (2, 1)
    sound(root, 1, kills=1)


def test_a_job_that_always_kills_its_actor_is_set_aside_after_two(
    root: Root, say: Callable[..., None]
) -> None:
    root.watch()
    warm(root)
    asked = time.monotonic()
    root.drop("a.yaml", "- prompt: a orphan steps=3 sleep=0.3\n- prompt: b steps=2\n")
    bad, good = root.wait_for("failed", "completed", timeout=120)
    say("two dead actors and the next job done after", time.monotonic() - asked)
    assert (bad["error_code"], bad["attempt"]) == ("worker_crashed", 2)
    assert good["attempt"] == 1
    assert len(pictures(root.folder)) == 1


def test_a_job_that_always_kills_its_worker_leaves_the_actor_alone(root: Root) -> None:
    root.watch()
    warm(root)
    actor = slots(root, "ready")[0]["actor_pid"]
    root.drop("a.yaml", "- prompt: a kill steps=3 sleep=0.1\n- prompt: b steps=2\n")
    bad, _ = root.wait_for("failed", "completed", timeout=60)
    assert (bad["error_code"], bad["attempt"]) == ("worker_crashed", 2)
    assert [slot["actor_pid"] for slot in slots(root, "ready")] == [actor]


def test_a_cancelled_job_keeps_actor_and_worker(root: Root, held: Path) -> None:
    root.watch()
    warm(root)
    [before] = slots(root, "ready")
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 30, "the start")
    cancel(root, root.jobs()[0]["id"])
    root.wait_for("cancelled", timeout=10)
    root.drop("b.yaml", "prompt: b steps=2\n")
    root.wait_for("cancelled", "completed", timeout=10)
    [after] = until(lambda: slots(root, "ready"))
    assert [before[k] for k in ("actor_pid", "pid")] == [after[k] for k in ("actor_pid", "pid")]
    assert len(pictures(root.folder)) == 1


def test_a_killed_watcher_costs_one_rendering(
    root: Root, held: Path, say: Callable[..., None]
) -> None:
    watcher = root.watch()
    warm(root)
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 30, "the start")
    actor = psutil.Process(busy(root)["actor_pid"])
    killed = time.monotonic()
    watcher.kill()
    watcher.wait()
    root.watch()
    until(lambda: begun(root, long("a", held), 2), 90, "the second start")
    say("watcher killed and started: its job runs again after", time.monotonic() - killed)
    held.unlink()
    [job] = root.wait_for("completed", timeout=60)
    assert (job["attempt"], job["deaths"], job["watcher_deaths"]) == (2, 0, 1)
    assert not actor.is_running(), "the dead watcher's actor holds a GPU"
    sound(root, 1, kills=1)


def test_what_is_said_twice_counts_once(root: Root) -> None:
    watcher = root.watch(stutter=True)
    root.drop("a.json", json.dumps([{"prompt": f"p{i} steps=2"} for i in range(3)]))
    root.wait_for(*["completed"] * 3, timeout=90)
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 0
    sound(root, 3)
    assert set(renders(root.log).values()) == {1}
    assert [job["attempt"] for job in root.jobs()] == [1, 1, 1]


def test_a_frozen_actor_counts_as_lost_and_its_late_picture_does_not(
    root: Root, held: Path, say: Callable[..., None]
) -> None:
    root.watch(silence=4)
    warm(root)
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 30, "the start")
    slot = busy(root)
    frozen = time.monotonic()
    os.kill(slot["actor_pid"], signal.SIGSTOP)
    try:
        until(lambda: root.states() == ["queued"], what="the loss")
        say("actor frozen, silence of 4 s allowed: given up after", time.monotonic() - frozen)
        held.unlink()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot["actor_pid"], signal.SIGCONT)
    [job] = root.wait_for("completed", timeout=90)
    assert (job["attempt"], job["deaths"]) == (2, 0)
    sound(root, 1, kills=1)


def test_nothing_is_claimed_before_a_slot_is_warm(
    cluster: Cluster, make_root: Callable[..., Root]
) -> None:
    root = make_root(**cluster.settings)
    cold = json.loads((root.folder / "config.yaml").read_text())
    cold["engine_options"]["load_sleep"] = 3
    (root.folder / "config.yaml").write_text(json.dumps(cold))
    root.extra |= cluster.environment
    root.watch()
    root.drop("a.yaml", "prompt: a steps=2\n")
    until(lambda: slots(root, "loading"), 60, "a slot that loads")
    assert root.states() == ["queued"]
    [job] = root.wait_for("completed", timeout=60)
    [load] = [e for e in read_log(root.log) if e["event"] == "load"]
    [start] = [e for e in read_log(root.log) if e["event"] == "start"]
    assert job["attempt"] == 1
    assert start["t"] > load["t"]


def test_a_node_that_comes_is_used_and_when_its_raylet_is_killed_its_job_moves(
    cluster: Cluster, root: Root, held: Path, say: Callable[..., None]
) -> None:
    root.watch()
    warm(root)
    root.drop("a.yaml", "".join(f"- prompt: {long(x, held)}\n" for x in "abc"))
    until(lambda: begun(root, long("a", held)), 30, "the start")
    assert root.states() == ["generating", "queued", "queued"]
    asked = time.monotonic()
    node = cluster.node()
    until(lambda: len(slots(root, "busy")) == 2, 90, "both slots at work")
    say("`ray start` of a node to a job on it", time.monotonic() - asked)
    raylet = node.raylet()
    assert raylet is not None
    [moved] = [s for s in slots(root, "busy") if raylet.pid in _parents(s["actor_pid"])]
    prompt = next(j["prompt"] for j in root.jobs() if j["id"] == moved["job"]["job_id"])
    until(lambda: begun(root, prompt), 30, "a step on the new node")
    killed = time.monotonic()
    raylet.kill()
    until(lambda: root.states().count("queued") == 2, 60, "the loss")
    say("raylet killed: its job waits for another slot after", time.monotonic() - killed)
    held.unlink()
    jobs = root.wait_for(*["completed"] * 3, timeout=90)
    assert sorted(job["attempt"] for job in jobs) == [1, 1, 2]
    assert [job["deaths"] for job in jobs] == [0, 0, 0]
    sound(root, 3, kills=1)


def _parents(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(pid).parents()]
    return []


def test_a_cut_cable_moves_the_job_and_the_late_picture_is_refused(
    cluster: Cluster, root: Root, held: Path, say: Callable[..., None]
) -> None:
    """Also: the machine out there never sees the root, so the bytes come to the watcher."""
    root.log = root.folder.parent / "engine.log"
    settings = json.loads((root.folder / "config.yaml").read_text())
    settings["engine_options"]["log"] = str(root.log)
    (root.folder / "config.yaml").write_text(json.dumps(settings))
    machine = Machine(hide=root.folder, route=HEAD)
    try:
        cluster.node(machine=machine)
        root.watch()
        warm(root, 2)
        root.drop("a.yaml", "".join(f"- prompt: {long(x, held)}\n" for x in "ab"))
        until(
            lambda: begun(root, long("a", held)) and begun(root, long("b", held)), 30, "both starts"
        )
        until(lambda: len(slots(root, "busy")) == 2)
        assert any(machine.owns(s["actor_pid"]) for s in slots(root, "busy"))
        cut = time.monotonic()
        machine.pull()
        until(lambda: "queued" in root.states(), 60, "the loss")
        say("cable cut: its job waits for another slot after", time.monotonic() - cut)
        held.unlink()
        until(lambda: sorted(renders(root.log).values()) == [1, 2], 60, "both pictures of one")
        machine.plug()
        jobs = root.wait_for("completed", "completed", timeout=90)
        assert sorted(job["attempt"] for job in jobs) == [1, 2]
        assert [job["deaths"] for job in jobs] == [0, 0]
        sound(root, 2, kills=1)
    finally:
        machine.close()


def test_pictures_to_start_from_and_previews_cross_the_cable(
    cluster: Cluster, make_root: Callable[..., Root], held: Path
) -> None:
    """The machine out there never sees the root: what a job starts from comes by its content."""
    log = held.parent / "engine.log"
    root = make_root(engine="engines:Tracing", engine_options={"log": str(log)}, **cluster.settings)
    root.log = log
    root.extra |= cluster.environment
    (root.folder / "inputs").mkdir()
    for name in "abcd":
        expected(name, 1, 64, 64).save(root.folder / "inputs" / f"{name}.png")
    machine = Machine(hide=root.folder, route=HEAD)
    try:
        cluster.node(machine=machine)
        root.watch()
        warm(root, 2)
        prompt = f"x grows steps=20 sleep=0.2 held={held}"
        root.drop("all.yaml", f"{{prompt: {prompt}, image: '*.png', name: 'from-{{image}}'}}")
        both = until(lambda: len(two := slots(root, "busy")) == 2 and two, 60, "both at work")
        assert any(machine.owns(slot["actor_pid"]) for slot in both)
        jobs = [slot["job"]["job_id"] for slot in both]
        previews, shown = Previews(root.folder / ".steady"), dict[str, bytes]()

        def seen() -> bool:
            for job in jobs:
                previews.look(job)
                if jpeg := previews.get(job):
                    shown[job] = jpeg
            return len(shown) == 2

        held.unlink()
        until(seen, 30, "a preview of both")
        root.wait_for(*["completed"] * 4, timeout=90)
        for job in root.jobs():
            with Image.open(root.folder / "outputs" / job["path"]) as made:
                name = job["image_name"].removeprefix("from-")
                assert made.tobytes() == expected(name, 1, 64, 64).tobytes()
        assert previews.get(jobs[0]) is previews.get(jobs[1]) is None
        sound(root, 4)
    finally:
        machine.close()


def test_a_cluster_is_joined_with_its_token_alone(
    cluster: Cluster, make_root: Callable[..., Root]
) -> None:
    root = make_root(**cluster.settings)
    root.drop("a.yaml", "prompt: a steps=2\n")
    assert root.watch().wait(60) == 4
    assert "RAY_AUTH_TOKEN_PATH" in root.said.read_text()
    root.extra = {"RAY_AUTH_TOKEN": "guessed"}
    watcher = root.watch()
    until(lambda: "worker_unavailable" in root.troubles(), 90, "the trouble")
    assert root.states() == ["queued"]
    watcher.kill()
    watcher.wait()
    root.extra = cluster.environment
    root.finish(90)
    sound(root, 1)


def test_a_watcher_that_is_no_node_comes_by_the_door(
    cluster: Cluster, make_root: Callable[..., Root], held: Path
) -> None:
    root = make_root(**cluster.settings | {"ray_address": cluster.door})
    root.extra |= cluster.environment
    watcher = root.watch()
    root.drop("a.yaml", f"- prompt: {long('a', held)}\n- prompt: b steps=2\n")
    until(lambda: begun(root, long("a", held)), 120, "the start")
    os.kill(busy(root)["actor_pid"], signal.SIGKILL)
    until(lambda: begun(root, long("a", held), 2), 60, "the second start")
    held.unlink()
    jobs = root.wait_for("completed", "completed", timeout=60)
    assert sorted(job["attempt"] for job in jobs)[-1] == 2
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(30) == 0
    sound(root, 2, kills=1)


def test_a_killed_head_ends_the_watcher_which_joins_when_it_is_back(
    cluster: Cluster, root: Root, held: Path, say: Callable[..., None]
) -> None:
    """Ray ends whoever has lost the head for a minute; here it may do so after 25 s."""
    root.extra |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "25"}
    watcher = root.watch()
    warm(root)
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 30, "the start")
    killed = time.monotonic()
    for process in cluster.head.look():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.head.close()
    until(lambda: root.states() == ["queued"], 60, "the loss")
    say("head killed: its job waits after", time.monotonic() - killed)
    assert watcher.wait(60) != 0
    again = root.watch()  # as its keeper does
    until(lambda: "worker_unavailable" in root.troubles(), 90, "words about it")
    back = time.monotonic()
    cluster.start_head()
    held.unlink()
    [job] = root.wait_for("completed", timeout=150)
    say("head started again: the job is done after", time.monotonic() - back)
    assert (job["attempt"], job["deaths"], job["watcher_deaths"]) == (2, 0, 0)
    assert again.poll() is None
    sound(root, 1, kills=1)


# -- a cluster of our own, on a machine whose every packet is counted


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine(route="default")
    yield made
    made.close()


def test_a_cluster_of_our_own_keeps_to_this_machine_and_leaves_with_us(
    machine: Machine, make_root: Callable[..., Root], say: Callable[..., None]
) -> None:
    root = make_root(executor="ray", device="cpu")
    root.drop("a.yaml", "prompt: a steps=2\n")
    before = machine.said()
    asked = time.monotonic()
    watcher = root.watch(wrapper=machine.wrapper)
    root.wait_for("completed", timeout=120)
    say("cold start of a cluster of our own to the first picture", time.monotonic() - asked)
    assert {a.strip("[]").removeprefix("::ffff:") for a in machine.listeners()} <= LOOPBACK
    modes = {_environment(pid).get("RAY_AUTH_MODE") for pid in machine.processes()}
    assert modes == {None, "token"}  # the watcher itself was started without
    assert machine.said() == before, "something called out"
    asked = time.monotonic()
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(30) == 0
    say("SIGTERM to the end of everything", time.monotonic() - asked)
    assert machine.processes() == []
    assert not (root.folder / ".steady" / "ray").exists()
    sound(root, 1)
    # Would it have been seen?
    call = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))"
    machine.run(sys.executable, "-c", call)
    assert machine.said() > before


LOOPBACK = {"127.0.0.1", "::1"}


def _environment(pid: int) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).environ()
    return {}


def test_a_cluster_of_our_own_dies_with_a_killed_watcher(
    machine: Machine, make_root: Callable[..., Root], held: Path, say: Callable[..., None]
) -> None:
    root = make_root(executor="ray", device="cpu")
    watcher = root.watch(wrapper=machine.wrapper)
    root.drop("a.yaml", f"prompt: {long('a', held)}\n")
    until(lambda: begun(root, long("a", held)), 120, "the start")
    folder = (root.folder / ".steady" / "ray").resolve()
    killed = time.monotonic()
    watcher.kill()
    watcher.wait()
    until(lambda: not _at_work(machine), 30, "the end of the cluster")
    say("watcher killed: all of its cluster that works is gone after", time.monotonic() - killed)
    held.unlink()
    watcher = root.watch(wrapper=machine.wrapper)
    [job] = root.wait_for("completed", timeout=120)
    assert job["attempt"] == 2
    assert not folder.exists()
    sound(root, 1, 1)
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(30) == 0


def _at_work(machine: Machine) -> list[str]:
    """What runs there, but for two agents that find out after a minute and hold nothing."""
    names = []
    for pid in machine.processes():
        with contextlib.suppress(psutil.Error):
            names.append(psutil.Process(pid).name())
    return [name for name in names if not name.startswith("ray::") or "Agent" not in name]
