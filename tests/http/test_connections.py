"""Nobody can hold the service by holding on: strangers in thousands, and every limit alone."""

import asyncio
import contextlib
import http.client
import json
import logging
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from conftest import until
from doors import Running, Stream, running

from api.connections import BACKLOG, MOST, ClientLimits, Connections, most_connections
from watcher.log import ThrottledLog

STRANGERS = 3000
#: Whatever waits longer for an answer than this was held up: without limits it takes ten times
#: as long, and most often for ever.
PATIENCE = 10
TOKEN = "a-secret-nobody-knows"


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """The strangers are ours: this process needs a file for each of them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def post(token: str = "") -> bytes:
    """The half of a POST."""
    carries = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\n{carries}"
    return f'{head}Content-Type: application/json\r\nContent-Length: 40\r\n\r\n{{"prompt'.encode()


STREAM = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HEAD = b"POST /generate-image HTT"


@contextlib.contextmanager
def strangers(service: Running, *says: bytes, count: int = STRANGERS) -> Iterator[None]:
    """So many connections that say one of ``says`` each, and hang on; those lost come again."""
    held: list[socket.socket] = []
    end = threading.Event()

    def call(number: int) -> socket.socket:
        new = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
        with contextlib.suppress(OSError):
            new.sendall(says[number % len(says)])
        return new

    def come_again() -> None:
        turn = 0
        while not end.wait(0.1):
            held[turn].close()
            with contextlib.suppress(OSError):
                held[turn] = call(turn)
            turn = (turn + 1) % count

    for number in range(count):
        held.append(call(number))
    again = threading.Thread(target=come_again)
    again.start()
    try:
        yield
    finally:
        end.set()
        again.join()
        for each in held:
            each.close()


def ask(service: Running, method: str, path: str, body: Any = None, token: str = "") -> Any:
    """The status and the decoded answer, from a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def healthy(service: Running, token: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask(service, "GET", "/health", token=token)[0] == 200)
    return False


@pytest.mark.parametrize(
    ("token", "files"),
    [("", (1024, 20_000)), (TOKEN, (1024, 1024)), ("", (128, 128))],
    ids=["open", "token", "few files"],
)
def test_three_thousand_strangers_hold_nobody_up(
    make_root: Callable[..., Any], token: str, files: tuple[int, int]
):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft_hard = (files[0], min(files[1], hard))
    root = make_root(**({"token": token} if token else {}))
    root.watch()
    with running(root.folder, files=soft_hard) as service:
        with strangers(service, STREAM, post(), HEAD, b"", count=min(STRANGERS, hard - 500)):
            root.drop("cat.yaml", "prompt: a cat")
            until(lambda: healthy(service, token), 60, "all that came at once was looked at")
            for _ in range(5):
                assert ask(service, "GET", "/health", token=token)[0] == 200
                status, job = ask(
                    service, "POST", "/generate-image", {"prompt": "a fox"}, token=token
                )
                assert status == 200, job
            where = f"/jobs/{job['job_id']}"
            until(lambda: ask(service, "GET", where, token=token)[1]["state"] == "completed", 30)
            until(lambda: [*root.inbox.glob("done/*/cat~*.yaml")], 30, "the folder works as ever")
            said = service.log.read_bytes()
            assert len(said) < 100_000, said[-2000:]
        until(lambda: healthy(service, token))
        assert service.process.poll() is None
        if not token:
            until(lambda: listens(service), what="the places of the streams are free again")
    assert b"Traceback" not in service.log.read_bytes()


def listens(service: Running) -> bool:
    stream = Stream(service, "/events")
    return stream.answer.status == 200


def test_clients_that_hang_up_in_the_middle_leave_no_traceback(root: Path):
    (root / "inbox").mkdir()
    with running(root) as service:
        for number in range(300):
            with service.connect() as half:
                half.sendall(post())
                if number % 3 == 0:
                    half.shutdown(socket.SHUT_WR)
        bad = b"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        bad += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        for end in (b"xyz\r\n", b"5\r\nabcdefgh\r\n", b"-1\r\n\r\n"):
            for _ in range(50):
                assert service.raw(bad + end).startswith(b"HTTP/1.1 400 ")
        assert ask(service, "GET", "/health")[0] == 200
    said = service.log.read_text()
    assert "Traceback" not in said
    assert len(said) < 40_000


def test_two_lengths_of_one_body_are_refused_and_the_connection_closed(root: Path):
    (root / "inbox").mkdir()
    with running(root) as service:
        smuggled = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        answer = service.raw(
            b"POST /generate-image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            + smuggled
        )
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"bad_request" in answer
        assert answer.count(b"HTTP/1.1 ") == 1, "what came after it is not answered"


# -- each limit alone, in a server of this process


