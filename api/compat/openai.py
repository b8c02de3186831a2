"""OpenAI's Images API under ``/v1``: what its clients send works unchanged.

A call waits for its pictures, but it is an ordinary job in the queue (see calls.py). What the
real service has and we have not is accepted and named in ``warnings``. ``steps`` counts
forwards, as everywhere outside; ``num_inference_steps`` is one more.
"""

import base64
import dataclasses
import functools
import io
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from PIL import Image
from starlette.responses import Response

from api import dialects, images, links
from api.bodies import KEY, choice, fault, read_object, whole
from api.compat.calls import Attempt, Call, Calls, Snapshot
from api.compat.edits import edit_of, read_form, variation_of
from api.door import Door
from api.events import Stream
from watcher.errors import SteadyError
from watcher.jobfile.batchline import USAGE, body_fields, images_body, look_of
from watcher.jobs import MAX_STEPS, Job, JobState
from watcher.limits import Limits
from watcher.submission import Body

NAME = "openai"  #: the batch's name: tells in lists which door a job came in by
MAX_N = 10  #: as there
MAX_PARTIAL = 3


@dataclasses.dataclass(frozen=True)
class GenerationBody:
    """A generations body, read: the job, and how the caller wants the answer."""

    body: Body
    key: str | None
    forms: tuple[str, ...]  #: of each picture in the answer: url, b64_json
    stream: bool
    partial: int
    warnings: tuple[str, ...]
    event: str = "image_generation"  #: begins the names of what a stream tells


def routes(door: Door, calls: Calls, token: str | None) -> APIRouter:
    """``images/generations``, ``edits``, ``variations``, ``models``, the addresses of pictures."""
    router = APIRouter(prefix="/v1", tags=["openai"], include_in_schema=False)
    answers = Answers(door, calls, token)
    _models(router, door)

    @router.post("/images/generations")
    async def generations(request: Request, idempotency_key: KEY = None) -> Response:
        """Answers when the pictures are there, or with ``stream`` as they come."""
        raw = await read_object(request)
        return await answers.answered(request, raw, idempotency_key, data=await request.body())

    @router.post("/images/edits")
    async def edits(request: Request, idempotency_key: KEY = None) -> Response:
        """The same, from a picture and where there is one under a mask."""
        raw, files = await read_form(request)
        more, warnings = await run_in_threadpool(edit_of, files, door.keep)
        return await answers.answered(
            request, raw, idempotency_key, more=more, warnings=warnings, event="image_edit"
        )

    @router.post("/images/variations")
    async def variations(request: Request, idempotency_key: KEY = None) -> Response:
        """The same, from a picture alone."""
        raw, files = await read_form(request)
        more, warnings = await run_in_threadpool(variation_of, raw, files, door.keep)
        return await answers.answered(request, raw, idempotency_key, more=more, warnings=warnings)

    @router.get("/images/pictures/{file}")
    def picture(file: str, request: Request) -> Response:
        """A picture by the address an answer gave; needs no header while that is signed."""
        job = door.store.job(file.partition(".")[0])
        if job is None or links.path_of(job).rpartition("/")[2] != file:
            raise SteadyError("image_not_found")
        return images.picture(door, job, request)

    return router


