"""A slot across its workers: which one it has, and the jobs that were handed to it.

Knows nothing of processes. Kept in memory: with the watcher goes what it knew.
"""

import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from typing_extensions import override

from watcher.errors import SteadyError
from watcher.executor import Event, Executor, Files, Slot, WorkerSpec
from watcher.executor.child import Child
from watcher.jobs import Job
from watcher.log import now_us
from watcher.wire import line


@dataclass
class Task:
    """A job that was handed to a slot."""

    job: Job
    total: int  #: forwards, as far as is known
    spec: WorkerSpec  #: what its worker has to have loaded
    files: Files = field(default_factory=dict)
    done: int = 0
    started: float | None = None  #: monotonic
    started_at: int | None = None  #: microseconds UTC, for people
    moved: float = 0.0  #: monotonic: when it last came a step further (or was handed over)
    cancelled: bool = False
    overdue: float | None = None  #: monotonic: when its deadline passed

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its picture in pixels."""
        return self.job.request.final_size

    def message(self) -> bytes:
        """The order for the worker. ValueError when it is too large for a frame."""
        request = self.job.request.model_dump(mode="json", exclude_none=True)
        who = {"job_id": self.job.id, "attempt": self.job.attempt, "forwards": self.job.forwards}
        return line({"type": "run", **who, "request": request, "files": dict(self.files)})


@dataclass
class Ailment:
    """A model that a slot could not load."""

    trouble: dict[str, Any]
    failures: int  #: in a row
    retry_at: float  #: monotonic


#: Seconds until a slot that has another model tries again what it could not load: each try costs
#: it two loads. Files that are missing are cheap to miss again.
TRY_AGAIN, LOOK_AGAIN = 600.0, 60.0


@dataclass
class Seat:
    """A slot across its workers. ``tasks[0]`` runs (or is about to), ``tasks[1]`` waits."""

    slot: Slot
    device: str
    spec: WorkerSpec  #: what its worker is told to load
    state: str = "off"  #: off loading ready leaving unloaded waiting dying stopped
    child: Child | None = None
    info: dict[str, Any] = field(default_factory=dict)
    tasks: deque[Task] = field(default_factory=deque)
    idle_since: float = 0.0
    failures: int = 0  #: failed loads and deaths since a job last ended
    retry_at: float = 0.0
    restarts: int = 0
    last_death: str | None = None
    #: Why it cannot draw: what its last worker said or met before it was ready, and since when.
    trouble: dict[str, Any] | None = None
    load_seconds: float | None = None  #: the last load took
    ailing: dict[str, Ailment] = field(default_factory=dict)  #: by the model's name

    def unfit(self, now: float) -> frozenset[str]:
        """Names of models it could not load and is not to try again yet; ``now`` is monotonic."""
        other = self.state not in ("waiting", "loading")
        return frozenset(
            name
            for name, ailment in self.ailing.items()
            if now < ailment.retry_at + other * _wait_of(ailment.trouble["code"])
        )

    def fits(self, task: Task) -> bool:
        """Is what it has loaded, or loads, what this job needs?"""
        return task.spec.order(self.device) == self.spec.order(self.device)

    def task(self, job_id: str, attempt: int) -> Task | None:
        """The job it has by this id, in this very attempt."""
        return next((task for task in self.tasks if task.job.who == (job_id, attempt)), None)

    def suffer(self, error: SteadyError) -> None:
        """Have ``error`` as trouble until it is taken back (None), when the next worker is ready."""
        same = self.trouble is not None and self.trouble["code"] == error.code
        since = self.trouble["since"] if self.trouble and same else now_us()
        self.trouble = error.as_dict() | {"since": since, "model": self.spec.name}

    def status(self, now: float) -> dict[str, Any]:
        """For live.json; ``now`` is monotonic."""
        child = self.child
        running = self.tasks[0] if self.tasks and self.tasks[0].started is not None else None
        state = "busy" if self.state == "ready" and self.tasks else self.state
        return {
            "slot": self.slot,
            "device": self.info.get("device", self.device),
            "state": state,
            "pid": child.pid if child else None,
            "info": self.info,
            "rss": child.rss if child else None,
            "heard_seconds_ago": round(now - child.heard, 3) if child else None,
            "job": None
            if running is None
            else {
                "job_id": running.job.id,
                "attempt": running.job.attempt,
                "step": running.done,
                "steps": running.total,
                "started_at": running.started_at,
            },
            "restarts": self.restarts,
            "failures": self.failures,
            "retry_in": round(max(0.0, self.retry_at - now), 3) if state == "waiting" else None,
            "last_death": self.last_death,
            "trouble": self.trouble,
            "model": self.spec.name,
            "load_seconds": self.load_seconds,
            "loading_seconds": round(now - child.born, 1) if child and state == "loading" else None,
            "ailing": {name: ailment.trouble for name, ailment in self.ailing.items()},
        }


def _wait_of(code: str) -> float:
    return LOOK_AGAIN if code == "model_missing" else TRY_AGAIN


_Seat = TypeVar("_Seat", bound=Seat)


class Slots(Executor, Generic[_Seat]):
    """What every executor does alike: it keeps seats, and collects what happens to them."""

    def __init__(self, spec: WorkerSpec, seats: list[_Seat]) -> None:
        self._spec = spec
        self._seats = seats
        self._events: list[Event] = []
        self._changed = False  #: wants() may answer differently now
        self._stopping = False
        self._closed = False

    @abstractmethod
    def _turn(self, timeout: float) -> None:
        """Take in everything there is; wait up to ``timeout`` seconds for the first of it."""

    @override
    def events(self, timeout: float) -> list[Event]:
        if not self._closed:
            deadline = time.monotonic() + max(0.0, timeout)
            while True:
                self._turn(0.0 if self._events else deadline - time.monotonic())
                if self._events or self._changed or time.monotonic() >= deadline:
                    break
        self._changed = False
        found, self._events = self._events, []
        return found

    @override
    def cancel(self, job_id: str) -> None:
        for seat in self._seats:
            for task in list(seat.tasks):
                if task.job.id == job_id and not task.cancelled:
                    task.cancelled = True
                    self._cancel(seat, task)

    @abstractmethod
    def _cancel(self, seat: _Seat, task: Task) -> None:
        """Let the worker know that ``task`` is cancelled."""

    @override
    def status(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [seat.status(now) for seat in self._seats]

    def _take(self, slot: Slot, job: Job, files: Files) -> tuple[_Seat, Task]:
        """Give the seat of ``slot`` this job. ValueError when it wants none, or for one too large
        for a message: nothing has changed then."""
        if slot not in self.wants():
            raise ValueError(f"slot {slot} takes no job now")
        task = Task(job, job.forwards, self._spec.of(job.model), files, moved=time.monotonic())
        task.message()
        self._seats[slot].tasks.append(task)
        return self._seats[slot], task
