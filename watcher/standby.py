"""Waiting for one's turn to be the watcher: at the root's lock, then at the record's.

Both are freed by the kernel or the server when their holder dies, so a standby takes over within
a second of that (five when a whole machine goes). It touches nothing meanwhile, and owns nothing
that a crash could leave.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from types import FrameType
from typing import Any

from watcher import live
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.lock import RootLock
from watcher.log import say
from watcher.store import JobStore

logger = logging.getLogger("steady.standby")

WAIT_SECONDS = 2.0  #: of one that is no standby, before it gives up
_LOOK_SECONDS = 0.5
_SAY_SECONDS = 1.0


class Turn:
    """The wait of this process. ``standby``: for as long as it takes, or until SIGTERM."""

    def __init__(self, config: Config, *, standby: bool) -> None:
        self._config = config
        self._patience = float("inf") if standby else WAIT_SECONDS
        self._told = threading.Event()
        self._who: dict[str, Any] = {
            "host": os.uname().nodename if hasattr(os, "uname") else "",
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }

    @property
    def over(self) -> bool:
        """Was the wait ended by a signal?"""
        return self._told.is_set()

    @contextlib.contextmanager
    def root(self) -> Iterator[bool]:
        """The root's lock, held inside; False when told to stop. SteadyError already_running."""
        lock = RootLock(self._config.state / "lock")
        with self._listening():
            try:
                self._lock_root(lock)
            except SteadyError:
                if not self.over:
                    raise
        try:
            yield not self.over
        finally:
            lock.release()

    def _lock_root(self, lock: RootLock) -> None:
        with contextlib.suppress(SteadyError):
            if self._patience > WAIT_SECONDS:
                lock.acquire(0)
                return
        if self._patience > WAIT_SECONDS:
            say(logger, "watcher.standby", at="the root")
        lock.acquire(self._patience, give_up=self._told.is_set)

    def record(self, store: JobStore) -> bool:
        """Lead the record; False when told to stop. SteadyError already_running.

        While it waits the doors count it among the standbys, and the log says whom it waits for.
        """
        me = f"{live.STANDBY} {self._who['host']} {self._who['pid']}"
        deadline = time.monotonic() + self._patience
        said = 0.0
        with self._listening():
            while not self._leads(store):
                if self.over:
                    break
                if time.monotonic() >= deadline:
                    raise SteadyError("already_running", _words(store.leader()))
                now = time.monotonic()
                if now - said >= _SAY_SECONDS:
                    if not said:
                        say(logger, "watcher.standby", at="the record", leader=store.leader())
                    said = now
                    with contextlib.suppress(SteadyError):
                        store.put_pulse(me, self._who)
                self._told.wait(_LOOK_SECONDS)
        if said:
            with contextlib.suppress(SteadyError):
                store.drop_pulse(me)
        return not self.over

    def _leads(self, store: JobStore) -> bool:
        """A server that is away a moment is no reason for a standby to go."""
        try:
            return store.lead(self._who)
        except SteadyError as error:
            if error.code != "database_trouble" or self._patience <= WAIT_SECONDS:
                raise
            return False

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the wait, not the process."""

        def told(_number: int, _frame: FrameType | None) -> None:
            self._told.set()

        before = {n: signal.signal(n, told) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _words(leader: dict[str, Any]) -> str:
    who = f" (process {leader['pid']} on {leader['host']})" if "pid" in leader else ""
    return f"Another watcher{who} already works on this record."
