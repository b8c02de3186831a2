"""A worker's end of its socket: orders come in, words and pictures go out.

Two threads, so that the main thread calls the engine and nothing else: the one takes orders (and
says once a second that the process lives), the other writes what there is to say, so that a slow
watcher never slows a step. Calls no engine. A worker that nobody listens to, or that is sent
nonsense, ends here at once.
"""

import logging
import os
import queue
import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from PIL import Image
from typing_extensions import override

from watcher.wire import PLACE_SIZE, PLACES, BadFrame, Frames, line

EXIT_NONSENSE = 76  #: the watcher sent what cannot be a message

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 5.0  #: for which somebody who looked is shown previews
_STRIP = 64  #: rows of a picture copied at once

log = logging.getLogger("watcher.worker")


@dataclass
class Order:
    """One job as it was sent."""

    job_id: str
    attempt: int
    asked: Mapping[str, Any]  #: the request, not checked yet
    files: Mapping[str, Any]
    forwards: int  #: as they were planned
    cancelled: bool = False
    looked_until: float = 0.0  #: monotonic

    def says(self, kind: str, **more: Any) -> dict[str, Any]:
        """A message about this job."""
        return {"type": kind, "job_id": self.job_id, "attempt": self.attempt, **more}

    def says_cancelled(self) -> dict[str, Any]:
        """The last message about a job that a person ended."""
        return self.says("failed", code="cancelled", message="The job was cancelled.")


class Sender(threading.Thread):
    """Writes messages in the order they were posted; never keeps the poster waiting."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(name="sender", daemon=True)
        self._channel = channel
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()

    def post(self, message: Mapping[str, Any]) -> None:
        """Send ``message`` soon; does not wait."""
        self._queue.put(line(message))

    def settle(self, timeout: float | None = None) -> None:
        """Wait until all that was posted is in the kernel's hands: it outlives this process."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(timeout)

    @override
    def run(self) -> None:
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                self._channel.sendall(item)
        except OSError:
            os._exit(0)  # nobody listens any more


class PictureShelf:
    """Where pictures are put for the watcher to take: two places, used in turn."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._free = threading.Semaphore(PLACES)
        self._place = 0

    def put(self, image: Image.Image, size: tuple[int, int]) -> int:
        """Raw RGB, rows from the top. Returns the place; waits while both are taken."""
        if image.size != size:
            raise ValueError(f"the engine drew {image.size}, asked for {size}")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        width, height = size
        self._free.acquire()
        place = self._place
        offset = place * PLACE_SIZE
        try:
            for top in range(0, height, _STRIP):  # in strips: five times faster than all at once
                data = rgb.crop((0, top, width, min(top + _STRIP, height))).tobytes()
                while data:
                    written = os.pwrite(self._descriptor, data, offset)
                    offset += written
                    data = data[written:]
        except OSError:
            self._free.release()
            raise
        self._place = (place + 1) % PLACES
        return place

    def taken(self) -> None:
        """The watcher has the oldest picture: its place is free again."""
        self._free.release()


class Orders(threading.Thread):
    """Takes orders and keeps them until the main thread comes for the next one."""

    def __init__(self, channel: socket.socket, sender: Sender, shelf: PictureShelf) -> None:
        super().__init__(name="reader", daemon=True)
        self._shelf = shelf
        self._channel = channel
        self._sender = sender
        self._frames = Frames()
        self._changed = threading.Condition()
        self._load: dict[str, Any] | None = None
        self._orders: deque[Order] = deque()
        self._current: Order | None = None
        self._loaded = False
        self._stopping = False

    # -- for the main thread

    def load_order(self) -> dict[str, Any]:
        """The first message: which engine to load. Waits for it."""
        with self._changed:
            while self._load is None:
                self._changed.wait()
            return self._load

    def loaded(self) -> None:
        """From now on ``stop`` lets the job in hand come to its end."""
        with self._changed:
            self._loaded = True

    def next(self) -> Order | None:
        """The next job to run, or None when it is time to leave. Waits."""
        with self._changed:
            self._current = None
            while not self._orders and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            self._current = self._orders.popleft()
            return self._current

    # -- the thread

    @override
    def run(self) -> None:
        try:
            self._read()
        except BadFrame as error:
            log.error("the watcher sent %s; leaving", error)
        except OSError:
            os._exit(0)
        finally:  # a worker that hears nothing is of no use
            os._exit(EXIT_NONSENSE)

    def _read(self) -> NoReturn:
        beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= beat_at:
                self._sender.post({"type": "beat", "rss": _resident()})
                beat_at = now + _BEAT_SECONDS
            readable, _, _ = select.select([self._channel], [], [], max(0.0, beat_at - now))
            if not readable:
                continue
            data = self._channel.recv(1 << 16)
            if not data:
                os._exit(0)  # the watcher is gone: so are we, whatever the engine is doing
            for message in self._frames.feed(data):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        with self._changed:
            if kind == "load" and self._load is None:
                self._load = message
            elif kind == "run":
                try:
                    who = str(message["job_id"]), int(message["attempt"])
                    asked, files = dict(message["request"]), dict(message["files"])
                    order = Order(*who, asked, files, int(message["forwards"]))
                except (KeyError, TypeError, ValueError) as error:
                    raise BadFrame(f"a job that cannot be read ({error})") from None
                if not self._stopping:
                    self._orders.append(order)
            elif kind == "cancel":
                self._cancel(message.get("job_id"))
            elif kind == "look":
                if self._current is not None and self._current.job_id == message.get("job_id"):
                    self._current.looked_until = time.monotonic() + _LOOK_SECONDS
            elif kind == "taken":
                self._shelf.taken()
            elif kind == "stop":
                if not self._loaded:
                    os._exit(0)
                self._stopping = True
                self._orders.clear()
            else:
                raise BadFrame(f"a message of kind {kind!r}")
            self._changed.notify()

    def _cancel(self, job_id: Any) -> None:
        if self._current is not None and self._current.job_id == job_id:
            self._current.cancelled = True  # seen by report
        for order in [o for o in self._orders if o.job_id == job_id]:
            self._orders.remove(order)
            self._sender.post(order.says_cancelled())


def _resident() -> int | None:
    """Memory of this process in bytes, where /proc tells."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None
