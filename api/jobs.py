"""``/jobs``: list, submit, look, reorder, cancel, retry, picture."""

import contextlib
import datetime
import json
import re
import urllib.parse
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.responses import Response

from api import images, models
from api.bodies import KEY, media_type, read, replay_headers
from api.door import Door, now_us
from api.errors import Refused, documented
from api.submit import Body, Plan, Submissions, Submitted
from api.views import Views
from watcher import jobfile
from watcher.errors import Problem, SteadyError
from watcher.jobs import Job, JobState, Priority
from watcher.outputs import Outputs
from watcher.recipe import again, read_recipe
from watcher.store import JobFilter

#: media type -> how the watcher reads such a body
SUFFIXES = {
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

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Jobs"},
                "examples": {
                    "one": {"value": {"prompt": "a red fox in the snow"}},
                    "many": {"value": [{"prompt": "a red fox"}, {"prompt": "an owl", "seed": 7}]},
                    "batch": {
                        "value": {
                            "defaults": {"num_inference_steps": 9},
                            "matrix": {"animal": ["fox", "owl"], "style": ["ink", "oil"]},
                            "jobs": ["a {style} painting of a {animal}"],
                        }
                    },
                },
            },
            "application/yaml": {
                "schema": {"description": "what application/json says, written as YAML"},
                "example": {"prompt": "a red fox in the snow"},
            },
            "text/plain": {
                "schema": {"type": "string", "pattern": "^[A-Za-z][A-Za-z ,]{0,200}$"},
                "example": "a red fox\nan owl at night\n",
            },
        },
    }
}

Cursor = Annotated[
    str | None,
    Query(pattern="^s[0-9]{1,18}$", description="`next` of the page before", examples=["s42"]),
]


def _day(what: str) -> Any:
    return Query(
        max_length=40,
        description=f"{what}; a day or an ISO 8601 time, local unless it names a zone",
        examples=["2026-01-21"],
        json_schema_extra={"format": "date-time"},
    )


Limit = Annotated[int, Query(ge=1, le=500, description="rows on a page")]


