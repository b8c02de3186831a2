"""The record against the clock, at growing sizes, beside raw SQLite and other queues.

    python -m benchmarks.store                         # 1,000, 100,000 and 1,000,000 rows
    python -m benchmarks.store 1k 100k --synchronous full
    python -m benchmarks.store 10m --skip-others

Each size is a record with that many finished jobs plus as many waiting, so both kinds of
growth show. huey, litequeue and persist-queue take part when they are installed. Times are
medians in milliseconds (p99 where it says so). A machine that does other things at the same
time makes every figure worse; compare within one run.
"""

import argparse
import importlib.util
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from watcher.jobs import JobRequest, JobState, Priority, job_ids_of
from watcher.store import JobFilter, JobStore, NewJob, Recording, Want

CHUNK = 2_000
MODELS = ("base", "ink", "turbo")  #: that the jobs name in turn

#: goal -> (milliseconds or seconds at most, at this many rows)
GOALS = {
    "claim": 1.0,
    "newest page": 5.0,
    "stats": 5.0,
    "position": 5.0,
    "ingest 100k lines [s]": 10.0,
}


def new_job(k: int, id: str) -> NewJob:
    request = JobRequest(
        prompt=f"a red fox in the snow, number {k}", width=1024, height=1024,
        num_inference_steps=9, seed=k, format="png", model=MODELS[k % len(MODELS)],
    )  # fmt: skip
    return NewJob.of(request, stem=f"fox_{k:07d}", priority=Priority.BULK, id=id)


def fill(store: JobStore, count: int) -> tuple[str, float]:
    """Record a file of ``count`` lines as the intake does; its ticket and the seconds it took."""
    ticket = str(uuid.uuid4())
    id_of = job_ids_of(ticket)
    began = time.perf_counter()
    store.begin_reading(ticket, name="bulk.csv", suffix=".csv", source="file")
    for first in range(0, count, CHUNK):
        stop = min(first + CHUNK, count)
        read = Recording(
            ticket, [new_job(k, id_of(k, None)) for k in range(first, stop)], first_index=first,
            final=stop == count, next_line=stop,
        )  # fmt: skip
        store.record_all([read])
    return ticket, time.perf_counter() - began


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each of ``times`` calls."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


