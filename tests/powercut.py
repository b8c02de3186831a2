"""Cuts the power at any instant of a recorded run and looks whether anything is lost.

``make powercut`` records the file-system calls of a real service (cutscene.py), builds what a
cut may leave on a disk (cuttrace.py), starts the watcher on each such state and holds it to
what people had been promised (cutjudge.py), with both settings of ``synchronous``.

``--device N`` does the same without a model: the run is on ext4 on a loop device, which is cut off
at a random instant, N times; what the kernel had not written by then is gone. Needs root.
"""

import argparse
import collections
import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cutjudge import judge, judge_root
from cuttrace import CALLS, VARIANTS, Trace, Tree, digest
from receivers import SECRET

TESTS = Path(__file__).parent
SETTINGS = {
    "engine": "engines:Tracing",
    "model": "scripted",
    "settle_seconds": 0,
    "rescan_seconds": 0.05,
    "default_width": 64,
    "default_height": 64,
    "min_free_disk": 0,
}
#: The trace and the roots lie here: many small files, none of them worth a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Cut:
    """Where the power goes, and what the disk does then."""

    at: int
    variant: str
    seed: int


def stage(root: Path, work: Path, synchronous: str, *, long: bool = True) -> list[str]:
    """Make ready a root for the scenario; the command that plays it."""
    (root / "inbox").mkdir(parents=True)
    log = work / "engine.log"
    config = SETTINGS | {
        "synchronous": synchronous,
        "engine_options": {"log": str(log)},
        "webhooks": [{"url": f"http://127.0.0.1:{_free_port()}/hook", "secret": SECRET}],
    }
    (root / "config.yaml").write_text(json.dumps(config))
    scene = [sys.executable, str(TESTS / "cutscene.py"), str(root), str(_free_port()), str(work)]
    return [*scene, "long" if long else "short"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment() -> dict[str, str]:
    """For the scenario's processes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STEADY_")}
    path = f"{TESTS.parent}{os.pathsep}{TESTS}"
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def record(work: Path, synchronous: str, *, long: bool = True) -> Trace:
    """The trace of one run of the scenario, made below ``work``."""
    root = work / "root"
    scene = stage(root, work, synchronous, long=long)
    before: Tree = {"inbox": None, "config.yaml": (root / "config.yaml").read_bytes()}
    subprocess.run(
        [
            *(
                "strace",
                "-f",
                "--seccomp-bpf",
                "-y",
                "-s",
                str(64 << 20),
                "-e",
                f"trace={CALLS}",
            ),
            *("-e", "signal=none", "-o", str(work / "trace"), *scene),
        ],
        env=environment(),
        check=True,
    )
    trace = Trace(str(root), before)
    with (work / "trace").open(encoding="latin-1", newline="\n") as lines:
        trace.read(lines)
    return trace


def cuts(trace: Trace, variants: Sequence[str], seed: int) -> Iterator[Cut]:
    """All of them, by turns one of each variant, each variant's in an order drawn from ``seed``."""
    orders = []
    for variant in variants:
        dice = random.Random(f"{seed} {variant}")
        at = trace.cuts(variant)
        orders.append([Cut(c, variant, seed) for c in dice.sample(at, len(at))])
    for turn in itertools.zip_longest(*orders):
        yield from (cut for cut in turn if cut is not None)


@dataclass
class Tally:
    """What was judged, by variant, and what was wrong."""

    states: collections.Counter[str]
    faults: list[tuple[Cut, list[str]]]


class Bench:
    """Judges states of one trace, several at a time, each distinct one once."""

    def __init__(self, trace: Trace, place: Path) -> None:
        self._trace = trace
        self._place = place

    def one(self, cut: Cut) -> tuple[Cut, str, list[str] | None]:
        """The state's digest, and its faults; None when another process has judged it."""
        tree = self._trace.state(cut.at, cut.variant, cut.seed)
        said = self._trace.said(cut.at)
        name = f"{digest(tree)[:24]}-{len(said)}"
        try:
            (self._place / f"{name}.seen").touch(exist_ok=False)
        except FileExistsError:
            return cut, name, None
        return cut, name, judge(self._place / name, tree, said)

    def run(self, states: int | None, variants: Sequence[str], seed: int) -> Tally:
        """Judge ``states`` of them; None: all there are."""
        tally = Tally(collections.Counter(), [])
        todo = cuts(self._trace, variants, seed)
        global _bench
        _bench = self  # what the forked processes work with
        jobs = 2 * (os.cpu_count() or 1)  # a watcher waits for its own threads half of the time
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(jobs, mp_context=fork) as pool:
            while states is None or tally.states.total() < states:
                missing = 256 if states is None else states - tally.states.total()
                part = list(itertools.islice(todo, min(256, missing)))
                if not part:
                    break
                for cut, _, found in pool.map(_one, part):
                    if found is not None:
                        tally.states[cut.variant] += 1
                        if found:
                            tally.faults.append((cut, found))
        return tally


_bench: Bench


def _one(cut: Cut) -> tuple[Cut, str, list[str] | None]:
    return _bench.one(cut)


# -- a real file system


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[None]:
    """``image`` at ``point``; taken off again once nobody holds it open."""
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield
    finally:
        deadline = time.monotonic() + 30
        while subprocess.run(["umount", point], check=False, stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, f"{point} is held"
            time.sleep(0.1)


def cut_device(work: Path, synchronous: str, seed: int) -> list[str]:
    """One run on ext4 whose device is cut off at an instant drawn by ``seed``; what is broken then."""
    image, point, promised = work / "image", work / "disk", work / "promises"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image, point):
        scene = stage(point / "root", work, synchronous)
        os.sync()
        alone = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
        ]  # with it all of them die
        with (work / "heard").open("wb") as heard:
            played = subprocess.Popen([*alone, *scene], env=environment(), stderr=heard)
        cut_at = random.Random(seed).randint(2, MOST_SAID)
        while played.poll() is None and not (promised.exists() and _lines(promised) >= cut_at):
            time.sleep(0.005)
        time.sleep(random.Random(-seed).uniform(0, 0.3))
        disk = os.open(point, os.O_RDONLY)
        fcntl.ioctl(disk, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        os.close(disk)
        played.kill()
        played.wait()
    said = [json.loads(line) for line in promised.read_text().splitlines()]
    with mounted(image, point):
        root = point / "root"
        return judge_root(root, said, work)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


MOST_SAID = 90  #: what the scenario says in all, about
#: EXT4_IOC_SHUTDOWN: no write reaches the device from now on, not even the journal's.
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--states", default="440", help="how many, or all")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--variants", default=",".join(VARIANTS))
    options.add_argument("--synchronous", default="full,normal")
    options.add_argument("--keep", action="store_true", help="leave broken roots for a look")
    options.add_argument("--device", type=int, default=0, help="cut a real file system so often")
    given = options.parse_args()
    settings = given.synchronous.split(",")
    variants = given.variants.split(",")
    states = None if given.states == "all" else int(given.states) // len(settings)
    broken = 0
    for number in range(given.device):
        synchronous = settings[number % len(settings)]
        with tempfile.TemporaryDirectory(prefix="powercut-", dir=MEMORY) as folder:
            found = cut_device(Path(folder), synchronous, given.seed + number)
        print(
            f"device cut {number + 1}, synchronous {synchronous}: {found or 'whole'}",
            flush=True,
        )
        broken += bool(found)
    for synchronous in settings if not given.device else ():
        work = Path(tempfile.mkdtemp(prefix="powercut-", dir=MEMORY))
        begun = time.monotonic()
        try:
            trace = record(work, synchronous)
            recorded = time.monotonic() - begun
            tally = Bench(trace, work).run(states, variants, given.seed)
            by = ", ".join(f"{v} {tally.states[v]}" for v in variants)
            print(
                f"synchronous {synchronous}: {len(trace.events)} calls recorded in {recorded:.0f} s,"
                f" {tally.states.total()} states ({by}), {len(tally.faults)} of them broken,"
                f" {time.monotonic() - begun:.0f} s"
            )
            for cut, found in tally.faults[:20]:
                print(f"  {cut}: {'; '.join(found[:5])}")
            broken += len(tally.faults)
        finally:
            if given.keep:
                print(f"  kept: {work}")
            else:
                shutil.rmtree(work)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
