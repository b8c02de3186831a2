"""``/jobs``: list, submit, look, reorder, cancel, retry, picture.

Each verb is one statement of the record, so a crash leaves it done or not done; how a body
becomes jobs is told in submit.py.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import images, models
from api.bodies import KEY, json_body, read_model
from api.door import Door
from api.errors import Refused, documented, fault_entry
from api.paging import (
    RATING,
    SIZE,
    Cursor,
    Limit,
    cursor_of,
    day,
    link_of,
    moment_bound,
    seq_of,
    without_nul,
)
from api.submit import ON_ITS_WAY, Submissions, accepted, read_file
from api.views import Views
from watcher.chosen import rating_range, size_said
from watcher.errors import SteadyError
from watcher.jobs import MAX_SEED, Job, JobState
from watcher.pictures.outputs import Outputs
from watcher.store import JobFilter
from watcher.submission import Body, Plan

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Jobs"},
                "examples": {
                    "one": {"value": {"prompt": "a red balloon over snowy mountains"}},
                    "many": {
                        "value": [
                            {"prompt": "a black cat"},
                            {"prompt": "a yellow rocket at night", "seed": 7},
                        ]
                    },
                    "batch": {
                        "value": {
                            "defaults": {"num_inference_steps": 9},
                            "matrix": {"animal": ["cat", "dog"], "ground": ["yellow", "blue"]},
                            "jobs": ["a black {animal} on a {ground} background"],
                        }
                    },
                },
            },
            "application/yaml": {
                "schema": {"description": "what application/json says, written as YAML"},
                "example": {"prompt": "a red balloon over snowy mountains"},
            },
            "text/plain": {
                "schema": {"type": "string", "pattern": "^[A-Za-z][A-Za-z ,]{0,200}$"},
                "example": "a black cat\na yellow rocket at night\n",
            },
        },
    }
}


def routes(door: Door, views: Views, submissions: Submissions, outputs: Outputs) -> APIRouter:
    """Everything below ``/jobs`` but its events."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])
    _listed_jobs(router, door, views)
    _submission(router, views, submissions)
    _one(router, door, views)
    _picture_routes(router, door, outputs)
    return router


