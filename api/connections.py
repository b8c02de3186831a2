"""Bound what clients hold open: connections, unfinished requests, answers nobody reads.

A connection is kept for as long as we work for it. One that waits for its client (for the rest
of a request, for the next one, for the answer to be read) has a time limit, and is closed
before that, the oldest first, when its place is needed. So a client that sends its request is
answered however many others hold on, also when all of them come from one address.
The application, by far the dearest part of a request, is asked for one request in a turn of
the event loop, and those that are soon done go first: when thousands come at once, what is new
is looked at before what can wait, and a stream that has not begun gives its place up like one
that waits.
Requests that stay open by their nature (event streams, calls that wait for a picture) are
counted apart, in events.py. Knows nothing of routes and tokens.
"""

import asyncio
import errno
import heapq
import itertools
import logging
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from api.errors import SAFE_HEADERS, problem
from watcher.errors import SteadyError
from watcher.log import ThrottledLog

logger = logging.getLogger("steady.http")

MOST = 1024  #: connections of a process, where the system grants files for them
_FEWEST = 8
_SPARE_FILES = 128  #: for the record, pictures and threads
#: Connections accepted between two looks at the bound; what waits is kept by the system.
ACCEPTS = 64
BACKLOG = 2048  #: connections the system keeps until we accept them

#: Seconds that others go before a request whose body is not complete, and before one that stays
#: open. After those its turn comes like any other's.
_AFTER_WHOLE = 5.0
_AFTER_SHORT = 10.0

_NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def most_connections() -> int:
    """Raise this process's limit of open files as far as it helps; the connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = wanted if soft == resource.RLIM_INFINITY else soft
    return max(_FEWEST, files // 4, min(MOST, files - _SPARE_FILES)) if files < wanted else MOST


@dataclass(frozen=True)
class ClientLimits:
    """How long a client is waited for, in seconds, and how much of it is kept meanwhile."""

    head: float = 10.0  #: to send the head of a request
    body: float = 20.0  #: to send its body, and one second more for every …
    rate: int = 4096  #: … of these many bytes
    read: float = 60.0  #: to read on in an answer
    unfinished: int = 256 << 20  #: bytes of all bodies that are not complete


class Waits(StrEnum):
    """What a connection waits for its client to do, or why its place can be taken."""

    HEAD = "head"  #: send a request
    BODY = "body"  #: send the rest of it
    NEXT = "next"  #: ask again, or hang up
    READ = "read"  #: read the answer
    TURN = "turn"  #: (nothing: a request that will stay open has not begun)


class Connections:
    """All connections of a process: at most ``most``, half of them from one address.

    ``stays_open``: does a request for this path stay open by its nature?
    """

    def __init__(
        self,
        most: int,
        log: ThrottledLog,
        patience: ClientLimits | None = None,
        stays_open: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        self.log = log
        self.patience = patience or ClientLimits()
        self._most = most
        self._share = max(1, most // 2)
        self._open: dict[str, int] = defaultdict(int)
        self._waiting: dict[str, dict[Connection, None]] = defaultdict(dict)  #: oldest first
        self._unfinished = 0
        self.stays_open = stays_open
        self._line: list[tuple[float, int, asyncio.Future[None], Connection]] = []
        self._numbers = itertools.count()
        self._calling = False  #: is somebody's turn due?
        self._newcomers = False  #: since the last look at the line

    def protocol(self, **how: Any) -> "Connection":
        """One more connection, as uvicorn asks for it."""
        return Connection(self, **how)

    def admit(self, connection: "Connection") -> bool:
        """Count a new one. False when there is no room and nobody's place can be taken."""
        full = sum(self._open.values()) >= self._most
        crowded = self._open[connection.address] >= self._share
        if (full or crowded) and not self._make_room(connection.address if crowded else None):
            return False
        self._open[connection.address] += 1
        self._newcomers = True
        return True

    def leave(self, connection: "Connection") -> None:
        """One that was admitted is gone."""
        self.goes_on(connection)
        self._open[connection.address] -= 1
        if not self._open[connection.address]:
            del self._open[connection.address]
            self._waiting.pop(connection.address, None)

    def waits(self, connection: "Connection") -> None:
        """From now on this one waits for its client."""
        self._waiting[connection.address][connection] = None

    def goes_on(self, connection: "Connection") -> None:
        """It waits no more, or for something else."""
        self._waiting.get(connection.address, {}).pop(connection, None)

    def unfinished(self, change: int) -> None:
        """So many bytes more, or less, of bodies that are not complete."""
        self._unfinished += change
        if change > 0 and self._unfinished > self.patience.unfinished:
            self._make_room(None)

    def line_up(self, connection: "Connection", turn: "asyncio.Future[None]") -> None:
        """``turn`` is done when the application may be asked for the connection's request."""
        due = connection.loop.time()
        if connection.held:
            due += _AFTER_SHORT
        elif not connection.whole:
            due += _AFTER_WHOLE
        heapq.heappush(self._line, (due, next(self._numbers), turn, connection))
        if not self._calling:
            self._calling = True
            connection.loop.call_soon(self._call, connection.loop)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the next in the line its turn, and with it those who have hung up.

        While connections come in, nobody's before it is due: theirs may be the short request.
        """
        newcomers, self._newcomers = self._newcomers, False
        while self._line and not (newcomers and self._line[0][0] > loop.time()):
            *_, turn, connection = heapq.heappop(self._line)
            if not turn.done():
                turn.set_result(None)
                if not connection.gone:
                    break
        self._calling = bool(self._line)
        if self._calling:
            loop.call_soon(self._call, loop)

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio's exception handler: no file was left for a connection, or something else."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _NO_FILES and "socket" in context:
            self.log.say(logger, "http.no_files", logging.ERROR, message=error.strerror)
            self._make_room(None)
        else:
            loop.default_exception_handler(context)

    def _make_room(self, address: str | None) -> bool:
        """Close the one that waits for its client the longest (of ``address``, or of all)."""
        places = self._waiting.values() if address is None else [self._waiting.get(address, {})]
        oldest = min(
            (next(iter(each)) for each in places if each), key=lambda c: c.since, default=None
        )
        if oldest is None:
            return False
        oldest.drop("too_many_connections")
        return True


class Connection(H11Protocol):
    """uvicorn's, with limits."""

    def __init__(self, all_: Connections, **how: Any) -> None:
        super().__init__(**how)
        self._app = self.app
        self.app = self._in_turn
        self.address = ""
        self.since = 0.0  #: when it began to wait for its client
        self._all = all_
        self._waits: Waits | None = None
        self._admitted = False
        self._unread = False
        self._received = 0  #: bytes of the body that is not complete
        self._turn: asyncio.Future[None] | None = None  #: of the request that has not begun
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._admitted = self._all.admit(self)
        if self._admitted:
            self._wait_for(Waits.HEAD)
        else:
            self.drop("too_many_connections")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        behind = self._turn is not None and not self.whole
        super().data_received(data)
        if behind and self._turn is not None and self.whole:
            self._all.line_up(self, self._turn)
        self._judge()
        if self._waits is Waits.BODY:
            self._received += len(data)
            self._all.unfinished(len(data))

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._judge()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = True
        self._judge()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = False
        self._judge()

    @property
    def held(self) -> bool:
        """Will the request stay open?"""
        return self._all.stays_open(self.scope["path"])

    @property
    def whole(self) -> bool:
        """Has all of the request arrived?"""
        return not self.cycle.more_body

    @property
    def gone(self) -> bool:
        """Is there nobody any more to answer?"""
        return self.cycle.disconnected

    async def _in_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: the application, when it is this request's turn."""
        self._turn = self.loop.create_future()
        self._all.line_up(self, self._turn)
        self._judge()
        try:
            await self._turn
            self._turn = None
            self._judge()
            if not self.gone:
                await self._app(scope, receive, send)
        except asyncio.CancelledError:  # the service stops, and has waited long enough
            self._turn = None
            self.cycle.disconnected = True
            self.transport.abort()

    @override
    def send_400_response(self, msg: str) -> None:
        self.drop("bad_request")

    def drop(self, code: str) -> None:
        """Close it; with the error ``code`` as an answer where the client may still get one."""
        facts = {"waits": self._waits, "client": self.address}
        self._all.log.say(logger, f"http.{code}", logging.WARNING, **facts)
        speechless = self._waits in (Waits.NEXT, Waits.READ) or (
            code == "request_timeout" and self._waits is Waits.HEAD and not self._begun
        )
        if not speechless and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_refusal(code))
        if (cycle := self._request()) is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._end()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _request(self) -> RequestResponseCycle | None:
        """The last one, or None when there was none yet."""
        return self.cycle

    @property
    def _begun(self) -> bool:
        """Has something of the next request arrived?"""
        return bool(self.conn.trailing_data[0])

    def _judge(self) -> None:
        """Note whose move it is, the client's or ours."""
        if self.transport.is_closing():
            self._wait_for(None)
        elif self._unread:
            self._wait_for(Waits.READ)
        elif self.conn.their_state is h11.SEND_BODY:
            self._wait_for(Waits.BODY)
        elif self.conn.their_state is h11.IDLE:
            first = self._request() is None
            self._wait_for(Waits.HEAD if first or self._begun else Waits.NEXT)
        elif self._turn is not None and self.held:
            self._wait_for(Waits.TURN)
        else:
            self._wait_for(None)

    def _wait_for(self, what: Waits | None) -> None:
        if what is self._waits:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._all.unfinished(-self._received)
        self._all.goes_on(self)
        self._received, self._waits = 0, what
        if what is None:
            return
        self.since = time.monotonic()
        self._all.waits(self)
        if what not in (Waits.NEXT, Waits.TURN):  # the server's own time holds for the one
            seconds: float = getattr(self._all.patience, what)
            self._timer = self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        left = 0.0
        if self._waits is Waits.BODY:
            patience = self._all.patience
            allowed = patience.body + self._received / patience.rate
            left = allowed - (time.monotonic() - self.since)
            if self.flow.read_paused:  # it is we who do not read
                left = max(left, 1.0)
        if left > 0:
            self._timer = self.loop.call_later(left, self._expired)
        else:
            self._timer = None
            self.drop("request_timeout")

    def _end(self) -> None:
        self._wait_for(None)
        if self._admitted:
            self._admitted = False
            self._all.leave(self)


@lru_cache
def _refusal(code: str) -> bytes:
    """The whole answer, for where no application is asked."""
    said = problem(SteadyError(code), {**SAFE_HEADERS, "Cache-Control": "no-store"})
    lines = [f"HTTP/1.1 {said.status_code} {HTTPStatus(said.status_code).phrase}".encode()]
    lines += [name + b": " + value for name, value in said.raw_headers]
    return b"\r\n".join([*lines, b"connection: close", b"", bytes(said.body)])
