"""Slots elsewhere, seen from the watcher: what is said of them, and which jobs they have.

The slots are far.py's; who carries words there and back is the ``Line``. Here is decided what
counts: a word about a job that the slot does not have, or no longer in this attempt, is
dropped. So a result that comes late or twice changes nothing. Knows nothing of Ray.
"""

import contextlib
import logging
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from typing_extensions import override

from watcher.errors import SteadyError
from watcher.executor import Died, Event, Executor, Picture, Ready, Slot, Started, Step, WorkerSpec
from watcher.executor.ray.actor import SlotReport
from watcher.executor.seat import Seat, Task
from watcher.jobs import JobRequest, forwards_of

log = logging.getLogger("watcher.executor")


@dataclass(frozen=True)
class Met:
    """A process for this slot is there; its model is not loaded yet."""

    name: str
    pid: int
    parent: int
    host: str


@dataclass(frozen=True)
class Lost:
    """That process is gone, or cannot be reached. ``died``: we know that it did."""

    how: str
    died: bool = False


@dataclass(frozen=True)
class SlotTrouble:
    """No process can be had for this slot, or for any that has none (no slot named)."""

    error: SteadyError


News = Met | Lost | SlotTrouble | SlotReport
Tell = Callable[[Slot | None, News], None]  #: from any thread


class Line(Protocol):
    """Finds processes for the slots, starts them anew for ever, and carries words."""

    #: It may be putting signal handlers of its own below Python's just now.
    joining: bool

    def start(self, tell: Tell) -> None:
        """Begin; what happens is told."""

    def order(self, slot: Slot, name: str, method: str, *arguments: Any) -> None:
        """Call a method of FarSlot, after all earlier ones; nothing if ``name`` is gone."""

    def stop(self) -> None:
        """Let go of everything. Takes a few seconds."""


@dataclass
class _FarSlot(Seat):
    """A slot across the processes it has had."""

    met: Met | None = None
    report: SlotReport | None = None
    heard: float = 0.0
    sent: int = 0  #: jobs given to this very process

    def wants(self) -> bool:
        """Not while a job is on its way: what was said before it arrived does not count."""
        return self.report is not None and self.report.wants and self.report.taken == self.sent

    def told(self, now: float) -> dict[str, Any]:
        """For live.json; ``now`` is monotonic."""
        if self.met is None or self.report is None:
            return self.status(now)
        return self.report.status | {
            "slot": self.slot,
            "host": self.met.host,
            "actor_pid": self.met.pid,
            "heard_seconds_ago": round(now - self.heard, 3),
            "restarts": self.restarts + self.report.status["restarts"],
            "last_death": self.report.status["last_death"] or self.last_death,
        }

    def task(self, job_id: str, attempt: int) -> Task | None:
        return next((t for t in self.tasks if (t.job_id, t.attempt) == (job_id, attempt)), None)