def _listed_jobs(router: APIRouter, door: Door, views: Views) -> None:
    """All of them, or those that are looked for."""

    @router.get("", response_model=models.JobPage)
    def list_jobs(
        request: Request,
        state: Annotated[JobState | None, Query(description="only these")] = None,
        text: Annotated[
            str | None,
            Query(
                max_length=200,
                description="part of the prompt, the picture's name, the file's, label or metadata, in any case",
            ),
        ] = None,
        since: Annotated[str | None, day("created at or after")] = None,
        until: Annotated[str | None, day("created before; a day is included whole")] = None,
        batch: Annotated[str | None, Query(max_length=64, description="a ticket")] = None,
        name: Annotated[
            str | None,
            Query(max_length=200, description="an image name"),
        ] = None,
        model: Annotated[str | None, Query(max_length=100, description="of this model")] = None,
        lora: Annotated[str | None, Query(max_length=200, description="with this LoRA")] = None,
        rating: RATING = None,
        seed: Annotated[int | None, Query(ge=0, le=MAX_SEED, description="with this seed")] = None,
        size: SIZE = None,
        label: Annotated[
            str | None, Query(max_length=500, description="with this label, in any case")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """Jobs, newest first. Follow `next` (or the Link header) for older ones; new jobs never
        shift a page."""
        chosen = JobFilter(
            state=state,
            text=without_nul(text),
            since=moment_bound("since", since),
            until=moment_bound("until", until, end=True),
            ticket=without_nul(batch),
            name=without_nul(name),
            models=door.limits().in_record(without_nul(model)),
            lora=without_nul(lora),
            rating=rating_range(rating) if rating else None,
            seed=seed,
            size=size_said(size) if size else None,
            label=without_nul(label),
        )
        rows = door.store.jobs(chosen, before_seq=seq_of(cursor), limit=limit + 1)
        following = cursor_of(rows[limit - 1].seq) if len(rows) > limit else None
        body = {"jobs": [views.brief(job) for job in rows[:limit]], "next": following}
        return JSONResponse(body, headers=link_of(request, following))


def _submission(router: APIRouter, views: Views, submissions: Submissions) -> None:
    """How to add to them."""

    @router.post(
        "",
        status_code=202,
        response_model=models.Accepted,
        responses={
            **documented("bad_yaml", "model_not_found", "lora_changed"),
            200: {"description": "The dry run's expansion.", "model": models.DryRun},
            202: ON_ITS_WAY,
        },
        openapi_extra=_BODY,
    )
    async def submit_jobs(
        request: Request,
        dry_run: Annotated[bool, Query(description="show what it would become")] = False,
        filename: Annotated[
            str,
            Query(
                max_length=200,
                description="the file's name: its suffix says how it is read, before the type does; "
                "it names the batch and the pictures of a list",
                examples=["cats.yaml"],
            ),
        ] = "",
        resume: Annotated[
            bool,
            Query(description="with the key of an earlier batch: run what is missing or changed"),
        ] = False,
        preset: Annotated[
            str | None,
            Query(
                max_length=80, description="a file of presets/: what holds where nothing is said"
            ),
        ] = None,
        idempotency_key: KEY = None,
    ) -> Response:
        """Submit one job, a list or a batch. The body is a job file: JSON, YAML, lines of JSON,
        a table, or plain text with one prompt a line. It is taken whole or, but for rows of a table, not at all. A picture
        (PNG, WebP, JPEG) that carries its recipe is made again; under a preset one is started from."""
        body = await read_file(request, filename)
        return await run_in_threadpool(_submit, body, idempotency_key, dry_run, resume, preset)

    def _submit(
        body: Body, key: str | None, dry_run: bool, resume: bool, preset: str | None
    ) -> Response:
        if not dry_run:
            return accepted(submissions.submit(body, key, resume=resume, preset=preset))
        return JSONResponse(_dry(submissions.read(body, key, preset)[1], views))


def _one(router: APIRouter, door: Door, views: Views) -> None:
    """One job: look, reorder, cancel, retry."""
    store = door.store

    @router.get("/{job_id}", response_model=models.JobView)
    def job(job_id: str) -> Response:
        """One job. Also before the watcher has read it, so that no id ever answers 404 in between."""
        return JSONResponse(views.job(door.find(job_id)))

    @router.patch(
        "/{job_id}",
        response_model=models.JobView,
        responses=documented("wrong_state"),
        openapi_extra=json_body("Change"),
    )
    async def reorder_job(job_id: str, request: Request) -> Response:
        """Give a waiting job another place, or rate a picture. `priority` changes its class,
        `position` puts it first or last in its class; `rating` is on the disk when this answers."""
        change = await read_model(request, models.Change)
        return await run_in_threadpool(_reorder, job_id, change)

    def _reorder(job_id: str, change: models.Change) -> Response:
        found = _read_already(door.find(job_id))
        try:
            if change.rating is not None:
                store.rate(job_id, change.rating)
                store.sync()
            if change.priority or change.position or change.rating is None:
                store.reorder(job_id, priority=change.priority, position=change.position)
        except SteadyError as error:
            raise _with_state(error, found) from None
        return JSONResponse(views.job(door.find(job_id)))

    @router.delete("/{job_id}", response_model=models.JobView, responses=documented("wrong_state"))
    def cancel_job(job_id: str) -> Response:
        """Cancel a job. A waiting one ends at once; a running one within a step
        (`cancel_requested`)."""
        return JSONResponse(views.job(cancelled_job(door, job_id)))

    @router.post(
        "/{job_id}/retry", response_model=models.JobView, responses=documented("wrong_state")
    )
    def retry_job(job_id: str) -> Response:
        """Run a failed or cancelled job again. It keeps its id, seed, name and place of the
        picture."""
        found = _read_already(door.find(job_id))
        try:
            return JSONResponse(views.job(store.retry(job_id)))
        except SteadyError as error:
            raise _with_state(error, store.job(job_id) or found) from None


def _picture_routes(router: APIRouter, door: Door, outputs: Outputs) -> None:
    """One job's picture: fetch, delete."""

    @router.get("/{job_id}/image", response_class=Response, responses=images.DOCUMENTED)
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
        """A job's picture, whole or as its thumbnail."""
        found = door.find(job_id)
        if size is not None:
            return images.thumbnail(door, found, request)
        if not recipe:
            return images.bare(door, found, download=download)
        return images.picture(door, found, request, download=download)

    @router.get(
        "/{job_id}/preview",
        response_class=Response,
        responses={
            **documented("no_preview"),
            200: {"description": "The preview.", "content": {"image/jpeg": {}}},
        },
    )
    def job_preview(job_id: str) -> Response:
        """How a picture that is being made looks so far, small. Previews are drawn only while
        somebody asks: the first is there a step or two after the first question. `/events?preview=true`
        tells of each new one."""
        jpeg = door.preview(door.find(job_id).id)
        if jpeg is None:
            raise SteadyError("no_preview")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @router.delete(
        "/{job_id}/image",
        status_code=204,
        response_class=Response,
        responses={
            **documented("image_not_ready", "folder_gone"),
            204: {"description": "It is gone; the job's row stays."},
        },
    )
    def delete_image(job_id: str) -> Response:
        """Delete a job's picture. Twice is as good as once."""
        found = door.find(job_id)
        if found.deleted_at is None:
            images.check_ready(found)
            # The row first: after a crash in between the picture is no longer shown.
            door.store.mark_deleted(job_id)
            door.store.sync()
        outputs.delete(found)
        return Response(status_code=204)


def cancelled_job(door: Door, job_id: str) -> Job:
    """The job, cancelled, also before it was read. SteadyError job_not_found, wrong_state."""
    found = door.find(job_id)
    if found.seq == 0 and not found.state.ended:
        door.store.cancel_batch(found.ticket)
        return door.find(job_id)
    try:
        return door.store.cancel(job_id)
    except SteadyError as error:
        raise _with_state(error, door.store.job(job_id) or found) from None


def _read_already(job: Job) -> Job:
    """``job``, unless the watcher has not read it yet: then only waiting and cancelling go."""
    if job.seq == 0:
        words = "The watcher has not read the job yet."
        raise Refused(SteadyError("wrong_state", words), state=job.state.value)
    return job


def _with_state(error: SteadyError, job: Job) -> SteadyError:
    """``wrong_state`` with the state the job is in."""
    return Refused(error, state=job.state.value) if error.code == "wrong_state" else error


def _dry(plan: Plan, views: Views) -> dict[str, Any]:
    jobs = [
        views.asked(planned.request)
        | {
            "name": planned.stem,
            "folder": planned.request.folder,
            "warnings": list(planned.warnings),
            "row": planned.row,
        }
        for planned in plan.requests[:100]
    ]
    return {
        "count": plan.count,
        "key": plan.key,
        "jobs": jobs,
        "warnings": list(plan.warnings),
        "refused": [fault_entry(p) for p in plan.refused],
    }
