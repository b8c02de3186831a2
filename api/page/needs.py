"""What needs a person, over HTTP: told, and dismissed.

A person may dismiss what they have seen: the record keeps that. Changes nothing else.
"""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import models
from api.bodies import json_body, read_model
from api.door import Door
from api.errors import documented
from api.views import Views
from watcher.errors import SteadyError
from watcher.needs import needs_of


def routes(door: Door, views: Views) -> APIRouter:
    """``/attention``."""
    router = APIRouter(prefix="/attention", tags=["service"])

    def told() -> Response:
        found = needs_of(door.store, door.pulse(), door.inbox)
        return JSONResponse(
            {
                "failed": [views.brief(job) for job in found.failed],
                "more": found.more,
                "refused": [views.batch(batch) for batch in found.refused],
                "reasons": [error.as_dict() for error in found.troubles],
                "notices": list(found.notices),
            }
        )

    @router.get("", name="attention", response_model=models.Attention)
    def what_needs_a_person() -> Response:
        """What needs a person: failed jobs and refused files nobody has dismissed, and trouble
        around the service."""
        return told()

    @router.post(
        "/dismiss",
        name="dismiss",
        response_model=models.Attention,
        responses=documented("job_not_found", "batch_not_found"),
        openapi_extra=json_body("Dismiss"),
    )
    async def dismiss_some(request: Request) -> Response:
        """Do not tell of these again. Nothing is deleted. A job that fails again is told again."""
        what = await read_model(request, models.Dismiss)
        return await run_in_threadpool(_dismiss, what)

    def _dismiss(what: models.Dismiss) -> Response:
        if not all(map(door.store.job, what.jobs)):
            raise SteadyError("job_not_found")
        if not all(map(door.store.batch, what.batches)):
            raise SteadyError("batch_not_found")
        door.store.dismiss(what.jobs, what.batches, all=what.all)
        return told()

    return router
