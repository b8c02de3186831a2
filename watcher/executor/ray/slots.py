"""Slots elsewhere, seen from the watcher: what is said of them, and which jobs they have.

The slots are actor.py's; who carries words there and back is the ``Line``. Here is decided what
counts: a word about a job that the slot does not have, or no longer in this attempt, is
dropped. So a result that comes late or twice changes nothing. Knows nothing of Ray.
"""

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from watcher.errors import SteadyError
from watcher.executor import (
    NO_FILES,
    Died,
    Event,
    Files,
    Previewed,
    Ready,
    Slot,
    Started,
    Step,
    WorkerSpec,
    relocated,
)
from watcher.executor.ray.actor import SlotReport
from watcher.executor.seat import Seat, Slots, Task
from watcher.jobs import Job

log = logging.getLogger("watcher.executor")

_FILES_THERE = 64  #: files of jobs that a process elsewhere keeps


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
    """Find processes for the slots, start each again whenever it ends, and carry messages."""

    #: It may be putting signal handlers of its own below Python's just now.
    joining: bool

    def start(self, tell: Tell) -> None:
        """Begin; what happens is passed to ``tell``."""

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
    there: OrderedDict[str, None] = field(default_factory=OrderedDict)  #: files it has, by mark

    def wants(self) -> bool:
        """Not while a job is on its way: what was said before it arrived does not count."""
        return self.report is not None and self.report.wants and self.report.taken == self.sent

    @override
    def status(self, now: float) -> dict[str, Any]:
        if self.met is None or self.report is None:
            return super().status(now)
        return self.report.status | {
            "slot": self.slot,
            "host": self.met.host,
            "actor_pid": self.met.pid,
            "heard_seconds_ago": round(now - self.heard, 3),
            "restarts": self.restarts + self.report.status["restarts"],
            "last_death": self.report.status["last_death"] or self.last_death,
        }


class FarExecutor(Slots[_FarSlot]):
    """Slots at the other end of ``line`` (see Executor for the promises).

    A slot exists from the first word about it on. Nothing is claimed for one before it has
    said that its model is loaded: further slots may wait for machines that come later.
    """

    def __init__(self, spec: WorkerSpec, line: Line) -> None:
        spec.check()
        super().__init__(spec, [_place(0, spec)])  # one at least is wanted
        self._line = line
        self._news: queue.SimpleQueue[tuple[Slot | None, News] | None] = queue.SimpleQueue()

    # -- the protocol

    @override
    def start(self) -> None:
        self._line.start(lambda slot, news: self._news.put((slot, news)))

    @override
    def wake(self) -> None:
        self._news.put(None)

    @override
    def wants(self) -> list[Slot]:
        if self._stopping:
            return []
        asking = [place for place in self._seats if place.wants()]
        asking.sort(key=lambda place: (place.state == "unloaded", len(place.tasks)))
        return [place.slot for place in asking]

    @override
    def unfit(self, slot: Slot) -> frozenset[str]:
        report = self._seats[slot].report
        return report.unfit if report else frozenset()

    @override
    def send(self, slot: Slot, job: Job, files: Files = NO_FILES) -> None:
        place, _ = self._take(slot, job, files)
        place.sent += 1
        self._order(place, "take", job, relocated(files, lambda path: self._bring(place, path)))

    def _bring(self, place: _FarSlot, path: str) -> str:
        """The mark of a file that is there before the next order; it is sent once a process, as long as
        its inode, size and time are the same."""
        try:
            facts = os.stat(path)
            mark = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}{Path(path).suffix}"
            if mark not in place.there:
                self._order(place, "keep", mark, Path(path).read_bytes())
        except OSError:
            return path  # gone in this very moment: the worker will say so
        place.there[mark] = None
        place.there.move_to_end(mark)
        if len(place.there) > _FILES_THERE:
            self._order(place, "drop", place.there.popitem(last=False)[0])
        return mark

    @override
    def _cancel(self, seat: _FarSlot, task: Task) -> None:
        self._order(seat, "cancel", task.job.id)

    @override
    def look(self, job_id: str) -> None:
        for place in self._seats:
            if any(task.job.id == job_id for task in place.tasks):
                self._order(place, "look", job_id)

    @override
    def stop(self, grace: float) -> None:
        if self._closed:
            return
        self._stopping = True
        for place in self._seats:
            self._order(place, "leave", grace)
        deadline = time.monotonic() + grace + 3
        while any(place.met for place in self._seats) and time.monotonic() < deadline:
            self._turn(deadline - time.monotonic())
        self._line.stop()
        self._closed = True

    # -- what is told

    def _order(self, place: _FarSlot, method: str, *arguments: Any) -> None:
        if place.met is not None:
            self._line.order(place.slot, place.met.name, method, *arguments)

    @override
    def _turn(self, timeout: float) -> None:
        if self._line.joining:
            _keep_signals()
        with contextlib.suppress(queue.Empty):
            news = self._news.get(timeout=timeout) if timeout > 0 else self._news.get_nowait()
            while True:
                self._changed = True
                if news is not None:
                    self._take_in(*news)
                news = self._news.get_nowait()

    def _take_in(self, slot: Slot | None, news: News) -> None:
        if slot is None:
            for place in self._seats:
                if isinstance(news, SlotTrouble) and place.met is None:
                    self._suffer(place, news)
            return
        while len(self._seats) <= slot:
            self._seats.append(_place(len(self._seats), self._spec))
        place = self._seats[slot]
        match news:
            case Met():
                place.met, place.report, place.sent, place.trouble = news, None, 0, None
                place.there.clear()
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
            return replace(event, slot=slot)
        if isinstance(event, Died):
            lost = [one for one in event.lost if place.task(one[0], one[1])]
            gone = {one[:2] for one in lost}
            place.tasks = deque(task for task in place.tasks if task.job.who not in gone)
            return replace(event, slot=slot, lost=lost)
        task = place.task(event.job_id, event.attempt)
        if task is None:
            return None
        match event:
            case Started():
                task.started = time.monotonic()
            case Step():
                task.done, task.total = event.done, event.total
            case Previewed():
                pass
            case _:
                place.tasks.remove(task)
        return replace(event, slot=slot)

    def _mourn(self, place: _FarSlot, lost: Lost) -> None:
        """Report that its process is gone; a job counts as the cause where the process died and not the
        machine.

        So does the job in turn where nothing was heard of its start: the message may be lost.
        """
        jobs = [
            (*task.job.who, task.started is not None or (lost.died and not turn))
            for turn, task in enumerate(place.tasks)
        ]
        met, place.met, place.report = place.met, None, None
        place.state, place.last_death = "waiting", lost.how
        if self._stopping or met is None:
            return
        place.tasks.clear()
        place.restarts += 1
        log.warning("slot %d: process %d on %s: %s", place.slot, met.pid, met.host, lost.how)
        self._events.append(Died(place.slot, jobs, lost.how, blame=lost.died))


def _place(slot: Slot, spec: WorkerSpec) -> _FarSlot:
    return _FarSlot(slot, spec.device, spec, state="waiting")


def _keep_signals() -> None:
    """Install Python's signal handlers again: those that Ray put below them end a process by an
    abort."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
