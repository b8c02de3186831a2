"""How many devices can one watcher keep busy? The real service, with slots that only sleep.

    python -m benchmarks.scale [--slots 1,10,50,200] [--seconds 1] [--json FILE]

Each line is one run of the product's own loop (inbox, dispatch, finishing, record, all durability
on) over a CSV of jobs, with an executor that sleeps instead of painting: 8 forwards a job, 5 %
of jitter, the next job handed over one forward before the end, as workers do. Pictures are
64 x 64, so encoding is left out (benchmarks, part `encoders`, says what it costs) and what is
measured is claiming, publishing and recording. Columns:

    busy     share of the time that the slots worked, from all at work to the last start
    hand-out milliseconds from a slot's wish for a job to the job, median and p99
    idle     milliseconds a slot stood idle between two jobs, p99
    watcher  milliseconds of CPU a job in the watcher, finishing included
    server   the same in PostgreSQL, and its transactions a job
"""

import argparse
import collections
import heapq
import itertools
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lines import percentile
from benchmarks.rig import Root
from watcher import executor as ex
from watcher.config import Config
from watcher.jobs import Job
from watcher.models import Devices
from watcher.service import Service
from watcher.store import JobStore

FORWARDS = 8
ROUNDS = 12  #: jobs a slot
RGB = bytes(random.Random(1).randbytes(64 * 64 * 3))


class Sleeping:
    """An executor of ``slots`` devices that sleep ``seconds`` a job (see Executor)."""

    def __init__(self, slots: int, seconds: float) -> None:
        self._step = seconds / FORWARDS
        self._tasks: list[collections.deque[tuple[str, int]]] = [
            collections.deque() for _ in range(slots)
        ]
        self._done = [0] * slots
        self._wished: dict[int, float] = {}  #: slot -> since when it wants a job
        self._due: list[tuple[float, int]] = []
        self._events: list[ex.Event] = []
        self._bell = threading.Condition()
        self._rung = False
        self._dice = random.Random(7)
        self.runs: list[list[list[float]]] = [[] for _ in range(slots)]  #: [start, end], by slot
        self.waits: list[float] = []  #: from the wish for a job to the job

    def start(self) -> None:
        now = time.monotonic()
        for slot in range(len(self._tasks)):
            self._events.append(ex.Ready(slot, {"model": "sleep", "device": f"sleep:{slot}"}))
            self._wished[slot] = now

    def events(self, timeout: float) -> list[ex.Event]:
        deadline = time.monotonic() + timeout
        with self._bell:
            while True:
                now = time.monotonic()
                while self._due and self._due[0][0] <= now:
                    self._forward(*heapq.heappop(self._due))
                if self._events or self._rung or now >= deadline:
                    self._rung = False
                    found, self._events = self._events, []
                    return found
                until = min(deadline, self._due[0][0]) if self._due else deadline
                self._bell.wait(until - now)

    def wake(self) -> None:
        with self._bell:
            self._rung = True
            self._bell.notify()

    def wants(self) -> list[ex.Slot]:
        return sorted(self._wished, key=lambda slot: (bool(self._tasks[slot]), self._wished[slot]))

    def unfit(self, slot: int) -> frozenset[str]:
        return frozenset()

    def send(self, slot: ex.Slot, job: Job, files: ex.Files = ex.NO_FILES) -> None:
        now = time.monotonic()
        self.waits.append(now - self._wished.pop(slot))
        self._tasks[slot].append((job.id, job.attempt))
        if len(self._tasks[slot]) == 1:
            self._begin(slot, now)

    def cancel(self, job_id: str) -> None:
        """Too late, as it may be for any executor: the job runs to its end."""

    def look(self, job_id: str) -> None:
        """Nothing is to be seen."""

    def stop(self, grace: float) -> None:
        """What sleeps needs no end."""

    def status(self) -> list[dict[str, Any]]:
        return [
            {"slot": slot, "state": "busy", "trouble": None} for slot in range(len(self._tasks))
        ]

    def _begin(self, slot: int, at: float) -> None:
        self._done[slot] = 0
        self.runs[slot].append([at, at])
        self._events.append(ex.Started(slot, *self._tasks[slot][0]))
        self._next(slot, at)

    def _next(self, slot: int, at: float) -> None:
        heapq.heappush(self._due, (at + self._step * self._dice.uniform(0.95, 1.05), slot))

    def _forward(self, at: float, slot: int) -> None:
        """A forward was over at ``at``; a job that waits in the slot begins at that very moment."""
        tasks = self._tasks[slot]
        self._done[slot] += 1
        self._events.append(ex.Step(slot, *tasks[0], self._done[slot], FORWARDS))
        if self._done[slot] == FORWARDS - 1:
            self._wished[slot] = at
        if self._done[slot] < FORWARDS:
            self._next(slot, at)
            return
        self.runs[slot][-1][1] = at
        self._events.append(ex.Picture(slot, *tasks.popleft(), (64, 64), RGB, {}, {}))
        if tasks:
            self._begin(slot, at)


