"""The five routes of the first version: their fields, words and codes never change.

``GET /health`` is told in health.py.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import images, models
from api.bodies import KEY, json_body, read_body
from api.door import Door
from api.errors import documented
from api.submit import Submissions, replay_headers
from api.views import Views
from watcher.errors import SteadyError, ValueFault
from watcher.jobs import JobState
from watcher.submission import Body, Plan


def routes(door: Door, views: Views, submissions: Submissions) -> APIRouter:
    """``POST /generate-image``, ``GET /status``, ``GET /image``, ``GET /image/by-name``."""
    router = APIRouter(tags=["pictures"])

    @router.post(
        "/generate-image",
        response_model=models.Generated,
        responses=documented("model_not_found", "lora_changed"),
        openapi_extra=json_body("OneJob"),
    )
    async def generate_image(request: Request, idempotency_key: KEY = None) -> Response:
        """Start one picture. Answers at once; ask `/status/{job_id}` how it goes."""
        data = await read_body(request, "application/json")
        body = Body(data, ".json", "prompt")
        done = await run_in_threadpool(
            submissions.submit, body, idempotency_key, check=_exactly_one
        )
        batch = done.batch
        name = batch.image_name
        if name is None:  # a key that first came with a file: its job tells the name
            name = (await run_in_threadpool(door.find, batch.ticket)).image_name
        answer = {"job_id": batch.ticket, "image_name": name, "status": "generating"}
        return JSONResponse(answer, headers=replay_headers(done))

    @router.get("/status/{job_id}", response_model=models.Status)
    async def status(job_id: str) -> Response:
        """How a picture is doing. `status` is one of generating, completed and failed; `state`
        knows more words."""
        job = door.store.job(job_id) if door.near else None
        if job is None or job.state is JobState.QUEUED:  # a file or the queue is to be read
            return JSONResponse(await run_in_threadpool(_status, job_id))
        return JSONResponse(views.status(job))

    def _status(job_id: str) -> dict[str, Any]:
        return views.status(door.find(job_id))

    @router.get(
        "/image/by-name/{image_name:path}", response_class=Response, responses=images.DOCUMENTED
    )
    def image_by_name(
        image_name: str,
        request: Request,
    ) -> Response:
        """A picture by its name: `ImgGen_143022`, or `folder/name`. When several have the name,
        the newest that is there."""
        folder, _, name = image_name.rpartition("/")
        job = door.store.job_by_image(name, folder or None, made=True)
        if job is None:
            raise SteadyError("image_not_found")
        return images.picture(door, job, request, fixed=False)

    @router.get("/image/{job_id}", response_class=Response, responses=images.DOCUMENTED)
    def image(job_id: str, request: Request) -> Response:
        """A picture by its job. 404 for an unknown job, 400 while the picture is not ready, 410
        once deleted."""
        return images.picture(door, door.find(job_id), request)

    return router


def _exactly_one(plan: Plan) -> None:
    if not plan.sole:
        remedy = "Send one mapping with a prompt; POST /jobs takes many."
        raise ValueFault("bad_shape", "This address makes one picture.", remedy=remedy).error()
