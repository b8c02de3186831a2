"""Jobs that start from pictures: a folder of thousands, a burst into a hot folder; who looks on.

The pictures are photographs by their bytes: JPEG of 512 x 384 with grain, about 50 KB each, no two
the same. The first job of each root waits at its first step, so that nothing but the taking is
timed.
"""

import io
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from engines import expected

from benchmarks.lines import Line
from benchmarks.rig import Door, Root, a_root, events, wait

PICTURES = 5000
POLLERS = 100
_STEPS, _STEP = 40, 0.1  #: of a job that is looked at, seconds each
_TURNS = 3


def folder() -> list[Line]:
    """One job file over a folder of pictures, until all its jobs are on record."""
    with a_root(engine="engines:Tracing") as root:
        inputs = root.folder / "inputs"
        inputs.mkdir()
        for number, data in enumerate(_photographs(PICTURES)):
            (inputs / f"{number}.jpg").write_bytes(data)
        with _held(root) as prompt:
            job = f"{{prompt: {prompt}, image: '*.jpg', steps: 1}}"
            return _taken(root, "a folder", lambda: root.drop("all.yaml", job), 60)


def burst() -> list[Line]:
    """As many pictures moved into a hot folder at once."""
    with a_root(engine="engines:Tracing") as root, _held(root) as prompt:
        root.preset("hot", f"{{prompt: {prompt}, steps: 1}}")
        drafts = root.folder / "drafts"
        drafts.mkdir()
        for number, data in enumerate(_photographs(PICTURES)):
            (drafts / f"{number}.jpg").write_bytes(data)

        def move() -> None:
            for path in drafts.iterdir():
                path.rename(root.inbox / "hot" / path.name)

        return _taken(root, "a burst", move, None)


def pollers() -> list[Line]:
    """A job beside a hundred who ask for its preview every second, against one nobody looks at."""
    with a_root() as root:
        root.watch()
        door = Door(root)
        alone, seen = [], []
        for turn in range(_TURNS):
            alone.append(_job(root, f"grows steps={_STEPS} sleep={_STEP} alone{turn}"))
            with _looking(root, door) as asked:
                seen.append(_job(root, f"grows steps={_STEPS} sleep={_STEP} seen{turn}"))
        before, after = statistics.median(alone), statistics.median(seen)
        beside = f"{before:.2f} to {after:.2f} s, {asked[0]} answers, {len(events(root, 'preview'))} previews"
        slower = 100 * (after / before - 1)
        return [Line(f"{POLLERS} who look slow a job", slower, "%", 5, beside)]


def _photographs(count: int) -> Iterator[bytes]:
    file = io.BytesIO()
    expected("photo", 1, 512, 384).save(file, "JPEG", quality=85)
    data = file.getvalue()
    dice = random.Random(1)
    for _ in range(count):  # a comment after the first mark: other bytes, the same picture
        yield data[:2] + b"\xff\xfe\x00\x12" + dice.randbytes(16) + data[2:]


@contextmanager
def _held(root: Root) -> Iterator[str]:
    """A prompt whose job goes on only when this is left; the watcher runs."""
    gate = root.folder / "gate"
    gate.touch()
    root.watch()
    wait(lambda: [w["state"] for w in root.pulse().get("workers", ())] == ["ready"])
    yield f"held={gate}"
    gate.unlink()


def _taken(root: Root, name: str, drop: Callable[[], object], goal: float | None) -> list[Line]:
    watcher = psutil.Process(root.pulse()["pid"])
    rss, cpu = watcher.memory_info().rss, sum(watcher.cpu_times()[:2])
    Path(f"/proc/{watcher.pid}/clear_refs").write_text("5")  # the peak counts from here
    begun = time.monotonic()
    drop()
    wait(lambda: len(root.states()) == PICTURES, 600, 0.2)
    seconds, cpu = time.monotonic() - begun, sum(watcher.cpu_times()[:2]) - cpu
    status = Path(f"/proc/{watcher.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    if any(path.is_file() for path in (root.inbox / "refused").glob("*")):
        raise SystemExit("something was refused")
    grown = f"{rss / 2**20:.0f} to {peak:.0f} MB"
    return [
        Line(f"{PICTURES:,} pictures of {name} on record", seconds, "s", goal, f"{cpu:.1f} s of CPU"),
        Line(f"the watcher grows meanwhile, {name}", peak - rss / 2**20, "MB", 300, grown),
    ]  # fmt: skip


def _job(root: Root, prompt: str) -> float:
    """Seconds from the first step to the last, as the engine saw them."""
    known = len(root.states())
    root.drop(f"{prompt.split()[-1]}.yaml", f"prompt: {prompt}\n")
    wait(lambda: root.states() == ["completed"] * (known + 1))
    steps = [each["t"] for each in events(root, "step") if each["prompt"] == prompt]
    return float(steps[-1] - steps[0]) / 1e9


@contextmanager
def _looking(root: Root, door: Door) -> Iterator[list[int]]:
    """A hundred who look, until this is left; how many answers they had."""
    ends, asked = threading.Event(), [0]

    def look(number: int) -> None:
        connection = door.connection()
        ends.wait(number / POLLERS)
        while not ends.is_set():
            for job in root.pulse().get("running", ()):
                connection.request("GET", f"/jobs/{job['job_id']}/preview")
                connection.getresponse().read()
                asked[0] += 1
            ends.wait(1)
        connection.close()

    lookers = [threading.Thread(target=look, args=(n,)) for n in range(POLLERS)]
    for each in lookers:
        each.start()
    yield asked
    ends.set()
    for each in lookers:
        each.join()
