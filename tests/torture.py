"""Torture: a service that is killed again and again while files keep coming.

``python tests/torture.py --kills 1000`` prints a tally; ``make torture N=1000`` runs it. The
test suite runs a short one. Each root is then finished in peace and held to every rule of
history.py: nothing lost, nothing doubled, nothing stranded.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from history import faults, legal, rows
from roots import Root


@dataclasses.dataclass
class Tally:
    """What a storm did and what it broke."""

    kills: int = 0
    watchers: int = 0
    workers: int = 0
    files: int = 0
    jobs: int = 0
    seconds: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)

    def __add__(self, other: "Tally") -> "Tally":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Tally(*(a + b for a, b in zip(mine, theirs, strict=True)))


class Observer:
    """Looks at the record between the kills: states go forward, what was seen stays."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._seen: dict[str, str] = {}
        self.faults: list[str] = []

    def look(self) -> None:
        try:
            now = {r["id"]: r["state"] for r in rows(self._root.folder, "SELECT id, state FROM jobs")}
        except Exception as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return
            raise
        for job, before in self._seen.items():
            after = now.get(job, "gone")
            if after == "gone" or not (legal(before, after) or before == "queued"):
                self.faults.append(f"{job} was {before} and is {after}")
        self._seen = now


def _feed(root: Root, dice: random.Random, number: int) -> int:
    """Drop one file of a random kind; returns the jobs in it."""
    kind = dice.choice(["yaml", "list", "csv", "jsonl"])
    if kind == "yaml":
        root.drop(f"f{number}.yaml", f"prompt: f{number} steps=2\n")
        return 1
    count = dice.randint(2, 5) if kind == "list" else dice.randint(15, 30)
    prompts = [f"f{number}-{i} steps=2" for i in range(count)]
    if kind == "list":
        root.drop(f"f{number}.yml", "".join(f"- prompt: {p}\n" for p in prompts))
    elif kind == "csv":
        root.drop(f"f{number}.csv", "prompt\n" + "\n".join(prompts) + "\n")
    else:
        root.drop(f"f{number}.jsonl", "".join(f'{{"prompt": "{p}"}}\n' for p in prompts))
    return count


def _kill_worker(watcher: subprocess.Popen[bytes], dice: random.Random) -> bool:
    """SIGKILL one child of the watcher; False when it has none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(watcher.pid).children()
        if children:
            dice.choice(children).kill()
            return True
    return False


def storm(root: Root, *, kills: int, seed: int, backlog: int = 40) -> Tally:
    """SIGKILL the watcher or its worker at ``kills`` random instants while files keep coming.

    ``backlog`` jobs at most wait at a time. Ends with an undisturbed run and the checks.
    """
    dice = random.Random(seed)
    tally = Tally()
    begun = time.monotonic()
    observer = Observer(root)
    watcher = root.watch()
    while tally.kills < kills:
        waiting = tally.jobs - sum(state == "completed" for state in root.states())
        if waiting < backlog:
            tally.jobs += _feed(root, dice, tally.files)
            tally.files += 1
        time.sleep(dice.uniform(0.0, 1.2))
        if dice.random() < 0.3 and _kill_worker(watcher, dice):
            tally.workers += 1
        else:
            watcher.send_signal(signal.SIGKILL)
            watcher.wait()
            tally.watchers += 1
            observer.look()
            watcher = root.watch()
        tally.kills += 1
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    root.finish(timeout=300)
    observer.look()
    tally.seconds = time.monotonic() - begun
    tally.faults = observer.faults + faults(
        root.folder, expected=tally.jobs, log=root.log, kills=tally.kills
    )
    return tally


def _names(folder: Path) -> set[str]:
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
            if path.is_file() and not hidden:
                found.add(str(path))
    return found


def kill_on_sight(root: Root, where: str, *, rounds: int) -> list[str]:
    """Kill the watcher the moment a new file shows in ``where``, ``rounds`` times; then check."""
    jobs = 0
    for number in range(rounds):
        root.drop(f"sight{number}.yaml", f"- prompt: a{number} steps=2\n- prompt: b{number} steps=2\n")
        jobs += 2
        before = _names(root.folder / where)
        watcher = root.watch()
        deadline = time.monotonic() + 30
        while _names(root.folder / where) <= before and time.monotonic() < deadline:
            pass
        watcher.send_signal(signal.SIGKILL)
        watcher.wait()
    root.finish(timeout=120)
    return faults(root.folder, expected=jobs, log=root.log, kills=rounds)


@contextlib.contextmanager
def _fresh_root() -> Iterator[Callable[[], Root]]:
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        root = Root(Path(folder) / "root")
        try:
            yield lambda: root
        finally:
            root.close()


def _one(kills: int, seed: int) -> Tally:
    with _fresh_root() as make:
        return storm(make(), kills=kills, seed=seed)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--each", type=int, default=50, help="kills a root endures")
    given = options.parse_args()
    parts = [given.each] * (given.kills // given.each)
    if given.kills % given.each:
        parts.append(given.kills % given.each)
    total = Tally()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        seeds = range(given.seed, given.seed + len(parts))
        for done, part in enumerate(pool.map(_one, parts, seeds), 1):
            total += part
            print(f"root {done}/{len(parts)}: {part}", file=sys.stderr, flush=True)
    print(
        f"{total.kills} kills ({total.watchers} watchers, {total.workers} workers), "
        f"{total.files} files, {total.jobs} jobs, {total.seconds:.0f} process-seconds: "
        f"{len(total.faults)} broken rules"
    )
    for fault in total.faults[:20]:
        print(" ", fault)
    return 1 if total.faults else 0


if __name__ == "__main__":
    sys.exit(main())
