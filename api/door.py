"""What the routes share, built once: record, inbox, pulse, pace, limits, the sign to stop.

The door reads the record and drops files; it never runs a model. Everything that has to be
looked up for many requests at once (the pulse, the pace of recent pictures, the limits of
the model) is looked up at most once in a short while.
"""

import asyncio
import collections
import contextlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from api.bodies import fault
from watcher import jobfile, live
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.inputs import Inputs
from watcher.jobfile.fields import seeded
from watcher.jobfile.planner import Planner
from watcher.jobs import ENDED, Batch, Job, JobRequest, JobState, Priority
from watcher.limits import Limits
from watcher.log import now_us, say
from watcher.models.cards import limits_known
from watcher.needs import needs_of
from watcher.pace import Pace, Size, loading_seconds, size_of
from watcher.previews import Previews
from watcher.publish import open_regular
from watcher.store import JobStore

logger = logging.getLogger("steady.api")

PULSE_SECONDS = 0.025
_FAR_SECONDS = 0.2  #: the same where the pulse lies on a server
_PACE_SECONDS = 2.0
_LIMITS_SECONDS = 1.0
_POSITION_CAP = 10_000
_REMEMBERED = 512  #: submitted requests kept in memory until they are recorded
_PROBE = "api_probe"  #: the settings key written to learn whether the record can be written


