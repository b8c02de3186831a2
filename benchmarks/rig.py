"""What the service's benchmarks stand on: a root of its own, real processes, the engine's log.

The engine is the tests' scripted one unless a line names another; everything else is the
product as it ships, with all durability on.
"""

import http.client
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from engines import read_log
from receivers import SECRET, Receiver
from roots import Root

__all__ = [
    "SECRET", "STARTER", "Door", "Receiver", "Root", "a_root", "events", "read_log", "settled",
    "wait", "warm",
]  # fmt: skip

#: Settings of a root whose worker runs the starter model.
STARTER: dict[str, Any] = {"engine": "zimage", "model": "starter", "engine_options": {}}

_roots: list[Root] = []  #: in use: their processes must not fail meanwhile


@contextmanager
def a_root(**settings: Any) -> Iterator[Root]:
    """A root in a folder that goes away; its processes are told to end, and waited for."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Root(Path(folder) / "root", settle_seconds=1.0, rescan_seconds=5.0, **settings)
        root.copied = False  # what a start takes is among the promises
        _roots.append(root)
        try:
            yield root
        finally:
            _roots.remove(root)
            for process in reversed(root.processes):
                process.send_signal(signal.SIGTERM)
                process.wait(30)
            root.close()


def wait(ready: Callable[[], Any], seconds: float = 300, pause: float = 0.005) -> Any:
    """The first truthy answer; the benchmark ends when there is none in time, or never will be."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        for root in _roots:
            if any((process.poll() or 0) > 0 for process in root.processes):
                raise SystemExit(f"a process ended:\n{root.said.read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise SystemExit("the service did not get there in time")
        time.sleep(pause)
    return value


def warm(root: Root, **fields: Any) -> None:
    """Start a watcher and run one job, so that its worker is loaded and idle."""
    root.watch()
    root.drop("warm.json", json.dumps({"prompt": "warm steps=1", **fields}))
    wait(lambda: root.states() == ["completed"])


def settled(root: Root) -> bool:
    """Has every job come to its end?"""
    states = root.states()
    return bool(states) and not {"queued", "generating"} & set(states)


def events(root: Root, word: str, start: int = 0) -> list[dict[str, Any]]:
    """The engine's log from line ``start`` on: entries of one kind."""
    return [e for e in read_log(root.log)[start:] if e["event"] == word]


class Door:
    """The root's HTTP door, a process of its own, spoken to on one connection."""

    def __init__(self, root: Root) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        root.spawn("-m", "api", "--root", str(root.folder), "--port", str(self.port))
        wait(self._answers, pause=0.1)
        self._connection = self.connection()

    def _answers(self) -> bool:
        try:
            connection = self.connection()
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """What the service answers; its own connection stays open."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{path}: {answer.status} {data[:300]!r}")
        return dict(json.loads(data))

    def delete(self, path: str) -> None:
        self._connection.request("DELETE", path)
        self._connection.getresponse().read()
