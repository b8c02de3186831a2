"""What the tests of the HTTP door stand on: an application, and a stand-in for the watcher.

The stand-in does with the real reader and the real record what the watcher does, one step at
a time and only when told, so a test can look in between.
"""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import until
from forked import start
from starlette.testclient import TestClient
from store_children import claim_one, record_jobs

from api.app import create_app
from watcher import jobfile, live
from watcher.config import Config
from watcher.jobfile.fields import seeded
from watcher.jobfile.planner import Planner
from watcher.jobs import Job, Priority, job_ids_of, ticket_of_key
from watcher.limits import Limits
from watcher.log import now_us
from watcher.models.cards import limits_known
from watcher.pictures.outputs import Outputs
from watcher.store import JobStore, NewJob

HERE = "http://127.0.0.1"
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


class Watcher:
    """The watcher, by hand."""

    def __init__(self, config: Config, store: JobStore) -> None:
        self.config = config
        self.store = store

    @property
    def limits(self) -> Limits:
        return limits_known(self.config, self.store)

    def take_in(self) -> list[str]:
        """Read every file the API published; the ids of the jobs."""
        ids: list[str] = []
        arrived = self.config.inbox.glob("api-*")
        for path in sorted(arrived, key=lambda path: path.stat().st_mtime_ns):
            ticket = path.name.removeprefix("api-")[:36]
            batch = self.store.begin_reading(
                ticket, name=path.name, suffix=path.suffix, source="cli"
            )
            if batch.recorded_at is None:
                parsed = jobfile.parse(
                    path.read_bytes(), path.suffix, Planner(self.limits), stem=Path(batch.name).stem
                )
                ids += self.record(ticket, parsed.requests)
            path.unlink()
        return ids

    def record(self, ticket: str, planned: Any) -> list[str]:
        new = [
            NewJob.of(
                request=seeded(plan.request, job_ids_of(ticket)(index, None)),
                stem=plan.stem,
                warnings=plan.warnings,
                priority=Priority(plan.request.priority or Priority.INTERACTIVE),
                not_before=plan.not_before,
                row=plan.row,
                id=ticket_of_key(key) if (key := plan.request.key) else None,
            )
            for index, plan in enumerate(planned)
        ]
        return record_jobs(self.store, ticket, new, first_index=0, final=True)

    def drop(self, text: str, ticket: str, name: str = "dropped.yaml") -> list[str]:
        """A file a person dropped, recorded."""
        stem, suffix = Path(name).stem, Path(name).suffix
        self.store.begin_reading(ticket, name=name, suffix=suffix, source="file")
        return self.record(
            ticket, jobfile.parse(text.encode(), suffix, Planner(self.limits), stem=stem).requests
        )

    def claim(self) -> Job:
        job = claim_one(self.store)
        assert job is not None
        return job

    def finish(self, job: Job | None = None, picture: bytes = PICTURE, **facts: Any) -> Job:
        """The running (or next) job gets its picture."""
        job = job or self.claim()
        path = self.config.outputs / job.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        done = self.store.complete(
            job.id,
            job.attempt,
            sha256=hashlib.sha256(picture).hexdigest(),
            bytes=len(picture),
            facts={"model": "none"} | facts,
        )
        assert done is not None
        return done

    def fail(self, code: str = "engine_failed", message: str = "It failed.") -> Job:
        job = self.claim()
        failed = self.store.fail(job.id, job.attempt, code, message, facts={})
        assert failed is not None
        return failed

    def pulse(self, **members: Any) -> None:
        """What the watcher says of itself."""
        self.config.state.mkdir(parents=True, exist_ok=True)
        whole: dict[str, Any] = {
            "pid": os.getpid(),
            "state": "running",
            "model": {"name": "starter", "why": "a test", "starter": True},
            "workers": [{"slot": 0, "state": "ready", "pid": 1, "device": "cpu"}],
            "running": [],
            "trouble": [],
            "inbox": {"watch": "events", "problems": [], "notices": [], "waiting": 0},
        }
        live.write(self.config.state, whole | members)


