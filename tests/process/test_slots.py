"""A worker that cannot load its model holds the queue no longer than that lasts, and never beside
one that can: real watchers, real workers, a load that fails as it is told to."""

import itertools
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from conftest import until
from engines import read_log
from roots import Root

FAULTS = ["missing", "lost", "damaged", "oom", "raise", "segv", "bad_config", "extra_missing"]
#: What the worker says of those above.
SAID = {"missing": "model_missing", "lost": "device_lost", "damaged": "model_damaged",
        "oom": "out_of_memory", "raise": "engine_failed", "segv": "worker_unavailable"}  # fmt: skip


@pytest.mark.timeout(300)
def test_a_load_that_failed_once_holds_nothing_when_the_next_one_worked(
    make_root: Callable[..., Root],
) -> None:
    """One reason after the other, through one watcher (all codes: test_executor.py)."""
    root = make_root(executor="local")
    faults = root.folder / "faults"
    faults.write_text("")
    options = {"log": str(root.log), "load_faults": str(faults)}
    root = make_root(executor="local", engine_options=options)
    root.watch()
    for count, fault in enumerate(FAULTS, start=1):
        pid = until(lambda: worker_of(root), 30, f"a worker before {fault}")
        faults.write_text(f"{fault}\n")
        os.kill(pid, signal.SIGKILL)
        until(lambda: faults.read_text() == "", 30, f"the load that fails: {fault}")
        root.drop(f"{count}.yaml", f"prompt: {fault}{count} steps=1\n")
        until(lambda n=count: root.states() == ["completed"] * n, 30, f"{fault}; {root.pulse()}")
        told = set(re.findall(r"worker.trouble.*?code\W+(\w+)", root.said.read_text()))
        assert SAID.get(fault, fault) in told
        until(lambda: root.troubles() == set(), what=f"{fault} is over; {root.pulse()}")


def worker_of(root: Root) -> int | None:
    """The process of the only worker, when it has loaded."""
    (slot,) = root.pulse().get("workers", [{}])
    return slot.get("pid") if slot.get("state") == "ready" else None


def two_slots(make_root: Callable[..., Root], fault: str) -> Root:
    """Of which the second, on the device `sick`, never loads."""
    root = make_root(executor="local")
    options: dict[str, Any] = {"log": str(root.log), "load_fault": fault, "load_fault_on": "sick"}
    return make_root(executor="local", devices=["cpu", "sick"], engine_options=options)


@pytest.mark.parametrize("fault", ["lost", "oom", "raise", "bad_config"])
def test_a_sick_device_stops_no_good_one(make_root: Callable[..., Root], fault: str) -> None:
    root = two_slots(make_root, fault)
    root.watch()
    until(lambda: [w["code"] for w in root.pulse().get("warnings", ())], 30, "a warning")
    root.drop("a.yaml", "".join(f"- prompt: p{i} steps=1\n" for i in range(4)))
    root.wait_for(*["completed"] * 4)
    warning = root.pulse()["warnings"][0]
    code = SAID.get(fault, fault)
    assert (warning["code"], warning["slot"], root.troubles()) == (code, 1, set())
    assert warning["message"].startswith("Worker 1 (sick) does not run, the others do: ")
    if fault == "lost":
        assert "Worker 1 (sick) does not run" in root.steady("doctor").stdout
    status = root.steady("status")
    assert status.returncode == 0 and "Worker 1 (sick) does not run" in status.stdout, status.stdout

    def pauses() -> list[float]:
        times = [
            e["t"] / 1e9
            for e in read_log(root.log)
            if e["event"] == "load" and e["device"] == "sick"
        ]
        return [b - a for a, b in itertools.pairwise(times)]

    until(lambda: len(pauses()) >= 4, 60, "five tries")  # at once, then after 1, 2, 4 seconds
    first = pauses()[:4]
    assert first[1] >= 1 and first[2] >= 2 and first[3] >= 4


def test_where_no_device_loads_the_queue_waits_and_says_so(make_root: Callable[..., Root]) -> None:
    root = make_root(executor="local")
    options = {"log": str(root.log), "load_fault": "oom"}
    root = make_root(executor="local", devices=["cpu", "sick"], engine_options=options)
    root.drop("a.yaml", "prompt: a steps=1\n")
    watcher = root.watch(once=True)
    assert watcher.wait(60) == 4
    assert root.states() == ["queued"]
    trouble = root.pulse()["trouble"]
    assert [t["code"] for t in trouble] == ["out_of_memory"]  # two slots, one reason
    assert trouble[0]["remedy"].startswith("Free memory of the device")
