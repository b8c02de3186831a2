"""The story as it happens: server-sent events.

Four kinds. ``job``: a transition, with the whole job; its id is the record's growing rev,
so a client that comes back with Last-Event-ID misses none, also over a restart of either
side (a job that changed twice meanwhile is told once, as it is now). ``step``: progress of
a running job. ``queue``: counts and troubles. ``preview``: there is a new one of a running job,
for those who ask. The last three are not replayed; whoever joins is told them at once.

One poller a process looks at the record and at the watcher's pulse, and only while
somebody listens; all streams are fed from what it saw.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from api.door import PULSE_SECONDS, Door
from watcher.errors import SteadyError
from watcher.jobs import Job
from watcher.log import say

logger = logging.getLogger("steady.api")

STREAMS = 256  #: requests that stay open at a time: streams, and calls that wait for jobs
_SERVER_SECONDS = 0.2  #: between looks when the record is on a database server
_LOOK_SECONDS = 1.0  #: between saying that somebody looks
_QUEUE_SECONDS = 0.5  #: between two ``queue`` events
_PAGE = 1000  #: changes taken at one look
_RECENT = 5000  #: changes kept for streams that come back
RETRY_MS = 2000
PING_SECONDS = 15.0  #: so that proxies and dead clients are noticed

# FastAPI's own handling of generator routes logs a traceback for every client that hangs up
# in the middle of an event; so the response is made here, with its format.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stream.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 42\nevent: job\ndata: {"id": "550e8400-e29b-41d4-a716-446655440000",'
                ' "state": "completed"}\n\n',
            }
        },
    }
}

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="replay what came after it")
]

WithPreviews = Annotated[
    bool, Query(description="have previews drawn; a `preview` event tells of each new one")
]


@dataclass(frozen=True)
class Transition:
    """One transition, ready to be sent."""

    rev: int
    ticket: str
    job_id: str
    ended: bool
    data: str


_FOLLOW_SECONDS = 2.0


class Places:
    """So many requests may stay open at a time. Any thread."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    def take(self) -> None:
        """One more stays open. Raises SteadyError too_many_connections."""
        if not self._free.acquire(blocking=False):
            raise SteadyError("too_many_connections")

    def give_back(self) -> None:
        """It is over; once for each that was taken."""
        self._free.release()