class Answers:
    """What a call gets: its pictures in one body, or told as they come."""

    def __init__(self, door: Door, calls: Calls, token: str | None) -> None:
        self._door = door
        self._calls = calls
        self._token = token

    async def answered(
        self,
        request: Request,
        raw: dict[str, Any],
        idempotency_key: str | None,
        *,
        data: bytes = b"",
        more: Mapping[str, Any] = {},
        warnings: Sequence[str] = (),
        event: str = "image_generation",
    ) -> Response:
        """Begin the job of ``raw`` with ``more`` that it says, and answer when it is done.

        ``data``: the bytes of the request, where a second try repeats them.
        """
        asked = generation_of(raw, await run_in_threadpool(self._door.limits), more)
        asked = dataclasses.replace(asked, warnings=(*asked.warnings, *warnings), event=event)
        begin = functools.partial(
            self._calls.begin,
            asked.body,
            key=idempotency_key or asked.key,
            attempt=Attempt.of(request.headers),
            asked=data or asked.body.data,  # a form differs from try to try
        )
        try:
            call = await run_in_threadpool(begin)
        except SteadyError as error:
            raise in_their_words(error, raw) from None
        base = links.base_of(self._door.config, request)
        if asked.stream:
            return Stream(
                self._events(call, asked),
                lambda: self._calls.leave(call, hung_up=True),
                {dialects.REQUEST_ID: call.ticket},
            )
        over = await self._calls.outcome(request, call)
        return await run_in_threadpool(self._answer, over, asked, call, base)

    def _answer(self, over: Snapshot, asked: GenerationBody, call: Call, base: str) -> Response:
        made = over.pictures()
        entries = [{form: self._form(form, job, base) for form in asked.forms} for job in made]
        lost = len(over.jobs) - len(made)
        warnings = (*asked.warnings, *_planned(call))
        if lost:
            warnings += (f"{lost} of {len(over.jobs)} pictures could not be made.",)
        body = images_body(made, entries, warnings)
        return JSONResponse(body, headers={dialects.REQUEST_ID: call.ticket})

    def _form(self, form: str, job: Job, base: str) -> str:
        if form == "url":
            return links.url_of(job, base, self._token)
        return base64.b64encode(images.picture_bytes(self._door, job)).decode()

    # -- told as they come

    async def _events(self, call: Call, asked: GenerationBody) -> AsyncIterator[bytes]:
        """The stream of a call, to its last event; an error (also that the service stops) is one."""
        told: set[str] = set()
        partials: dict[str, list[int]] = {}
        try:
            async with aclosing(self._calls.follow(call)) as following:
                async for now in following:
                    sent = False
                    for job in now.jobs:
                        if job.state is JobState.COMPLETED and job.id not in told:
                            told.add(job.id)
                            sent = True
                            yield await run_in_threadpool(self._completed, job, asked, call)
                        elif job.state is JobState.GENERATING and asked.partial:
                            event = await run_in_threadpool(self._partial, job, asked, partials)
                            if event is not None:
                                sent = True
                                yield event
                    if now.over:
                        now.pictures()  # raises the reason when there is none
                    elif not sent:
                        yield KEEPALIVE_COMMENT
        except SteadyError as error:
            body = {"error": dialects.openai_error(error)}
            yield format_sse_event(data_str=json.dumps(body), event="error")

    def _completed(self, job: Job, asked: GenerationBody, call: Call) -> bytes:
        event = {
            "type": f"{asked.event}.completed",
            "b64_json": base64.b64encode(images.picture_bytes(self._door, job)).decode(),
            "created_at": int(time.time()),
            **look_of(job),
            "usage": USAGE,
            "seed": job.request.seed,
            "job_id": job.id,
            "warnings": list(dict.fromkeys((*asked.warnings, *_planned(call), *job.warnings))),
        }
        return format_sse_event(data_str=json.dumps(event), event=event["type"])

    def _partial(self, job: Job, asked: GenerationBody, sent: dict[str, list[int]]) -> bytes | None:
        """A partial picture when another part of the steps is done and there is a preview of it."""
        jpeg = self._door.preview(job.id)
        entry = self._door.running(job.id) or {}
        shown = entry.get("preview")
        if jpeg is None or shown is None or entry["attempt"] != job.attempt:
            return None
        done = min(1.0, entry["step"] / max(1, entry["steps"]))
        steps = sent.setdefault(job.id, [])
        due = min(asked.partial, int(done * (asked.partial + 1)))
        if len(steps) >= due or shown in steps:
            return None
        steps.append(shown)
        event = {
            "type": f"{asked.event}.partial_image",
            "b64_json": base64.b64encode(unfinished(job, jpeg)).decode(),
            "partial_image_index": len(steps) - 1,
            "created_at": int(time.time()),
            **look_of(job),
            "progress": round(done, 4),
            "job_id": job.id,
        }
        return format_sse_event(data_str=json.dumps(event), event=event["type"])


