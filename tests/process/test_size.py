"""Very many files through the whole service: none lost, none twice, in flat memory."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import until
from roots import Root

from watcher.store import JobStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def paused(make_root: Callable[..., Root]) -> Root:
    """A root whose queue is paused, so that only the intake works."""
    root = make_root(max_queued=1_000_000)
    record = JobStore(f"sqlite:///{root.folder / 'steady.db'}")
    record.put("paused", {"by": "person", "reason": "", "since": 0})
    record.close()
    return root


def recorded(root: Root) -> int:
    with sqlite3.connect(root.folder / "steady.db", timeout=30) as record:
        return int(record.execute("SELECT count(*) FROM jobs").fetchone()[0])


def waiting(root: Root) -> int:
    return sum(name.endswith(".yaml") for name in os.listdir(root.inbox))


def write(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.yaml").write_bytes(b"prompt: fox %d\n" % number)


def test_twenty_thousand_files_while_the_watcher_is_stopped(make_root: Callable[..., Root]) -> None:
    """Far more than the kernel's queue of events: it overflows, and nothing depends on it."""
    count = 20_000
    root = paused(make_root)
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "paused", 30, "the watcher")
    outside = root.folder / "outside"
    write(outside, count)
    watcher.send_signal(signal.SIGSTOP)
    for number in range(count):
        (outside / f"{number}.yaml").rename(root.inbox / f"{number}.yaml")
    watcher.send_signal(signal.SIGCONT)
    begun = time.monotonic()
    until(lambda: waiting(root) == 0, 300, "all claimed")
    claimed = time.monotonic() - begun
    until(lambda: recorded(root) == count, 600, "all recorded")
    print(f"20,000 files: claimed in {claimed:.1f} s, recorded in {time.monotonic() - begun:.1f} s")
    prompts = {job["prompt"] for job in root.jobs()}
    assert prompts == {f"fox {number}" for number in range(count)}
    assert claimed < 60


def test_a_hundred_thousand_small_files(make_root: Callable[..., Root]) -> None:
    count = 100_000
    root = paused(make_root)
    watcher = root.watch()
    until(lambda: root.pulse().get("state") == "paused", 30, "the watcher")
    begun = time.monotonic()
    write(root.folder / "outside", count)
    for number in range(count):
        (root.folder / "outside" / f"{number}.yaml").rename(root.inbox / f"{number}.yaml")
    most = 0

    def all_in() -> bool:
        nonlocal most
        most = max(most, psutil.Process(watcher.pid).memory_info().rss)
        return recorded(root) == count

    until(all_in, 1500, "all recorded")
    print(f"100,000 files: {time.monotonic() - begun:.0f} s, {most / 2**20:.0f} MB at most")
    assert most < 200 * 2**20
    assert len({job["prompt"] for job in root.jobs()}) == count