class Feed:
    """What the poller saw, and who waits for it. Lives in one event loop.

    ``tell``: a job as events show it. ``most``: ``places`` for requests that stay open. Whoever
    listens takes one first.
    """

    def __init__(
        self, door: Door, tell: Callable[[Job], dict[str, Any]], *, most: int = STREAMS
    ) -> None:
        self._door = door
        self.places = Places(most)
        self._tell = tell
        self._every = _SERVER_SECONDS if door.config.database_path is None else PULSE_SECONDS
        self._listeners = 0
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._fresh = False  #: were revs and recent changes looked up since the first listener?
        self._version: int | None = None
        self.rev = 0  #: every change up to here was seen …
        self._floor = 0  #: … and those after here are in _recent
        self._recent: collections.deque[Transition] = collections.deque(maxlen=_RECENT)
        self.version = 0  #: grows whenever the record changed
        self.steps: dict[str, str] = {}
        self.previews: dict[str, str] = {}  #: of the running jobs that somebody looks at
        self._looking: collections.Counter[str | None] = collections.Counter()
        self._look_due = 0.0
        self.queue = ""
        self.paused = False
        self._queue_due = 0.0
        self._sick = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The poller, for the life of the application."""
        tasks = [
            asyncio.create_task(self._poll(), name="feed"),
            asyncio.create_task(self._follow(), name="follow"),
        ]
        try:
            yield
        finally:
            self._door.stopping.set()
            await asyncio.gather(*tasks)

    async def _follow(self) -> None:
        """Every few seconds: is the record still the same file?"""
        stop = asyncio.create_task(self._door.stopping.wait())
        while not self._door.stopping:
            await asyncio.wait({stop}, timeout=_FOLLOW_SECONDS)
            await run_in_threadpool(self._door.follow)
        stop.cancel()

    async def _poll(self) -> None:
        stop = asyncio.create_task(self._door.stopping.wait())
        while not self._door.stopping:
            if not self._listeners:
                self._fresh = False
                self._wanted.clear()
                wanted = asyncio.create_task(self._wanted.wait())
                await asyncio.wait({wanted, stop}, return_when=asyncio.FIRST_COMPLETED)
                wanted.cancel()
                continue
            if await run_in_threadpool(self._look):
                self._wake()
            await asyncio.wait({stop}, timeout=self._every)
        stop.cancel()
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # -- looking (in a thread)

    def _look(self) -> bool:
        """Take in what is new; True when there is something to tell."""
        try:
            told = self._look_at_record()
            self._sick = False
        except SteadyError as error:
            told = False
            if not self._sick:
                say(logger, "events.blind", logging.ERROR, code=error.code)
            self._sick = True
        return self._look_at_pulse() or told

    def _look_at_record(self) -> bool:
        store = self._door.store
        version = store.data_version()
        if not self._fresh:
            self.rev = self._floor = store.last_rev()
            self._recent.clear()
            self._queue_due = 0.0
            self._fresh = True
            self.version += 1
            return True
        if version == self._version:
            return False
        self.version += 1
        jobs = store.since(self.rev, _PAGE)
        if len(jobs) < _PAGE:  # otherwise there is more: look again at once
            self._version = version
        for job in jobs:
            if len(self._recent) == _RECENT:
                self._floor = self._recent[0].rev
            self._recent.append(self.change_of(job))
            self.rev = job.rev
        return True  # a batch that was refused changes the record too, and no job

    def _look_at_pulse(self) -> bool:
        names = ("job_id", "attempt", "step", "steps", "progress")
        steps, previews = dict[str, str](), dict[str, str]()
        for entry in self._door.under_way():
            job_id, step = entry["job_id"], entry.get("preview")
            steps[job_id] = json.dumps({name: entry.get(name) for name in names})
            if step is not None:
                previews[job_id] = json.dumps({"job_id": job_id, "step": step})
        told = (steps, previews) != (self.steps, self.previews)
        self.steps, self.previews = steps, previews
        now = time.monotonic()
        if now >= self._look_due and self._looking:
            self._look_due = now + _LOOK_SECONDS
            for job_id in steps:
                if self._looking[None] or self._looking[job_id]:
                    self._door.look(job_id)
        if now >= self._queue_due:
            self._queue_due = now + _QUEUE_SECONDS
            with contextlib.suppress(SteadyError):
                summary = self._door.summary()
                self.paused = summary["paused"] is not None
                queue = json.dumps(summary, ensure_ascii=False)
                told = told or queue != self.queue
                self.queue = queue
        return told

    def change_of(self, job: Job) -> Transition:
        """How ``job`` stands now, as an event to send."""
        body = json.dumps(self._tell(job), ensure_ascii=False)
        return Transition(job.rev, job.ticket, job.id, job.state.ended, body)

    # -- listening

    async def listen(
        self, after: int | None, job: Job | None = None, *, preview: bool = False
    ) -> AsyncIterator[bytes]:
        """Events after the rev ``after`` (None: from now on), of one ``job`` or of all.

        With ``preview`` the listener counts as one who looks, and is told of each new preview. Ends
        when the service stops, and for one job when that has ended.
        """
        eyes = (None if job is None else job.id,) if preview else ()
        with self._listening(eyes):
            while not self._fresh and not self._door.stopping:
                await self._news.wait()
            if not self._fresh:
                return  # nothing is known yet to go on from: the client keeps the id it has
            cursor = self.rev if after is None else min(after, self.rev)
            if job is not None:
                # The job as it is now comes first, unless the client knows it.
                cursor = min(after if after is not None else job.rev - 1, job.rev)
            yield format_sse_event(id=str(cursor), retry=RETRY_MS)
            told: dict[str, dict[str, str]] = {"step": {}, "preview": {}}
            told_queue = ""
            while not self._door.stopping:
                news = self._news
                for change in await self._after(cursor, job):
                    cursor = change.rev
                    yield format_sse_event(data_str=change.data, event="job", id=str(cursor))
                    if job is not None and change.ended:
                        return
                for event in self._passing(told, job, preview=preview):
                    yield event
                if job is None and self.queue and self.queue != told_queue:
                    told_queue = self.queue
                    yield format_sse_event(data_str=told_queue, event="queue")
                if job is not None or cursor >= self.rev:
                    try:
                        await asyncio.wait_for(news.wait(), PING_SECONDS)
                    except TimeoutError:
                        yield KEEPALIVE_COMMENT

    def _passing(
        self, told: dict[str, dict[str, str]], job: Job | None, *, preview: bool
    ) -> Iterator[bytes]:
        """Yield the steps and previews that are not in ``told`` yet, and add them to it."""
        for kind, news in (("step", self.steps), ("preview", self.previews if preview else {})):
            for job_id, data in news.items():
                if told[kind].get(job_id) != data and (job is None or job.id == job_id):
                    yield format_sse_event(data_str=data, event=kind)
            told[kind] = news

    @contextlib.contextmanager
    def _listening(self, eyes: tuple[str | None, ...] = ()) -> Iterator[None]:
        """Count a listener inside, and the jobs it looks at (None: all that run)."""
        self._listeners += 1
        self._looking.update(eyes)
        self._wanted.set()
        try:
            yield
        finally:
            self._listeners -= 1
            self._looking.subtract(eyes)
            self._looking += collections.Counter()  # forgets those at none

    async def turns(self, most: float = PING_SECONDS) -> AsyncGenerator[None]:
        """Now, and again whenever something may have changed (``version``, ``steps``, ``paused``).

        At least every ``most`` seconds. For calls that wait for jobs; ends when the service stops.
        Close it (``aclosing``): the poller rests while nobody listens.
        """
        with self._listening():
            while not self._door.stopping:
                news = self._news
                yield
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), most)

    def moved(self, ticket: str, after: int) -> bool:
        """Did a job of the batch change after the rev ``after``? True when nobody knows any more."""
        return after < self._floor or any(c.ticket == ticket for c in self._newer(after))

    def _newer(self, after: int) -> list[Transition]:
        """The changes kept that came after the rev ``after``, the last one first."""
        recent = list(self._recent)  # a thread adds to it meanwhile
        return list(itertools.takewhile(lambda change: change.rev > after, reversed(recent)))

    async def _after(self, cursor: int, job: Job | None) -> list[Transition]:
        """What changed after ``cursor``: from memory, or from the record for one who comes late."""
        if job is not None:
            if any(change.job_id == job.id for change in self._newer(cursor)) or (
                cursor < self._floor or not self._recent
            ):
                now = await run_in_threadpool(self._door.store.job, job.id)
                return [self.change_of(now)] if now is not None and now.rev > cursor else []
            return []
        if cursor >= self._floor:
            return self._newer(cursor)[::-1]
        jobs = await run_in_threadpool(self._door.store.since, cursor, _PAGE)
        return [self.change_of(found) for found in jobs]


def routes(door: Door, feed: Feed) -> APIRouter:
    """``/events`` and ``/jobs/{job_id}/events``."""
    router = APIRouter(tags=["events"])

    @router.get("/events", response_class=Response, responses=_DOCUMENTED)
    async def events(last_event_id: LastEventId = None, preview: WithPreviews = False) -> Response:
        """Everything as it happens: `job` (with an id), `step` and `queue` events; replays after
        Last-Event-ID."""
        feed.places.take()
        events = feed.listen(rev_of(last_event_id), preview=preview)
        return Stream(events, feed.places.give_back)

    @router.get(
        "/jobs/{job_id}/events",
        response_class=Response,
        responses={
            **_DOCUMENTED,
            204: {"description": "It has ended, and you know."},
        },
    )
    async def job_events(
        job_id: str, last_event_id: LastEventId = None, preview: WithPreviews = False
    ) -> Response:
        """One job as it happens: the job as it is, then its steps and transitions; ends when it
        has ended."""
        job = await run_in_threadpool(door.find, job_id)
        seen = rev_of(last_event_id)
        if job.state.ended and seen is not None and seen >= job.rev:
            # All was told: 204 is how a browser learns not to come back.
            return Response(status_code=204)
        feed.places.take()
        return Stream(feed.listen(seen, job, preview=preview), feed.places.give_back)

    return router


class Stream(EventSourceResponse):
    """``events`` as they come; calls ``over`` at the end, also when none was ever asked for."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        over: Callable[[], None],
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(events, headers={**_HEADERS, **headers})
        self._over = over

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


def stays_open(path: str) -> bool:
    """Is ``path`` that of a stream?"""
    return path.endswith("/events")


def rev_of(header: str | None) -> int | None:
    """Last-Event-ID as a rev; None when it is none of ours."""
    if header is None or not header.isascii() or not header.isdecimal() or len(header) > 18:
        return None
    return int(header)
