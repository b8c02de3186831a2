"""The bulk night's intake: a file of a million lines, and very many small files.

The queue is paused, so that only the intake works; the watcher is the real process.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lines import Line
from benchmarks.rig import Root, a_root, wait, warm
from watcher.jobs import JobState
from watcher.store import JobStore

LINES = {10_000: 3, 1_000_000: 60}  #: rows, and the seconds they may take
MOST = max(LINES)
FILES = 20_000
_NEAR = 100_000  #: bytes of a table before its end, read in less than a tenth of a second


def tables() -> list[Line]:
    """Ten thousand rows and a million, as .csv and as .jsonl."""
    found = []
    for suffix, (lines, goal) in itertools.product(("csv", "jsonl"), LINES.items()):
        with _paused() as (root, watcher):
            _draft(root, suffix, lines)
            cpu = _cpu(watcher)
            (root.folder / "draft").rename(root.inbox / f"night.{suffix}")
            told = wait(partial(_told, root), 3600, 0.5)
            spent, peak = _cpu(watcher) - cpu, _peak(watcher)
        name = f"{lines:,} lines of .{suffix}"
        found += [
            Line(f"{name}, recorded", told["seconds"], "s", goal, f"{spent:.1f} s of CPU"),
            Line(f"{name}, most memory", peak, "MB", 300),
        ]
    return found


def first() -> list[Line]:
    """How soon the first picture of a million rows is there, once the last bytes of them are read."""
    with a_root(max_lines=MOST, max_queued=MOST) as root:
        warm(root)
        _draft(root, "csv", MOST)
        size = (root.folder / "draft").stat().st_size
        watcher = root.pulse()["pid"]
        (root.folder / "draft").rename(root.inbox / "night.csv")
        end = range(size - _NEAR, size + 1)
        wait(lambda: any(place in end for place in _places(watcher)), 3600)
        begun = time.monotonic()
        with closing(
            JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
        ) as ours:
            wait(lambda: ours.counts()[JobState.COMPLETED] > 1)
        seconds = time.monotonic() - begun
    return [
        Line(f"first picture of {MOST:,} lines, after the last bytes were read", seconds, "s", 5)
    ]


def _places(process: int) -> Iterator[int]:
    """How far a process has read each of its files, in bytes."""
    for each in Path(f"/proc/{process}/fdinfo").iterdir():
        with suppress(OSError):
            yield int(each.read_text().split(maxsplit=2)[1])


def _draft(root: Root, suffix: str, lines: int) -> None:
    """So many rows in the file ``draft`` of the root."""
    fields = ("prompt", "width", "height", "seed", "label")
    with (root.folder / "draft").open("w") as file:
        file.write(",".join(fields) + "\n" if suffix == "csv" else "")
        for number in range(lines):
            row = (f"a fox in the snow, number {number}", 768, 768, number, f"row-{number}")
            if suffix == "csv":
                file.write('"{}",{},{},{},{}\n'.format(*row))
            else:
                file.write(json.dumps(dict(zip(fields, row, strict=True))) + "\n")


def files() -> list[Line]:
    """Small files moved in while the watcher is stopped: the kernel's queue of events overflows."""
    with _paused() as (root, watcher):
        outside = root.folder / "outside"
        outside.mkdir()
        for number in range(FILES):
            (outside / f"{number}.yaml").write_text(f"prompt: fox {number}\n")
        os.kill(watcher.pid, signal.SIGSTOP)
        for number in range(FILES):
            (outside / f"{number}.yaml").rename(root.inbox / f"{number}.yaml")
        os.kill(watcher.pid, signal.SIGCONT)
        begun, cpu = time.monotonic(), _cpu(watcher)
        wait(lambda: not list(root.inbox.glob("*.yaml")), 3600, 0.2)
        claimed = time.monotonic() - begun
        path = root.folder / "steady.db"
        with closing(JobStore(f"sqlite:///{path}", checkpointer=False)) as record:
            wait(lambda: sum(record.counts().values()) >= FILES, 3600, 0.2)
            seconds = time.monotonic() - begun
            if sum(record.counts().values()) > FILES:
                raise SystemExit("a file was recorded twice")
        spent, peak = _cpu(watcher) - cpu, _peak(watcher)
    name = f"{FILES:,} files while the watcher was stopped"
    return [
        Line(f"{name}, claimed", claimed, "s", 60),
        Line(f"{name}, recorded", seconds, "s", None,
             f"{FILES / seconds:.0f} a second, {spent:.1f} s of CPU"),
        Line(f"{name}, most memory", peak, "MB", 200),
    ]  # fmt: skip


@contextmanager
def _paused() -> Iterator[tuple[Root, psutil.Process]]:
    """A root whose queue is paused, and its watcher."""
    with a_root(max_lines=MOST, max_queued=MOST) as root:
        record = JobStore(f"sqlite:///{root.folder / 'steady.db'}")
        record.put("paused", {"by": "person", "reason": "", "since": 0})
        record.close()
        root.watch()
        wait(lambda: root.pulse().get("state") == "paused")
        yield root, psutil.Process(root.pulse()["pid"])


def _told(root: Root) -> dict[str, Any] | None:
    """The log's line about the recorded file."""
    for line in root.said.read_text().splitlines():
        if '"file.recorded"' in line:
            return dict(json.loads(line))
    return None


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak(process: psutil.Process) -> float:
    """The most memory it ever had, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
