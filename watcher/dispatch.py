"""From the record to a worker: which job runs now, and what is done when it does not end well.

The dispatcher owns the executor and lives in the watcher's main thread. It knows nothing
of files and pictures: pixels go straight to the finisher.

A crash here leaves jobs in ``generating``; the next start looks for their pictures and
otherwise puts them back (finish.py).
"""

import collections
import contextlib
import datetime
import functools
import logging
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

from watcher import executor as ex
from watcher.checkpoints import reached
from watcher.errors import ERRORS, ErrorClass, SteadyError, Trouble
from watcher.executor import Executor, Files
from watcher.finish import Finisher
from watcher.jobs import Job, JobState, Priority
from watcher.log import say
from watcher.modelstate import LAST_MODEL
from watcher.pace import RunWindow
from watcher.parts import Part, Shared
from watcher.previews import Previews
from watcher.publish import disk_errors
from watcher.store import PATIENCE, Want

logger = logging.getLogger("steady.dispatch")

MAX_DEATHS = 2  #: worker deaths a job may cause
MAX_TRANSIENT = 3  #: attempts of a job that meets passing device errors
BACKLOG = 4  #: pictures waiting to be saved before no further job is handed out
STREAK = 5  #: failures of one class in a row that pause the queue
_TURN_SECONDS = 0.025  #: for which a turn waits for the workers
_PEEK_SECONDS = 0.5  #: between looks for those who want to see a picture grow
_LOOK_SECONDS = 1.0  #: also without a change in the record: held rows, window
_AGAIN_SECONDS = 5.0  #: after the files of a job could not be had


@dataclass(frozen=True)
class Choosing:
    """What is handed out when: which models there are for jobs to name, and what spares a card.

    ``usual``: of jobs that name none. ``absent``: names of those whose files are not here now.
    ``patience``: seconds a job may be passed by for others of the loaded model. ``begun``: the
    model that workers begin with. ``cooldown``: seconds a slot rests after a picture. ``hot``: is
    a card too hot for the next job?
    """

    usual: str = ""
    others: Sequence[str] = ()
    absent: Callable[[], Container[str]] = tuple
    patience: float = PATIENCE
    begun: str = ""
    cooldown: float = 0
    hot: Callable[[], bool] = bool


@dataclass
class Running:
    """A job that a worker has, or has next."""

    job: Job
    slot: int
    steps: int
    step: int = 0
    started_at: int | None = None
    cancelling: bool = False
    preview: int | None = None  #: the step of the last one

    def as_dict(self) -> dict[str, Any]:
        """An entry of ``running`` in live.json."""
        return {
            "job_id": self.job.id,
            "attempt": self.job.attempt,
            "slot": self.slot,
            "step": self.step,
            "steps": self.steps,
            "started_at": self.started_at,
            "preview": self.preview,
        }


