"""Calls that wait for their pictures: OpenAI's images/generations and A1111's txt2img.

Such a call is an ordinary job in the queue; only its caller stays on the line. Whoever hangs
up before a job has started cancels that job; what runs goes on, and its picture is in the
gallery. A client that tries again after its time-out joins its first run: it sends no key, so
the key begins with the body's digest, is kept in the record as any key is, and a later start
of the service finds it too.

Waiting is fed by the one poller of events.py: a call is looked up when a job of its own changed.
A crash ends the lines, not the jobs.
"""

import asyncio
import collections
import contextlib
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api.door import Door
from api.events import PING_SECONDS, Feed
from api.submit import Submissions, Submitted
from watcher.errors import SteadyError
from watcher.jobs import Batch, Job, JobState, ticket_of_key
from watcher.log import now_us, say
from watcher.store import JobStore
from watcher.submission import Body, Plan

logger = logging.getLogger("steady.api")

#: Longest a client is told to wait before it tries again (it heeds no more), and some slack.
_BETWEEN_TRIES = 120.0
_USUAL_TIMEOUT = 600.0
_LOOKED_BACK = 200  #: first runs of one body that a second try may join
_REMEMBERED = 10_000  #: answered runs; nobody joins them
_UNASKED = 10.0  #: seconds after which the record is looked at though nobody said it changed


@dataclass(frozen=True)
class Attempt:
    """What OpenAI's clients say of a try: its number from 0, and their time-out in seconds."""

    number: int
    timeout: float

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Attempt | None":
        """None for every other client."""
        number = headers.get("x-stainless-retry-count", "")
        if not (number.isascii() and number.isdecimal() and len(number) < 6):
            return None
        try:
            timeout = float(headers.get("x-stainless-read-timeout", _USUAL_TIMEOUT))
        except ValueError:
            timeout = _USUAL_TIMEOUT
        return cls(int(number), timeout if 0 < timeout < 86400 else _USUAL_TIMEOUT)

    @property
    def reach(self) -> float:
        """How long ago, in seconds, the first try may have been."""
        return self.number * (self.timeout + _BETWEEN_TRIES) + 60


@dataclass(frozen=True, eq=False)
class Call:
    """A caller on the line. ``again``: this try joined an earlier one."""

    submitted: Submitted
    again: bool = False

    @property
    def ticket(self) -> str:
        """The batch the call became."""
        return self.submitted.batch.ticket


@dataclass(frozen=True)
class Snapshot:
    """How the call's batch stands. ``over``: nothing of it will change by itself."""

    batch: Batch
    jobs: list[Job]
    over: bool

    @property
    def running(self) -> bool:
        """Is one of its pictures being made?"""
        return any(job.state is JobState.GENERATING for job in self.jobs)

    def pictures(self) -> list[Job]:
        """The jobs whose picture is there. Raises SteadyError, with the reason, when none is."""
        made = [job for job in self.jobs if job.state is JobState.COMPLETED]
        if made:
            return made
        if self.batch.error is not None:
            raise SteadyError.told(self.batch.error)
        failed = next((job for job in self.jobs if job.state is JobState.FAILED), None)
        if failed is not None:
            raise SteadyError.told({"code": failed.error_code, "message": failed.error_message})
        raise SteadyError("cancelled")