def routes(door: Door, views: Views, submissions: Submissions, outputs: Outputs) -> APIRouter:
    """Everything below ``/jobs`` but its events."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])
    _many(router, door, views, submissions)
    _one(router, door, views)
    _picture(router, door, views, outputs)
    return router


def _many(router: APIRouter, door: Door, views: Views, submissions: Submissions) -> None:
    """The list, and how to add to it."""
    store = door.store

    @router.get(
        "",
        operation_id="list_jobs",
        summary="Jobs, newest first",
        response_model=models.JobPage,
        responses=documented("wrong_type"),
    )
    def list_jobs(
        request: Request,
        state: Annotated[models.State | None, Query(description="only these")] = None,
        text: Annotated[
            str | None,
            Query(max_length=200, description="words of the prompt"),
        ] = None,
        since: Annotated[str | None, _day("created at or after")] = None,
        until: Annotated[str | None, _day("created before; a day is included whole")] = None,
        batch: Annotated[str | None, Query(max_length=64, description="a ticket")] = None,
        name: Annotated[
            str | None,
            Query(max_length=200, description="an image name"),
        ] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """Follow `next` (or the Link header) for older ones; new jobs never shift a page."""
        chosen = JobFilter(
            state=JobState(state) if state else None,
            text=plain(text),
            since=moment_of("since", since),
            until=moment_of("until", until, end=True),
            ticket=plain(batch),
            name=plain(name),
        )
        rows = store.jobs(chosen, before_seq=seq_of(cursor), limit=limit + 1)
        following = cursor_of(rows[limit - 1].seq) if len(rows) > limit else None
        body = {"jobs": [views.job(job, place=False) for job in rows[:limit]], "next": following}
        return JSONResponse(body, headers=link_of(request, following))

    @router.post(
        "",
        operation_id="submit_jobs",
        summary="Submit one job, a list or a batch",
        status_code=202,
        response_model=models.Accepted,
        responses={
            **documented(
                "bad_request", "key_conflict", "wrong_type", "bad_yaml", "too_large",
                "bad_content_type", "queue_full", "disk_full", "folder_gone", "stopping",
            ),
            200: {"description": "The dry run's expansion.", "model": models.DryRun},
            202: {
                "description": "On its way.",
                "headers": {"Location": {"schema": {"type": "string"}}},
            },
        },
        openapi_extra=_BODY,
    )  # fmt: skip
    async def submit_jobs(
        request: Request,
        dry_run: Annotated[bool, Query(description="show what it would become")] = False,
        filename: Annotated[
            str,
            Query(
                max_length=200,
                description="the file's name: names the batch and the pictures of a list",
                examples=["cats.yaml"],
            ),
        ] = "",
        resume: Annotated[
            bool,
            Query(description="with the key of an earlier batch: run what is missing or changed"),
        ] = False,
        idempotency_key: KEY = None,
    ) -> Response:
        """The body is a job file: JSON, YAML, lines of JSON, a table, or plain text with one
        prompt a line. It is taken whole or, but for rows of a table, not at all. A picture
        (PNG, WebP, JPEG) that carries its recipe is made again."""
        data = await read(request, *SUFFIXES)
        suffix = SUFFIXES.get(media_type(request), ".json")
        return await run_in_threadpool(
            _submit, data, suffix, filename, idempotency_key, dry_run, resume
        )

    def _submit(
        data: bytes, suffix: str, filename: str, key: str | None, dry_run: bool, resume: bool
    ) -> Response:
        body = body_of(data, suffix, filename)
        if dry_run:
            return JSONResponse(_dry(submissions.plan(body, keyed=key is not None)))
        done = submissions.submit(body, key, resume=resume)
        answer = _accepted(done)
        headers = replay_headers(done) | {"Location": answer["location"]}
        return JSONResponse(answer, 202, headers)

    def _accepted(done: Submitted) -> dict[str, Any]:
        batch, plan = done.batch, done.plan
        one = plan.count == 1 if plan else batch.jobs == 1
        return {
            "ticket": batch.ticket,
            "jobs": plan.count if plan else batch.jobs,
            "job_id": batch.ticket if one else None,
            "image_name": batch.image_name if one else None,
            "location": f"/jobs/{batch.ticket}" if one else f"/batches/{batch.ticket}",
            "warnings": warnings_of(plan) if plan else list(batch.warnings),
            "refused": [_fault(p) for p in plan.refused] if plan else [],
        }


def _one(router: APIRouter, door: Door, views: Views) -> None:
    """One job: look, reorder, cancel, retry."""
    store = door.store

    @router.get(
        "/{job_id}",
        operation_id="job",
        summary="One job",
        response_model=models.JobView,
        responses=documented("job_not_found"),
    )
    def job(job_id: str) -> Response:
        """Also before the watcher has read it, so that no id ever answers 404 in between."""
        return JSONResponse(views.job(views.find(job_id)))

    @router.patch(
        "/{job_id}",
        operation_id="reorder_job",
        summary="Give a waiting job another place",
        response_model=models.JobView,
        responses=documented("job_not_found", "wrong_state", "wrong_type", "bad_content_type"),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Change"}}
                },
            }
        },
    )
    async def reorder_job(job_id: str, request: Request) -> Response:
        """`priority` changes its class, `position` puts it first or last in its class."""
        change = change_of(await read(request, "application/json"))
        return await run_in_threadpool(_reorder, job_id, change)

    def _reorder(job_id: str, change: models.Change) -> Response:
        found = _read_already(views.find(job_id))
        try:
            store.reorder(
                job_id,
                priority=Priority(change.priority) if change.priority else None,
                position=change.position,
            )
        except SteadyError as error:
            raise _told(error, found) from None
        return JSONResponse(views.job(views.find(job_id)))

    @router.delete(
        "/{job_id}",
        operation_id="cancel_job",
        summary="Cancel a job",
        response_model=models.JobView,
        responses=documented("job_not_found", "wrong_state"),
    )
    def cancel_job(job_id: str) -> Response:
        """A waiting job ends at once; a running one within a step (`cancel_requested`)."""
        found = views.find(job_id)
        if found.seq == 0 and not found.state.ended:
            store.cancel_batch(found.ticket, now_us())
            return JSONResponse(views.job(views.find(job_id)))
        try:
            return JSONResponse(views.job(store.cancel(job_id, now_us())))
        except SteadyError as error:
            raise _told(error, store.job(job_id) or found) from None

    @router.post(
        "/{job_id}/retry",
        operation_id="retry_job",
        summary="Run a failed or cancelled job again",
        response_model=models.JobView,
        responses=documented("job_not_found", "wrong_state"),
    )
    def retry_job(job_id: str) -> Response:
        """It keeps its id, seed, name and place of the picture."""
        found = _read_already(views.find(job_id))
        try:
            return JSONResponse(views.job(store.retry(job_id, now_us())))
        except SteadyError as error:
            raise _told(error, store.job(job_id) or found) from None


def _picture(router: APIRouter, door: Door, views: Views, outputs: Outputs) -> None:
    """One job's picture: fetch, delete."""

    @router.get(
        "/{job_id}/image",
        operation_id="job_image",
        summary="A job's picture",
        response_class=Response,
        responses=images.DOCUMENTED,
    )
    def job_image(
        job_id: str,
        request: Request,
        size: Annotated[
            Literal["256"] | None, Query(description="256: the thumbnail (WebP)")
        ] = None,
        download: Annotated[bool, Query(description="as an attachment")] = False,
        recipe: Annotated[
            bool, Query(description="false: the same pixels without the recipe inside")
        ] = True,
    ) -> Response:
        """The whole picture, or its thumbnail."""
        found = views.find(job_id)
        if size is not None:
            return images.thumbnail(door, found, request)
        if not recipe:
            return images.bare(door, found, download=download)
        return images.picture(door, found, request, download=download)

    @router.delete(
        "/{job_id}/image",
        operation_id="delete_image",
        summary="Delete a job's picture",
        status_code=204,
        response_class=Response,
        responses={
            **documented("job_not_found", "image_not_ready", "folder_gone"),
            204: {"description": "It is gone; the job's row stays."},
        },
    )
    def delete_image(job_id: str) -> Response:
        """Twice is as good as once."""
        found = views.find(job_id)
        if found.deleted_at is None:
            images.check_ready(found)
            # The row first: after a crash in between the picture is no longer shown.
            door.store.mark_deleted(job_id, now_us())
        outputs.delete(found)
        return Response(status_code=204)


