"""Who runs engines, seen from the watcher: one slot per device, each a worker process.

Used by one thread, which also must be the one that starts processes for good (the watcher's
main thread: Linux ends a worker when the *thread* that started it ends). Nothing here waits
for a worker: sockets do not block, what cannot be sent at once is kept, and every wait has
its place in ``events``. Only ``wake`` may be called from anywhere.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from watcher.errors import ERRORS, SteadyError
from watcher.jobs import JobRequest, forwards_of
from watcher.wire import PLACE_SIZE, PLACES, BadFrame, Frames, line

log = logging.getLogger("watcher.executor")

Slot = int  #: 0 .. n-1, one per device

#: Defaults of LocalExecutor, in seconds; see there.
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
KILL_AFTER = 5.0
SILENCE = 60.0
#: The floor of the step deadline, and what holds while no step was ever seen: one step of a
#: large picture on a slow processor takes minutes.
STEP_FLOOR, STEP_UNKNOWN = 60.0, 600.0
STEP_FACTOR = 20


# -- what an executor says


@dataclass(frozen=True)
class Ready:
    """The engine is loaded; ``info`` is the EngineInfo as a dict."""

    slot: Slot
    info: dict[str, Any]


@dataclass(frozen=True)
class Started:
    """The engine began this job. Until then the job had no part in what happens to its worker."""

    slot: Slot
    job_id: str
    attempt: int


@dataclass(frozen=True)
class Step:
    """``done`` of ``total`` forwards are over."""

    slot: Slot
    job_id: str
    attempt: int
    done: int
    total: int


@dataclass(frozen=True)
class Picture:
    """The job's picture. ``rgb`` is width x height x 3 bytes, rows from the top."""

    slot: Slot
    job_id: str
    attempt: int
    size: tuple[int, int]
    rgb: bytes = field(repr=False)
    timings: dict[str, Any] = field(repr=False)  #: seconds by phase, counters
    info: dict[str, Any] = field(repr=False)  #: the engine as it was for this very picture


@dataclass(frozen=True)
class Failed:
    """The job ended without a picture; the worker lives. ``code`` is a key of ERRORS."""

    slot: Slot
    job_id: str
    attempt: int
    code: str
    message: str


@dataclass(frozen=True)
class Died:
    """The worker is gone, or could not be started; the executor starts another by itself.

    ``lost``: (job id, attempt, had it started?) of every job that was with it. A death counts
    against a job only when it had started and ``blame`` is set: no blame where the model or
    device is missing, or where somebody ended the worker with SIGTERM from outside.
    """

    slot: Slot
    lost: list[tuple[str, int, bool]]
    how: str
    environment: SteadyError | None = None
    blame: bool = True


Event = Ready | Started | Step | Picture | Failed | Died


