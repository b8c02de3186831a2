"""A body becomes a batch: checked, reserved in the record, published in the inbox.

In that order, so that the answer can name the picture and status never has a gap. A crash
after the reservation leaves a row without a file, which the watcher sweeps; with a key the
same request may be sent again and finishes what was begun.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.bodies import media_type, unpacked
from api.door import Door
from api.errors import fault_entry
from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.fields import seeded
from watcher.jobfile.tables import begins_as_json
from watcher.jobs import Batch, JobState, ticket_of_key
from watcher.log import say
from watcher.submission import Body, Plan, Reader, lifted, preset_named
from watcher.suffixes import FORMS, remedy_for, suffix_of

logger = logging.getLogger("steady.api")

SMALL_BODY = 1 << 20  #: bytes; of longer tables only the head is read before the answer
TABLE_BODY = 32 << 20  #: bytes of a table or picture
_HEAD = 100  #: rows


#: media type -> how the watcher reads such a body
MEDIA_TYPES = {
    "application/json": ".json",
    "application/yaml": ".yaml",
    "application/x-yaml": ".yaml",
    "text/yaml": ".yaml",
    "text/x-yaml": ".yaml",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/x-jsonlines": ".jsonl",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": ".txt",
    "application/zip": ".zip",
    # pictures that carry a recipe: they are made again
    "image/png": ".png",
    "image/webp": ".webp",
    "image/jpeg": ".jpg",
}


@dataclass(frozen=True)
class Submitted:
    """A batch on its way. ``replayed``: the key was used before with the same body. ``resumed``: the
    body goes on with a batch, in which its jobs may have other ids.
    """

    batch: Batch
    plan: Plan | None
    replayed: bool
    resumed: bool = False


REPLAYED = "Idempotency-Replayed"

#: OpenAPI's answer of every route that takes a body.
ON_ITS_WAY = {
    "description": "On its way.",
    "headers": {"Location": {"schema": {"type": "string"}}},
}


async def read_file(request: Request, filename: str) -> Body:
    """The body as a job file. ``filename``'s suffix decides how it is read, then its type.

    Text that begins as JSON is JSON: that is how ``fetch`` sends it when no type is said.
    Raises SteadyError bad_content_type for anything else.
    """
    given = media_type(request)
    suffix = ".json" if given.endswith("+json") else MEDIA_TYPES.get(given, "")
    named = suffix_of(filename) in FORMS and not given.startswith("multipart/")
    if not named and not suffix:
        known = f"Send {', '.join(MEDIA_TYPES)}; or name the file, as in ?filename=jobs.csv."
        raise SteadyError("bad_content_type", remedy=remedy_for(filename) if filename else known)
    data = await unpacked(request)
    if suffix == ".txt" and begins_as_json(data[:200].decode("utf-8-sig", "replace")):
        suffix = ".json"
    return Body.of(data, filename, suffix)


class QueueFull(SteadyError):
    """429 with the seconds after which there may be room."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("queue_full")
        self.headers = {"Retry-After": str(max(1, math.ceil(min(seconds or 60, 3600))))}