# -- what goes in

_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/\\]")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def moment_of(name: str, text: str | None, *, end: bool = False) -> int | None:
    """A day or a time as microseconds UTC; with ``end`` a bare day counts to its last moment.

    Raises SteadyError out_of_range.
    """
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.upper())
    except ValueError:
        fault = Problem(
            "out_of_range",
            f"`{name}` must be a day or an ISO 8601 time.",
            key=name,
            allowed="2026-01-21, 2026-01-21T14:30 or 2026-01-21T14:30:00+02:00",
        )
        raise SteadyError("out_of_range", problems=[fault]) from None
    with contextlib.suppress(OverflowError):
        if end and len(text) <= 10:
            moment += datetime.timedelta(days=1)
    try:
        aware = moment.astimezone(datetime.UTC)
    except (OverflowError, ValueError, OSError):  # at the ends of the calendar
        aware = moment.replace(tzinfo=datetime.UTC)
    return (aware - _EPOCH) // datetime.timedelta(microseconds=1)


def cursor_of(seq: int) -> str:
    """The mark after the row ``seq``; opaque to callers."""
    return f"s{seq}"


def seq_of(cursor: str | None) -> int | None:
    """What :func:`cursor_of` wrote (the parameter's pattern was checked before)."""
    return None if cursor is None else int(cursor[1:])