class Executor(Protocol):
    """What the watcher needs of whoever runs engines."""

    def start(self) -> None:
        """Begin to load, on every slot."""

    def events(self, timeout: float) -> list[Event]:
        """What happened since, in order; waits up to ``timeout`` seconds while nothing has.

        Also returns early, perhaps empty-handed, after ``wake`` or when ``wants`` changed.
        """
        ...

    def wake(self) -> None:
        """Let ``events`` return now. From any thread or signal handler."""

    def wants(self) -> list[Slot]:
        """Slots that should be given a job now, the most urgent first."""
        ...

    def send(self, slot: Slot, job_id: str, attempt: int, request: JobRequest) -> None:
        """Hand a (resolved) job to a slot that ``wants`` one; ValueError otherwise."""

    def cancel(self, job_id: str) -> None:
        """End this job at its next step: Failed with code ``cancelled``, unless it was faster."""

    def stop(self, grace: float) -> list[tuple[str, int]]:
        """End all workers; running jobs have ``grace`` seconds to come to their end.

        Returns (job id, attempt) of the jobs that did not. Pictures that did arrive meanwhile
        are in one last ``events(0)``. Takes at most about ``grace`` + 2 seconds.
        """
        ...

    def status(self) -> list[dict[str, Any]]:
        """One dict per slot for live.json."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """What every worker of an executor loads. ``device`` is used when no devices are listed."""

    engine: str
    model: str
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def order(self, device: str) -> bytes:
        """The message that makes a worker load this. SteadyError ``bad_config`` for options
        that are no plain data."""
        what = {"engine": self.engine, "model": self.model, "device": device, "dtype": self.dtype}
        try:
            return line({"type": "load", **what, "options": dict(self.options)})
        except (TypeError, ValueError) as error:
            raise SteadyError("bad_config", f"`engine_options`: {error}.") from None


# -- one slot


@dataclass
class _Task:
    """A job that was handed to a slot."""

    job_id: str
    attempt: int
    request: JobRequest
    total: int
    done: int = 0
    started: float | None = None  #: monotonic
    started_at: int | None = None  #: microseconds UTC, for people
    moved: float = 0.0  #: monotonic: when it last came a step further (or was handed over)
    cancelled: bool = False
    overdue: float | None = None  #: monotonic: when its deadline passed

    @property
    def size(self) -> tuple[int, int]:
        return (self.request.width or 0, self.request.height or 0)

    def message(self) -> bytes:
        request = self.request.model_dump(mode="json", exclude_none=True)
        return line(
            {"type": "run", "job_id": self.job_id, "attempt": self.attempt, "request": request}
        )


@dataclass
class _Child:
    """One worker process and the socket to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    pidfd: int | None
    shelf: int  #: the file its pictures are in
    born: float
    frames: Frames = field(default_factory=Frames)
    unsent: bytearray = field(default_factory=bytearray)
    heard: float = 0.0
    rss: int | None = None
    open: bool = True  #: the socket is; the process may live on for a moment without
    ready: bool = False
    expected: bool = False  #: it was told to leave
    ended: str | None = None  #: why we end it: a deadline, nonsense
    plan: list[tuple[float, int]] = field(default_factory=list)  #: signals to come
    signalled: set[int] = field(default_factory=set)
    reason: tuple[str, str] | None = None  #: code and words it left with

    @property
    def doomed(self) -> bool:
        """Its end is under way: no deadline matters any more."""
        return bool(self.plan) or self.ended is not None or not self.open


@dataclass
class _Seat:
    """A slot across its workers. ``tasks[0]`` runs (or is about to), ``tasks[1]`` waits."""

    slot: Slot
    device: str
    order: bytes  #: what its workers are told to load
    state: str = "off"  #: off loading ready leaving unloaded waiting dying stopped
    child: _Child | None = None
    info: dict[str, Any] = field(default_factory=dict)
    tasks: deque[_Task] = field(default_factory=deque)
    idle_since: float = 0.0
    failures: int = 0  #: failed loads and deaths since a job last ended
    retry_at: float = 0.0
    restarts: int = 0
    last_death: str | None = None


class Pace:
    """How long steps take, by picture size, to tell slow from stuck."""

    def __init__(self, fixed: float | None) -> None:
        self._fixed = fixed
        self._seen: OrderedDict[tuple[int, int], deque[float]] = OrderedDict()

    def add(self, size: tuple[int, int], seconds: float) -> None:
        self._seen.setdefault(size, deque(maxlen=32)).append(seconds)
        self._seen.move_to_end(size)
        if len(self._seen) > 256:
            self._seen.popitem(last=False)

    def median(self, size: tuple[int, int]) -> float | None:
        """Seconds a step takes; of a size never seen, guessed from the last one that was."""
        if size in self._seen:
            return statistics.median(self._seen[size])
        if not self._seen:
            return None
        known = next(reversed(self._seen))
        growth = max(1.0, size[0] * size[1] / max(1, known[0] * known[1]))
        return statistics.median(self._seen[known]) * growth**2  # attention grows so

    def limit(self, size: tuple[int, int]) -> float:
        """Seconds after which a step counts as stuck."""
        if self._fixed is not None:
            return self._fixed
        median = self.median(size)
        return STEP_UNKNOWN if median is None else max(STEP_FLOOR, STEP_FACTOR * median)


