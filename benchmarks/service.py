"""The whole service against named rivals, each line a ratio or a latency of one run.

    python -m benchmarks.service [LINE...] [--json]

    device    an engine that sleeps 8 x 100 ms and returns a photo-like 1024² picture, 30 jobs:
              wall time of the service over the time inside the engine, and the gaps between
    bare      50 dropped files at 256² with the starter model, over the library alone that
              saves PNGs, the two in turns
    latency   submit to first forward on an idle warm worker, by HTTP and by file
    cancel    from the request to the job's end, with steps of 100 ms
    memory    growth of worker and watcher from job 100 to job 1,000

All durability is on. These machines are noisy: believe ratios and medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engines import read_log
from roots import Root

Line = tuple[str, float, str, str]  #: what, figure, unit, goal


@contextmanager
def a_root(**settings: Any) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Root(Path(folder) / "root", settle_seconds=1.0, rescan_seconds=5.0, **settings)
        try:
            yield root
        finally:
            root.close()


def wait(ready: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise SystemExit("the service did not get there in time")
        time.sleep(0.005)
    return value


def warm(root: Root) -> None:
    """Run one job, so that the worker is loaded and idle."""
    root.watch()
    root.drop("warm.yaml", "prompt: warm steps=1\n")
    wait(lambda: root.states() == ["completed"])


def events(root: Root, word: str, start: int = 0) -> list[dict[str, Any]]:
    return [e for e in read_log(root.log)[start:] if e["event"] == word]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def device() -> list[Line]:
    with a_root(default_width=1024, default_height=1024) as root:
        warm(root)
        before = len(read_log(root.log))
        jobs = [{"prompt": f"photo steps=8 sleep=0.1 n{i}"} for i in range(30)]
        root.drop("night.json", json.dumps(jobs))
        wait(lambda: root.states().count("completed") == 31)
        record = root.jobs()[1:]
        starts, ends = events(root, "start", before), events(root, "finish", before)
        inside = sum(e["t"] - s["t"] for s, e in zip(starts, ends, strict=True)) / 1e9
        wall = (max(j["completed_at"] for j in record) - min(j["started_at"] for j in record)) / 1e6
        gaps = [(s["t"] - e["t"]) / 1e6 for e, s in zip(ends, starts[1:], strict=False)]
        return [
            ("service / time in the engine, 30 jobs of 1024²", wall / inside, "x", "<= 1.05"),
            ("gap between jobs on the device, median", statistics.median(gaps), "ms", "<= 5"),
            ("gap between jobs on the device, p99", percentile(gaps, 0.99), "ms", "<= 25"),
        ]


_BARE = """
import sys, time, torch
from diffusers import ZImagePipeline
from watcher.model import starter_folder
pipe = ZImagePipeline.from_pretrained(starter_folder(), dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
sigmas = [1 - i / 8 for i in range(8)]
def make(prompt, seed):
    return pipe(prompt, width=256, height=256, sigmas=sigmas, num_inference_steps=8,
                guidance_scale=0.0, generator=torch.Generator('cpu').manual_seed(seed)).images[0]
make('warm', 0).save(sys.argv[1] + '/warm.png')
for line in sys.stdin:
    count = int(line)
    begun = time.perf_counter()
    for i in range(count):
        make(f'a red heart number {i}', i).save(f'{sys.argv[1]}/{i}.png')
    print(time.perf_counter() - begun, flush=True)
"""


def bare(rounds: int = 5, each: int = 10) -> list[Line]:
    settings = {"engine": "zimage", "model": "starter", "engine_options": {}}
    with a_root(**settings) as root, tempfile.TemporaryDirectory() as folder:
        root.watch()
        root.drop("warm.yaml", "prompt: warm\nwidth: 256\nheight: 256\n")
        wait(lambda: root.states() == ["completed"])
        rival = subprocess.Popen(
            [sys.executable, "-c", _BARE, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=root.environment() | {"OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        assert rival.stdin and rival.stdout
        ours = theirs = 0.0
        done = 1
        for turn in range(rounds):
            rival.stdin.write(f"{each}\n")
            rival.stdin.flush()
            theirs += float(rival.stdout.readline())
            for i in range(each):
                number = turn * each + i
                text = f"prompt: a red heart number {number}\nwidth: 256\nheight: 256\nseed: {i}\n"
                root.drop(f"j{number}.yaml", text)
            done += each
            wait(lambda done=done: root.states().count("completed") == done)
            mine = root.jobs()[-each:]
            ends, starts = [j["completed_at"] for j in mine], [j["started_at"] for j in mine]
            ours += (max(ends) - min(starts)) / 1e6
        rival.stdin.close()
        rival.wait()
        goal = "<= 1.10"
        what = f"service / bare diffusers loop, {rounds * each} files at 256²"
        return [(what, ours / theirs, "x", goal)]


def latency(count: int = 15) -> list[Line]:
    with a_root() as root:
        warm(root)
        port = str(_free_port())
        root.spawn("-m", "api", "--root", str(root.folder), "--port", port)
        base = f"http://127.0.0.1:{port}"
        wait(lambda: _answers(base))
        http, file = [], []
        for i in range(count):
            http.append(_to_first_step(root, f"h{i}", lambda p: _post(base, p)))
            file.append(
                _to_first_step(
                    root, f"f{i}", lambda p: root.drop(f"{p[:4]}.yaml", f"prompt: {p}\n")
                )
            )
        return [
            ("HTTP submit to first forward, median", statistics.median(http), "ms", "<= 60"),
            (
                "file drop to first forward, median",
                statistics.median(file),
                "ms",
                "<= settle + 100",
            ),
        ]


def _to_first_step(root: Root, name: str, submit: Callable[[str], Any]) -> float:
    prompt = f"{name} steps=1"
    before = len(read_log(root.log))
    begun = time.monotonic_ns()
    submit(prompt)
    start = wait(lambda: [e for e in events(root, "start", before) if e["prompt"] == prompt])
    wait(lambda: not any(s in ("queued", "generating") for s in root.states()))
    return float(start[0]["t"] - begun) / 1e6


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(base: str) -> bool:
    try:
        return bool(urllib.request.urlopen(base + "/health", timeout=1).status == 200)
    except OSError:
        return False


def _post(base: str, prompt: str) -> None:
    body = json.dumps({"prompt": prompt, "width": 64, "height": 64}).encode()
    request = urllib.request.Request(
        base + "/generate-image", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).read()


def cancel(count: int = 8) -> list[Line]:
    from watcher.store import JobStore

    took, next_took = [], []
    with a_root() as root:
        warm(root)
        record = JobStore(f"sqlite:///{root.folder / 'steady.db'}", checkpointer=False)
        for i in range(count):
            before = len(read_log(root.log))
            root.drop(f"c{i}.yaml", f"- prompt: c{i} steps=100 sleep=0.1\n- prompt: n{i} steps=1\n")
            wait(lambda before=before: len(events(root, "step", before)) >= 2)
            job = next(j["id"] for j in root.jobs() if j["state"] == "generating")
            begun = time.monotonic_ns()
            record.cancel(job, time.time_ns() // 1000)
            stop = wait(lambda before=before: events(root, "cancelled", before))[0]["t"]
            start = wait(
                lambda before=before, i=i: [
                    e for e in events(root, "start", before) if e["prompt"].startswith(f"n{i}")
                ]
            )[0]["t"]
            took.append((stop - begun) / 1e6)
            next_took.append((start - stop) / 1e6)
            wait(lambda: not any(s in ("queued", "generating") for s in root.states()))
        record.close()
    return [
        (
            "cancel to the engine's stop (steps of 100 ms), p90",
            percentile(took, 0.9),
            "ms",
            "<= 150",
        ),
        ("next job starts after the stop, p90", percentile(next_took, 0.9), "ms", "<= 100"),
    ]


def memory(jobs: int = 1000) -> list[Line]:
    settings = {"engine": "zimage", "model": "starter", "engine_options": {}}
    with a_root(**settings) as root:
        root.watch()
        rows = [f"a heart number {i},{64 + 16 * (i % 3)}" for i in range(jobs)]
        root.drop("many.csv", "prompt,width\n" + "\n".join(rows) + "\n")
        sizes: dict[int, tuple[int, int]] = {}
        for mark in (100, jobs):
            wait(lambda mark=mark: root.states().count("completed") >= mark, 3600)
            watcher = psutil.Process(root.pulse()["pid"])
            sizes[mark] = (watcher.children()[0].memory_info().rss, watcher.memory_info().rss)
        worker, parent = (
            (after - before) / 2**20 for before, after in zip(*sizes.values(), strict=True)
        )
        return [
            (f"worker, job 100 to {jobs}", worker, "MB", "<= 5"),
            (f"watcher, job 100 to {jobs}", parent, "MB", "<= 2"),
            ("watcher, resident", sizes[jobs][1] / 2**20, "MB", "<= 120"),
        ]


LINES: dict[str, Callable[[], list[Line]]] = {
    "device": device,
    "bare": bare,
    "latency": latency,
    "cancel": cancel,
    "memory": memory,
}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("lines", nargs="*", choices=[*LINES, []], default=list(LINES))
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    for name in given.lines or LINES:
        for what, figure, unit, goal in LINES[name]():
            if given.json:
                print(json.dumps({"what": what, "figure": figure, "unit": unit, "goal": goal}))
            else:
                print(f"{what:<56}{figure:>10.2f} {unit:<3} {goal}", flush=True)


if __name__ == "__main__":
    main()
