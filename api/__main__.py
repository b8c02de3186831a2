"""``python -m api`` (``steady api``): the HTTP door as a process of its own."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import urllib.parse
from collections.abc import Sequence
from types import FrameType
from typing import Any, cast

import uvicorn

from api import events
from api.app import create_app
from api.connections import ACCEPTS, BACKLOG, Connections, most_connections
from api.door import Stopping
from api.guard import LOGIN, check_exposure, token_of
from watcher import log
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.log import ThrottledLog
from watcher.program import listening
from watcher.root import keep_private

logger = logging.getLogger("steady.api")

_LAST_SECONDS = 3  #: downloads that still run after this long are cut off


class Server(uvicorn.Server):
    """uvicorn that tells open streams to end, and calls a stop by signal a success."""

    def __init__(
        self, config: uvicorn.Config, stopping: Stopping, connections: Connections
    ) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections: a few at a time, with a long queue of the system's behind them."""
        asyncio.get_running_loop().set_exception_handler(self._connections.on_loop_error)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal; uvicorn's own would raise it again at the end."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._stopping.set()


def serve_http(config: Config) -> int:
    """Answer requests until SIGTERM or Ctrl-C; the exit code. Raises SteadyError."""
    token = token_of(config)
    check_exposure(config, token)
    with listening(config.host, config.port, BACKLOG) as listener:
        most = most_connections()
        app = create_app(config, streams=max(1, most // 4))
        keep_private(config)
        gc.freeze()  # what is loaded by now stays; looking at it again and again takes long,
        gc.set_threshold(10_000)  # as does looking often while connections come in thousands
        throttled: ThrottledLog = app.state.throttled
        connections = Connections(most, ThrottledLog(), stays_open=events.stays_open)

        async def tell() -> None:
            throttled.tell()
            connections.log.tell()

        server = Server(
            uvicorn.Config(
                app,
                http=cast(Any, connections.protocol),
                backlog=max(1, min(ACCEPTS, most // 8)),
                callback_notify=tell,
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_LAST_SECONDS,
            ),
            app.state.door.stopping,
            connections,
        )
        _announce(config, listener, token)
        server.run([listener])
        throttled.tell(now=True)
        connections.log.tell(now=True)
    log.say(logger, "http.stopped")
    return 0 if server.started else 1


def _announce(config: Config, listener: socket.socket, token: str | None) -> None:
    """Say where to go. The token itself goes to a terminal only, never into a log."""
    host, port = listener.getsockname()[:2]
    address = config.model_copy(update={"host": host, "port": port}).address
    log.say(logger, "http.listening", address=address, token=token is not None)
    if token is None:
        return
    if sys.stderr.isatty():
        query = urllib.parse.urlencode({"token": token})
        print(f"Log in: {address}{LOGIN}?{query}", file=sys.stderr, flush=True)  # noqa: T201
    else:
        log.say(logger, "http.login", address=f"{address}{LOGIN}", token_in=".steady/token")  # noqa: S106


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="steady api", description="The HTTP door.")
    parser.add_argument("--root", default=os.environ.get("STEADY_ROOT", "."), help="folder")
    parser.add_argument(
        "--host", help="address to listen on (others than this machine's own need a token)"
    )
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    given = parser.parse_args(arguments)
    try:
        config = Config.load(given.root, host=given.host, port=given.port)
        log.configure(config.log_level)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        return serve_http(config)
    except SteadyError as error:
        print(log.harmless(str(error)), file=sys.stderr)  # noqa: T201
        return error.kind.exit


if __name__ == "__main__":
    code = main()
    # Everything is closed and said; taking the interpreter apart would cost a stop more time
    # than all the rest of it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
