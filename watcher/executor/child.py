"""One worker process as its parent holds it: socket, shelf, exit, and the signals it will get.

Knows processes and messages, neither slots nor what a message means. Nothing here waits: what
cannot be sent at once is kept, and signals are planned for a time. A parent that dies takes
its worker with it (see watcher.worker), so nothing is left behind.
"""

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from watcher.errors import ERRORS, ErrorClass, SteadyError
from watcher.executor.printed import Printed
from watcher.program import Launch, ending, environment, module
from watcher.wire import MAX_SAID, PLACE_SIZE, PLACES, BadFrame, Frames, Said, heard

_LAST_WORDS = 0.5  #: seconds from a closed socket to the end of the process behind it
_SHOW = 0.2  #: seconds a hanging worker has to show where it hangs


class Child:
    """A worker process, from its start until ``forget``.

    Args:
        slot: kept for whoever asks; says nothing here.
        launch: starts its process.
        selector: told what to wait for: the socket, what the process prints and, where the
            system has such, its end. ``data`` of each key is this object.

    Raises OSError when no process can be started.
    """

    def __init__(self, slot: int, launch: Launch, selector: selectors.BaseSelector) -> None:
        self.slot = slot
        self.born = self.heard = time.monotonic()
        self.rss: int | None = None  #: bytes, as it said last
        self.ready = False
        self.expected = False  #: it was told to leave
        self.ended: str | None = None  #: why we end it: a deadline, nonsense
        self.reason: tuple[str, str] | None = None  #: code and words it left with
        self._selector = selector
        self._open = True  #: the socket is; the process may live on for a moment without
        self._frames = Frames(MAX_SAID)
        self._unsent = bytearray()
        self._plan: list[tuple[float, int]] = []  #: signals to come
        self._signalled: set[int] = set()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as given:
            self._channel, theirs = socket.socketpair()
            ours.callback(self._channel.close)
            given.callback(theirs.close)
            self._shelf = _shelf()
            ours.callback(os.close, self._shelf)
            self._prints, printed = os.pipe()
            ours.callback(os.close, self._prints)
            given.callback(os.close, printed)
            os.set_blocking(self._prints, False)
            self._process = launch(
                module(
                    "watcher.worker",
                    *("--fd", str(theirs.fileno()), "--shelf", str(self._shelf)),
                    *("--parent", str(os.getpid())),
                ),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[theirs.fileno(), self._shelf],
                start_new_session=True,  # Ctrl-C on the terminal is for the watcher alone
                env=environment(),
            )
            ours.pop_all()  # closed by forget
        self._channel.setblocking(False)
        self._pidfd = _pidfd(self._process.pid)
        self._printed = Printed(f"worker {self._process.pid}")
        self._printing = True  #: the other end of the pipe is open, as far as we know
        selector.register(self._channel, selectors.EVENT_READ, self)
        selector.register(self._prints, selectors.EVENT_READ, self)
        if self._pidfd is not None:
            selector.register(self._pidfd, selectors.EVENT_READ, self)

    @property
    def pid(self) -> int:
        """Of the worker process, also when it is gone."""
        return self._process.pid

    @property
    def doomed(self) -> bool:
        """Its end is under way: no deadline matters any more."""
        return bool(self._plan) or self.ended is not None or not self._open

    # -- talking

    def post(self, data: bytes) -> None:
        """Send ``data`` as soon as the socket takes it."""
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        if not self._open:
            return
        try:
            while self._unsent:
                del self._unsent[: self._channel.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # it is dying; the other events will say so
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._selector.get_key(self._channel).events != mask:
            self._selector.modify(self._channel, mask, self)

    def messages(self) -> Iterator[Said]:
        """What it has said since. Raises BadFrame after the good ones, for what is none.

        At most 16 MB a call: other workers wait too.
        """
        for _ in range(256):
            if not self._open:
                return
            try:
                data = self._channel.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._hung_up()
                return
            self.heard = time.monotonic()
            yield from map(heard, self._frames.feed(data))

    def overhear(self) -> None:
        """Take what it has printed since; at most 1 MB a call."""
        for _ in range(16):
            if not self._printing:
                return
            try:
                data = os.read(self._prints, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._printing = False
                self._selector.unregister(self._prints)
            self._printed.take(data)

    def picture(self, place: int, size: tuple[int, int]) -> bytes:
        """The pixels at ``place`` of the shelf. BadFrame when there are none."""
        wanted = size[0] * size[1] * 3
        if place not in range(PLACES) or wanted > PLACE_SIZE:
            raise BadFrame("a picture at no place")
        data = os.pread(self._shelf, wanted, place * PLACE_SIZE)
        if len(data) != wanted:
            raise BadFrame("a picture that is not there")
        return data

    def _hung_up(self) -> None:
        """The socket is closed: the process has ended or has no use any more."""
        self.hang_up()
        if not self._plan:
            self._plan = [(time.monotonic() + _LAST_WORDS, signal.SIGKILL)]

    def hang_up(self) -> None:
        """Listen to it no more."""
        if self._open:
            self._selector.unregister(self._channel)
            self._channel.close()
            self._open = False

    # -- ending

    def end(self, why: str, kill_after: float) -> None:
        """Kill it by and by: it shows where it hangs, then SIGTERM, then SIGKILL."""
        self.ended = why
        self.signal(signal.SIGUSR1)
        term = time.monotonic() + _SHOW
        self._plan = [(term, signal.SIGTERM), (term + kill_after, signal.SIGKILL)]

    def kill(self, why: str) -> None:
        """Kill it now."""
        self.ended, self._plan = why, []
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal; what it was sent is no death of its own."""
        self._signalled.add(number)
        self._process.send_signal(number)  # polls first: never hits a stranger's pid

    def alarm(self) -> float:
        """When to call ``look`` again though nothing was heard (monotonic; infinity: never)."""
        alarms = [when for when, _ in self._plan[:1]]
        if self._pidfd is None:
            alarms.append(time.monotonic() + 0.1)
        return min(alarms, default=float("inf"))

    def look(self, now: float) -> None:
        """Send the signals that are due."""
        while self._plan and now >= self._plan[0][0]:
            self.signal(self._plan.pop(0)[1])

    def is_print(self, fileobj: object) -> bool:
        """Does this key of the selector say that the process has printed something?"""
        return fileobj == self._prints

    def is_end(self, fileobj: object) -> bool:
        """Does this key of the selector say that the process has ended?"""
        return fileobj == self._pidfd

    def gone(self) -> bool:
        """Has it ended, as far as only asking tells? (Where there is a pidfd, that tells.)"""
        return self._pidfd is None and self._process.poll() is not None

    def wait(self) -> int:
        """The exit code of the process, which has ended."""
        return self._process.wait()

    def forget(self) -> None:
        """Close everything of ours that belonged to it."""
        self.hang_up()
        self.overhear()
        self._printed.end()
        if self._printing:  # by a child of its own
            self._selector.unregister(self._prints)
        os.close(self._prints)
        if self._pidfd is not None:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        os.close(self._shelf)

    def cause(self, code: int) -> tuple[str, SteadyError | None, bool]:
        """Explain an unexpected end: in words, the trouble outside if that caused it, and whether the
        job may have."""
        how = f"was ended: {self.ended}"
        if self.ended is None:
            how = f"left with {ending(code)}" if code >= 0 else f"was ended by {ending(code)}"
        if self.reason is not None:
            kind, text = self.reason
            if not self.ready or kind in ("device_lost", "server_away"):
                trouble = _load_error(kind if kind in ERRORS else "engine_failed", text)
                how = text if self.ready else f"could not load the model ({text})"
                return how, trouble, False
            return f"left on purpose after {text}", None, True
        if not self.ready:
            words = f"The worker {how} while loading the model."
            return how, SteadyError("worker_unavailable", words), False
        from_outside = code == -signal.SIGTERM and signal.SIGTERM not in self._signalled
        return how, None, not from_outside


def _load_error(code: str, text: str) -> SteadyError:
    """Why nothing loads; the remedies of codes that tell of one job would mislead here."""
    remedy = "See the log for the cause; the service tries again by itself."
    if code == "out_of_memory":
        remedy = "Free memory of the device; the service tries again by itself."
    elif ERRORS[code].klass is ErrorClass.ENVIRONMENT:
        remedy = ""
    return SteadyError(code, text, remedy=remedy)


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
