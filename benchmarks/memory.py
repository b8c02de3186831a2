"""What a thousand jobs leave behind in the worker and in the watcher.

Both are looked at when they have come to rest, after ``EACH`` jobs and after all of them:
what a picture in the making takes is no growth. Files of ``EACH`` jobs follow one another, since
a larger file takes more while it is read.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from benchmarks.lines import Line
from benchmarks.rig import STARTER, Root, a_root, settled, wait, warm

EACH = 100  #: more than the encoded prompts that are kept: every one is new


def starter(jobs: int = 1000) -> list[Line]:
    """The starter model at 64² and beside it, a prompt of its own for every job."""

    def job(number: int) -> dict[str, Any]:
        side = 64 + 16 * (number % 3)
        return {
            "prompt": f"a heart number {number}", "width": side, "height": 64,
            "num_inference_steps": 3,
        }  # fmt: skip

    with a_root(**STARTER) as root:
        return _growth(root, "starter model, 64²", jobs, job)


def photos(jobs: int = 1000) -> list[Line]:
    """The scripted engine with photo-like pictures of 512²: little model, much to encode."""

    def job(number: int) -> dict[str, Any]:
        return {"prompt": f"photo steps=2 n{number}", "width": 512, "height": 512}

    with a_root() as root:
        return _growth(root, "photos of 512²", jobs, job)


def _are_recorded(root: Root, jobs: int) -> bool:
    return len(root.states()) == jobs


def _growth(root: Root, name: str, jobs: int, job: Callable[[int], dict[str, Any]]) -> list[Line]:
    warm(root, width=64, height=64)
    watcher = psutil.Process(root.pulse()["pid"])
    worker = watcher.children()[0]
    marks = []
    for first in range(0, jobs, EACH):
        numbers = range(max(1, first), first + EACH)  # the first one was the warm-up
        root.drop(f"from-{first}.jsonl", "".join(json.dumps(job(n)) + "\n" for n in numbers))
        wait(partial(_are_recorded, root, numbers.stop), 600, 0.5)
        wait(lambda: settled(root), 7200, 0.5)
        wait(lambda: not list(root.inbox.glob("*.jsonl")), 60, 0.5)
        marks.append([process.memory_info().rss / 2**20 for process in (worker, watcher)])
    if root.states().count("completed") != jobs:
        raise SystemExit("not every job was completed")
    (worker_before, watcher_before), (worker_after, watcher_after) = marks[0], marks[-1]
    span = f"job {EACH} to {jobs:,}"
    return [
        Line(
            f"worker grows, {span}, {name}", worker_after - worker_before, "MB", 5,
            f"{worker_before:.1f} to {worker_after:.1f}",
        ),
        Line(
            f"watcher grows, {span}, {name}", watcher_after - watcher_before, "MB", 2,
            f"{watcher_before:.1f} to {watcher_after:.1f}",
        ),
    ]  # fmt: skip
