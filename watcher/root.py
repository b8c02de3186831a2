"""Decide whether this process may work on a root: its layout, its lock, waiting for the lock.

The lock is a file below ``.steady/`` that the kernel frees the moment its holder dies: the whole
lease, with nothing to renew and nothing that goes stale. A standby touches nothing and waits.
Knows nothing of jobs; owns nothing that a crash could leave.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from watcher import live
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.log import say
from watcher.publish import disk_errors

if TYPE_CHECKING:
    from watcher.store import JobStore


def check_layout(config: Config) -> None:
    """Refuse a root in which the parts would eat each other. Raises SteadyError bad_config."""
    for name, folder in (
        ("inbox", config.inbox), ("outputs", config.outputs), (".steady", config.state)
    ):  # fmt: skip
        try:
            folder.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SteadyError(
                    "bad_config",
                    f"`{name}` is a link that leads back to itself.",
                    remedy=f"Remove the link {folder}, or point it at a folder.",
                ) from None
    inbox, outputs = config.inbox.resolve(), config.outputs.resolve()
    if inbox == outputs or inbox in outputs.parents or outputs in inbox.parents:
        raise SteadyError("bad_config", "`inbox` and `outputs` must not lie inside each other.")
    for what, path in (("database", config.database_path), (".steady", config.state)):
        kind = path and network_file_system(path)
        if kind:
            raise SteadyError(
                "bad_config",
                f"`{what}` lies on a network file system ({kind}), where locks cannot be trusted.",
                remedy="Keep the root on a local disk; inbox and outputs may be elsewhere.",
            )


def keep_private(config: Config) -> None:
    """Where a token is asked for, other users of this machine read nothing past it.

    ``.steady/`` is closed to them (0700) with all it holds, the record is 0600; SQLite gives the
    files beside it the record's mode. What somebody else owns stays as it is.
    """
    record = config.database_path
    if not config.token:
        return
    with contextlib.suppress(OSError):
        config.state.chmod(0o700)
    for end in ("", "-wal", "-shm") if record is not None else ():
        with contextlib.suppress(OSError):
            os.chmod(f"{record}{end}", 0o600)


_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph", "afs"}


def network_file_system(path: Path) -> str | None:
    """The type of the network file system ``path`` lies on, or None (also where unknown)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    best, kind = "", None
    target = str(path.absolute())
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind if kind in _NETWORK else None


def _try_lock(fd: int, *, exclusive: bool) -> bool:
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


WAIT_SECONDS = 2.0  #: of one that is no standby, before it gives up
_POLL_SECONDS = 0.05


@contextlib.contextmanager
def locked(
    path: Path,
    patience: float = WAIT_SECONDS,
    *,
    give_up: Callable[[], bool] = bool,
    waits: Callable[[], object] = bool,
) -> Iterator[None]:
    """Be the watcher of a root inside; wait for it at most ``patience`` seconds.

    ``give_up`` is asked between tries; ``waits`` is called once where another process has the lock.
    Raises SteadyError already_running, naming the holder, or folder_gone or disk_full when the file
    cannot be opened. The file itself is never removed: a lock on a file that others may unlink
    protects nothing. A crash leaves the file with its words, unlocked.
    """
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as ends:
        with disk_errors("The lock file cannot be used"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            ends.callback(os.close, fd)
            ours = _try_lock(fd, exclusive=True)
            if not ours:
                waits()
            while not ours:
                if time.monotonic() >= deadline or give_up():
                    raise _already_running(holder(path))
                time.sleep(_POLL_SECONDS)
                ours = _try_lock(fd, exclusive=True)
        words = {
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "what": "While this process lives, this file is locked: it is the watcher here.",
        }
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
            os.ftruncate(fd, 0)
            os.write(fd, json.dumps(words).encode() + b"\n")
        yield


def held(path: Path) -> bool:
    """Does a living process hold the lock at ``path``? Never waits.

    Looks by a shared lock that is given back at once, so many may ask at the same time and
    a watcher that starts in that very moment only tries again 50 ms later.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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


logger = logging.getLogger("steady.standby")

_LOOK_SECONDS = 0.5
_SAY_SECONDS = 1.0


class Turn:
    """The wait of this process. ``standby``: for as long as it takes, or until SIGTERM."""

    def __init__(self, config: Config, *, standby: bool) -> None:
        self._config = config
        self._patience = float("inf") if standby else WAIT_SECONDS
        self._told = threading.Event()
        self._who: dict[str, Any] = {
            "host": os.uname().nodename,
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
        path = self._config.state / "lock"
        with contextlib.ExitStack() as ends:
            with self._listening():
                try:
                    ends.enter_context(
                        locked(path, self._patience, give_up=self._told.is_set, waits=self._say)
                    )
                except SteadyError:
                    if not self.over:
                        raise
            yield not self.over

    def _say(self) -> None:
        if self._patience > WAIT_SECONDS:
            say(logger, "watcher.standby", at="the root")

    def record(self, store: "JobStore") -> bool:
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
                    leader = store.leader()
                    who = f" (process {leader['pid']} on {leader['host']})" if leader else ""
                    words = f"Another watcher{who} already works on this record."
                    raise SteadyError("already_running", words)
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

    def _leads(self, store: "JobStore") -> bool:
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