def one(root: Path, slots: int, seconds: float) -> dict[str, Any]:
    """One run on a root whose inbox holds the jobs."""
    logging.getLogger("steady").setLevel(logging.WARNING)
    config = Config.load(root)
    config.state.mkdir(exist_ok=True)
    store = JobStore(config.database_url)
    store.lead({"host": "here", "pid": os.getpid()})
    server = _Server(store) if config.database_path is None else None
    executor = Sleeping(slots, seconds)
    cpu = time.process_time()
    service = Service(config, store, probe=lambda: Devices(["cpu"]), executor=executor)
    code = service.run(once=True)
    cpu = time.process_time() - cpu
    jobs = sum(len(runs) for runs in executor.runs)
    counts = {state.value: n for state, n in store.counts().items() if n}
    if code != 0 or counts != {"completed": jobs} or jobs != slots * ROUNDS:
        raise SystemExit(f"exit code {code}, {counts}, {jobs} runs")
    begun = max(runs[0][0] for runs in executor.runs)
    ended = max(runs[-1][0] for runs in executor.runs)
    worked = sum(
        max(0.0, min(end, ended) - max(start, begun))
        for runs in executor.runs for start, end in runs
    )  # fmt: skip
    idle = [
        later[0] - earlier[1]
        for runs in executor.runs
        for earlier, later in itertools.pairwise(runs)
    ]
    inside = sum(begun <= start < ended for runs in executor.runs for start, _ in runs)
    waits = executor.waits[slots:] or executor.waits
    found = {
        "jobs": jobs,
        "jobs_a_second": round(inside / max(1e-9, ended - begun), 1),
        "busy": round(worked / max(1e-9, slots * (ended - begun)), 4),
        "hand_out_ms": round(percentile(waits, 0.5) * 1e3, 1),
        "hand_out_p99_ms": round(percentile(waits, 0.99) * 1e3, 1),
        "idle_p99_ms": round(percentile(idle, 0.99) * 1e3, 1),
        "watcher_ms": round(cpu / jobs * 1e3, 2),
    }
    if server is not None:
        found |= server.since(jobs)
    store.close()
    return found


class _Server:
    """What PostgreSQL does meanwhile: CPU of its processes, transactions of its database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        backend = store.poll("SELECT pg_backend_pid() AS pid")[0]["pid"]
        parent = psutil.Process(backend).parent()
        assert parent is not None
        self._parent = parent
        self._cpu, self._commits = self._look()

    def _look(self) -> tuple[float, int]:
        processes = [self._parent, *self._parent.children(recursive=True)]
        cpu = sum(sum(process.cpu_times()[:2]) for process in processes)
        sql = "SELECT xact_commit AS n FROM pg_stat_database WHERE datname = current_database()"
        return cpu, int(self._store.poll(sql)[0]["n"])

    def since(self, jobs: int) -> dict[str, Any]:
        time.sleep(1.5)  # the server counts once a second
        cpu, commits = self._look()
        return {
            "server_ms": round((cpu - self._cpu) / jobs * 1e3, 2),
            "transactions_a_job": round((commits - self._commits) / jobs, 2),
        }


@contextmanager
def _filled(slots: int, database: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        root = Root(Path(folder) / "root", default_steps=FORWARDS + 1, database=database)
        rows = "".join(f"number {i}\n" for i in range(slots * ROUNDS))
        root.drop("many.csv", "prompt\n" + rows)
        yield root.folder


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--slots", default="1,10,50,200")
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--on", default="sqlite,postgresql")
    options.add_argument("--json", type=Path, metavar="FILE")
    options.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.root is not None:
        print(json.dumps(one(given.root, int(given.slots), given.seconds)))
        return 0
    print(f"{'record':<11}{'slots':>6}{'jobs/s':>8}{'busy':>8}{'hand-out':>14}{'idle':>8}"
          f"{'watcher':>9}{'server':>14}")  # fmt: skip
    with ExitStack() as ends:
        for kind in given.on.split(","):
            server = None
            if kind == "postgresql":
                from postgres import cluster, fresh_record

                server = ends.enter_context(cluster(durable=True))
            for slots in map(int, given.slots.split(",")):
                with ExitStack() as run:
                    database = "steady.db"
                    if server is not None:
                        database = run.enter_context(fresh_record(server))
                    root = run.enter_context(_filled(slots, database))
                    command = [sys.executable, "-m", "benchmarks.scale", "--root", str(root)]
                    command += ["--slots", str(slots), "--seconds", str(given.seconds)]
                    said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
                _tell(kind, slots, json.loads(said), given)
    return 0


def _tell(kind: str, slots: int, found: dict[str, Any], given: argparse.Namespace) -> None:
    server = ""
    if "server_ms" in found:
        server = f"{found['server_ms']} ({found['transactions_a_job']})"
    hand_out = f"{found['hand_out_ms']:.0f} / {found['hand_out_p99_ms']:.0f}"
    print(f"{kind:<11}{slots:>6}{found['jobs_a_second']:>8}{found['busy']:>8.1%}{hand_out:>14}"
          f"{found['idle_p99_ms']:>8.0f}{found['watcher_ms']:>9}{server:>14}", flush=True)  # fmt: skip
    if given.json:
        load = {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
        line = {"record": kind, "slots": slots, "seconds": given.seconds} | found | load
        with given.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
