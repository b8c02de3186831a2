"""A body becomes a batch: checked, reserved in the record, published in the inbox.

In that order, so that the answer can name the picture and status never has a gap. A crash
after the reservation leaves a row without a file, which the watcher sweeps; with a key the
same request may be sent again and finishes what was begun.
"""

import datetime
import hashlib
import io
import itertools
import json
import logging
import math
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from api.door import Door
from api.views import Views
from watcher import inbox, jobfile
from watcher.clock import now_us
from watcher.errors import Problem, SteadyError
from watcher.jobs import Batch, JobState, Limits, job_id_of, ticket_of_key
from watcher.log import say
from watcher.recipe import again, read_recipe
from watcher.wildcards import Wildcards

logger = logging.getLogger("steady.api")

SMALL_BODY = 1 << 20  #: bytes of everything but tables
TABLE_BODY = 32 << 20  #: bytes of .csv, .tsv and .jsonl
MAX_KEY = 200
_SHOWN = 100  #: planned jobs, refused rows and warnings kept for the answer
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/\\]")

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
    # pictures that carry a recipe: they are made again
    "image/png": ".png",
    "image/webp": ".webp",
    "image/jpeg": ".jpg",
}


@dataclass(frozen=True)
class Body:
    """What a person sent, as a job file: its bytes and the suffix that says how to read them."""

    data: bytes
    suffix: str
    name: str

    @classmethod
    def of(cls, data: bytes, suffix: str, filename: str) -> "Body":
        """What was sent, as a job file. Raises SteadyError encoding, empty_file, no_recipe.

        ``text/plain`` (".txt") becomes a .jsonl, since the inbox takes no .txt; of a picture
        only the request inside is taken.
        """
        filename = _NOT_IN_NAMES.sub("", filename)
        stem = filename.rpartition(".")[0] or filename
        if suffix in jobfile.PICTURE_SUFFIXES:
            fields = again(read_recipe(data) or {})
            if not fields:
                raise SteadyError("no_recipe")
            return cls(json.dumps(fields, ensure_ascii=False).encode(), ".json", stem or "picture")
        if suffix != ".txt":
            return cls(data, suffix, stem or "prompts")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SteadyError("encoding", "The body is not UTF-8 text.") from None
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        if not prompts:
            raise SteadyError("empty_file", "The body is empty.")
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        return cls(lines.encode(), ".jsonl", stem or "prompts")

    @property
    def table(self) -> bool:
        """Is it read row by row?"""
        return self.suffix in jobfile.LINE_SUFFIXES

    @property
    def digest(self) -> str:
        """sha256 of the bytes: the same key with another content is a conflict."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a body would become. ``count`` None: a long table, which the watcher counts."""

    requests: Sequence[jobfile.Planned]
    count: int | None
    key: str | None
    warnings: tuple[str, ...]
    refused: tuple[Problem, ...]
    resume: bool = False

    def said(self) -> list[str]:
        """The batch's warnings and, each once, those of its jobs; a hundred at most."""
        found = list(self.warnings)
        for planned in self.requests:
            found += [w for w in planned.warnings if w not in found]
        return found[:_SHOWN]


@dataclass(frozen=True)
class Submitted:
    """A batch on its way. ``replayed``: the key was used before with the same body."""

    batch: Batch
    plan: Plan | None
    replayed: bool