class Dispatcher(Part):
    """Feeds the executor from the store and settles what comes back.

    One thread only. ``turn`` is one look at everything and returns after at most
    ``timeout`` seconds. ``files_of`` gives the files of a job that is about to run; a SteadyError
    of it is what the job fails with.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        executor: Executor,
        finisher: Finisher,
        window: RunWindow,
        files_of: Callable[[Job], Files],
        previews: Previews,
        choosing: Choosing = Choosing(),
    ) -> None:
        super().__init__(shared)
        self._previews = previews
        self._peeked = 0.0  #: when it was last asked who looks
        self._files_of = files_of
        self._executor = executor
        self._finisher = finisher
        self._window = window
        self._choosing = choosing
        self._warm: dict[ex.Slot, str] = {}  #: of the last job that did not jump the queue
        self._latest: dict[ex.Slot, str] = {}  #: the model of the last job that was handed out
        self._loaded: dict[ex.Slot, ex.Ready] = {}
        self._loras: dict[ex.Slot, str] = {}  #: the LoRAs of the last job that was handed out
        self._rests: dict[ex.Slot, float] = {}  #: monotonic: until when a slot rests
        self._astray = False  #: what was claimed last may have reached no worker
        self._running: dict[str, Running] = {}
        #: What the workers said and the record does not know yet: kept while it is in trouble.
        self._owed: collections.deque[ex.Event] = collections.deque()
        self._version: int | None = None
        self._looked = 0.0
        self._full = False  #: nothing was handed out since too many pictures wait to be saved
        self._streak: tuple[ErrorClass | None, int] = (None, 0)
        self._ill: dict[ex.Slot, str] = {}  #: codes that were told, of slots that are not ready
        self.info: dict[str, Any] = {}
        self.model = ""  #: the name of the model that ``info`` is of
        self.changed = True  #: something live.json should tell

    @property
    def idle(self) -> bool:
        """Nothing handed out and nothing being finished."""
        return not (self._running or self._owed or self._astray) and self._finisher.idle

    def running(self) -> list[dict[str, Any]]:
        """What every slot is at, for live.json."""
        return [r.as_dict() for r in self._running.values()]

    def turn(self) -> None:
        """Take what the workers say, pass cancels on, hand out what is due."""
        events = self._executor.events(_TURN_SECONDS)
        self._owed.extend(events)
        while self._owed:
            self._settle(self._owed[0])
            self._owed.popleft()
        verdicts = self._finisher.verdicts
        for who in list(verdicts):
            if who in self._finisher.jobs:  # as those behind it were drawn later
                break
            self._count_verdict(verdicts.get(who, ErrorClass.INVALID))
            verdicts.pop(who, None)
        self._pass_looks()
        version = self._store.data_version()
        due = time.monotonic() - self._looked >= _LOOK_SECONDS
        if due or version != self._version:
            self._version = version
            if due:
                self._looked = time.monotonic()
                self._store.release_due()
            self._pass_cancels()
        elif not events and not self._full:
            return
        self._feed()

    def stop(self, grace: float) -> None:
        """End the workers; jobs that could not end in ``grace`` seconds wait again.

        What a record in trouble cannot be told is left to the next start.
        """
        self._executor.stop(grace)
        self._owed.extend(self._executor.events(0))
        while self._owed:
            self._leave(functools.partial(self._settle, self._owed.popleft()))
        if self._running or self._astray:  # else the jobs of a watcher before may not be settled
            self._running.clear()
            self._leave(functools.partial(self._take_back, "the service stopped"))

    @staticmethod
    def _leave(last: Callable[[], None]) -> None:
        try:
            last()
        except Trouble as error:
            say(logger, "record.unsettled", logging.WARNING, message=error.message)

    # -- handing out

    def window_open(self) -> bool:
        """May bulk jobs start now?"""
        return self._window.is_open(datetime.datetime.now(datetime.UTC))

    def _feed(self) -> None:
        if self._astray:
            self._take_back("the record was in trouble")
            self._astray = False
        # As many pictures may wait to be saved as jobs are out.
        self._full = self._finisher.busy >= max(BACKLOG, len(self._running))
        if self._troubles or self._full or not self._finisher.recovered:
            return
        slots = [slot for slot in self._executor.wants() if self._rested(slot)]
        if not slots or self._choosing.hot():
            return
        choosing = self._choosing
        self._astray = True
        jobs = self._store.claim_many(
            [self._want(slot) for slot in slots], window_open=self.window_open(),
            usual=choosing.usual, patience=choosing.patience,
        )  # fmt: skip
        for slot, job in zip(slots, jobs, strict=True):
            if job is not None:
                self._hand_out(slot, job)
        self._astray = False

    def _take_back(self, why: str) -> None:
        """Let wait again what runs by the record and neither a worker nor the finisher has."""
        for job in self._store.generating():
            if job.id not in self._running and job.who not in self._finisher.jobs:
                self._release(job, why)

    def _hand_out(self, slot: ex.Slot, job: Job) -> None:
        reached("dispatched")
        try:
            with disk_errors("The files of a job cannot be read"):
                files = self._files_of(job)
        except Trouble as error:
            self._troubles.report("files", error, seconds=_AGAIN_SECONDS)
            self._release(job, error.message)
            return
        except SteadyError as error:
            self._fail(job, error.code, error.message)
            return
        model = self._latest[slot] = job.model or self._choosing.usual
        self._loras[slot] = job.request.lora_names
        if job.priority is not Priority.INTERACTIVE and model != self._warm.get(slot):
            self._warm[slot] = model
            self._store.put(LAST_MODEL, model)
        self._running[job.id] = Running(job, slot, job.forwards)
        self._executor.send(slot, job, files)
        self.changed = True
        say(logger, "job.claimed", job_id=job.id, attempt=job.attempt, slot=slot)

    def _rested(self, slot: ex.Slot) -> bool:
        """Is nothing of it in work, and its rest over? Always, where slots need no rest."""
        if not self._choosing.cooldown:
            return True
        busy = any(running.slot == slot for running in self._running.values())
        return not busy and time.monotonic() >= self._rests.get(slot, 0.0)

    def _want(self, slot: ex.Slot) -> Want:
        """What this slot may be given: nothing that it could not load just now."""
        choosing, unfit = self._choosing, self._executor.unfit(slot)
        absent = choosing.absent()
        ready = self._loaded.get(slot)
        loaded = ready.model if ready else ""
        names = [
            name
            for name in (choosing.usual, *choosing.others)
            if name not in unfit and (name not in absent or name == loaded)
        ]
        latest = self._latest.get(slot) or loaded or choosing.begun
        warm = self._warm.get(slot) or latest
        models = ["", *names] if choosing.usual in names else names
        return Want(models, warm, latest, self._loras.get(slot, ""))

    def _pass_looks(self) -> None:
        """Tell the workers which pictures somebody wants to see grow."""
        now = time.monotonic()
        if self._running and now - self._peeked >= _PEEK_SECONDS:
            self._peeked = now
            for job_id in self._previews.looked_at() & self._running.keys():
                self._executor.look(job_id)

    def _pass_cancels(self) -> None:
        if not self._running:
            return
        for job_id, _attempt in self._store.cancels():
            running = self._running.get(job_id)
            if running and not running.cancelling:
                running.cancelling = True
                self._executor.cancel(job_id)

    # -- settling

    def _settle(self, event: ex.Event) -> None:
        """Raises SteadyError of class environment: the event may then be settled again."""
        self.changed = True
        match event:
            case ex.Ready():
                self.info = dict(event.info)
                self.model = event.model
                self._ill.pop(event.slot, None)
                self._loaded[event.slot] = event
                say(logger, "worker.ready", slot=event.slot, **_brief(event.info))
            case ex.Died():
                self._settle_death(event)
            case ex.OfJob():
                running = self._running.get(event.job_id)
                if running is None or running.job.attempt != event.attempt:
                    return
                self._settle_job(running, event)

    def _settle_job(self, running: Running, event: ex.OfJob) -> None:
        job = running.job
        if isinstance(event, ex.Picture | ex.Failed):
            self._rests[running.slot] = time.monotonic() + self._choosing.cooldown
        match event:
            case ex.Started():
                running.started_at = self._store.now()
                say(logger, "job.started", job_id=job.id, attempt=job.attempt)
            case ex.Step():
                running.step, running.steps = event.done, event.total
            case ex.Previewed():
                with contextlib.suppress(OSError):  # a full disk: nothing is shown
                    self._previews.put(job.id, event.jpeg)
                    running.preview = running.step
            case ex.Picture():
                self._over(job.id)
                reached("picture_received")
                self._finisher.finish(job, event)
            case ex.Failed():
                self._fail(job, event.code, event.message, self._loaded.get(running.slot))
                self._over(job.id)

    def _over(self, job_id: str) -> None:
        del self._running[job_id]
        self._previews.end(job_id)

    def _settle_death(self, event: ex.Died) -> None:
        trouble = event.environment
        engine = self._loaded.get(event.slot)
        if trouble is not None and self._ill.get(event.slot) != trouble.code:
            self._ill[event.slot] = trouble.code
            say(logger, "worker.trouble", logging.ERROR, slot=event.slot, code=trouble.code,
                message=trouble.message)  # fmt: skip
        for job_id, attempt, started in event.lost:
            running = self._running.get(job_id)
            if running is None or running.job.attempt != attempt:
                continue
            job = running.job
            death = started and event.blame
            if death and job.deaths + 1 >= MAX_DEATHS:
                code = "timed_out" if "deadline" in event.how else "worker_crashed"
                self._fail(job, code, f"{ERRORS[code].what} ({event.how})", engine)
            else:
                self._release(job, f"the worker died: {event.how}", death=death)
            self._over(job_id)
        self._loaded.pop(event.slot, None)
        if trouble is None:
            say(logger, "worker.died", logging.ERROR, slot=event.slot, how=event.how)

    def _fail(self, job: Job, code: str, message: str, engine: ex.Ready | None = None) -> None:
        kind = ERRORS.get(code, ERRORS["engine_failed"])
        if kind.klass is ErrorClass.TRANSIENT and job.attempt < MAX_TRANSIENT:
            self._release(job, message or kind.what)
            return
        facts = engine.info if engine else {}
        ended = self._store.fail(job.id, job.attempt, code, message or kind.what, facts=facts)
        if ended is None:
            return
        say(logger, f"job.{ended.state}", job_id=job.id, code=code, message=message or None)
        if ended.state is JobState.FAILED:
            self._finisher.verdicts[job.who] = kind.klass
        self._finisher.announce()

    def _release(self, job: Job, why: str, *, death: bool = False) -> None:
        back = self._store.release(job.id, job.attempt, why=why, death=death)
        if back is not None:
            say(logger, f"job.{_verb(back.state)}", logging.WARNING, job_id=job.id, why=why)
            if back.state.ended:
                self._finisher.announce()

    def _count_verdict(self, klass: ErrorClass | None) -> None:
        """Pause the queue when one class of failures comes too often in a row.

        Raises SteadyError of class environment: the verdict may then be counted again.
        """
        if klass is ErrorClass.INVALID:
            return
        last, count = self._streak
        count = count + 1 if klass is last else 1
        if klass is not None and count >= STREAK:
            reason = f"{STREAK} jobs in a row failed: {klass.value.replace('_', ' ')}"
            self._store.pause_after_failures(reason)
            say(logger, "queue.paused", logging.ERROR, reason=reason)
            klass = None
        self._streak = (klass, count)


def _verb(state: JobState) -> str:
    return "released" if state is JobState.QUEUED else state.value


def _brief(info: Any) -> dict[str, Any]:
    return {k: info.get(k) for k in ("model", "revision", "device", "dtype", "attention")}