class FarExecutor(Executor):
    """Slots at the other end of ``line`` (see Executor for the promises).

    A slot exists from the first word about it on. Nothing is claimed for one before it has
    said that its model is loaded: further slots may wait for machines that come later.
    """

    def __init__(self, spec: WorkerSpec, line: Line) -> None:
        spec.order(spec.device)  # options that are no plain data are refused now
        self._device = spec.device
        self._line = line
        self._places = [self._place(0)]  # one at least is wanted
        self._news: queue.SimpleQueue[tuple[Slot | None, News] | None] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._changed = False
        self._stopping = False
        self._closed = False
        self.counters: Counter[str] = Counter()

    # -- the protocol

    @override
    def start(self) -> None:
        self._line.start(lambda slot, news: self._news.put((slot, news)))

    @override
    def events(self, timeout: float) -> list[Event]:
        if self._line.joining:
            _keep_signals()
        if not self._closed:
            deadline = time.monotonic() + max(0.0, timeout)
            while True:
                self._listen(0.0 if self._events else deadline - time.monotonic())
                if self._events or self._changed or time.monotonic() >= deadline:
                    break
        self._changed = False
        found, self._events = self._events, []
        return found

    @override
    def wake(self) -> None:
        self._news.put(None)

    @override
    def wants(self) -> list[Slot]:
        if self._stopping:
            return []
        asking = [place for place in self._places if place.wants()]
        asking.sort(key=lambda place: (place.state == "unloaded", len(place.tasks)))
        return [place.slot for place in asking]

    @override
    def send(self, slot: Slot, job_id: str, attempt: int, request: JobRequest) -> None:
        if slot not in self.wants():
            raise ValueError(f"slot {slot} takes no job now")
        total = forwards_of(request.num_inference_steps or 1)
        task = Task(job_id, attempt, request, total=total)
        task.message()  # ValueError for one too large
        place = self._places[slot]
        place.tasks.append(task)
        place.sent += 1
        plain = request.model_dump(mode="json", exclude_none=True)
        self._order(place, "take", job_id, attempt, plain)

    @override
    def cancel(self, job_id: str) -> None:
        for place in self._places:
            for task in place.tasks:
                if task.job_id == job_id and not task.cancelled:
                    task.cancelled = True
                    self._order(place, "cancel", job_id)

    @override
    def stop(self, grace: float) -> list[tuple[str, int]]:
        if self._closed:
            return []
        self._stopping = True
        for place in self._places:
            self._order(place, "leave", grace)
        deadline = time.monotonic() + grace + 3
        while any(place.met for place in self._places) and time.monotonic() < deadline:
            self._listen(deadline - time.monotonic())
        self._line.stop()
        self._closed = True
        return [(t.job_id, t.attempt) for place in self._places for t in place.tasks]

    @override
    def status(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [place.told(now) for place in self._places]

    # -- what is told

    def _order(self, place: _FarSlot, method: str, *arguments: Any) -> None:
        if place.met is not None:
            self._line.order(place.slot, place.met.name, method, *arguments)

    def _listen(self, timeout: float) -> None:
        """Take in all there is; wait for the first of it."""
        with contextlib.suppress(queue.Empty):
            news = self._news.get(timeout=timeout) if timeout > 0 else self._news.get_nowait()
            while True:
                self._changed = True
                if news is not None:
                    self._take_in(*news)
                news = self._news.get_nowait()

    def _place(self, slot: Slot) -> _FarSlot:
        return _FarSlot(slot, self._device, b"", state="waiting")

    def _take_in(self, slot: Slot | None, news: News) -> None:
        if slot is None:
            for place in self._places:
                if isinstance(news, SlotTrouble) and place.met is None:
                    self._suffer(place, news)
            return
        while len(self._places) <= slot:
            self._places.append(self._place(len(self._places)))
        place = self._places[slot]
        match news:
            case Met():
                place.met, place.report, place.sent, place.trouble = news, None, 0, None
                place.state, place.heard = "loading", time.monotonic()
            case SlotReport():
                self._heard(place, news)
            case Lost():
                self._mourn(place, news)
            case SlotTrouble():
                self._suffer(place, news)

    def _suffer(self, place: _FarSlot, news: SlotTrouble) -> None:
        place.suffer(news.error)
        self._events.append(Died(place.slot, [], "has no machine", news.error, blame=False))

    def _heard(self, place: _FarSlot, report: SlotReport) -> None:
        place.report, place.heard = report, time.monotonic()
        place.state = report.status["state"]
        for event in report.events:
            known = self._known(place, event)
            if known is not None:
                self._events.append(known)
        if report.left:
            place.met = None
            place.state = "stopped"

    def _known(self, place: _FarSlot, event: Event) -> Event | None:
        """``event`` with the slot's number here; None for one of a job the slot does not have."""
        slot = place.slot
        if isinstance(event, Ready):
            return Ready(slot, event.info)
        if isinstance(event, Died):
            self.counters["deaths"] += 1
            lost = [one for one in event.lost if place.task(one[0], one[1])]
            gone = {(job_id, attempt) for job_id, attempt, _ in lost}
            kept = [task for task in place.tasks if (task.job_id, task.attempt) not in gone]
            place.tasks = deque(kept)
            return replace(event, slot=slot, lost=lost)
        task = place.task(event.job_id, event.attempt)
        if task is None:
            self.counters["late"] += 1
            return None
        match event:
            case Started():
                task.started = time.monotonic()
            case Step():
                task.done, task.total = event.done, event.total
            case _:
                place.tasks.remove(task)
                self.counters["pictures" if isinstance(event, Picture) else "failed"] += 1
        return replace(event, slot=slot)

    def _mourn(self, place: _FarSlot, lost: Lost) -> None:
        """Its process is gone. A job is blamed where that died and the machine did not.

        The one in turn also where nothing was heard of its start: the word may have died too.
        """
        jobs = [
            (task.job_id, task.attempt, task.started is not None or (lost.died and not turn))
            for turn, task in enumerate(place.tasks)
        ]
        met, place.met, place.report = place.met, None, None
        place.state, place.last_death = "waiting", lost.how
        if self._stopping or met is None:
            return
        place.tasks.clear()
        place.restarts += 1
        self.counters["deaths"] += 1
        log.warning("slot %d: process %d on %s: %s", place.slot, met.pid, met.host, lost.how)
        self._events.append(Died(place.slot, jobs, lost.how, blame=lost.died))


def _keep_signals() -> None:
    """What was put below Python's handlers makes a process that is told to end leave by an
    abort."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