class Small:
    """A server with limits one can reach; what it asks ends when ``go`` is set."""

    def __init__(self, most: int, patience: ClientLimits | None = None) -> None:
        self.go = threading.Event()
        self.seen = 0
        self.begun: list[str] = []
        self._said: list[socket.socket] = []
        self.connections = Connections(
            most, ThrottledLog(), patience, stays_open=lambda path: path == "/stream"
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                cast(Any, self._app), http=cast(Any, self.connections.protocol), ws="none",
                interface="asgi3", loop="asyncio", lifespan="off", log_config=None, access_log=False, backlog=16,
            )
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append(scope["path"])
        if scope["path"] == "/busy":
            self.go.wait()  # and with it all others: what comes meanwhile has come at once
        elif scope["path"] == "/stream":
            await receive()
            await receive()
            return
        if scope["path"] == "/body":
            while (message := await receive()).get("more_body"):
                pass
            if message["type"] == "http.disconnect":
                return
        elif scope["path"] == "/wait":
            self.seen += 1
            await asyncio.get_running_loop().run_in_executor(None, self.go.wait)
        size = 64 << 20 if scope["path"] == "/large" else 2
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, size, 1 << 20):
            part = b"x" * min(1 << 20, size - start)
            more = start + len(part) < size
            await send({"type": "http.response.body", "body": part, "more_body": more})

    def __enter__(self) -> "Small":
        self._thread.start()
        until(lambda: self._server.started)
        self._listener.listen(BACKLOG)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._listener.close()
        for each in self._said:
            each.close()

    def say(self, data: bytes) -> socket.socket:
        """A connection that has said ``data``."""
        new = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self._said.append(new)
        new.sendall(data)
        return new

    def get(self, path: str) -> socket.socket:
        return self.say(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


HALF = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab"


def test_the_oldest_that_waits_makes_room_for_the_newest():
    with Small(most=8) as small:
        held = [small.say(HALF) for _ in range(4)]  # one address: half of all
        assert b"200 OK" in small.get("/").recv(4096)
        assert rest_of(held[0]).startswith(b"HTTP/1.1 503 ")
        held[1].sendall(b"c" * 98)
        assert b"200 OK" in held[1].recv(4096), "the others are served to their end"


def test_who_is_being_answered_makes_room_for_nobody():
    with Small(most=8) as small:
        held = [small.get("/wait") for _ in range(4)]
        until(lambda: small.seen == 4)
        refused = rest_of(small.say(b""))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"too_many_connections" in refused and b"retry-after" in refused.lower()
        small.go.set()
        for each in held:
            assert b"200 OK" in each.recv(4096)
        assert b"200 OK" in small.get("/").recv(4096), "its place is free again"


def test_of_those_that_come_at_once_what_is_soon_done_goes_first():
    with Small(most=128) as small:
        small.get("/busy")
        until(lambda: small.begun == ["/busy"])
        streams = [small.get("/stream") for _ in range(100)]
        halves = [small.say(HALF) for _ in range(20)]
        late = small.get("/last")
        small.go.set()
        assert b"200 OK" in late.recv(4096)
        assert small.begun.index("/last") < 20, "it waited for few of those before it"
        refused = [rest_of(each) for each in streams[20:40]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused), "gave up its place"
        halves[-1].sendall(b"c" * 98)
        assert b"200 OK" in halves[-1].recv(4096)
        until(lambda: small.begun.count("/stream") > 20, what="the rest of the streams begin")


def test_a_head_that_does_not_come_is_waited_for_so_long():
    with Small(8, ClientLimits(head=0.2)) as small:
        assert rest_of(small.say(HEAD)).startswith(b"HTTP/1.1 408 ")
        assert rest_of(small.say(b"")) == b"", "who asked for nothing is told nothing"
        again = small.get("/")
        until(lambda: again.recv(4096).endswith(b"xx"))
        again.sendall(HEAD)
        assert rest_of(again).startswith(b"HTTP/1.1 408 "), "also in a connection that was used"


def test_a_body_is_waited_for_as_long_as_it_comes_fast_enough():
    with Small(8, ClientLimits(body=0.2, rate=10)) as small:
        assert rest_of(small.say(HALF)).startswith(b"HTTP/1.1 408 ")
        early = small.say(HALF.replace(b"/body", b"/"))
        answer = early.recv(4096)
        assert b"200 OK" in answer
        assert rest_of(early).count(b"HTTP/1.1") == 0, "answered before its end, and closed"
    with Small(8, ClientLimits(head=0.4, body=0.2, rate=1)) as small:
        slow = small.say(HALF)  # two bytes, each worth a second
        assert rest_of(small.say(HEAD)).startswith(b"HTTP/1.1 408 "), "0.4 s have passed"
        slow.sendall(b"c" * 98)
        assert b"200 OK" in slow.recv(4096)


def test_an_answer_nobody_reads_is_given_up():
    with Small(8, ClientLimits(read=0.2)) as small:
        unread = small.get("/large")
        assert unread.recv(1) == b"H"
        until(lambda: not small.connections._open, what="its place is free")
        assert len(rest_of(unread)) < 64 << 20


def test_unfinished_bodies_together_keep_no_more_than_so_many_bytes():
    with Small(100, ClientLimits(unfinished=1 << 20)) as small:
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        held = [small.say(head + b"x" * (600 << 10)) for _ in range(2)]
        assert rest_of(held[0]).startswith(b"HTTP/1.1 503 ")


def test_as_many_connections_as_files_allow():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard < MOST or most_connections() == MOST
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard), "enough is left as it is"


def test_a_flood_of_one_event_is_a_line_a_minute(caplog: pytest.LogCaptureFixture):
    now = [0.0]
    log = ThrottledLog(2, clock=lambda: now[0])
    logger = logging.getLogger("test.flood")
    with caplog.at_level(logging.INFO, "test.flood"):
        for _ in range(100):
            log.say(logger, "flood")
        log.tell()
        assert len(caplog.records) == 2
        now[0] = 60.0
        log.tell()
        log.say(logger, "flood")
    assert [getattr(r, "facts", {}) for r in caplog.records] == [{}, {}, {"unsaid": 98}, {}]
