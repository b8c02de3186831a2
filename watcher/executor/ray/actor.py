"""A slot on another machine: the local executor there, behind calls that any transport can make.

The engine runs in a worker process below this one, as on the watcher's own machine: the same
loading, deadlines and error classes hold, and a worker that crashes leaves this process alone.
A kill costs the jobs in hand, and leaves the files they started from in a temporary folder.
Imports neither torch nor Ray.
"""

import os
import queue
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.executor import Died, Event, Files, WorkerSpec, relocated
from watcher.executor.local import LocalExecutor
from watcher.jobs import Job

BEAT = 1.0  #: seconds after which something is said though nothing happened


@dataclass(frozen=True)
class SlotReport:
    """What happened in a slot, and how it stands after that."""

    events: list[Event] = field(repr=False)
    wants: bool  #: a job should be sent now
    taken: int  #: jobs that have arrived here, ever
    status: dict[str, Any] = field(repr=False)  #: for live.json
    unfit: frozenset[str] = frozenset()  #: names of models it cannot load now
    left: bool = False  #: nothing more will come


class FarSlot:
    """One slot. Every method may be called from a thread of its own, except ``hear``: from one.

    ``name`` is this very process: an order that was meant for the one before it is not obeyed.

    Args:
        spec: what the worker loads.
        limits: keyword arguments of LocalExecutor.
        environment: what this process and its workers have otherwise than those that Ray runs.
    """

    def __init__(
        self, spec: WorkerSpec, limits: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        os.environ.update(environment)
        self._name = uuid.uuid4().hex
        self._taken = 0
        self._files = Path(tempfile.mkdtemp(prefix="steady-files-"))
        weakref.finalize(self, shutil.rmtree, self._files, ignore_errors=True)
        self._refused: list[Event] = []
        self._leaving: float | None = None  #: seconds of grace
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[SlotReport | None] = queue.SimpleQueue()
        self._executor = LocalExecutor(spec, **limits)
        threading.Thread(target=self._work, name="slot", daemon=True).start()

    def hello(self) -> dict[str, Any]:
        """Who this is: name, pid, the parent's pid, and host."""
        host = os.uname().nodename
        return {"name": self._name, "pid": os.getpid(), "parent": os.getppid(), "host": host}

    def keep(self, name: str, mark: str, data: bytes) -> None:
        """Have a file that jobs may name by its ``mark`` until it is dropped."""
        self._give(name, lambda: self._path(mark).write_bytes(data))

    def drop(self, name: str, mark: str) -> None:
        """Let go of a file, behind all jobs that were taken so far."""
        self._give(name, lambda: self._path(mark).unlink(missing_ok=True))

    def _path(self, mark: str) -> Path:
        return self._files / os.path.basename(mark)

    def take(self, name: str, job: Job, files: Files) -> None:
        """Run a (resolved) job; ``files`` by their marks."""

        def order() -> None:
            self._taken += 1
            try:
                self._executor.send(0, job, relocated(files, lambda mark: str(self._path(mark))))
            except ValueError:  # its worker went while the job was on its way
                lost = [(job.id, job.attempt, False)]
                self._refused.append(Died(0, lost, "was gone before the job came", blame=False))

        self._give(name, order)

    def cancel(self, name: str, job_id: str) -> None:
        """End this job at its next step."""
        self._give(name, lambda: self._executor.cancel(job_id))

    def look(self, name: str, job_id: str) -> None:
        """Somebody wants to see this job."""
        self._give(name, lambda: self._executor.look(job_id))

    def leave(self, name: str, grace: float) -> None:
        """End the worker; a running job has ``grace`` seconds to come to its end."""

        def order() -> None:
            self._leaving = grace

        self._give(name, order)

    def hear(self) -> list[SlotReport]:
        """What happened since the last call; waits for it, about a second at most.

        RuntimeError when nothing will be said any more.
        """
        reports: list[SlotReport] = []
        wait = True
        while True:
            try:
                report = self._reports.get(timeout=2 * BEAT) if wait else self._reports.get_nowait()
            except queue.Empty:
                return reports
            if report is None:
                if reports:
                    self._reports.put(None)
                    return reports
                raise RuntimeError("the slot has ended")
            reports.append(report)
            wait = False

    def _give(self, name: str, order: Callable[[], object]) -> None:
        if name == self._name:
            self._orders.put(order)
            self._executor.wake()

    # -- the thread that owns the executor, and must outlive the worker it starts

    def _work(self) -> None:
        try:
            self._executor.start()
            while self._leaving is None:
                events = self._executor.events(BEAT)
                while not self._orders.empty():
                    self._orders.get()()
                self._report(events)
            self._executor.stop(self._leaving)
            self._report(self._executor.events(0), left=True)
        finally:
            shutil.rmtree(self._files, ignore_errors=True)
            self._reports.put(None)

    def _report(self, events: list[Event], *, left: bool = False) -> None:
        wants = bool(self._executor.wants())
        told, self._refused = events + self._refused, []
        status = self._executor.status()[0]
        unfit = self._executor.unfit(0)
        self._reports.put(SlotReport(told, wants, self._taken, status, unfit, left))
