"""The page: what the service is doing, for people, and the buttons to steer it.

Rendered here whole, so it can be read without JavaScript; the script only presses the API's
buttons and fetches the same page again when something has changed. Pages live at the
addresses of the API: whoever accepts HTML gets the page, every program gets JSON. pages.py fills
them, paint.py paints them.
"""

import json
import uuid
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from api import links
from api.door import Door
from api.page.paint import ForBrowsers
from api.page.shown import Chosen, job_of_form
from api.submit import Submissions
from watcher.submission import Body

if TYPE_CHECKING:
    from api.page.pages import Pages


def routes(door: Door, pages: "Pages", submissions: Submissions) -> APIRouter:
    """All pages. Hang them before the routes of the same addresses that answer JSON."""
    router = APIRouter(include_in_schema=False, route_class=ForBrowsers)

    @router.get("/")
    def now(
        origin: Annotated[
            uuid.UUID | None, Query(alias="from", description="a job to edit")
        ] = None,
        start: Annotated[uuid.UUID | None, Query(description="a job to start from")] = None,
    ) -> Response:
        return pages.now(str(origin) if origin else None, str(start) if start else None)

    @router.post("/")
    async def make(request: Request) -> Response:
        return await run_in_threadpool(_make, await request.body())

    def _make(form: bytes) -> Response:
        job, key = job_of_form(form)
        body = json.dumps(job, ensure_ascii=False).encode()
        done = submissions.submit(Body(body, ".json", ""), key)
        return RedirectResponse(f"/batches/{done.batch.ticket}", status_code=303)

    @router.get("/queue")
    def queue() -> Response:
        return pages.queue()

    @router.get("/pictures")
    def pictures(chosen: Annotated[Chosen, Query()]) -> Response:
        return pages.pictures(chosen)

    @router.get("/jobs/{job_id:uuid}")
    def job(job_id: uuid.UUID, request: Request) -> Response:
        return pages.job(str(job_id), links.base_of(door.config, request))

    @router.get("/batches")
    def batches(
        before: Annotated[str | None, Query(pattern="^[0-9a-f-]{36}$")] = None,
    ) -> Response:
        return pages.batches(before)

    @router.get("/batches/{ticket:uuid}")
    def batch(
        ticket: uuid.UUID, after: Annotated[int, Query(ge=-1, le=10_000_000)] = -1
    ) -> Response:
        return pages.batch(str(ticket), after)

    @router.get("/system")
    def system() -> Response:
        return pages.system()

    return router
