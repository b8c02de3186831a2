"""The story of the watcher: lock, recover, take files in, run jobs, finish pictures, stop.

This module builds every object once and hands each its collaborators; it knows the order
of things and nothing of how they are done. ``run`` is the watcher process.
"""

import contextlib
import gc
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

from watcher import live, models, moved
from watcher.config import Config
from watcher.dispatch import Choosing, Dispatcher
from watcher.errors import SteadyError, Trouble
from watcher.executor import Executor
from watcher.executor.build import build, probe_of
from watcher.finish import Finisher
from watcher.heat import Heat
from watcher.inbox.watch import Inbox
from watcher.inputs import Inputs
from watcher.intake import Intake, Reading
from watcher.jobs import Job, JobState
from watcher.live import Troubles, each_once
from watcher.log import now_us, say
from watcher.modelstate import ModelState
from watcher.notify import LASTS_SECONDS, SCHEDULE, Notifier, channels_of
from watcher.pace import RunWindow
from watcher.parts import Shared
from watcher.pictures.outputs import Outputs
from watcher.previews import Previews
from watcher.program import Launch
from watcher.root import Turn, check_layout, keep_private
from watcher.store import JobStore
from watcher.upkeep import index_jobs, open_record, verify_record

logger = logging.getLogger("steady.watcher")
_T = TypeVar("_T")

_GARBAGE_LOOK = 10_000  #: objects made and not freed between two looks for cycles
STOP_SECONDS = 5.0  #: the running job's time to end after SIGTERM
_PULSE_SECONDS = 0.1  #: at most ten pulses a second …
_BEAT_SECONDS = 1.0  #: … and at least one
_TELL_SECONDS = 0.5  #: between those that are also told to a record on a server
_CARE_SECONDS = 2.0  #: between looks at disk, folders and record


def run(
    config: Config,
    *,
    once: bool = False,
    standby: bool = False,
    probe: models.Probe = models.probe_devices,
    launch: Launch = subprocess.Popen,
    schedule: Sequence[float] = SCHEDULE,
    lasts: float = LASTS_SECONDS,
) -> int:
    """Be the watcher of ``config.root`` until SIGTERM or SIGINT; with ``once`` until all is done.

    Call from the process's main thread. Returns the exit code: 0; 1 when one of its threads died of
    a fault of ours, so that whoever keeps it alive starts it anew; 4 when ``once`` could not go on.
    ``standby``: while another watcher has the root or the record, wait for as long as it takes
    (otherwise two seconds, then already_running). ``launch`` starts workers. ``schedule``: seconds
    before each attempt to tell others; ``lasts``: until trouble is told to people. Raises SteadyError
    already_running, bad_config, database_damaged, database_trouble. When another file takes the
    record's place, the watcher begins anew on that one; when another watcher took its own, it waits
    anew.
    """
    check_layout(config)
    config.state.mkdir(parents=True, exist_ok=True)
    # What is loaded by now stays; looking at it again and again is an eighth of a long file's time.
    gc.freeze()
    gc.set_threshold(_GARBAGE_LOOK)
    turn = Turn(config, standby=standby)
    with turn.root() as ours:
        if not ours:
            return 0
        while True:
            store = open_record(config)
            try:
                keep_private(config)
                if not turn.record(store):
                    return 0
                service = Service(
                    config, store, probe=probe, launch=launch, schedule=schedule, lasts=lasts
                )
                code = service.run(once=once)
            finally:
                store.close()
            if code is not None:
                return code
            say(logger, "watcher.anew", logging.WARNING)