class Calls:
    """Who waits for what. One for a process; its counts are its own, its keys the record's."""

    def __init__(self, door: Door, submissions: Submissions, feed: Feed) -> None:
        self._door = door
        self._store: JobStore = door.store
        self._submissions = submissions
        self._feed = feed
        self._lock = threading.Lock()
        self._here: set[Call] = set()
        self._waiting: collections.Counter[str] = collections.Counter()
        self._answered: collections.OrderedDict[str, None] = collections.OrderedDict()

    # -- beginning (in a thread)

    def begin(
        self,
        body: Body,
        *,
        key: str | None = None,
        attempt: Attempt | None = None,
        asked: bytes = b"",
        before: Callable[[str], None] = lambda ticket: None,
    ) -> Call:
        """Submit ``body``, or join the run that an earlier try of this call began.

        ``asked``: the bytes of the request, which a second try repeats. ``before`` gets the
        ticket before anything is published (only where there is a key). The caller counts as
        waiting from now on: follow the call or :meth:`leave` it. Raises as
        :meth:`Submissions.submit` does, too_many_connections, and what is missing of a model
        that is asked for by name.
        """
        self._feed.places.take()
        with contextlib.ExitStack() as undo:
            undo.callback(self._feed.places.give_back)
            first = None
            if key is None and attempt is not None:
                same = f"call/{hashlib.sha256(asked).hexdigest()}/"
                key = f"{same}{uuid.uuid4()}"
                first = self._first_run(same, attempt) if attempt.number else None
            if first is not None:
                say(logger, "http.joined", ticket=first.ticket, attempt=attempt and attempt.number)
                call = Call(Submitted(first, None, replayed=True), again=True)
            else:
                if key is not None:
                    before(ticket_of_key(key))
                done = self._submissions.submit(body, key, check=self._refuse_absent)
                self._enter(done.batch.ticket)
                call = Call(done, again=done.replayed)
            undo.pop_all()
        with self._lock:
            self._here.add(call)
        return call

    def _refuse_absent(self, plan: Plan) -> None:
        """Refuse a model whose files are not here instead of waiting; SteadyError says what is missing."""
        for planned in plan.requests:
            card = self._door.limits().card(planned.request.__dict__)
            if planned.request.model is not None and card.absent is not None:
                raise card.absent

    def _first_run(self, same: str, attempt: Attempt) -> Batch | None:
        """The run this try belongs to: not answered, and best one nobody waits for any more.

        ``same``: how the keys of all runs of this body begin. The caller is entered, so that two
        tries at once find two runs.
        """
        oldest = now_us() - int(attempt.reach * 1e6)
        found = self._store.keyed(same, since=oldest, limit=_LOOKED_BACK)
        with self._lock:
            open_ = [b for b in found if b.ticket not in self._answered]
            left = [b for b in open_ if not self._waiting[b.ticket]]
            if not open_:
                return None
            chosen = left[-1] if left else open_[0]
            self._waiting[chosen.ticket] += 1
            return chosen

    # -- waiting

    async def follow(self, call: Call) -> AsyncGenerator[Snapshot]:
        """How the batch stands, now and after every change or step, until it is over.

        Close it (``aclosing``): closed before the end means that the caller has hung up.
        Raises SteadyError stopping, and queue_paused when that lasts: what waits is withdrawn.
        """
        version, rev, looked, over = -1, 0, 0.0, False
        patience = self._door.config.call_patience
        moved = time.monotonic()  #: when the queue was last seen to go on
        snapshot: Snapshot | None = None
        try:
            turns = self._feed.turns(min(PING_SECONDS, max(patience, 1.0)))
            async with aclosing(turns):
                async for _ in turns:
                    now = time.monotonic()
                    seen, upto = self._feed.version, self._feed.rev
                    if (
                        snapshot is None
                        or now > looked + _UNASKED
                        or (seen != version and not snapshot.jobs)
                        or (upto != rev and self._feed.moved(call.ticket, rev))
                    ):
                        looked = now
                        if self._door.near:
                            snapshot = self._look(call)
                        else:
                            snapshot = await run_in_threadpool(self._look, call)
                    version, rev = seen, upto
                    over = snapshot.over
                    if over:
                        self._answer(call.ticket)
                    yield snapshot
                    if over:
                        return
                    if not self._feed.paused or snapshot.running:
                        moved = now
                    elif now - moved >= patience:
                        raise SteadyError("queue_paused")
            raise SteadyError("stopping")
        finally:
            self.leave(call, hung_up=not over)

    async def outcome(self, request: Request, call: Call) -> Snapshot:
        """The batch once it is over. The body must be read. Raises ClientDisconnect when the
        caller hung up."""
        wait = asyncio.create_task(self._last(call))
        gone = asyncio.create_task(_hung_up(request))
        try:
            await asyncio.wait({wait, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                raise ClientDisconnect
            return wait.result()
        finally:
            wait.cancel()
            gone.cancel()
            await asyncio.wait({wait, gone})

    async def _last(self, call: Call) -> Snapshot:
        async with aclosing(self.follow(call)) as following:
            async for snapshot in following:
                if snapshot.over:
                    return snapshot
        raise AssertionError

    def _look(self, call: Call) -> Snapshot:
        batch = self._store.batch(call.ticket)
        if batch is None:  # its reservation was swept: the file never came
            raise SteadyError("internal", "The job was lost on its way.")
        if batch.error is not None:
            return Snapshot(batch, [], over=True)
        if batch.recorded_at is None:
            return Snapshot(batch, [], over=batch.cancelled and not call.again)
        jobs = self._store.jobs_of(call.ticket, limit=1000)
        if call.again:
            jobs = [self._revived(job) for job in jobs]
        return Snapshot(batch, jobs, over=all(job.state.ended for job in jobs))

    def _revived(self, job: Job) -> Job:
        """A job that was cancelled, unstarted, when its caller's first try timed out."""
        if job.state is JobState.CANCELLED and not job.attempt:
            return self._store.retry(job.id)
        return job

    # -- coming and going

    def _enter(self, ticket: str) -> None:
        with self._lock:
            self._waiting[ticket] += 1

    def _answer(self, ticket: str) -> None:
        with self._lock:
            self._answered[ticket] = None
            while len(self._answered) > _REMEMBERED:
                self._answered.popitem(last=False)

    def waited_for(self) -> list[str]:
        """The tickets that open calls wait for."""
        with self._lock:
            return list(self._waiting)

    def leave(self, call: Call, *, hung_up: bool) -> None:
        """The caller is gone; saying so again changes nothing.

        The last one that ``hung_up`` takes what has not started along.
        """
        with self._lock:
            if call not in self._here:
                return
            self._here.remove(call)
            self._feed.places.give_back()
            self._waiting[call.ticket] -= 1
            if self._waiting[call.ticket] <= 0:
                del self._waiting[call.ticket]
            else:
                return
        # When the service stops it is we who hang up: the jobs stay.
        if hung_up and not self._door.stopping:
            asyncio.get_running_loop().run_in_executor(None, self._give_up, call.ticket)

    def _give_up(self, ticket: str) -> None:
        try:
            with self._lock:
                if self._waiting.get(ticket):
                    return
            self._store.withdraw(ticket)
            say(logger, "http.hung_up", ticket=ticket)
        except SteadyError as error:
            # Then the picture is made for nobody in particular: it is in the gallery.
            say(logger, "http.hung_up", logging.WARNING, ticket=ticket, code=error.code)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