class Submissions:
    """Takes bodies. Safe for several threads and processes."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._store = door.store

    def read(self, body: Body, key: str | None, preset: str | None) -> tuple[Body, Plan]:
        """What is published for ``body``, and what the watcher will make of it. SteadyError.

        ``key`` came with the request. Of a long table only the head is looked at, unless a preset
        is put under it.
        """
        body = lifted(body, self._door.inputs)
        limits, config = self._door.limits(), self._door.config
        usual = None if preset is None else preset_named(preset, config.presets, limits)
        reader = Reader(limits, config.root, self._door.inputs, key, preset=usual)
        if usual is not None:
            return reader.changed(body, {})
        long = body.table and len(body.data) > SMALL_BODY
        return body, reader.plan(body, head=_HEAD if long else None)

    def submit(
        self,
        body: Body,
        key: str | None,
        *,
        check: Callable[[Plan], None] = lambda plan: None,
        resume: bool = False,
        preset: str | None = None,
    ) -> Submitted:
        """Reserve and publish ``body``. ``key`` makes a repeat harmless; with ``resume`` (here
        or in the body) what of it is missing or changed is run. ``preset`` says what it does not,
        as it is now: a repeat is what was sent before, whatever was written there meanwhile.

        ``check`` may refuse the plan of what is new. Raises SteadyError: what the reader finds
        wrong, key_conflict, queue_full, disk_full, folder_gone, stopping.
        """
        if self._door.stopping:
            raise SteadyError("stopping")
        body = lifted(body, self._door.inputs)
        if preset is not None:
            body = body.under(preset, {})
        asks = resume or (b"resume" in body.data and not body.table)  # perhaps, to go on
        if key is not None and not asks:
            known = self._store.batch(ticket_of_key(key))
            if known and known.recorded_at is not None and known.digest == body.digest:
                return Submitted(known, None, replayed=True)
        body, plan = self.read(body, key, preset)
        resume = resume or plan.resume
        if resume and plan.key is None:
            words = "`resume` needs an Idempotency-Key."
            raise ValueFault("missing_field", words, key="resume").error()
        if resume and (batch := self._store.batch(plan.ticket)):
            self._publish(body, batch, resumes=True)
            return Submitted(batch, plan, replayed=False, resumed=True)
        if not resume and (batch := self._store.repeated(plan.ticket, body.digests)):
            if batch.recorded_at is None and batch.error is None and batch.claim is None:
                # The first try may have died between reserving and publishing. Publishing
                # again is harmless: a file whose ticket is recorded never runs.
                self._publish(body, batch)
            return Submitted(batch, plan, replayed=True)
        check(plan)
        self._room(plan.count or 1)
        return self._reserve(body, plan)

    def _room(self, coming: int) -> None:
        waiting = self._store.counts()[JobState.QUEUED] + self._store.unrecorded()
        over = waiting + coming - self._door.config.max_queued
        if over > 0:
            raise QueueFull(self._door.queue_seconds(over))

    def _reserve(self, body: Body, plan: Plan) -> Submitted:
        first, ticket = plan.requests[0], plan.ticket
        batch, fresh = self._store.reserve(
            ticket,
            name=body.name,
            suffix=body.suffix,
            source="http",
            digest=body.digest,
            key=plan.key,
            image_name=(first.request.name or first.stem or True) if plan.sole else False,
            folder=first.request.folder if plan.sole else None,
        )
        self._door.remember(ticket, seeded(first.request, plan.ids[0]))
        try:
            self._store.sync()  # the answer names the picture
            self._publish(body, batch)
        except SteadyError:
            if fresh:
                self._store.sweep(ticket)
            raise
        say(logger, "http.submitted", ticket=ticket, jobs=plan.count, replayed=not fresh or None)
        return Submitted(batch, plan, replayed=not fresh)

    def _publish(self, body: Body, batch: Batch, *, resumes: bool = False) -> None:
        name = f"{body.name}{body.suffix}" if resumes else ""
        # Written into the bare mount point of an absent disk, it would never be found again.
        known = bool(self._store.get("inbox_ours"))
        body.publish(self._door.inbox, batch.ticket, name=name, known=known, resumes=resumes)


def replay_headers(done: Submitted) -> dict[str, str]:
    """Headers that tell a repeat of a key from the first time."""
    return {REPLAYED: "true"} if done.replayed else {}


def accepted(done: Submitted) -> Response:
    """202: what became of a body, and where to ask (`models.Accepted`)."""
    batch, plan = done.batch, done.plan
    one = batch.image_name is not None and not done.resumed
    location = f"/jobs/{batch.ticket}" if one else f"/batches/{batch.ticket}"
    answer = {
        "ticket": batch.ticket,
        "jobs": plan.count if plan else batch.jobs,
        "job_id": batch.ticket if one else None,
        "image_name": batch.image_name if one else None,
        "location": location,
        "warnings": list(plan.warnings if plan else batch.warnings),
        "refused": [fault_entry(p) for p in plan.refused] if plan else [],
    }
    return JSONResponse(answer, 202, replay_headers(done) | {"Location": location})
