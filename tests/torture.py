"""Torture: a service that is killed again and again while files keep coming.

``python tests/torture.py --kills 1000`` prints a tally; ``make torture N=1000`` runs it. The
test suite runs a short one. Each root is then finished in peace and held to every rule of
history.py: nothing lost, nothing doubled, nothing stranded.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from history import faults, legal, no_record_yet, rows, untold
from receivers import SECRET, Receiver
from roots import ON_RAY, Root

_PACE = 0.001  #: of the schedule by which others are told


@dataclasses.dataclass
class Tally:
    """What a storm did and what it broke."""

    kills: int = 0
    watchers: int = 0
    workers: int = 0
    apis: int = 0
    posts: int = 0
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
            now = {
                r["id"]: r["state"] for r in rows(self._root.folder, "SELECT id, state FROM jobs")
            }
        except Exception as error:
            if no_record_yet(error):
                return
            raise
        for job, before in self._seen.items():
            after = now.get(job, "gone")
            if after == "gone" or not (legal(before, after) or before == "queued"):
                self.faults.append(f"{job} was {before} and is {after}")
        self._seen = now


class Client(threading.Thread):
    """Somebody who asks over HTTP all through the storm and remembers every promise.

    What was answered with 200 is promised: from then on its status must be known whenever the
    API answers at all, and in the end there is one picture of it. A POST with a key is sent
    again until it is answered; one without is sent once.
    """

    def __init__(self, root: Root, port: int) -> None:
        super().__init__(name="client")
        self._root = root
        self._port = port
        self._ends = threading.Event()
        self._number = 0
        self._heard = 0
        self.promised: dict[str, str] = {}  #: job id -> prompt
        self.faults: list[str] = []

    def hears(self) -> bool:
        """Was something promised since this was asked last?"""
        before, self._heard = self._heard, len(self.promised)
        return self._heard > before

    def end(self) -> None:
        """Ask no more; the request with a key that is on its way is still seen through."""
        self._ends.set()
        self.join(120)
        if self.is_alive():
            self.faults.append("a POST with a key was never answered")

    def run(self) -> None:
        while not self._ends.is_set():
            waiting = sum(state == "queued" for state in self._root.states())
            if waiting < 60:
                self._post()
            for job in list(self.promised)[-3:]:
                code, _ = self._ask("GET", f"/status/{job}")
                if code == 404:
                    self.faults.append(f"{job} was promised and is not known")
            self._ends.wait(0.2)

    def _post(self) -> None:
        self._number += 1
        prompt = f"http{self._number} steps=2"
        keyed = self._number % 2 == 0
        while True:
            code, body = self._ask("POST", "/generate-image", prompt, keyed=keyed)
            if code == 200:
                before = self.promised.setdefault(body["job_id"], prompt)
                if before != prompt:
                    self.faults.append(f"{body['job_id']} was given twice")
                return
            if not keyed:
                return  # nobody knows whether it came: it may run once, or not at all
            time.sleep(0.1)

    def _ask(
        self, method: str, path: str, prompt: str | None = None, *, keyed: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """Status and body; 0 when nobody answered."""
        headers = {"content-type": "application/json"}
        if keyed and prompt:
            headers["Idempotency-Key"] = prompt.split()[0]
        body = json.dumps({"prompt": prompt}) if prompt else None
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}
        finally:
            connection.close()

    def judge(self) -> list[str]:
        """Broken promises, once everything has ended."""
        found = list(self.faults)
        jobs = {r["id"]: r for r in rows(self._root.folder, "SELECT id, prompt, state FROM jobs")}
        for job, prompt in self.promised.items():
            row = jobs.get(job)
            if row is None or (row["prompt"], row["state"]) != (prompt, "completed"):
                batch = rows(self._root.folder, "SELECT * FROM batches WHERE ticket = ?", job)
                found.append(f"promised {job} ({prompt}) is {row or f'gone, its batch {batch}'}")
        asked = [r["prompt"] for r in jobs.values() if r["prompt"].startswith("http")]
        doubled = [p for p, n in collections.Counter(asked).items() if n > 1]
        return found + [f"asked once and made twice: {p}" for p in doubled]


#: Besides the root's own model: jobs of both come in turns, and so do those with LoRAs.
MODELS = {"other": "other"}
LORAS = ("", "one", "two", "one, two")


def write_loras(root: Path) -> None:
    """The smallest files there are that are LoRAs: ``one`` and ``two``."""
    (root / "loras").mkdir()
    for name in LORAS[1:3]:
        tensor = {"dtype": "F32", "shape": [1, 1]}
        header = {f"layer.lora_{half}.weight": tensor | {"data_offsets": [at, at + 4]}
                  for half, at in (("A", 0), ("B", 4))}  # fmt: skip
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + name.encode().ljust(8)
        (root / "loras" / f"{name}.safetensors").write_bytes(data)


def _feed(root: Root, dice: random.Random, number: int) -> int:
    """Drop one file of a random kind; returns the jobs in it."""
    kind = dice.choice(["yaml", "hot", "list", "csv", "jsonl"])
    if kind == "hot":
        root.drop(f"hot/f{number}.yaml", f"prompt: f{number} steps=2\n")
        return 1
    if kind == "yaml":
        root.drop(f"f{number}.yaml", f"prompt: f{number} steps=2\n")
        return 1
    count = dice.randint(2, 5) if kind == "list" else dice.randint(15, 30)
    prompts = [f"f{number}-{i} steps=2" for i in range(count)]
    if kind == "list":
        root.drop(f"f{number}.yml", "".join(f"- prompt: {p}\n" for p in prompts))
    elif kind == "csv":
        lines = [f'{p},{("", "other")[i % 2]},"{LORAS[i // 2 % 4]}"' for i, p in enumerate(prompts)]
        lines.insert(count // 2, "bad,unknown,")  # cannot be used: it comes back
        root.drop(f"f{number}.csv", "prompt,model,lora\n" + "\n".join(lines) + "\n")
    else:
        root.drop(f"f{number}.jsonl", "".join(f'{{"prompt": "{p}"}}\n' for p in prompts))
    return count


def _kill_worker(root: Root, watcher: subprocess.Popen[bytes], dice: random.Random) -> bool:
    """SIGKILL one process that works for the watcher; False when there is none."""
    workers = _workers(root, watcher)
    with contextlib.suppress(psutil.NoSuchProcess):
        if workers:
            dice.choice(workers).kill()
            return True
    return False


def _workers(root: Root, watcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The watcher's, each in a session of its own; on Ray the actors it has met, and the workers
    below them."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if not ON_RAY:
            near = psutil.Process(watcher.pid).children()
            return [each for each in near if os.getsid(each.pid) == each.pid]
        pulse = root.pulse()
        for slot in pulse.get("workers", ()) if pulse.get("pid") == watcher.pid else ():
            for pid in filter(None, (slot["pid"], slot.get("actor_pid"))):
                found.append(psutil.Process(pid))
    return found


def _wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def storm(root: Root, *, kills: int, seed: int, backlog: int = 40) -> Tally:
    """SIGKILL watcher, worker or API at ``kills`` random instants while files and POSTs come.

    ``backlog`` jobs of files at most wait at a time. Ends with an undisturbed run and the checks.
    """
    dice = random.Random(seed)
    tally = Tally()
    begun = time.monotonic()
    root.preset("hot", "label: hot\n")
    write_loras(root.folder)
    root.configure(engine_options={"log": str(root.log), "accepts": ["lora"]})
    observer = Observer(root)
    receiver = Receiver(lambda path: 503 if random.random() < 0.2 else 204)
    root.configure(webhooks=[{"url": receiver.url, "secret": SECRET}])
    watcher = root.watch(pace=_PACE)
    port = _free_port()
    api = _api(root, port)
    client = Client(root, port)
    client.start()
    while tally.kills < kills:
        dropped = [job for job in root.jobs() if not job["prompt"].startswith("http")]
        waiting = tally.jobs - sum(job["state"] == "completed" for job in dropped)
        if waiting < backlog:
            tally.jobs += _feed(root, dice, tally.files)
            tally.files += 1
        time.sleep(dice.uniform(0.0, 1.2))
        fate = dice.random()
        # Not always at once: else a slow machine is killed at its start, over and over.
        if fate > 0.75:
            _wait(client.hears)
        elif fate < 0.25 or dice.random() < 0.3:
            _wait(functools.partial(_workers, root, watcher))
        if fate < 0.25 and _kill_worker(root, watcher, dice):
            tally.workers += 1
        elif fate > 0.75:
            api.send_signal(signal.SIGKILL)
            api.wait()
            tally.apis += 1
            api = _api(root, port)
        else:
            watcher.send_signal(signal.SIGKILL)
            watcher.wait()
            tally.watchers += 1
            observer.look()
            watcher = root.watch(pace=_PACE)
        tally.kills += 1
    client.end()
    api.send_signal(signal.SIGKILL)
    api.wait()
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    receiver.answer = lambda path: 204  # the run to the end has the true schedule: half an hour
    root.finish(timeout=300)
    observer.look()
    unheard = _unheard(root, receiver)
    tally.seconds = time.monotonic() - begun
    tally.posts = len(client.promised)
    asked = sum(job["prompt"].startswith("http") for job in root.jobs())
    tally.faults = [
        *observer.faults,
        *client.judge(),
        *unheard,
        *faults(root.folder, expected=tally.jobs + asked, log=root.log, kills=tally.kills),
    ]
    return tally


def _unheard(root: Root, receiver: Receiver) -> list[str]:
    """Events that were lost, or told as two, once everybody had time to be told."""
    watcher = root.watch(pace=_PACE)
    waiting = "SELECT id FROM deliveries WHERE state = 'pending' LIMIT 1"
    _wait(lambda: not rows(root.folder, waiting), 300)  # the last waits grow long
    watcher.send_signal(signal.SIGTERM)
    watcher.wait()
    receiver.close()
    return untold(root.folder, receiver.told) + receiver.refused


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _api(root: Root, port: int) -> subprocess.Popen[bytes]:
    return root.spawn("-m", "api", "--root", str(root.folder), "--port", str(port))


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
        root.drop(
            f"sight{number}.yaml", f"- prompt: a{number} steps=2\n- prompt: b{number} steps=2\n"
        )
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
        root = Root(Path(folder) / "root", models=MODELS)
        try:
            yield lambda: root
        finally:
            root.close()


def _one(kills: int, seed: int) -> Tally:
    with _fresh_root() as make:
        root = make()
        tally = storm(root, kills=kills, seed=seed)
        if tally.faults:
            kept = shutil.copytree(root.folder, tempfile.mkdtemp(prefix="broken-"), symlinks=True,
                                   dirs_exist_ok=True)  # fmt: skip
            print(f"kept for a look: {kept}", file=sys.stderr, flush=True)
        return tally


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
        f"{total.kills} kills ({total.watchers} watchers, {total.workers} workers, "
        f"{total.apis} apis), {total.files} files, {total.jobs} jobs of them, "
        f"{total.posts} POSTs answered, {total.seconds:.0f} process-seconds: "
        f"{len(total.faults)} broken rules"
    )
    for fault in total.faults[:20]:
        print(" ", fault)
    return 1 if total.faults else 0


if __name__ == "__main__":
    sys.exit(main())
