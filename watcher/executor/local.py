"""Worker processes on this machine: one slot per device, each with one worker at a time.

Used by one thread, which also must be the one that starts processes for good (the watcher's
main thread: Linux ends a worker when the *thread* that started it ends). Nothing here waits
for a worker: every wait has its place in ``events``. Only ``wake`` may be called from anywhere.
Knows nothing of the record. When this process dies its workers see their socket close and end.
"""

import contextlib
import logging
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from watcher import wire
from watcher.errors import ERRORS, ErrorClass, SteadyError
from watcher.executor import (
    NO_FILES,
    Died,
    Failed,
    Files,
    Picture,
    Previewed,
    Ready,
    Slot,
    Started,
    Step,
    WorkerSpec,
)
from watcher.executor.child import Child
from watcher.executor.patience import JOB_DEADLINE, Deadlines, Patience
from watcher.executor.seat import Ailment, Seat, Slots, Task
from watcher.jobs import Job
from watcher.log import now_us
from watcher.program import Launch
from watcher.wire import BadFrame, Said, line

log = logging.getLogger("watcher.executor")

#: Defaults of LocalExecutor, in seconds; see there.
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
KILL_AFTER = 5.0
SILENCE = 60.0


class LocalExecutor(Slots[Seat]):
    """Worker processes on this machine (see Executor for the promises).

    Args:
        spec: what the workers load.
        devices: one slot each; empty means one slot on ``spec.device``.
        load_timeout, step_timeout, job_timeout: seconds. Without ``step_timeout`` a step may
            take 20 times the median of its size, and at least a minute.
        idle_unload: seconds without work after which a worker ends, giving all its memory
            back; the next job starts it again. None: never.
        launch: starts their processes.
        backoff: seconds before the first, second, … restart in a row; the last one repeats.
        kill_after: seconds from SIGTERM to SIGKILL.
        silence: seconds after which an idle worker that says nothing (it does every second)
            counts as dead.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        devices: Sequence[str] = (),
        *,
        load_timeout: float = 600,
        step_timeout: float | None = None,
        job_timeout: float = 3600,
        idle_unload: float | None = None,
        launch: Launch = subprocess.Popen,
        backoff: Sequence[float] = BACKOFF,
        kill_after: float = KILL_AFTER,
        silence: float = SILENCE,
    ) -> None:
        spec.check()
        first = spec.of(spec.first)
        super().__init__(
            spec,
            [Seat(slot, device, first) for slot, device in enumerate(devices or [spec.device])],
        )
        self._idle_unload = float("inf") if idle_unload is None else idle_unload
        self._launch = launch
        self._backoff = tuple(backoff)
        self._kill_after = kill_after
        self._patience = Patience(step_timeout)
        self._deadlines = Deadlines(self._patience, load_timeout, job_timeout, kill_after, silence)
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, None)

    # -- the protocol

    @override
    def start(self) -> None:
        for seat in self._seats:
            if seat.state == "off":
                self._spawn(seat)

    @override
    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
            self._ringer.send(b"!")

    @override
    def wants(self) -> list[Slot]:
        if self._stopping:
            return []
        idle, nearly, asleep = [], [], []
        for seat in self._seats:
            if seat.state == "ready" and not seat.tasks:
                idle.append(seat.slot)
            elif seat.state == "ready" and len(seat.tasks) == 1:
                task = seat.tasks[0]
                if task.started is not None and task.done >= task.total - 1:
                    nearly.append(seat.slot)
            elif seat.state == "unloaded" and not seat.tasks:
                asleep.append(seat.slot)
            elif seat.state == "waiting" and self._spec.others and seat.spec.name in seat.ailing:
                asleep.append(seat.slot)  # for another model
        return idle + nearly + asleep

    @override
    def unfit(self, slot: Slot) -> frozenset[str]:
        return self._seats[slot].unfit(time.monotonic())

    @override
    def send(self, slot: Slot, job: Job, files: Files = NO_FILES) -> None:
        seat, task = self._take(slot, job, files)
        if seat.child is None:
            self._spawn(seat)  # sent when it is ready
        elif seat.fits(task):
            seat.child.post(task.message())
        elif task is seat.tasks[0]:
            self._dismiss(seat, seat.child)

    @override
    def look(self, job_id: str) -> None:
        for seat in self._seats:
            if seat.child is not None and seat.tasks and seat.tasks[0].job.id == job_id:
                seat.child.post(line({"type": "look", "job_id": job_id}))

    @override
    def stop(self, grace: float) -> None:
        if self._closed:
            return
        self._stopping = True
        for seat in self._seats:
            if seat.child is not None:
                self._dismiss(seat, seat.child)
            else:
                seat.state = "stopped"
        for patience, number in ((grace, None), (1.0, signal.SIGTERM), (2.0, signal.SIGKILL)):
            for seat in self._seats:
                if seat.child is not None and number is not None:
                    seat.child.signal(number)
            deadline = time.monotonic() + patience
            while any(seat.child for seat in self._seats) and time.monotonic() < deadline:
                self._turn(deadline - time.monotonic())
        for seat in self._seats:
            if seat.child is not None:  # in uninterruptible sleep: leave it to the system
                seat.child.forget()
        self._closed = True
        self._selector.close()
        self._bell.close()
        self._ringer.close()

    # -- one turn of the loop

    @override
    def _turn(self, timeout: float) -> None:
        """Wait for something, take in everything there is, then look at the clock."""
        alarm = min((self._alarm(seat) for seat in self._seats), default=float("inf"))
        wait = max(0.0, min(timeout, alarm - time.monotonic()))
        for key, mask in self._selector.select(wait):
            if key.data is None:
                self._quieten()
                continue
            child = key.data
            seat = self._seats[child.slot]
            if seat.child is not child:
                continue  # buried earlier in this very turn
            if child.is_end(key.fileobj):
                self._bury(seat, child)
                continue
            if child.is_print(key.fileobj):
                child.overhear()
                continue
            if mask & selectors.EVENT_WRITE:
                child.flush()
            if mask & selectors.EVENT_READ:
                self._read(seat, child)
        # After the reading: whoever spoke in time is not late, however long *we* were away.
        now = time.monotonic()
        for seat in self._seats:
            self._look(seat, now)

    def _quieten(self) -> None:
        try:
            while self._bell.recv(4096):
                pass
        except BlockingIOError:
            pass
        self._changed = True

    def _alarm(self, seat: Seat) -> float:
        """When to look at this slot again though nothing was heard."""
        child = seat.child
        if child is None:
            return seat.retry_at if seat.state == "waiting" else float("inf")
        alarms = [child.alarm()]
        if not child.doomed and not self._stopping:
            alarms += [self._deadlines.next(seat, child)[0], self._unload_at(seat)]
        return min(alarms)

    def _unload_at(self, seat: Seat) -> float:
        """When its worker, which has no work, is to end (monotonic; infinity: it has, or stays)."""
        idle = seat.state == "ready" and not seat.tasks
        return seat.idle_since + self._idle_unload if idle else float("inf")

    def _look(self, seat: Seat, now: float) -> None:
        """Whatever is due for this slot at ``now``."""
        child = seat.child
        if child is None:
            if seat.state == "waiting" and now >= seat.retry_at and not self._stopping:
                self._spawn(seat)
            return
        if child.gone():
            self._bury(seat, child)
            return
        child.look(now)
        if child.doomed or self._stopping:
            return
        when, what = self._deadlines.next(seat, child)
        if now >= when:
            task = seat.tasks[0] if seat.tasks else None
            if what == JOB_DEADLINE and task is not None:
                task.overdue, task.cancelled = now, True
                self._cancel(seat, task)  # politely first: that costs no reload
                return
            if task is not None and task.overdue is not None:
                seat.tasks.popleft()
                self._fail(seat, task, "timed_out", self._deadlines.overdue_words)
            child.end(what, self._kill_after)
            self._dying(seat, child)
        elif now >= self._unload_at(seat):
            log.info("slot %d: idle, worker %d ends", seat.slot, child.pid)
            self._dismiss(seat, child)

    # -- processes

    def _spawn(self, seat: Seat) -> None:
        """Start a worker with the model of the job that waits for one, or the one it had."""
        if seat.tasks:
            seat.spec = seat.tasks[0].spec
        try:
            child = Child(seat.slot, self._launch, self._selector)
        except OSError as error:
            trouble = SteadyError("worker_unavailable", f"No worker process: {error.strerror}.")
            self._mourn(seat, f"could not be started ({error.strerror})", trouble)
            return
        seat.child, seat.state, seat.info = child, "loading", {}
        child.post(seat.spec.order(seat.device))

    def _dismiss(self, seat: Seat, child: Child) -> None:
        """Tell the worker to leave when the job in hand is done."""
        child.expected = True
        seat.state, seat.idle_since = "leaving", time.monotonic()
        child.post(line({"type": "stop"}))

    def _dying(self, seat: Seat, child: Child) -> None:
        """The worker was killed, or will be soon."""
        seat.state = "dying"
        log.warning("slot %d: worker %d: %s; ending it", seat.slot, child.pid, child.ended)
        self._changed = True

    def _bury(self, seat: Seat, child: Child) -> None:
        """The process has ended: take its last words, then draw the conclusions."""
        self._read(seat, child)
        code = child.wait()
        child.forget()
        seat.child = None
        self._changed = True
        if child.expected and seat.tasks and not self._stopping:
            self._spawn(seat)
            return
        if child.expected:
            seat.state = "stopped" if self._stopping else "unloaded"
            return
        self._mourn(seat, *child.cause(code))

    def _mourn(
        self, seat: Seat, how: str, environment: SteadyError | None, blame: bool = True
    ) -> None:
        """Report a death or a failed start, and decide when to try again."""
        if self._stopping:
            seat.state = "stopped"
            return
        lost = [(*t.job.who, t.started is not None) for t in seat.tasks]
        seat.tasks.clear()
        seat.state = "waiting"
        seat.last_death = how
        name = seat.spec.name
        before = seat.ailing[name].failures if name in seat.ailing else 0
        failures = max(before, seat.failures)
        seat.retry_at = time.monotonic() + self._backoff[min(failures, len(self._backoff) - 1)]
        if environment is not None:
            seat.suffer(environment)
        if seat.trouble is not None and environment is not None:
            seat.ailing[name] = Ailment(seat.trouble, before + 1, seat.retry_at)
        seat.failures += 1
        seat.restarts += 1
        log.warning("slot %d: worker %s", seat.slot, how)
        self._events.append(Died(seat.slot, lost, how, environment, blame))

    # -- talking

    def _read(self, seat: Seat, child: Child) -> None:
        try:
            for said in child.messages():
                self._heard(seat, child, said)
        except Exception as error:  # whatever a worker says costs that worker, never the watcher
            words = str(error)
            if not isinstance(error, BadFrame):
                words = f"{type(error).__name__} while reading it"
                log.exception("slot %d: worker %d", seat.slot, child.pid)
            child.hang_up()
            child.kill(f"sent nonsense ({words})")
            self._dying(seat, child)

    def _heard(self, seat: Seat, child: Child, said: Said) -> None:
        """One message. Raises BadFrame when it does not fit what was heard before."""
        match said:
            case wire.SaidHello():
                pass
            case wire.SaidBeat():
                child.rss = said.rss
            case wire.SaidReady():
                self._loaded(seat, child, dict(said.info))
            case wire.SaidLeaving():
                child.reason = (said.code, said.message)
            case _:
                self._progress(seat, child, said)

    def _loaded(self, seat: Seat, child: Child, info: dict[str, Any]) -> None:
        if child.ready:
            raise BadFrame("ready twice")
        child.ready = True
        self._changed = True
        now = time.monotonic()
        seat.info, seat.idle_since, seat.trouble = info, now, None
        seat.load_seconds = round(now - child.born, 3)
        seat.ailing.pop(seat.spec.name, None)
        self._events.append(Ready(seat.slot, info, seat.spec.name))
        if seat.state == "loading":
            seat.state = "ready"
            for task in filter(seat.fits, seat.tasks):  # that came while there was no worker
                task.moved = now
                child.post(task.message())

    def _progress(self, seat: Seat, child: Child, said: wire.SaidOfJob) -> None:
        who = (said.job_id, said.attempt)
        task = seat.task(*who)
        if task is None and child.ended is not None:
            return  # it was given up together with its worker
        if task is None:
            raise BadFrame(f"a word about a job it was not given ({said.job_id[:60]})")
        now = time.monotonic()
        self._changed = True
        if isinstance(said, wire.SaidFailed):
            self._failed(seat, task, said.code, said.message)
            return
        if task is not seat.tasks[0]:
            raise BadFrame("a word about a job whose turn it is not")
        match said:
            case wire.SaidStarted():
                if task.started is not None:
                    raise BadFrame("a job that it began before")
                task.started, task.started_at, task.moved = now, now_us(), now
                self._events.append(Started(seat.slot, *who))
            case wire.SaidStep():
                # The first one contains the prompt's encoding; and where nothing more is done, the
                # engine only says that it lives.
                if said.done > task.done and (task.done or said.total == 1):
                    self._patience.add(task.size, now - task.moved)
                task.done, task.total, task.moved = said.done, said.total, now
                self._events.append(Step(seat.slot, *who, said.done, said.total))
            case wire.SaidPreview():
                self._events.append(Previewed(seat.slot, *who, said.jpeg))
            case wire.SaidPicture():
                size = (said.width, said.height)
                if size != task.size:
                    raise BadFrame(f"a picture of the wrong size ({size[0]}x{size[1]})")
                rgb = child.picture(said.place, size)
                child.post(line({"type": "taken"}))
                self._done(seat, task)
                info = {**seat.info, **said.info}
                self._events.append(Picture(seat.slot, *who, size, rgb, said.timings, info))

    def _failed(self, seat: Seat, task: Task, code: str, message: str) -> None:
        self._done(seat, task)
        if code == "cancelled" and task.overdue is not None:
            code, message = "timed_out", self._deadlines.overdue_words
        asked = code != "cancelled" or task.cancelled
        if not asked or code not in ERRORS or ERRORS[code].klass is ErrorClass.ENVIRONMENT:
            code, message = "engine_failed", f"{code[:60]}: {message}"
        self._fail(seat, task, code, message)

    def _fail(self, seat: Seat, task: Task, code: str, message: str) -> None:
        self._events.append(Failed(seat.slot, *task.job.who, code, message))

    def _done(self, seat: Seat, task: Task) -> None:
        """The job ended and its worker lives."""
        now = time.monotonic()
        seat.tasks.remove(task)
        seat.failures = 0
        seat.idle_since = now
        for waiting in seat.tasks:
            waiting.moved = max(waiting.moved, now)
        if seat.tasks and not seat.fits(seat.tasks[0]) and seat.child is not None:
            self._dismiss(seat, seat.child)

    @override
    def _cancel(self, seat: Seat, task: Task) -> None:
        if seat.state == "loading" or not seat.fits(task):  # it was never sent
            seat.tasks.remove(task)
            self._fail(seat, task, "cancelled", "The job was cancelled.")
            self._changed = True
        elif seat.child is not None:
            seat.child.post(line({"type": "cancel", "job_id": task.job.id}))
