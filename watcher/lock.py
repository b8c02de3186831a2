"""One watcher a root: a lock that the kernel frees the moment its holder dies.

``flock`` on a file below ``.steady/``; the holder's process id and start stand in it, in
words, for people and for ``steady doctor``. The lock is the whole lease: nothing has to be
renewed and nothing goes stale. Knows nothing of jobs.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from watcher.errors import SteadyError

if sys.platform == "win32":
    import msvcrt

    _LOOK = os.O_RDWR
    _PLACE = 1 << 30  # a byte far behind the words: a locked byte cannot be read by others

    def _try_lock(fd: int, *, exclusive: bool) -> bool:
        os.lseek(fd, _PLACE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    _LOOK = os.O_RDONLY

    def _try_lock(fd: int, *, exclusive: bool) -> bool:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_POLL_SECONDS = 0.05


class RootLock:
    """The right to be the watcher of a root; a context manager.

    The file itself is never removed: a lock on a file that others may unlink protects
    nothing. A crash leaves the file with its words, unlocked.
    """

    def __init__(self, path: Path, *, wait_seconds: float = 2.0) -> None:
        self._path = path
        self._wait_seconds = wait_seconds
        self._fd: int | None = None

    def __enter__(self) -> "RootLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(
        self, wait_seconds: float | None = None, *, give_up: Callable[[], bool] | None = None
    ) -> None:
        """Take the lock, waiting at most ``wait_seconds`` (default: the constructor's).

        ``give_up`` is asked between tries (a standby waits with ``float("inf")`` until it is
        told to stop). Raises SteadyError already_running, naming the holder, or folder_gone
        when the file cannot be opened.
        """
        wait = self._wait_seconds if wait_seconds is None else wait_seconds
        deadline = time.monotonic() + wait
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise SteadyError(
                "folder_gone", f"The lock file cannot be opened: {error.strerror}."
            ) from error
        try:
            while not _try_lock(fd, exclusive=True):
                if time.monotonic() >= deadline or (give_up is not None and give_up()):
                    raise _already_running(holder(self._path))
                time.sleep(_POLL_SECONDS)
            words = {
                "pid": os.getpid(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
                "what": "While this process lives, this file is locked: it is the watcher here.",
            }
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, json.dumps(words).encode() + b"\n")
        except OSError as error:
            os.close(fd)
            raise SteadyError(
                "folder_gone", f"The lock file cannot be used: {error.strerror}."
            ) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def held(path: Path) -> bool:
    """Does a living process hold the lock at ``path``? Never waits.

    Looks by a shared lock that is given back at once, so many may ask at the same time and
    a watcher that starts in that very moment only tries again 50 ms later.
    """
    try:
        fd = os.open(path, _LOOK | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return not _try_lock(fd, exclusive=False)
    except OSError:
        return False  # no locks here: then nobody could have taken it either
    finally:
        os.close(fd)


def holder(path: Path) -> dict[str, Any]:
    """What the (last) holder wrote: ``{"pid", "since", "what"}``, or {} when unreadable."""
    with contextlib.suppress(OSError, ValueError):
        words = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(words, dict):
            return words
    return {}


def _already_running(words: dict[str, Any]) -> SteadyError:
    who = (
        f" (process {words['pid']}, since {words['since']})"
        if {"pid", "since"} <= set(words)
        else ""
    )
    return SteadyError("already_running", f"Another watcher{who} already works on this root.")