def _models(router: APIRouter, door: Door) -> None:
    @router.get("/models")
    def models() -> Response:
        """The models that jobs may name, the one in use first."""
        data = [_model(name) for name in door.limits().names]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/models/{name:path}")
    def model(name: str) -> Response:
        if door.limits().named(name) is None:
            raise SteadyError("model_not_found")
        return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "steadydiffusion"}


# -- what goes in


def generation_of(
    raw: Mapping[str, Any], limits: Limits, more: Mapping[str, Any] = {}
) -> GenerationBody:
    """The body of ``images/generations``, with ``more`` that its job says.

    Raises SteadyError for what only such a body has.
    """
    number = whole(raw, "n", 1, MAX_N) or 1
    whole(raw, "steps", 1, MAX_STEPS - 1)
    partial = whole(raw, "partial_images", 0, MAX_PARTIAL) or 0
    choice(raw, "response_format", "url", "b64_json")
    stream = raw.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise fault("wrong_type", "stream", "must be true or false")
    fields, warnings = body_fields(raw, limits)
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= {"count": number, **more}
    key = fields.pop("key", None)
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= 200 and key.strip()):
        raise fault("wrong_type", "key", "must be a text of 1..200 characters")
    named = raw.get("model")
    if isinstance(named, str) and named and "model" not in fields:
        warnings += (f"model has no effect here: {limits.usual.name} makes the pictures.",)
    data = json.dumps(fields, sort_keys=True).encode()
    return GenerationBody(
        body=Body(data, ".json", NAME),
        key=key,
        forms=_forms(raw.get("response_format"), named),
        stream=bool(stream),
        partial=partial,
        warnings=warnings,
    )


def _forms(wanted: Any, model: Any) -> tuple[str, ...]:
    """What each picture of an answer is told as: what was asked for, or that model's usual form.

    dall-e answers with addresses and gpt-image with bytes; callers of any other may read either.
    """
    name = model if isinstance(model, str) else ""
    if wanted is not None:
        return (wanted,)
    if name.startswith("dall-e"):
        return ("url",)
    return ("b64_json",) if "gpt-image" in name else ("url", "b64_json")


def in_their_words(error: SteadyError, raw: Mapping[str, Any]) -> SteadyError:
    """``error`` with the names the caller used: ``size`` for width and height, ``n`` for count."""
    theirs = {"count": "n", "format": "output_format"}
    if raw.get("size") is not None:
        theirs |= {"width": "size", "height": "size"}
    if "steps" in raw:
        theirs["num_inference_steps"] = "steps"
    problems = [
        dataclasses.replace(
            problem,
            key=theirs.get(problem.key or "", problem.key),
            pointer=None,
            message=_renamed(problem.message, theirs),
        )
        for problem in error.problems
    ]
    if not problems:
        return error
    return SteadyError(error.code, problems=problems)


def _renamed(message: str, theirs: Mapping[str, str]) -> str:
    if "width" in theirs and "`size`" not in message:
        for side in ("width", "height"):
            message = message.replace(f"`{side}`", f"the {side}")
        if re.search("(?i)width|the height", message):
            return f"`size`: {message[:1].lower()}{message[1:]}"
    for ours, name in theirs.items():
        message = message.replace(f"`{ours}`", f"`{name}`")
    return message


# -- what comes out


def _planned(call: Call) -> list[str]:
    plan = call.submitted.plan
    return list(plan.warnings) if plan else []


def unfinished(job: Job, preview: bytes) -> bytes:
    """A preview at the size and in the format asked for."""
    with Image.open(io.BytesIO(preview), formats=("JPEG",)) as small:
        image = small.resize(job.request.final_size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, (job.request.format or "png").upper())
    return out.getvalue()
