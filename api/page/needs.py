"""What needs a person, over HTTP: told, and dismissed.

A person may dismiss what they have seen. That is kept in the record's settings as the rev
of each job that was dismissed (or one for all), so a job that fails again is told again.
Changes nothing else.
"""

from typing import Any

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
from watcher.needs import DISMISSED, MOST_FILES, needs_of

_KEPT = 1000  #: single dismissals remembered; older ones fall to the mark for all


def dismiss(door: Door, what: models.Dismiss) -> None:
    """Remember that these were seen. Two at once may forget one of them: it is shown again."""
    seen: dict[str, Any] = door.store.get(DISMISSED) or {}
    jobs: dict[str, int] = dict(seen.get("jobs", {}))
    batches: list[str] = list(seen.get("batches", ()))
    mark = int(seen.get("rev", 0))
    if what.all:
        mark, jobs = door.store.last_rev(), {}
        batches += [b.ticket for b in door.store.refused(MOST_FILES) if b.ticket not in batches]
    for job_id in what.jobs:
        job = door.store.job(job_id)
        if job is None:
            raise SteadyError("job_not_found")
        jobs[job_id] = job.rev
    for ticket in what.batches:
        if door.store.batch(ticket) is None:
            raise SteadyError("batch_not_found")
        batches.append(ticket)
    kept = dict(list(jobs.items())[-_KEPT:])
    door.store.put(DISMISSED, {"rev": mark, "jobs": kept, "batches": batches[-_KEPT:]})


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
        dismiss(door, what)
        return told()

    return router