class Kept:
    """A value looked up again when it is older than ``seconds``. Thread-safe; a race looks twice."""

    def __init__(self, look: Callable[[], Any], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._value: Any = None
        self._until = 0.0

    def __call__(self) -> Any:
        """The value, looked up anew when it is too old."""
        now = time.monotonic()
        if now >= self._until:
            self._value = self._look()
            self._until = now + self._seconds
        return self._value


class Stopping:
    """The one sign that the process ends; open streams wait for it.

    ``set`` may be called from a signal handler or any thread; ``wait`` belongs to the loop
    that called ``bind``.
    """

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def bind(self) -> None:
        """Call once, inside the running loop."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        if self._flag.is_set():
            self._event.set()

    def __bool__(self) -> bool:
        return self._flag.is_set()

    def set(self) -> None:
        """Begin the end; every open stream wakes."""
        self._flag.set()
        if self._loop is not None and self._event is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Returns when the process is to end. RuntimeError before ``bind``."""
        if self._event is None:
            raise RuntimeError("bind() first")
        await self._event.wait()


class Door:
    """The collaborators of all routes."""

    def __init__(self, config: Config, store: JobStore) -> None:
        self.config = config
        self.store = store
        self.inbox: Path = config.inbox
        self.outputs: Path = config.outputs
        self.inputs = Inputs(config, store)
        self.stopping = Stopping()
        self._previews = Previews(config.state)
        self._requests: collections.OrderedDict[str, JobRequest] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._other: object = None  #: how the file looks that took the record's place
        #: One look by id takes some 40 µs and waits for nobody, so it need not leave the loop.
        self.near = config.database_path is not None
        self.pace: Callable[[], Pace] = Kept(lambda: Pace(store.durations()), _PACE_SECONDS)
        self._waiting: Callable[[], list[Size]] = Kept(store.waiting_sizes, _PACE_SECONDS)
        self._models: Callable[[], list[str]] = Kept(store.waiting_models, _PACE_SECONDS)
        self.pulse: Callable[[], dict[str, Any]] = Kept(
            self._pulse, PULSE_SECONDS if self.near else _FAR_SECONDS
        )
        self.limits: Callable[[], Limits] = Kept(self._limits, _LIMITS_SECONDS)

    def _pulse(self) -> dict[str, Any]:
        """The watcher's; on a server also that of one on another machine."""
        if self.near:
            return live.read_pulse(self.config.state)
        try:
            return live.seen(self.store)
        except SteadyError:
            return {"alive": False}

    def _limits(self) -> Limits:
        """What the model in use allows; before the first choice, what it would allow."""
        return limits_known(self.config, self.store)

    def keep(self, data: bytes, field: str) -> str:
        """Keep the picture that came in ``field`` of a request; how a job names it.

        Raises SteadyError bad_picture, disk_full, folder_gone.
        """
        try:
            return self.inputs.keep(data)[0]
        except SteadyError as error:
            if error.code != "bad_picture":
                raise
            raise fault(error.code, field, error.message.rstrip(".")) from None

    def follow(self) -> None:
        """When another file was put in the record's place and lies still, go on with that one.

        Until then nothing can be submitted (503): what is written into a file without a name is
        lost.
        """
        other = self.store.other()
        if other is not None and other == self._other:
            try:
                self.store.reopen()
                say(logger, "record.anew", logging.WARNING)
            except SteadyError as error:
                say(logger, "record.unusable", logging.ERROR, message=error.message)
        self._other = other

    # -- the jobs, recorded or on their way

    def find(self, job_id: str) -> Job:
        """The job, recorded or on its way. Raises SteadyError job_not_found."""
        job = self.store.job(job_id)
        if job is not None:
            return job
        batch = self.store.batch(job_id)
        if batch is None or batch.source != "http":
            raise SteadyError("job_not_found")
        request = self._submitted(batch)
        # Recorded while we looked for the file? Then the record knows better.
        job = self.store.job(job_id)
        read = batch.recorded_at is not None and batch.error is None
        if job is None and (read or request.own_id(batch.ticket)):
            raise SteadyError("job_not_found")  # its jobs have keys of their own, or are gone
        return job or self._on_its_way(batch, request)

    def remember(self, ticket: str, request: JobRequest) -> None:
        """Keep what was just submitted, so that a first look needs no file."""
        with self._lock:
            self._requests[ticket] = request
            while len(self._requests) > _REMEMBERED:
                self._requests.popitem(last=False)

    def _submitted(self, batch: Batch) -> JobRequest:
        """The first request of a submitted file that is not recorded."""
        with self._lock:
            known = self._requests.get(batch.ticket)
        if known is not None:
            return known
        nothing: dict[str, Any] = {"prompt": ""}
        self.limits().fill(nothing)
        request = self._read_back(batch) or JobRequest(**nothing)
        request = seeded(request, batch.ticket)
        if request.prompt:
            self.remember(batch.ticket, request)
        return request

    def _read_back(self, batch: Batch) -> JobRequest | None:
        """From the inbox or from the claimed files; None when it is in neither."""
        inbox = self.inbox
        paths = [inbox / f"api-{batch.ticket}{batch.suffix}"]
        with contextlib.suppress(OSError):
            paths += (inbox / ".claimed").glob(f"{batch.ticket}~*")
        for path in paths:
            with contextlib.suppress(OSError, SteadyError):
                with open_regular(path) as file:
                    data = file.read(jobfile.most_bytes(batch.suffix))
                parsed = jobfile.parse(data, batch.suffix, Planner(self.limits()))
                return parsed.requests[0].request
        return None

    def _on_its_way(self, batch: Batch, request: JobRequest) -> Job:
        error = dict(batch.error or {})
        state = JobState.QUEUED
        if batch.cancelled:
            state = JobState.CANCELLED
        if error:
            state = JobState.FAILED
        return Job(
            seq=0,
            id=batch.ticket,
            ticket=batch.ticket,
            index=0,
            state=state,
            rev=0,
            request=request,
            image_name=batch.image_name or "",
            folder="",
            path="",
            priority=Priority(request.priority or Priority.INTERACTIVE),
            created_at=batch.created_at,
            forwards=self.limits().forwards(request),
            completed_at=batch.recorded_at if state in ENDED else None,
            error_code=error.get("code"),
            error_message=error.get("message"),
        )

    # -- the running jobs, from the watcher's pulse

    def running(self, job_id: str) -> Mapping[str, Any] | None:
        """What the pulse says of a job a worker has; None when it says nothing."""
        return next((entry for entry in self.under_way() if entry["job_id"] == job_id), None)

    def under_way(self) -> Iterator[dict[str, Any]]:
        """What the pulse says of each job a worker has, and how far it is as ``progress``, 0..1."""
        pulse = self.pulse()
        for entry in pulse.get("running", ()) if pulse["alive"] else ():
            steps = max(1, entry["steps"])
            # Encoding and recording are still to come: a running job is never quite done.
            share = round(min(entry["step"] / steps, 1.0) * 0.99, 4)
            yield entry | {"steps": steps, "progress": share}

    def look(self, job_id: str) -> None:
        """Somebody wants to see this job, which a worker has, grow."""
        self._previews.look(job_id)

    def preview(self, job_id: str) -> bytes | None:
        """How a running job looks so far (JPEG), and a look at it; None while nothing is to be seen."""
        entry = self.running(job_id)
        if entry is None:
            return None
        self.look(job_id)
        return None if entry.get("preview") is None else self._previews.get(job_id)

    def summary(self) -> dict[str, Any]:
        """How the queue is, as ``queue`` events tell it. Raises SteadyError."""
        counts, pulse = self.store.counts(), self.pulse()
        paused = self.store.get("paused") or None
        needs = needs_of(self.store, pulse, self.inbox)
        return {
            "counts": {state.value: n for state, n in counts.items()},
            "paused": paused and {"by": paused.get("by"), "reason": paused.get("reason")},
            "watcher": {"alive": pulse["alive"], "state": pulse.get("state")},
            "reasons": [error.as_dict() for error in needs.troubles],
            "refused": [batch.ticket for batch in (*needs.refused, *needs.lacking)],
            "notices": list(needs.notices),
        }

    @property
    def hands(self) -> int:
        """Workers that share the queue (at least one, so that times can be divided by it)."""
        return max(1, len(self.pulse().get("workers", ())))

    # -- times to come

    def left(self, job: Job, entry: Mapping[str, Any] | None) -> float | None:
        """Seconds until a generating job is done; None while nothing is known."""
        return self.pace().left(size_of(job), entry, now_us())

    def queue_seconds(self, waiting: int) -> float | None:
        """Seconds until ``waiting`` further jobs are done; None while nothing is known."""
        sizes = self._waiting() if waiting else []
        seconds = self.pace().queue(sizes, waiting, self.hands, self.config.cooldown)
        workers, usual = self.pulse().get("workers", ()), self.limits().usual.name
        return seconds and seconds + loading_seconds(workers, self._models(), usual)

    def all_seconds(self, waiting: int) -> float | None:
        """Seconds until what runs and ``waiting`` further jobs are done; None when not known."""
        ahead = self.queue_seconds(waiting)
        running = ((self.store.job(entry["job_id"]), entry) for entry in self.under_way())
        lefts = [self.left(job, entry) or 0.0 for job, entry in running if job]
        return None if ahead is None else max([ahead + sum(lefts) / self.hands, *lefts])

    def batch_seconds(self, ticket: str) -> float | None:
        """Seconds until the last of the batch's waiting jobs is done; None when not known."""
        last = self.store.last_waiting(ticket)
        if last is not None and (place := self.position(last)) is not None:
            return self.eta(last, place)
        lefts = [self.left(job, self.running(job.id)) for job in self.store.generating()
                 if job.ticket == ticket]  # fmt: skip
        known = [seconds for seconds in lefts if seconds is not None]
        return max(known) if known else None

    def position(self, job: Job) -> int | None:
        """Jobs that run before ``job``: 0 for the next one and for those running."""
        if job.state is JobState.GENERATING:
            return 0
        if job.state is not JobState.QUEUED:
            return None
        return self.store.position(job.id, cap=_POSITION_CAP)

    def eta(self, job: Job, position: int | None) -> float | None:
        """Seconds until the picture is there; None when it is over or nothing is known."""
        if job.state.ended:
            return None
        left = self.left(job, self.running(job.id))
        if job.state is JobState.GENERATING or left is None:
            return left
        before = self.queue_seconds(position or 0)
        return None if before is None else before + left

    # -- what is wrong

    def unready(self) -> Iterator[SteadyError]:
        """Every reason why no picture can be made now."""
        if self.stopping:
            yield SteadyError("stopping")
        reasons = list(live.unready(self.pulse()))
        yield from reasons
        try:
            self.store.put(_PROBE, now_us() // 60_000_000)
            paused = self.store.get("paused")
        except SteadyError as error:
            yield error
            return
        if paused and paused.get("by") == "failures":
            yield SteadyError("repeated_failures", paused.get("reason") or "")
        yield from self._disk_warnings({error.code for error in reasons})

    def _disk_warnings(self, seen: set[str]) -> Iterator[SteadyError]:
        try:
            free = shutil.disk_usage(self.outputs).free
        except OSError:
            if "folder_gone" not in seen:
                yield SteadyError("folder_gone", "The outputs folder is not there.")
            return
        if free < self.config.min_free_disk and "disk_full" not in seen:
            yield SteadyError("disk_full", "Less disk is free than `min_free_disk` asks for.")


def is_uuid(text: str) -> bool:
    """Is ``text`` an id as we write them?"""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