class Bench:
    """One root with its application (in this process) and its watcher."""

    def __init__(self, root: Path, *, clock: Callable[[], int] = now_us, **settings: Any) -> None:
        self.config = Config.load(root, **settings)
        Outputs(self.config.outputs).open()
        self.config.inbox.mkdir(exist_ok=True)
        self.store = JobStore(self.config.database_url, synchronous="normal", clock=clock)
        self.watcher = Watcher(self.config, self.store)
        self.app = create_app(self.config, self.store)
        self.client = TestClient(self.app, base_url=HERE, raise_server_exceptions=False)

    def __enter__(self) -> "Bench":
        self.client.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__(None, None, None)
        self.store.close()

    def post(self, **body: Any) -> dict[str, Any]:
        """POST /generate-image, its answer."""
        answer = self.client.post("/generate-image", json={"prompt": "a red fox"} | body)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def done(self, **body: Any) -> Job:
        """A job with its picture."""
        self.post(**body)
        self.watcher.take_in()
        return self.watcher.finish()


#: A program whose limits of open files are the first two arguments.
_FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""


class Running:
    """``python -m api`` as a process of its own.

    ``files``: its soft and hard limit of open files, where not those of the tests. ``port``: where
    one that is gone was.
    """

    def __init__(
        self,
        root: Path,
        *options: str,
        files: tuple[int, int] | None = None,
        port: int | None = None,
        **environment: str,
    ) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        self.log = root / f"api-{self.port}.log"
        self.streams: list[Stream] = []  #: closed with the service
        command = ["-m", "api", "--root", str(root), "--port", str(self.port), *options]
        known = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment
        with self.log.open("ab") as log:
            how: dict[str, Any] = {"cwd": root, "env": known, "stderr": log}
            how["stdout"] = subprocess.DEVNULL
            if files is None:
                self.process = start(command, **how)
            else:
                limited = ["-c", _FEW_FILES, *map(str, files), sys.executable, *command]
                self.process = subprocess.Popen([sys.executable, *limited], **how)
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            until(self._answers, 60, f"the service answers; {self.log}")
        except BaseException:  # nobody else knows of the process
            self.stop(signal.SIGKILL)
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def raw(self, data: bytes) -> bytes:
        """What comes back for ``data`` until the service closes."""
        with self.connect() as connection:
            connection.sendall(data)
            parts = []
            while part := _receive(connection):
                parts.append(part)
            return b"".join(parts)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send the signal; the seconds until the process was gone."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - begun


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@contextmanager
def running(
    root: Path, *options: str, files: tuple[int, int] | None = None, **environment: str
) -> Iterator[Running]:
    service = Running(root, *options, files=files, **environment)
    try:
        yield service
    finally:
        for stream in service.streams:
            stream.close()
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def events_of(text: str) -> list[dict[str, Any]]:
    """Server-sent events as dicts; data decoded."""
    found = []
    for block in text.split("\n\n"):
        event: dict[str, Any] = {}
        for line in block.splitlines():
            if not line.startswith(":"):
                name, _, value = line.partition(": ")
                event[name] = json.loads(value) if name == "data" else value
        if event:
            found.append(event)
    return found


class Stream:
    """An open event stream, read one event at a time."""

    def __init__(self, service: Running, path: str, after: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
        headers = {} if after is None else {"Last-Event-ID": after}
        self._connection.request("GET", path, headers=headers)
        self.answer = self._connection.getresponse()
        self.last_id = after
        service.streams.append(self)

    def next(self, kind: str | None = None) -> dict[str, Any] | None:
        """The next event (of ``kind``); None at the end of the stream."""
        lines: list[str] = []
        while raw := self.answer.readline():
            line = raw.decode().rstrip("\n")
            if line:
                lines.append(line)
                continue
            event = _one("\n".join(lines))
            lines = []
            if "id" in event:
                self.last_id = event["id"]
            if "data" in event and kind in (None, event.get("event")):
                return event
        return None

    def until(self, wanted: Any) -> list[dict[str, Any]]:
        """Job events up to the first for which ``wanted`` holds."""
        seen = []
        while event := self.next("job"):
            seen.append(event)
            if wanted(event["data"]):
                return seen
        raise AssertionError(f"the stream ended after {seen}")

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def _one(text: str) -> dict[str, Any]:
    found = events_of(text)
    return found[0] if found else {}