def plain(text: str | None) -> str | None:
    """``text`` without NUL, which no text in the record holds and not every database takes."""
    return text.replace("\0", "") if text is not None else None


def link_of(request: Request, following: str | None) -> dict[str, str]:
    """The Link header to the next page (RFC 8288), with the same filter."""
    if following is None:
        return {}
    query = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
    target = urllib.parse.urlencode([*query, ("cursor", following)])
    return {"Link": f'<{request.url.path}?{target}>; rel="next"'}


def body_of(data: bytes, suffix: str, filename: str) -> Body:
    """What was sent, as a job file. Raises SteadyError encoding, empty_file, no_recipe.

    ``text/plain`` becomes a .jsonl, since the inbox takes no .txt; of a picture only the
    request inside is taken (no_recipe when there is none).
    """
    filename = _NOT_IN_NAMES.sub("", filename)
    stem = filename.rpartition(".")[0] or filename
    if suffix in jobfile.PICTURE_SUFFIXES:
        fields = again(read_recipe(data) or {})
        if not fields:
            raise SteadyError("no_recipe")
        return Body(json.dumps(fields, ensure_ascii=False).encode(), ".json", stem or "picture")
    if suffix != ".txt":
        return Body(data, suffix, stem or "prompts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SteadyError("encoding", "The body is not UTF-8 text.") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise SteadyError("empty_file", "The body is empty.")
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    return Body(lines.encode(), ".jsonl", stem or "prompts")


def change_of(data: bytes) -> models.Change:
    """The body of PATCH. Raises SteadyError with the faulty keys."""
    try:
        return models.Change.model_validate_json(data)
    except ValidationError as error:
        problems = [
            Problem(
                {"extra_forbidden": "unknown_field", "json_invalid": "bad_json"}.get(
                    fault["type"], "wrong_type"
                ),
                f"{fault['msg']}.",
                key=str(fault["loc"][-1]) if fault["loc"] else None,
                pointer="/" + "/".join(map(str, fault["loc"])) if fault["loc"] else None,
            )
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SteadyError(problems[0].code, problems=problems) from None


# -- what comes out


def _read_already(job: Job) -> Job:
    """``job``, unless the watcher has not read it yet: then only waiting and cancelling go."""
    if job.seq == 0:
        words = "The watcher has not read the job yet."
        raise Refused(SteadyError("wrong_state", words), state=job.state.value)
    return job


def _told(error: SteadyError, job: Job) -> SteadyError:
    """``wrong_state`` with the state the job is in."""
    return Refused(error, state=job.state.value) if error.code == "wrong_state" else error


def warnings_of(plan: Plan) -> list[str]:
    """The batch's warnings and, each once, those of its jobs."""
    found = list(plan.warnings)
    for planned in plan.requests:
        found += [w for w in planned.warnings if w not in found]
    return found[:100]


def _fault(fault: Problem) -> dict[str, Any]:
    entry = fault.as_dict(value=False)
    entry["detail"] = entry.pop("message")
    entry.pop("file", None)
    return entry


def _dry(plan: Plan) -> dict[str, Any]:
    jobs = []
    for planned in plan.requests[:100]:
        request = planned.request
        jobs.append(
            {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "height": request.height,
                "width": request.width,
                "num_inference_steps": request.num_inference_steps,
                "guidance_scale": request.guidance_scale,
                "seed": request.seed,
                "format": request.format,
                "name": planned.stem,
                "folder": request.folder,
                "label": request.label,
                "metadata": request.metadata,
                "warnings": list(planned.warnings),
                "row": planned.row,
            }
        )
    return {
        "count": plan.count,
        "jobs": jobs,
        "warnings": warnings_of(plan),
        "refused": [_fault(p) for p in plan.refused],
    }
