"""The whole service against what it stands on: the device alone, the library alone, the clock."""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from benchmarks.lines import Line, percentile
from benchmarks.rig import (
    SECRET,
    STARTER,
    Door,
    Receiver,
    Root,
    a_root,
    events,
    read_log,
    settled,
    wait,
    warm,
)  # fmt: skip


@dataclass(frozen=True)
class _Night:
    """``jobs`` photo-like pictures, 1024² unless settings say else, by an engine that sleeps
    8 x 100 ms for each, or as many ``steps``."""

    jobs: int
    wall: float  #: seconds from the first start to the last completion, by the record
    inside: float  #: seconds within the engine
    gaps: list[float]  #: milliseconds between a picture and the next start
    cpu: float  #: seconds of the watcher


def _night(jobs: int, steps: int = 8, **settings: Any) -> _Night:
    with a_root(**{"default_width": 1024, "default_height": 1024} | settings) as root:
        warm(root)
        before = len(read_log(root.log))
        watcher = psutil.Process(root.pulse()["pid"])
        cpu = sum(watcher.cpu_times()[:2])
        photos = [{"prompt": f"photo steps={steps} sleep=0.1 n{i}"} for i in range(jobs)]
        root.drop("night.json", json.dumps(photos))
        wait(lambda: root.states().count("completed") == jobs + 1)
        cpu = sum(watcher.cpu_times()[:2]) - cpu
        record = root.jobs()[1:]
        starts, ends = events(root, "start", before), events(root, "finish", before)
    inside = sum(e["t"] - s["t"] for s, e in zip(starts, ends, strict=True)) / 1e9
    wall = (max(j["completed_at"] for j in record) - min(j["started_at"] for j in record)) / 1e6
    gaps = [(s["t"] - e["t"]) / 1e6 for e, s in zip(ends, starts[1:], strict=False)]
    return _Night(jobs, wall, inside, gaps, cpu)


def device(jobs: int = 30) -> list[Line]:
    """The service against the time that its engine took."""
    night = _night(jobs)
    return [
        Line(
            f"service / time in the engine, {jobs} jobs of 1024²", night.wall / night.inside,
            "x", 1.05, f"{night.wall:.1f} s, {night.cpu / jobs * 1e3:.0f} ms of watcher CPU a job",
        ),
        Line("device idle between two jobs, median", statistics.median(night.gaps), "ms", 5),
        Line("device idle between two jobs, p99", percentile(night.gaps, 0.99), "ms", 25),
    ]  # fmt: skip


def on_ray(jobs: int = 30) -> list[Line]:
    """The same on one actor of a Ray cluster on this machine."""
    night = _night(jobs, executor="ray", device="cpu", ray_slots=1)
    return [
        Line(
            f"on Ray: what the service adds to a job of 1024², {jobs} jobs",
            (night.wall - night.inside) / jobs * 1e3, "ms", 40,
            f"{night.wall / night.inside:.3f}x, {night.cpu / jobs * 1e3:.0f} ms of watcher CPU a job",
        ),
        Line(
            "on Ray: device idle between two jobs, median", statistics.median(night.gaps), "ms", 40,
            f"p99 {percentile(night.gaps, 0.99):.1f}",
        ),
    ]  # fmt: skip