class QueueFull(SteadyError):
    """429 with the seconds after which there may be room."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("queue_full")
        self.headers = {"Retry-After": str(max(1, math.ceil(min(seconds or 60, 3600))))}


class Submissions:
    """Takes bodies. Safe for several threads and processes."""

    def __init__(self, door: Door, views: Views) -> None:
        self._door = door
        self._store = door.store
        self._views = views

    def plan(self, body: Body, *, keyed: bool = False) -> Plan:
        """Read ``body`` with the watcher's own reader. Raises SteadyError, nothing is queued.

        ``keyed``: a key came with the request.
        """
        limits = self._door.limits()
        if len(body.data) > SMALL_BODY:
            if not body.table:
                raise SteadyError("too_large")
            return self._glance(body, limits)
        parsed = jobfile.parse(body.data, body.suffix, limits, stem=body.name,
                               keyed=keyed, wildcards=Wildcards(self._door.config.root))  # fmt: skip
        if not parsed.requests:
            raise SteadyError("bad_shape")
        if parsed.key is not None and not parsed.key.strip():
            fault = Problem("out_of_range", "`key` is empty.", key="key", pointer="/key")
            raise SteadyError("out_of_range", problems=[fault])
        refused = [p for row in parsed.refused for p in row.problems]
        return Plan(
            requests=parsed.requests,
            count=len(parsed.requests),
            key=parsed.key,
            warnings=tuple(parsed.warnings),
            refused=tuple(refused[:_SHOWN]),
            resume=parsed.resume,
        )

    def _glance(self, body: Body, limits: Limits) -> Plan:
        """The head of a long table, enough to refuse what is no table at all."""
        lines = jobfile.read_lines(io.BytesIO(body.data), body.suffix, limits, stem=body.name,
                                   wildcards=Wildcards(self._door.config.root))  # fmt: skip
        head = list(itertools.islice(lines, _SHOWN))
        planned = [row for row in head if isinstance(row, jobfile.Planned)]
        refused = [p for row in head if isinstance(row, jobfile.Row) for p in row.problems]
        if not planned:
            raise SteadyError("all_rows_refused", problems=refused[:_SHOWN])
        return Plan(planned, None, None, tuple(lines.warnings), tuple(refused[:_SHOWN]))

    def submit(
        self,
        body: Body,
        key: str | None,
        *,
        check: Callable[[Plan], None] = lambda plan: None,
        resume: bool = False,
    ) -> Submitted:
        """Reserve and publish ``body``. ``key`` makes a repeat harmless; with ``resume`` (here
        or in the body) what of it is missing or changed is run.

        ``check`` may refuse the plan. Raises SteadyError: what the reader finds wrong,
        key_conflict, queue_full, disk_full, folder_gone, stopping.
        """
        if self._door.stopping:
            raise SteadyError("stopping")
        if resume and key is None:
            fault = Problem("missing_field", "`resume` needs an Idempotency-Key.", key="resume")
            raise SteadyError("missing_field", problems=[fault])
        if key is not None and not resume and (known := self._repeat(body, key, early=True)):
            return known
        plan = self.plan(body, keyed=key is not None)
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

        ``early``: the body was not read yet, and may ask to go on with the batch.
        """
        batch = self._store.batch(ticket_of_key(key))
        if batch is None or (early and b"resume" in body.data and not body.table):
            return None
        if batch.digest != body.digest:
            raise SteadyError("key_conflict")
        if batch.recorded_at is None and batch.error is None and not batch.tries:
            # The first try may have died between reserving and publishing. Publishing
            # again is harmless: a file whose ticket is recorded never runs.
            self._publish(body, batch)
        plan = (
            self.plan(body, keyed=True)
            if batch.recorded_at is None and batch.error is None
            else None
        )
        return Submitted(batch, plan, replayed=True)

    def _room(self, coming: int) -> None:
        waiting = self._store.counts()[JobState.QUEUED]
        over = waiting + coming - self._door.config.max_queued
        if over > 0:
            raise QueueFull(self._door.queue_seconds(over))

    def _reserve(self, body: Body, key: str | None, plan: Plan) -> Submitted:
        ticket = ticket_of_key(key) if key is not None else str(uuid.uuid4())
        one = plan.requests[0] if plan.count == 1 else None
        now = now_us()
        batch = self._store.reserve(
            ticket,
            name=body.name,
            suffix=body.suffix,
            source="http",
            digest=body.digest,
            key=key,
            image_name=(one.request.name or one.stem or True) if one is not None else False,
            folder=one.request.folder if one is not None else None,
            now=now,
            local=datetime.datetime.now(),
        )
        replayed = batch.created_at != now
        if replayed and batch.digest != body.digest:
            raise SteadyError("key_conflict")
        first = plan.requests[0].request
        self._views.remember(
            ticket, jobfile.resolve(first, self._door.limits(), job_id_of(ticket, 0))
        )
        try:
            self._publish(body, batch)
        except SteadyError:
            if key is None:
                self._store.sweep(ticket)
            raise
        say(logger, "http.submitted", ticket=ticket, jobs=plan.count, replayed=replayed or None)
        return Submitted(batch, plan, replayed)

    def _publish(self, body: Body, batch: Batch, *, resumes: bool = False) -> None:
        if resumes:  # a file of its own, which the watcher reads into the batch there is
            inbox.submit(self._door.inbox, body.data, body.suffix, str(uuid.uuid4()),
                         resumes=batch.ticket, name=f"{body.name}{body.suffix}")  # fmt: skip
            return
        # Written into the bare mount point of an absent disk, it would never be found again.
        known = bool(self._store.get("inbox_ours"))
        inbox.submit(self._door.inbox, body.data, body.suffix, batch.ticket, known=known)