class Table:
    """Figures by row and column, printed as they stand."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.rows: dict[str, dict[str, float]] = {}

    def put(self, row: str, column: str, figure: float) -> None:
        self.rows.setdefault(row, {})[column] = figure
        print(f"  {column:>6}  {row:<40} {figure:>12,.3f}", file=sys.stderr, flush=True)

    def show(self) -> None:
        width = max(map(len, self.rows)) + 2
        print(f"{'':{width}}" + "".join(f"{column:>12}" for column in self.columns))
        for name, figures in self.rows.items():
            cells = (
                f"{figures[column]:>12,.3f}" if column in figures else f"{'-':>12}"
                for column in self.columns
            )
            print(f"{name:{width}}" + "".join(cells))


def ours(folder: Path, size: int, column: str, table: Table, synchronous: str) -> Path:
    """Everything of our own at ``size`` rows of history and ``size`` waiting; the file."""
    file = folder / f"steady-{size}.db"
    store = JobStore(f"sqlite:///{file}", synchronous=synchronous)

    def put(row: str, taken: list[float]) -> None:
        table.put(row, column, statistics.median(taken))

    history, seconds = fill(store, size)
    table.put("ingest [rows/s]", column, size / seconds)
    if size == 100_000:
        table.put("ingest 100k lines [s]", column, seconds)
    finish_all(file, history)
    ticket, _ = fill(store, size)
    ids = [job.id for job in store.jobs_of(ticket, limit=1_000)]

    want = [Want(("", *MODELS), MODELS[0])]
    jobs = iter(lambda: store.claim_many(want)[0], None)
    claims = timed(lambda: next(jobs), 300)
    put("claim", claims)
    table.put("claim p99", column, statistics.quantiles(claims, n=100)[98])
    waiting = [(job.id, job.attempt) for job in store.generating()]
    done = iter(waiting)
    put(
        "complete",
        timed(
            lambda: store.complete(*next(done), sha256="0" * 64, bytes=1, facts={"device": "cpu"}),
            len(waiting),
        ),
    )
    put("insert one by one", timed(lambda: one_file(store), 200))
    put("status poll (job by id)", timed(lambda: store.job(random.choice(ids)), 2_000))
    put("stats", timed(store.counts, 200))
    put("batch progress", timed(lambda: store.progress(ticket), 200))
    put("newest page", timed(lambda: store.jobs(limit=50), 100))
    put("deep page", timed(lambda: store.jobs(before_seq=size // 10 + 51, limit=50), 100))
    failed = JobFilter(state=JobState.COMPLETED)
    put("newest page of one state", timed(lambda: store.jobs(failed, limit=50), 100))
    put("position", timed(lambda: store.position(ids[-1]), 100))
    put("changes since", timed(lambda: store.since(store.last_rev() - 50), 100))
    put("nothing to archive, release, cancel", timed(lambda: idle(store), 100))
    put("opening and recovering", timed(lambda: recover(file, synchronous), 5))
    for threads in (1, 8, 40):
        table.put(f"polls/s, {threads} threads, live writer", column, polls(store, ids, threads))
    table.put("file [MB]", column, file.stat().st_size / 1e6)
    store.close()
    return file


def finish_all(file: Path, ticket: str) -> None:
    """Make a batch history, past the store: a million pictures would take an hour."""
    with sqlite3.connect(file) as connection:
        connection.execute(
            "UPDATE jobs SET state = 'completed', started_at = 1, completed_at = 2"
            " WHERE ticket = ?",
            (ticket,),
        )
        connection.execute("UPDATE batches SET archived = 1 WHERE ticket = ?", (ticket,))
    connection.close()


def one_file(store: JobStore) -> None:
    ticket = str(uuid.uuid4())
    store.begin_reading(ticket, name="fox.yaml", suffix=".yaml", source="file")
    store.record_all([Recording(ticket, [new_job(0, ticket)])])


def idle(store: JobStore) -> None:
    store.unarchived()
    store.release_due()
    store.cancels()


def recover(file: Path, synchronous: str) -> None:
    store = JobStore(f"sqlite:///{file}", synchronous=synchronous, checkpointer=False)
    store.generating()
    store.unrecorded()
    store.unarchived()
    store.close()


def polls(store: JobStore, ids: list[str], threads: int, seconds: float = 2.0) -> float:
    """Polls a second by many threads while another one writes."""
    stop = threading.Event()
    counts = [0] * threads

    def poll(me: int) -> None:
        while not stop.is_set():
            store.job(random.choice(ids))
            counts[me] += 1

    def write() -> None:
        while not stop.is_set():
            one_file(store)

    crowd = [threading.Thread(target=poll, args=(me,)) for me in range(threads)]
    crowd.append(threading.Thread(target=write))
    for thread in crowd:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in crowd:
        thread.join()
    return sum(counts) / seconds


def raw(file: Path, column: str, table: Table, synchronous: str) -> None:
    """The same statements on the same file by the driver alone: what our layers cost."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    ready = "INDEXED BY jobs_ready WHERE state = 'queued' AND held IS NULL"

    def claim() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "UPDATE jobs SET state = 'generating', attempt = attempt + 1, started_at = 1,"
            " rev = (SELECT rev FROM queue) + 1 WHERE seq = (SELECT seq FROM jobs"
            f" {ready} ORDER BY class, rank, seq LIMIT 1) AND state = 'queued' RETURNING *"
        ).fetchall()
        connection.execute("UPDATE queue SET rev = rev + 1")
        connection.execute("COMMIT")

    def without_hint() -> None:
        connection.execute(
            "SELECT seq FROM jobs WHERE state = 'queued' AND held IS NULL"
            " ORDER BY class, rank, seq LIMIT 1"
        ).fetchall()

    ids = [row[0] for row in connection.execute("SELECT id FROM jobs ORDER BY seq LIMIT 1000")]

    def poll() -> None:
        connection.execute("SELECT * FROM jobs WHERE id = ?", (random.choice(ids),)).fetchall()

    def page() -> None:
        connection.execute("SELECT * FROM jobs ORDER BY seq DESC LIMIT 50").fetchall()

    def group() -> None:
        connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()

    for name, call, times in (
        ("claim", claim, 300), ("next job without the index hint", without_hint, 3),
        ("status poll (job by id)", poll, 2_000), ("newest page", page, 100),
        ("stats by GROUP BY", group, 3),
    ):  # fmt: skip
        table.put(f"raw sqlite3: {name}", column, statistics.median(timed(call, times)))
    connection.close()