def telling(jobs: int = 60) -> list[Line]:
    """What receivers of webhooks that are down or very slow cost the jobs.

    The nights without a receiver are the first and the last: how they differ is the noise.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        down = f"http://127.0.0.1:{free.getsockname()[1]}/"
    slow = Receiver()
    slow.hang = threading.Event()  # a byte a second
    nights = [
        _night(jobs, 2, default_width=256, default_height=256,
               webhooks=[{"url": url, "secret": SECRET} for url in receivers])
        for receivers in ([], [down], [slow.url], [])
    ]  # fmt: skip
    slow.close()
    first, *told, last = nights
    without = (first.wall + last.wall) / 2
    longest = max(first.gaps + last.gaps)
    found = []
    for night, name in zip(told, ("is down", "answers a byte a second"), strict=True):
        gaps = [statistics.median(each.gaps) for each in (night, first, last)]
        found += [
            Line(
                f"{jobs} jobs, a receiver that {name} / none", night.wall / without, "x", 1.05,
                f"{first.wall / last.wall:.3f} between two without; between two jobs"
                " {:.1f} against {:.1f} and {:.1f} ms".format(*gaps),
            ),
            Line(
                "jobs that began later than half as long again as any without",
                sum(gap > 1.5 * longest for gap in night.gaps), "", 0,
                f"{max(night.gaps):.0f} against {longest:.0f} ms",
            ),
        ]  # fmt: skip
    return found


def pair(jobs: int = 30) -> list[Line]:
    """Two workers on one machine against one, with an engine that sleeps 8 x 100 ms."""
    walls = []
    for devices in (["cpu"], ["cpu", "cpu"]):
        with a_root(devices=devices, default_width=512, default_height=512) as root:
            warm(root)
            wait(partial(_are_ready, root, len(devices)))
            photos = [{"prompt": f"photo steps=8 sleep=0.1 n{i}"} for i in range(jobs)]
            root.drop("night.json", json.dumps(photos))
            wait(partial(_are_completed, root, jobs + 1))
            record = sorted(root.jobs()[1:], key=lambda job: job["started_at"])
        if [job["seq"] for job in record] != sorted(job["seq"] for job in record):
            raise SystemExit("the jobs did not start in their order")
        walls.append((max(j["completed_at"] for j in record) - record[0]["started_at"]) / 1e6)
    one, two = walls
    return [
        Line(
            f"time of two workers / of one, {jobs} jobs of 512²", two / one, "x", round(1 / 1.8, 3),
            f"{two:.1f} against {one:.1f} s: {one / two:.2f} times as fast",
        )
    ]  # fmt: skip


def _are_ready(root: Root, workers: int) -> bool:
    """Have so many workers loaded?"""
    slots = root.pulse().get("workers", ())
    return len([slot for slot in slots if slot["state"] == "ready"]) == workers


def _are_completed(root: Root, jobs: int) -> bool:
    return root.states().count("completed") == jobs


_BARE = """
import sys, time, torch
from diffusers import ZImagePipeline
from watcher.models.catalogue import starter_folder
pipe = ZImagePipeline.from_pretrained(starter_folder(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
sigmas = [1 - i / 8 for i in range(8)]
def make(prompt, seed):
    return pipe(prompt, width=256, height=256, sigmas=sigmas, num_inference_steps=8,
                guidance_scale=0.0, generator=torch.Generator('cpu').manual_seed(seed)).images[0]
make('warm', 0).save(sys.argv[1] + '/warm.png')
for line in sys.stdin:
    count = int(line)
    begun, cpu = time.perf_counter(), time.process_time()
    for i in range(count):
        make(f'a red heart number {i}', i).save(f'{sys.argv[1]}/{i}.png')
    print(time.perf_counter() - begun, time.process_time() - cpu, flush=True)
"""


def bare(files: int = 50) -> list[Line]:
    """Files dropped at once against a loop over the library alone that saves PNGs.

    The loop runs half before and half after. While the service works nobody looks but twice a
    second: on two cores a benchmark that polls would be what is measured.
    """
    half = files // 2
    with a_root(**STARTER) as root, tempfile.TemporaryDirectory() as folder:
        warm(root, width=256, height=256)
        rival = subprocess.Popen(
            [sys.executable, "-c", _BARE, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=root.environment() | {"OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        theirs, theirs_cpu = _loop(rival, half)
        watcher = psutil.Process(root.pulse()["pid"])
        before, dropped = _cpu_of(watcher), time.time()
        for i in range(2 * half):
            text = f"prompt: a red heart number {i}\nwidth: 256\nheight: 256\nseed: {i}\n"
            root.drop(f"j{i}.yaml", text)
        wait(lambda: root.states().count("completed") == 1 + 2 * half, pause=0.5)
        ours_cpu = _cpu_of(watcher) - before
        mine = root.jobs()[1:]
        ours = max(j["completed_at"] for j in mine) / 1e6 - dropped
        settling = min(j["started_at"] for j in mine) / 1e6 - dropped
        wall, cpu = _loop(rival, half)
        theirs, theirs_cpu = theirs + wall, theirs_cpu + cpu
        rival.communicate()
    return [
        Line(
            f"service / bare diffusers loop, {2 * half} files at 256²", ours / theirs, "x", 1.10,
            f"{ours:.1f} ({settling:.1f} to the first start) against {theirs:.1f} s;"
            f" CPU {ours_cpu / theirs_cpu:.2f}x",
        )
    ]  # fmt: skip


def _loop(rival: "subprocess.Popen[str]", count: int) -> tuple[float, float]:
    """Seconds and CPU seconds of the loop for ``count`` pictures."""
    assert rival.stdin and rival.stdout
    rival.stdin.write(f"{count}\n")
    rival.stdin.flush()
    wall, cpu = map(float, rival.stdout.readline().split())
    return wall, cpu


def _cpu_of(watcher: psutil.Process) -> float:
    """CPU seconds of the watcher and its worker."""
    return sum(sum(p.cpu_times()[:2]) for p in (watcher, *watcher.children()))


def latency(count: int = 20) -> list[Line]:
    """From asking to the first forward, on an idle warm worker; the doors in turns."""
    http: list[float] = []
    file: list[float] = []
    with a_root() as root:
        warm(root)
        door = Door(root)
        for i in range(count):
            http.append(_to_start(root, f"h{i}", lambda p: _post(door, p)))
            file.append(_to_start(root, f"f{i}", lambda p: _drop(root, p)))
    return [
        Line(
            "HTTP submit to first forward, median", statistics.median(http), "ms", 60,
            f"p90 {percentile(http, 0.9):.0f}",
        ),
        Line(
            "file drop to first forward (settle 1,000 ms), median",
            statistics.median(file), "ms", 1100, f"p90 {percentile(file, 0.9):.0f}",
        ),
    ]  # fmt: skip


def _post(door: Door, prompt: str) -> None:
    door.post("/generate-image", {"prompt": prompt, "width": 64, "height": 64})


def _drop(root: Root, prompt: str) -> None:
    root.drop(f"{prompt.split()[0]}.yaml", f"prompt: {prompt}\n")


def _to_start(root: Root, name: str, submit: Callable[[str], None]) -> float:
    prompt = f"{name} steps=1"
    before = len(read_log(root.log))
    begun = time.monotonic_ns()
    submit(prompt)
    start = wait(lambda: [e for e in events(root, "start", before) if e["prompt"] == prompt])
    wait(lambda: settled(root))
    return float(start[0]["t"] - begun) / 1e6


def cancel(count: int = 8) -> list[Line]:
    """DELETE of a running job with steps of 100 ms, while another one waits."""
    took, next_took, pids = [], [], set()
    with a_root() as root:
        warm(root)
        door = Door(root)
        for i in range(count):
            before = len(read_log(root.log))
            root.drop(f"c{i}.yaml", f"- prompt: c{i} steps=100 sleep=0.1\n- prompt: n{i} steps=1\n")
            wait(partial(_two_steps, root, before))
            job = next(j["id"] for j in root.jobs() if j["state"] == "generating")
            begun = time.monotonic_ns()
            door.delete(f"/jobs/{job}")
            stop = wait(partial(events, root, "cancelled", before))[0]
            start = wait(partial(_starts, root, f"n{i} ", before))[0]
            took.append((stop["t"] - begun) / 1e6)
            next_took.append((start["t"] - stop["t"]) / 1e6)
            pids |= {stop["pid"], start["pid"]}
            wait(lambda: settled(root))
    return [
        Line("DELETE to the engine's stop, steps of 100 ms, p90", percentile(took, 0.9), "ms", 150),
        Line("from there to the start of the next job, p90", percentile(next_took, 0.9), "ms", 100),
        Line(f"workers used for {count} cancelled jobs", len(pids), "", 1),
    ]


def _two_steps(root: Root, since: int) -> bool:
    return len(events(root, "step", since)) >= 2


def _starts(root: Root, begins: str, since: int) -> list[dict[str, Any]]:
    return [e for e in events(root, "start", since) if e["prompt"].startswith(begins)]


def ready() -> list[Line]:
    """What a watcher takes until it is ready, the worker not counted."""
    with a_root(default_width=64, default_height=64) as root:
        root.watch()
        wait(lambda: root.pulse().get("state") == "running")
        watcher = psutil.Process(root.pulse()["pid"])
        cpu, rss = sum(watcher.cpu_times()[:2]), watcher.memory_info().rss
    return [
        Line("watcher ready, CPU", cpu, "s", 1.5),
        Line("watcher ready, resident", rss / 2**20, "MB", 120),
    ]
