"""A body becomes a batch: checked, reserved in the record, published in the inbox.

In that order, so that the answer can name the picture and status never has a gap. A crash
after the reservation leaves a row without a file, which the watcher sweeps; with a key the
same request may be sent again and finishes what was begun.
"""

import dataclasses
import hashlib
import logging
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.bodies import media_type, unpacked
from api.door import Door
from api.errors import fault_entry
from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.fields import seeded
from watcher.jobfile.planner import PlannedJob
from watcher.jobfile.tables import begins_as_json
from watcher.jobs import Batch, JobState, job_id_of, ticket_of_key
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
    """A batch on its way. ``replayed``: the key was used before with the same body."""

    batch: Batch
    plan: Plan | None
    replayed: bool


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

    def plan(self, body: Body, key: str | None = None) -> Plan:
        """Read ``body`` as the watcher will. Raises SteadyError, nothing is queued.

        ``key`` came with the request. Of a long table only the head is looked at.
        """
        body = lifted(body, self._door.inputs)
        reader = Reader(self._door.limits(), self._door.config.root, self._door.inputs, key)
        long = body.table and len(body.data) > SMALL_BODY
        return reader.plan(body, head=_HEAD if long else None)

    def under(self, body: Body, preset: str, key: str | None) -> tuple[Body, Plan]:
        """``body`` with what a preset says where it says nothing itself. SteadyError.

        ``key`` came with the request.
        """
        limits, config = self._door.limits(), self._door.config
        usual = preset_named(preset, config.presets, limits)
        inputs = self._door.inputs
        reader = Reader(limits, config.root, inputs, key, preset=usual)
        made, plan = reader.changed(lifted(body, inputs), {})
        return dataclasses.replace(made, sent=body.sent), plan

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

        ``check`` may refuse the plan. Raises SteadyError: what the reader finds wrong,
        key_conflict, queue_full, disk_full, folder_gone, stopping.
        """
        if self._door.stopping:
            raise SteadyError("stopping")
        body = lifted(body, self._door.inputs)
        if preset is not None:
            sent = hashlib.sha256(f"{preset}\0".encode() + body.data).hexdigest()
            body = dataclasses.replace(body, sent=sent)
        if key is not None and not resume and (known := self._repeat(body, key, early=True)):
            return known
        if preset is not None:
            body, plan = self.under(body, preset, key)
            key, resume = key or plan.key, resume or plan.resume
        if resume and key is None:
            words = "`resume` needs an Idempotency-Key."
            raise ValueFault("missing_field", words, key="resume").error()
        plan = self.plan(body, key)
        check(plan)
        if plan.key is not None:
            if key is not None and key != plan.key:
                raise SteadyError("key_conflict", "The header and the body name different keys.")
            key = plan.key
        if key is not None and not (resume or plan.resume):
            if known := self._repeat(body, key):
                return known
        elif key is not None and (batch := self._store.batch(ticket_of_key(key))):
            self._publish(body, batch, resumes=True)
            return Submitted(batch, plan, replayed=False)
        self._room(plan.count or 1)
        return self._reserve(body, key, plan)

    def _repeat(self, body: Body, key: str, *, early: bool = False) -> Submitted | None:
        """The answer given before for this key, or None when it is new.

        ``early``: the body was not read yet, and may ask to go on with the batch, or a preset be
        put under it.
        """
        batch = self._store.batch(ticket_of_key(key))
        if batch is None or (early and b"resume" in body.data and not body.table):
            return None
        unread = batch.recorded_at is None and batch.error is None
        known = batch.digest == body.digest
        if early and body.sent and (unread or not known):
            return None
        # A batch that went on is known by what it went on with, the preset in it.
        if not known and batch.digest != dataclasses.replace(body, sent="").digest:
            raise SteadyError("key_conflict")
        if unread and batch.claim is None:
            # The first try may have died between reserving and publishing. Publishing
            # again is harmless: a file whose ticket is recorded never runs.
            self._publish(body, batch)
        return Submitted(batch, self.plan(body, key) if unread else None, replayed=True)

    def _room(self, coming: int) -> None:
        waiting = self._store.counts()[JobState.QUEUED] + self._store.unrecorded()
        over = waiting + coming - self._door.config.max_queued
        if over > 0:
            raise QueueFull(self._door.queue_seconds(over))

    def _reserve(self, body: Body, key: str | None, plan: Plan) -> Submitted:
        ticket = ticket_of_key(key) if key is not None else str(uuid.uuid4())
        one = sole_job(plan)
        batch, fresh = self._store.reserve(
            ticket,
            name=body.name,
            suffix=body.suffix,
            source="http",
            digest=body.digest,
            key=key,
            image_name=(one.request.name or one.stem or True) if one is not None else False,
            folder=one.request.folder if one is not None else None,
        )
        if not fresh and batch.digest != body.digest:
            raise SteadyError("key_conflict")
        first = plan.requests[0].request
        self._door.remember(ticket, seeded(first, job_id_of(ticket, 0)))
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
        if resumes:  # a file of its own, which the watcher reads into the batch there is
            name = f"{body.name}{body.suffix}"
            body.publish(self._door.inbox, str(uuid.uuid4()), resumes=batch.ticket, name=name)
            return
        # Written into the bare mount point of an absent disk, it would never be found again.
        body.publish(self._door.inbox, batch.ticket, known=bool(self._store.get("inbox_ours")))


def sole_job(plan: Plan) -> PlannedJob | None:
    """The only job of ``plan``, whose id is the ticket; None for many, and where it has a key of its own."""
    job = plan.requests[0]
    return job if plan.count == 1 and job.request.key in (None, plan.key) else None


def replay_headers(done: Submitted) -> dict[str, str]:
    """Headers that tell a repeat of a key from the first time."""
    return {REPLAYED: "true"} if done.replayed else {}


def accepted(done: Submitted) -> Response:
    """202: what became of a body, and where to ask (`models.Accepted`)."""
    batch, plan = done.batch, done.plan
    one = sole_job(plan) is not None if plan else batch.image_name is not None
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
