"""A bell that rings when something may have changed in a folder. Only importer of watchdog.

Ringing says "look again" and nothing else: which file, what happened, whether anything
was lost is never asked of an event (under load the kernel drops them, and a watch
can go deaf while its threads live). So a deaf bell costs latency, never a file; whoever
listens also looks every few seconds and calls ``alive`` and ``hears`` to have it mended.
"""

import contextlib
import errno
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

#: The few events that can mean "there is something to take"; two a file instead of six.
_WATCHED: list[type[FileSystemEvent]] = [FileClosedEvent, FileCreatedEvent, FileMovedEvent]

_JOIN_SECONDS = 2.0


class Bell:
    """Rings on changes directly in ``folder``, or in one of those it is told to watch as well.

    Attributes:
        trouble: why there are no events, one sentence, or None.
        overflows: how often the kernel said that it lost events.
        overflowed_at: when it last did, monotonic seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rung = threading.Event()
        self._heard = threading.Event()
        self._observer: BaseObserver | None = None
        self._listener = _OverflowListener(self)
        self.trouble: str | None = None
        self.overflows = 0
        self.overflowed_at = float("-inf")

    def ring(self) -> None:
        """Wake the thread that waits; from any thread, never raises."""
        self._rung.set()

    def hear(self) -> None:
        """Ring, for an event came (called by the watch), and count as hearing again."""
        self.trouble = None
        self._heard.set()
        self._rung.set()

    def wait(self, timeout: float) -> bool:
        """True as soon as it rang (it keeps ringing until ``hush``), False after ``timeout`` s."""
        return self._rung.wait(timeout)

    def hush(self) -> bool:
        """Stop ringing; True when it rang. Call before looking, never after."""
        rang = self._rung.is_set()
        self._rung.clear()
        return rang

    def subscribe(self, also: Iterable[Path] = ()) -> bool:
        """Watch the folder anew with fresh threads, and those that are ``also`` given.

        False, with ``trouble`` set, when it cannot. May be called again and again.
        """
        self.unsubscribe()
        logging.getLogger("watchdog").addHandler(self._listener)
        _no_move_delay()
        observer: BaseObserver | None = None
        try:
            observer = Observer()
            observer.start()
            for folder in (self._folder, *also):
                # inotify would watch the link itself if the inbox is one
                observer.schedule(_Ringer(self), os.path.realpath(folder), event_filter=_WATCHED)
        except (OSError, RuntimeError) as error:
            if observer is not None:
                _stop(observer)
            self.trouble = _watch_error_words(error)
            return False
        self._observer = observer
        self.trouble = None
        return True

    def unsubscribe(self) -> None:
        """Stop watching. Waiting still works; only ``ring`` rings then."""
        logging.getLogger("watchdog").removeHandler(self._listener)
        if self._observer is not None:
            _stop(self._observer)
            self._observer = None

    @property
    def alive(self) -> bool:
        """Do all threads of the watch live? (They may hear nothing all the same: ``hears``.)"""
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            and len(observer.emitters) > 0
            and all(emitter.is_alive() for emitter in list(observer.emitters))
        )

    def hears(self, act: Callable[[], object], *, patience: float = 1.0) -> bool:
        """Does ``act``, a change in the folder, ring within ``patience`` seconds?

        Sets ``trouble`` when it does not; an event that comes later takes it back.
        """
        self._heard.clear()
        act()
        if self._heard.wait(patience):
            self.trouble = None
            return True
        self.trouble = "This file system reports no changes."
        return False


def deaf(folder: Path) -> str | None:
    """Why changes in ``folder`` are not noticed, one sentence; None when they are.

    Tried with a hidden file of our own, which is removed again.
    """
    bell = Bell(folder)
    trial = folder / f".steady-trial-{os.getpid()}"
    try:
        if bell.subscribe():
            bell.hears(trial.touch)
        return bell.trouble
    finally:
        bell.unsubscribe()
        trial.unlink(missing_ok=True)


class _Ringer(FileSystemEventHandler):
    """Runs in watchdog's thread, where an exception would end all watching: it only rings."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell

    def dispatch(self, event: FileSystemEvent) -> None:
        self._bell.hear()


class _OverflowListener(logging.Handler):
    """The one sign of lost events is a line in watchdog's log."""

    def __init__(self, bell: Bell) -> None:
        super().__init__(logging.WARNING)
        self._bell = bell

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in str(record.msg).lower():
            self._bell.overflows += 1
            self._bell.overflowed_at = time.monotonic()
            self._bell.ring()


def _no_move_delay() -> None:
    # A file renamed out of the folder (our claims) would hold every later event back half
    # a second, while watchdog waits for the other half of a move. Nobody here cares.
    with contextlib.suppress(ImportError, AttributeError):
        module = importlib.import_module("watchdog.observers.inotify_move_event_grouper")
        module.InotifyMoveEventGrouper.delay = 0.0


def _stop(observer: BaseObserver) -> None:
    with contextlib.suppress(OSError, RuntimeError, KeyError):
        observer.stop()
    with contextlib.suppress(RuntimeError):
        observer.join(_JOIN_SECONDS)


def _watch_error_words(error: OSError | RuntimeError) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOSPC:
        return "The system's limit of watches is reached (fs.inotify.max_user_watches)."
    if code == errno.EMFILE:
        return "The system's limit of watching programs is reached (fs.inotify.max_user_instances)."
    return f"Changes cannot be watched: {os.strerror(code) if code else error}."