class Service:
    """One watcher: its parts and the order in which they start, work and stop.

    ``executor``: another than the configuration asks for.
    """

    def __init__(
        self,
        config: Config,
        store: JobStore,
        *,
        probe: models.Probe = models.probe_devices,
        launch: Launch = subprocess.Popen,
        executor: Executor | None = None,
        schedule: Sequence[float] = SCHEDULE,
        lasts: float = LASTS_SECONDS,
    ) -> None:
        self._config = config
        self._store = store
        self._probe = probe = probe_of(config, probe)
        self._stop = threading.Event()
        self._broken = False  #: a thread of ours died
        self._anew = False  #: another file, or another watcher, is in the place of ours
        self._other: object = None  #: how that file looked the last time
        self._troubles = Troubles()
        self._models = ModelState(config, store, probe)
        self._outputs = Outputs(config.outputs, embed_metadata=config.embed_metadata)
        self._inbox = Inbox(
            config.inbox,
            settle=config.settle_seconds,
            rescan=config.rescan_seconds,
            presets=config.presets,
        )
        self._inputs = Inputs(config, store)
        limits, first = self._models.limits, self._models.first()
        self._executor = executor or build(
            config, self._models.choice, probe, limits, first, launch
        )
        self._reading = reading = Reading(
            inbox=self._inbox,
            limits=limits,
            root=config.root,
            inputs=self._inputs,
        )
        self._notifier = Notifier(store, channels_of(config, store), schedule=schedule, lasts=lasts)
        self._undelivered: list[dict[str, Any]] = []
        shared = Shared(store, self._inbox, self._troubles, self._executor.wake)
        self._finisher = Finisher(
            shared,
            outputs=self._outputs,
            keep=self._inputs.keep_made,
            told=self._notifier.ring,
            address=config.address,
        )
        self._intake = Intake(
            shared,
            reading=reading,
            state=config.state,
            max_queued=config.max_queued,
            announce=self._finisher.announce,
        )
        self._previews = Previews(config.state)
        self._heat = heat = Heat(config.max_temperature)
        self._dispatcher = Dispatcher(
            shared,
            executor=self._executor,
            finisher=self._finisher,
            window=RunWindow.parse(config.run_window),
            files_of=self._files_of,
            choosing=Choosing(
                usual=limits.usual.name,
                others=tuple(limits.others),
                begun=first,
                absent=lambda: self._models.absent,
                patience=config.model_patience,
                cooldown=config.cooldown,
                hot=lambda: heat.hot,
            ),
            previews=self._previews,
        )
        self._started_at = now_us()
        self._left: list[str] = []  #: what lies where a setting led before, in words
        self._cared = 0.0
        self._paused = False
        self._pulsed = 0.0
        self._told = 0.0

    def _files_of(self, job: Job) -> dict[str, Any]:
        """What its worker is given; SteadyError for a job that could not be drawn or saved."""
        self._outputs.path(job)
        return {**self._inputs.files(job), **self._models.files(job)}

    def run(self, *, once: bool) -> int | None:
        """Work until told to stop (or, with ``once``, until all is done).

        None: begin anew, the record is another file or another watcher's. Whatever is raised, all
        threads and workers have ended when this returns.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        before = threading.excepthook
        threading.excepthook = self._on_thread_death
        try:
            with contextlib.ExitStack() as ends:
                ends.callback(self._end)
                code = self._work(ends, once=once)
                say(logger, "watcher.stopping")
                self._pulse("stopping")
        finally:
            threading.excepthook = before
        if self._broken:
            return 1
        return None if self._anew else code

    def _work(self, ends: contextlib.ExitStack, *, once: bool) -> int:
        """Start every part, each with its end on the stack, and turn until it is time to stop."""
        with contextlib.suppress(OSError):  # on a full disk the places are noted another time
            moved.note_places(self._config)
        ends.callback(self._inbox.close)
        known = self._store.get("inbox_ours")
        self._inbox.open(first=not known)
        if not known:
            self._store.put("inbox_ours", True)
        self._care()
        ends.callback(self._notifier.stop)
        self._notifier.start()
        ends.callback(self._finisher.stop)
        self._finisher.start()
        ends.callback(self._dispatcher.stop, STOP_SECONDS)
        self._previews.begin()
        self._executor.start()
        ends.callback(self._intake.stop)
        self._intake.start()
        if self._store.unchecked:
            given = self._store, self._troubles, self._stop
            threading.Thread(target=verify_record, args=given, name="verify", daemon=True).start()
        later = self._store, lambda: self._intake.quiet, self._stop
        index = threading.Thread(target=index_jobs, args=later, name="index")
        ends.callback(index.join)
        ends.callback(self._stop.set)
        index.start()
        choice = self._models.choice
        say(logger, "watcher.ready", inbox=str(self._config.inbox), model=choice.name,
            why=choice.why)  # fmt: skip
        while not self._stop.is_set():
            self._guarded("turn", self._turn)
            if once and (ended := self._guarded("turn", self._done)) is not None:
                return ended
            self._pulse()
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop.set()
        self._executor.wake()

    def _on_thread_death(self, death: threading.ExceptHookArgs) -> None:
        """A part of the watcher is gone: better none than half a one.

        The process ends with exit code 1 and is started anew by its keeper; the record and
        the folders say what was going on, and a file that kills its reader is set aside.
        Threads that are not ours (the watch of the inbox) are mended by those who use them.
        """
        name = death.thread.name if death.thread else "?"
        ours = name in ("intake", "announce", "record", "notify", "ray") or name.startswith(
            "finish-"
        )
        logger.error(
            "thread.died",
            exc_info=(death.exc_type, death.exc_value or death.exc_type(), death.exc_traceback),
            extra={"facts": {"thread": name}},
        )
        if ours:
            self._broken = True
            self._stop.set()
            self._executor.wake()

    def _guarded(self, owner: str, step: Callable[[], _T]) -> _T | None:
        """``step``, waiting out what is wrong around the service, as trouble of ``owner``."""
        try:
            return step()
        except Trouble as error:
            self._suffer(owner, error)
        return None

    def _suffer(self, owner: str, error: Trouble) -> None:
        """Put trouble around the service on the board until the look after next."""
        if error.code == "already_running":  # while we were away; what we hold is not ours now
            say(logger, "watcher.replaced", logging.ERROR, message=error.message)
            self._anew = True
            self._stop.set()
            return
        if self._troubles.report(owner, error, seconds=_CARE_SECONDS * 2):
            say(logger, "queue.waits", logging.ERROR, code=error.code, message=error.message)

    def _turn(self) -> None:
        if time.monotonic() - self._cared >= _CARE_SECONDS:
            self._care()
        self._dispatcher.turn()
        if self._models.heed(self._dispatcher.info, self._dispatcher.model):
            self._reading.limits = self._models.limits

    def _done(self) -> int | None:
        """For ``once``: 0 when nothing is left, 4 when what is left cannot go on, else None."""
        if not self._finisher.recovered:
            return 4 if self._trouble()[0] else None
        if not (self._intake.quiet and self._dispatcher.idle):
            return None
        open_now = self._dispatcher.window_open()
        waiting = self._store.counts()[JobState.QUEUED] - self._store.held(window_open=open_now)
        if waiting == 0 and not self._store.unarchived():
            return 0 if self._notifier.idle else None
        stuck = self._store.get("paused") or self._trouble()[0] or self._finisher.stuck
        kept = set(self._models.wanted()) <= self._models.kept.keys()
        return 4 if stuck or (waiting and kept) else None

    def _care(self) -> None:
        """Look at the things that may go and come back by themselves."""
        self._cared = time.monotonic()
        self._guarded("record", self._look_at_record)
        self._guarded("outputs", self._look_at_outputs)
        self._guarded("record", lambda: self._models.look(self._executor.status()))
        self._reading.limits = self._models.limits
        self._look_at_device()
        self._heat.look()
        self._look_behind()
        self._guarded("record", lambda: self._notifier.tell_of_trouble(self._trouble()[0]))
        with contextlib.suppress(SteadyError):  # said by whoever works with the record
            self._undelivered = [each.as_dict() for each in self._notifier.troubles()]

    def _look_at_record(self) -> None:
        try:
            self._store.check()
        except SteadyError:
            other = self._store.other()
            if other is not None and other == self._other:
                self._anew = True  # it lies there unchanged: no copy in the making
                self._stop.set()
            self._other = other
            raise

    def _look_at_outputs(self) -> None:
        """At first also: open them, and only then settle the jobs of a watcher that died."""
        if not self._finisher.recovered:
            known = self._store.get("outputs_marker")
            marker = self._outputs.open(known)
            if marker != known:
                self._store.put("outputs_marker", marker)
            self._finisher.recover()
        self._outputs.check()
        if self._outputs.free_bytes() < self._config.min_free_disk:
            raise SteadyError("disk_full", "Less disk is free than `min_free_disk` asks for.")

    def _look_behind(self) -> None:
        """Settings may have led elsewhere before: what lies there is told until it is gone."""
        left = moved.left_behind(self._config)
        for words in left:
            if words not in self._left:
                say(logger, "setting.moved", logging.WARNING, message=words)
        self._left = left

    def _look_at_device(self) -> None:
        lost = models.check(self._models.choice, self._probe)
        if lost and not any(slot["info"] for slot in self._executor.status()):
            self._troubles.report("device", lost)
        else:  # there again; or a worker has loaded the model, which is the better witness
            self._troubles.clear("device")

    def _trouble(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What holds the queue, and what keeps single slots or models from drawing."""
        held, warnings = self._models.troubles(self._executor.status())
        return each_once([*self._troubles.current(), *held]), warnings

    def _pulse(self, state: str | None = None) -> None:
        now = time.monotonic()
        quiet = _PULSE_SECONDS if self._dispatcher.changed else _BEAT_SECONDS
        if state is None and now - self._pulsed < quiet:
            return
        self._pulsed = now
        self._dispatcher.changed = False
        with contextlib.suppress(SteadyError):  # said by whoever works with the record
            self._paused = bool(self._store.get("paused"))
        trouble, warnings = self._trouble()
        choice, usual = self._models.choice, self._models.limits.usual.name
        pulse: dict[str, Any] = {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "state": state or ("paused" if self._paused else "running"),
            "model": {
                "name": choice.name,
                "why": choice.why,
                "starter": choice.starter,
            }
            | (self._dispatcher.info if self._dispatcher.model in ("", usual) else {}),
            "workers": self._executor.status(),
            "running": self._dispatcher.running(),
            "trouble": trouble,
            "warnings": [*warnings, *self._undelivered, *self._finisher.stuck],
            "inbox": self._inbox.health(),
            "notices": [*self._left, *self._heat.notices],
        }
        try:
            live.write(self._config.state, pulse)
        except OSError as error:
            say(logger, "pulse.failed", logging.WARNING, error=str(error))
        if self._config.database_path is None and (state or now - self._told >= _TELL_SECONDS):
            self._told = now
            with contextlib.suppress(SteadyError):  # said by whoever works with the record
                self._store.put_pulse(live.WATCHER, pulse)

    def _end(self) -> None:
        """The last words, when every thread and worker has ended."""
        self._pulse("stopped")
        completed = self._guarded("record", lambda: self._store.counts()[JobState.COMPLETED])
        say(logger, "watcher.stopped", completed=completed)