def others(folder: Path, size: int) -> Iterator[tuple[str, float]]:
    """Claims and adds of the queues that are installed, ``size`` waiting jobs each."""
    body = json.dumps({"prompt": "a red fox in the snow", "width": 1024, "height": 1024})
    if importlib.util.find_spec("huey"):
        from huey import SqliteHuey

        huey = SqliteHuey(filename=str(folder / f"huey-{size}.db"), fsync=False)
        adds = timed(lambda: huey.storage.enqueue(body.encode()), min(size, 2_000))
        with huey.storage.db(commit=True) as cursor:
            cursor.executemany(
                "INSERT INTO task (queue, data, priority) VALUES (?, ?, 0)",
                ((huey.storage.name, body.encode()) for _ in range(size - len(adds))),
            )
        yield "huey: add", statistics.median(adds)
        yield "huey: claim (deletes the row)", statistics.median(timed(huey.storage.dequeue, 100))
    if importlib.util.find_spec("litequeue"):
        from litequeue import LiteQueue

        lite = LiteQueue(str(folder / f"lite-{size}.db"))
        yield "litequeue: add", statistics.median(timed(lambda: lite.put(body), min(size, 2_000)))
        with lite.transaction(mode="IMMEDIATE"):
            for _ in range(size - min(size, 2_000)):
                lite.put(body)
        yield "litequeue: claim", statistics.median(timed(lite.pop, 20))
    if importlib.util.find_spec("persistqueue") and size <= 100_000:  # it adds one by one
        from persistqueue import SQLiteAckQueue

        acked = SQLiteAckQueue(str(folder / f"persist-{size}"), auto_commit=False)
        adds = timed(lambda: acked.put(body), size)
        acked.task_done()
        yield "persist-queue: add (uncommitted)", statistics.median(adds)
        yield "persist-queue: claim", statistics.median(timed(acked.get, 20))


def number(text: str) -> int:
    """``100k`` or ``1m`` as a number."""
    return int(text.lower().replace("k", "000").replace("m", "000000"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("sizes", nargs="*", default=["1k", "100k", "1m"], help="rows")
    parser.add_argument("--synchronous", choices=["normal", "full"], default="normal")
    parser.add_argument("--skip-others", action="store_true", help="only our own record")
    parser.add_argument("--folder", type=Path, help="where the databases are made")
    given = parser.parse_args()
    table = Table(given.sizes)
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        for column in given.sizes:
            folder, size = Path(made), number(column)
            file = ours(folder, size, column, table, given.synchronous)
            raw(file, column, table, given.synchronous)
            file.unlink()
            if not given.skip_others:
                for row, figure in others(folder, size):
                    table.put(row, column, figure)
    print(f"SQLite {sqlite3.sqlite_version}, synchronous={given.synchronous}, "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; milliseconds")  # fmt: skip
    table.show()
    return judge(table)


def judge(table: Table) -> int:
    """The goals, and whether they were met at the largest size."""
    missed = []
    last = table.columns[-1]
    for row, limit in GOALS.items():
        figures = table.rows.get(row, {})
        figure = figures.get(last, next(iter(figures.values()), 0.0))
        if figure > limit:
            missed.append(f"{row}: {figure:.2f}, goal {limit}")
    claims = table.rows["claim"]
    if claims[last] > 2 * claims[table.columns[0]]:
        missed.append(f"claim at {last} is more than twice that at {table.columns[0]}")
    print("all goals met" if not missed else "missed: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