class LocalExecutor:
    """Worker processes on this machine (see Executor for the promises).

    Args:
        spec: what the workers load.
        devices: one slot each; empty means one slot on ``spec.device``.
        load_timeout, step_timeout, job_timeout: seconds. Without ``step_timeout`` a step may
            take 20 times the median of its size, and at least a minute.
        idle_unload: seconds without work after which a worker ends, giving all its memory
            back; the next job starts it again. None: never.
        python: the interpreter of the workers.
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
        python: str = sys.executable,
        backoff: Sequence[float] = BACKOFF,
        kill_after: float = KILL_AFTER,
        silence: float = SILENCE,
    ) -> None:
        self._load_timeout = load_timeout
        self._job_timeout = job_timeout
        self._idle_unload = idle_unload
        self._python = python
        self._backoff = tuple(backoff)
        self._kill_after = kill_after
        self._silence = silence
        self._pace = Pace(step_timeout)
        self._seats = [
            _Seat(slot, device, spec.order(device))
            for slot, device in enumerate(devices or [spec.device])
        ]
        self._events: list[Event] = []
        self._changed = False  #: wants() may answer differently now
        self._stopping = False
        self._closed = False
        self.counters: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, None)

    # -- the protocol

    def start(self) -> None:
        for seat in self._seats:
            if seat.state == "off":
                self._spawn(seat)

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

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
            self._ringer.send(b"!")

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
        return idle + nearly + asleep

    def send(self, slot: Slot, job_id: str, attempt: int, request: JobRequest) -> None:
        if slot not in self.wants():
            raise ValueError(f"slot {slot} takes no job now")
        seat = self._seats[slot]
        steps = request.num_inference_steps or 1
        task = _Task(job_id, attempt, request, total=forwards_of(steps), moved=time.monotonic())
        message = task.message()  # ValueError for one too large, before anything changed
        seat.tasks.append(task)
        if seat.state == "unloaded":
            self._spawn(seat)  # sent when it is ready
        elif seat.child is not None:
            self._post(seat, seat.child, message)

    def cancel(self, job_id: str) -> None:
        for seat in self._seats:
            for task in list(seat.tasks):
                if task.job_id == job_id and not task.cancelled:
                    self._cancel(seat, task)

    def stop(self, grace: float) -> list[tuple[str, int]]:
        if self._closed:
            return []
        self._stopping = True
        for seat in self._seats:
            if seat.child is not None:
                self._dismiss(seat, seat.child)
            else:
                seat.state = "stopped"
        for patience, number in ((grace, None), (1.0, signal.SIGTERM), (2.0, signal.SIGKILL)):
            for seat in self._seats:
                if seat.child is not None and number is not None:
                    self._signal(seat.child, number)
            deadline = time.monotonic() + patience
            while any(seat.child for seat in self._seats) and time.monotonic() < deadline:
                self._turn(deadline - time.monotonic())
        for seat in self._seats:
            if seat.child is not None:  # in uninterruptible sleep: leave it to the system
                self._forget(seat.child)
        unfinished = [(t.job_id, t.attempt) for seat in self._seats for t in seat.tasks]
        self._closed = True
        self._selector.close()
        self._bell.close()
        self._ringer.close()
        return unfinished

    def status(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [self._status(seat, now) for seat in self._seats]

    # -- one turn of the loop

    def _turn(self, timeout: float) -> None:
        """Wait for something, take in everything there is, then look at the clock."""
        wait = max(0.0, min(timeout, self._next_alarm() - time.monotonic()))
        for key, mask in self._selector.select(wait):
            if key.data is None:
                self._quieten()
                continue
            seat, child = key.data
            if seat.child is not child:
                continue  # buried earlier in this very turn
            if key.fileobj == child.pidfd:
                self._bury(seat, child)
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(seat, child)
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

    def _next_alarm(self) -> float:
        return min((self._alarm(seat) for seat in self._seats), default=float("inf"))

    def _alarm(self, seat: _Seat) -> float:
        """When to look at this slot again though nothing was heard."""
        child = seat.child
        if child is None:
            return seat.retry_at if seat.state == "waiting" else float("inf")
        alarms = [when for when, _ in child.plan[:1]]
        if child.pidfd is None:
            alarms.append(time.monotonic() + 0.1)
        if not child.doomed and not self._stopping:
            alarms.append(self._deadline(seat, child)[0])
            if self._idle_unload is not None and seat.state == "ready" and not seat.tasks:
                alarms.append(seat.idle_since + self._idle_unload)
        return min(alarms, default=float("inf"))

    def _deadline(self, seat: _Seat, child: _Child) -> tuple[float, str]:
        """The next deadline of this worker (monotonic) and its name."""
        if seat.state == "loading":
            return child.born + self._load_timeout, f"load deadline ({self._load_timeout:g} s)"
        if seat.state == "leaving":
            return seat.idle_since + self._kill_after, "did not leave when told to"
        if not seat.tasks:
            return child.heard + self._silence, f"silent for {self._silence:g} s"
        task = seat.tasks[0]
        if task.started is None:
            return task.moved + STEP_FLOOR, f"did not begin a job in {STEP_FLOOR:g} s"
        limit = self._pace.limit(task.size)
        step = (task.moved + limit, f"step deadline ({limit:g} s)")
        if task.overdue is None:
            return min(step, (task.started + self._job_timeout, "job deadline"))
        patience = self._kill_after + 3 * (self._pace.median(task.size) or 0.0)
        return min(step, (task.overdue + patience, f"job deadline ({self._job_timeout:g} s)"))

    def _look(self, seat: _Seat, now: float) -> None:
        """Whatever is due for this slot at ``now``."""
        child = seat.child
        if child is None:
            if seat.state == "waiting" and now >= seat.retry_at and not self._stopping:
                self._spawn(seat)
            return
        if child.pidfd is None and child.process.poll() is not None:
            self._bury(seat, child)
            return
        while child.plan and now >= child.plan[0][0]:
            self._signal(child, child.plan.pop(0)[1])
        if child.doomed or self._stopping:
            return
        when, what = self._deadline(seat, child)
        if now >= when:
            task = seat.tasks[0] if seat.tasks else None
            if what == "job deadline" and task is not None:
                task.overdue = now
                self._cancel(seat, task)  # politely first: that costs no reload
                return
            if task is not None and task.overdue is not None:
                seat.tasks.popleft()
                self._fail(seat, task, "timed_out", self._overdue_words())
            self._end(seat, child, what)
        elif (
            self._idle_unload is not None
            and seat.state == "ready"
            and not seat.tasks
            and now >= seat.idle_since + self._idle_unload
        ):
            log.info("slot %d: idle, worker %d ends", seat.slot, child.process.pid)
            seat.idle_since = now
            self._dismiss(seat, child)

    # -- processes

    def _spawn(self, seat: _Seat) -> None:
        ours, theirs = socket.socketpair()
        shelf = _shelf()
        now = time.monotonic()
        try:
            process = subprocess.Popen(
                [
                    *(self._python, "-P", "-m", "watcher.worker"),
                    *("--fd", str(theirs.fileno()), "--shelf", str(shelf)),
                    *("--parent", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno(), shelf],
                start_new_session=True,  # Ctrl-C on the terminal is for the watcher alone
                env=_environment(),
            )
        except OSError as error:
            ours.close()
            os.close(shelf)
            trouble = SteadyError("worker_unavailable", f"No worker process: {error.strerror}.")
            self._mourn(seat, f"could not be started ({error.strerror})", trouble)
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        child = _Child(process, ours, _pidfd(process.pid), shelf, born=now, heard=now)
        seat.child, seat.state, seat.info = child, "loading", {}
        self._selector.register(ours, selectors.EVENT_READ, (seat, child))
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ, (seat, child))
        self.counters["spawned"] += 1
        self._post(seat, child, seat.order)

    def _dismiss(self, seat: _Seat, child: _Child) -> None:
        """Tell the worker to leave when the job in hand is done."""
        child.expected = True
        seat.state = "leaving"
        self._post(seat, child, line({"type": "stop"}))

    def _end(self, seat: _Seat, child: _Child, why: str, *, at_once: bool = False) -> None:
        """Kill the worker: it shows where it hangs, then SIGTERM, then SIGKILL."""
        now = time.monotonic()
        child.ended, seat.state = why, "dying"
        log.warning("slot %d: worker %d: %s; ending it", seat.slot, child.process.pid, why)
        if at_once:
            child.plan = []
            self._signal(child, signal.SIGKILL)
        else:
            self._signal(child, signal.SIGUSR1)
            term = now + 0.2
            child.plan = [(term, signal.SIGTERM), (term + self._kill_after, signal.SIGKILL)]
        self._changed = True

    def _signal(self, child: _Child, number: int) -> None:
        child.signalled.add(number)
        child.process.send_signal(number)  # polls first: never hits a stranger's pid

    def _forget(self, child: _Child) -> None:
        """Close everything of ours that belonged to this worker."""
        if child.open:
            self._close(child)
        if child.pidfd is not None:
            self._selector.unregister(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = None
        os.close(child.shelf)

    def _close(self, child: _Child) -> None:
        self._selector.unregister(child.channel)
        child.channel.close()
        child.open = False

    def _bury(self, seat: _Seat, child: _Child) -> None:
        """The process has ended: take its last words, then draw the conclusions."""
        if child.open:
            self._read(seat, child)
        code = child.process.wait()  # has ended: returns at once
        self._forget(child)
        seat.child = None
        self._changed = True
        if child.expected and not (seat.tasks and not self._stopping):
            seat.state = "stopped" if self._stopping else "unloaded"
            return
        how, environment, blame = _cause(child, code)
        self._mourn(seat, how, environment, blame)

    def _mourn(
        self, seat: _Seat, how: str, environment: SteadyError | None, blame: bool = True
    ) -> None:
        """Report a death or a failed start, and decide when to try again."""
        if self._stopping:
            seat.state = "stopped"
            return
        lost = [(t.job_id, t.attempt, t.started is not None) for t in seat.tasks]
        seat.tasks.clear()
        seat.state = "waiting"
        seat.last_death = how
        seat.retry_at = time.monotonic() + self._backoff[min(seat.failures, len(self._backoff) - 1)]
        seat.failures += 1
        seat.restarts += 1
        self.counters["deaths"] += 1
        log.warning("slot %d: worker %s", seat.slot, how)
        self._events.append(Died(seat.slot, lost, how, environment, blame))

    # -- talking

    def _post(self, seat: _Seat, child: _Child, data: bytes) -> None:
        child.unsent += data
        self._flush(seat, child)

    def _flush(self, seat: _Seat, child: _Child) -> None:
        if not child.open:
            return
        try:
            while child.unsent:
                del child.unsent[: child.channel.send(child.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            child.unsent.clear()  # it is dying; the other events will say so
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.unsent else 0)
        if self._selector.get_key(child.channel).events != mask:
            self._selector.modify(child.channel, mask, (seat, child))

    def _read(self, seat: _Seat, child: _Child) -> None:
        try:
            for _ in range(256):  # at most 16 MB a turn: other slots wait too
                data = child.channel.recv(1 << 16)
                if not data:
                    self._hung_up(child)
                    return
                child.heard = time.monotonic()
                for message in child.frames.feed(data):
                    self._heard(seat, child, message)
        except BlockingIOError:
            return
        except ConnectionError:
            self._hung_up(child)
        except (BadFrame, KeyError, TypeError, ValueError) as error:
            self._close(child)
            self.counters["nonsense"] += 1
            words = str(error) if isinstance(error, BadFrame) else f"a message without {error}"
            self._end(seat, child, f"sent nonsense ({words})", at_once=True)

    def _hung_up(self, child: _Child) -> None:
        """The socket is closed: the process has ended or has no use any more."""
        self._close(child)
        if not child.plan:
            child.plan = [(time.monotonic() + 0.5, signal.SIGKILL)]

    def _heard(self, seat: _Seat, child: _Child, message: dict[str, Any]) -> None:
        """One message. Raises BadFrame, KeyError or TypeError when it is none of ours."""
        kind = message["type"]
        if kind == "beat":
            child.rss = message["rss"]
        elif kind == "hello":
            pass
        elif kind == "ready":
            self._loaded(seat, child, dict(message["info"]))
        elif kind in ("load_failed", "leaving"):
            child.reason = (str(message["code"]), str(message["message"])[:2000])
        elif kind in ("started", "step", "picture", "failed"):
            self._progress(seat, child, kind, message)
        else:
            raise BadFrame(f"a message of kind {kind[:40]!r}")

    def _loaded(self, seat: _Seat, child: _Child, info: dict[str, Any]) -> None:
        if child.ready:
            raise BadFrame("ready twice")
        child.ready = True
        self._changed = True
        now = time.monotonic()
        seat.info, seat.idle_since = info, now
        self._events.append(Ready(seat.slot, info))
        if seat.state == "loading":
            seat.state = "ready"
            for task in seat.tasks:  # one that came while there was no worker
                task.moved = now
                self._post(seat, child, task.message())

    def _progress(self, seat: _Seat, child: _Child, kind: str, message: dict[str, Any]) -> None:
        who = (message["job_id"], message["attempt"])
        task = next((t for t in seat.tasks if (t.job_id, t.attempt) == who), None)
        if task is None and child.ended is not None:
            return  # it was given up together with its worker
        if task is None:
            raise BadFrame(f"a word about a job it was not given ({str(who[0])[:60]})")
        now = time.monotonic()
        self._changed = True
        if kind == "failed":
            self._failed(seat, task, str(message["code"]), str(message["message"])[:2000])
            return
        if task is not seat.tasks[0]:
            raise BadFrame("a word about a job whose turn it is not")
        if kind == "started":
            task.started, task.started_at, task.moved = now, time.time_ns() // 1000, now
            self._events.append(Started(seat.slot, task.job_id, task.attempt))
        elif kind == "step":
            done, total = int(message["done"]), int(message["total"])
            if task.done or total == 1:  # the first one contains the prompt's encoding
                self._pace.add(task.size, now - task.moved)
            task.done, task.total, task.moved = done, total, now
            self._events.append(Step(seat.slot, task.job_id, task.attempt, done, total))
        else:
            size = (int(message["width"]), int(message["height"]))
            if size != task.size:
                raise BadFrame(f"a picture of the wrong size ({size[0]}x{size[1]})")
            rgb = _picture(child.shelf, message["place"], size)
            self._post(seat, child, line({"type": "taken"}))
            info = {**seat.info, **dict(message["info"])}
            timings = dict(message["timings"])
            self._done(seat, task, "pictures")
            self._events.append(
                Picture(seat.slot, task.job_id, task.attempt, size, rgb, timings, info)
            )

    def _failed(self, seat: _Seat, task: _Task, code: str, message: str) -> None:
        self._done(seat, task, "failed")
        if code == "cancelled" and task.overdue is not None:
            code, message = "timed_out", self._overdue_words()
        if code not in ERRORS:
            code, message = "engine_failed", f"{code[:60]}: {message}"
        self._fail(seat, task, code, message)

    def _fail(self, seat: _Seat, task: _Task, code: str, message: str) -> None:
        self._events.append(Failed(seat.slot, task.job_id, task.attempt, code, message))

    def _overdue_words(self) -> str:
        return f"The job took longer than {self._job_timeout:g} seconds."

    def _done(self, seat: _Seat, task: _Task, counter: str) -> None:
        """The job ended and its worker lives."""
        now = time.monotonic()
        seat.tasks.remove(task)
        seat.failures = 0
        seat.idle_since = now
        for waiting in seat.tasks:
            waiting.moved = max(waiting.moved, now)
        self.counters[counter] += 1

    def _cancel(self, seat: _Seat, task: _Task) -> None:
        task.cancelled = True
        if seat.state == "loading":  # it was never sent
            seat.tasks.remove(task)
            self._fail(seat, task, "cancelled", "The job was cancelled.")
            self._changed = True
        elif seat.child is not None:
            self._post(seat, seat.child, line({"type": "cancel", "job_id": task.job_id}))

    # -- telling

    def _status(self, seat: _Seat, now: float) -> dict[str, Any]:
        child = seat.child
        running = seat.tasks[0] if seat.tasks and seat.tasks[0].started is not None else None
        state = "busy" if seat.state == "ready" and seat.tasks else seat.state
        return {
            "slot": seat.slot,
            "device": seat.info.get("device", seat.device),
            "state": state,
            "pid": child.process.pid if child else None,
            "info": seat.info,
            "rss": child.rss if child else None,
            "heard_seconds_ago": round(now - child.heard, 3) if child else None,
            "job": None
            if running is None
            else {
                "job_id": running.job_id,
                "attempt": running.attempt,
                "step": running.done,
                "steps": running.total,
                "started_at": running.started_at,
                "step_seconds_ago": round(now - running.moved, 3),
            },
            "prefetched": [t.job_id for t in seat.tasks if t is not running],
            "restarts": seat.restarts,
            "failures": seat.failures,
            "retry_in": round(max(0.0, seat.retry_at - now), 3) if state == "waiting" else None,
            "last_death": seat.last_death,
        }


def _environment() -> dict[str, str]:
    """Ours, with this very package on the worker's path (``-P`` keeps its cwd out of it)."""
    home = Path(__file__).resolve().parent.parent
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if home.name not in ("site-packages", "dist-packages"):
        path.append(str(home))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _pidfd(pid: int) -> int | None:
    """A descriptor that turns readable when the process ends, where the system has such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _shelf() -> int:
    """A file without a name for two pictures: in memory, or where temporary files are."""
    try:
        return os.memfd_create("pictures")
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _picture(shelf: int, place: Any, size: tuple[int, int]) -> bytes:
    """The pixels at ``place``. BadFrame when there are none."""
    wanted = size[0] * size[1] * 3
    if place not in range(PLACES) or wanted > PLACE_SIZE:
        raise BadFrame("a picture at no place")
    data = os.pread(shelf, wanted, place * PLACE_SIZE)
    if len(data) != wanted:
        raise BadFrame("a picture that is not there")
    return data


def _cause(child: _Child, code: int) -> tuple[str, SteadyError | None, bool]:
    """Of an unexpected end: the words, the trouble around us if that was it, and blame."""
    how = f"was ended: {child.ended}" if child.ended is not None else _words(child, code)
    if child.reason is not None:
        kind, text = child.reason
        if not child.ready or kind == "device_lost":
            trouble = SteadyError(kind if kind in ERRORS else "engine_failed", text)
            return f"could not load the model ({text})" if not child.ready else text, trouble, False
        return f"left on purpose after {text}", None, True
    if not child.ready:
        trouble = SteadyError("worker_unavailable", f"The worker {how} while loading the model.")
        return how, trouble, False
    from_outside = code == -signal.SIGTERM and signal.SIGTERM not in child.signalled
    return how, None, not from_outside


def _words(child: _Child, code: int) -> str:
    if code >= 0:
        return f"left with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"was ended by {name}"
