"""``/batches``: what became of a file or a body, its pictures in one archive, its verbs.

Each verb is one statement of the record, so a crash leaves it done or not done.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response, StreamingResponse

from api import models
from api.door import Door
from api.errors import documented
from api.images import archive, binary, disposition, sent_pieces
from api.paging import Limit, link_of
from api.views import Views
from watcher.errors import SteadyError
from watcher.inbox import file_of, open_claim
from watcher.jobfile import MAX_TABLE
from watcher.jobs import Batch
from watcher.pictures.outputs import Outputs
from watcher.pictures.sheet import PICTURES, contact_sheet
from watcher.refused import RefusedRows
from watcher.results import result_table

_ANY = "application/octet-stream"  #: of what is taken home as a file


def routes(door: Door, views: Views) -> APIRouter:
    """Everything below ``/batches``."""
    router = APIRouter(prefix="/batches", tags=["batches"])
    _reading_routes(router, door, views)
    _taking_home(router, door)
    _steering(router, door, views)
    return router


def find_batch(door: Door, ticket: str) -> Batch:
    """The batch of ``ticket``. Raises SteadyError batch_not_found."""
    batch = door.store.batch(ticket)
    if batch is None:
        raise SteadyError("batch_not_found")
    return batch


def _reading_routes(router: APIRouter, door: Door, views: Views) -> None:
    """The list, and one of it."""

    @router.get("", response_model=models.BatchPage)
    def list_batches(
        request: Request,
        cursor: Annotated[
            str | None,
            Query(pattern="^[0-9a-f-]{36}$", description="`next` of the page before"),
        ] = None,
        limit: Limit = 50,
    ) -> Response:
        """Batches, newest first. Follow `next` (or the Link header) for older ones."""
        rows = door.store.batches(before=cursor, limit=limit + 1)
        following = rows[limit - 1].ticket if len(rows) > limit else None
        body = {"batches": [views.batch(b) for b in rows[:limit]], "next": following}
        return JSONResponse(body, headers=link_of(request, following))

    @router.get("/{ticket}", response_model=models.BatchView)
    def batch(ticket: str) -> Response:
        """One batch. Its jobs are in `/jobs?batch=`."""
        return JSONResponse(views.batch(find_batch(door, ticket)))


def _taking_home(router: APIRouter, door: Door) -> None:
    """All pictures of one: as an archive, as a sheet."""

    @router.get(
        "/{ticket}/images.zip",
        response_class=Response,
        responses={
            **documented("image_not_ready"),
            200: binary("application/zip", "The pictures there are, as a zip."),
        },
    )
    def batch_images(ticket: str) -> Response:
        """All its pictures in one archive. Sent as it is read, with the result table last."""
        batch = find_batch(door, ticket)
        stem = os.path.splitext(batch.name)[0]
        name = ticket if stem == f"api-{ticket}" else stem
        table = (f"{name}.result.csv", result_table(door.store, door.inbox, batch))
        jobs = (job for job in door.store.jobs_in_order(ticket) if job.pictured)
        return archive(door, jobs, name, "No picture of this batch is ready.", table)

    def download(name: str, words: str, take: Callable[[Batch], Iterable[bytes]]) -> None:
        @router.get(
            f"/{{ticket}}/{name}",
            name=f"batch_{name.replace('.', '_')}",
            description=words,
            response_class=Response,
            responses={**documented("batch_not_found"), 200: binary(_ANY, words)},
        )
        def taken(ticket: str) -> Response:
            batch = find_batch(door, ticket)
            stem = os.path.splitext(batch.name)[0]
            filename = batch.name if name == "file" else f"{stem}.{name}"
            told = {"Content-Disposition": disposition("attachment", filename)}
            return StreamingResponse(take(batch), media_type=_ANY, headers=told)

    download("result.csv", "What became of each job, with the columns of its file.",
             lambda batch: result_table(door.store, door.inbox, batch))  # fmt: skip
    download("refused.csv", "The rows that could not be used, each with its reason.",
             lambda batch: _refused_table(door, batch))  # fmt: skip
    download("file", "The file as it came.", lambda batch: _file_of(door, batch))

    @router.get(
        "/{ticket}/sheet",
        response_class=Response,
        responses={
            **documented("image_not_ready"),
            200: binary("image/jpeg", "A contact sheet of up to 64 pictures."),
        },
    )
    def batch_sheet(
        ticket: str,
        page: Annotated[int, Query(ge=1, le=100_000, description="64 pictures each")] = 1,
    ) -> Response:
        """Its pictures at a glance. A job without a picture leaves a grey square."""
        batch = find_batch(door, ticket)
        jobs = door.store.jobs_of(
            batch.ticket, after_index=PICTURES * (page - 1) - 1, limit=PICTURES
        )
        if not jobs:
            raise SteadyError("image_not_ready", "The batch has no such page.")
        data = contact_sheet(Outputs(door.outputs), jobs, batch.axes)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-cache"})


def _steering(router: APIRouter, door: Door, views: Views) -> None:
    """What can be done to one."""
    store = door.store

    def verb(name: str, summary: str, do: Callable[[str], object]) -> None:
        @router.post(
            f"/{{ticket}}/{name}",
            response_model=models.BatchView,
            name=f"{name}_batch",
            description=summary,
        )
        def act(ticket: str) -> Response:
            do(find_batch(door, ticket).ticket)
            return JSONResponse(views.batch(find_batch(door, ticket)))

    verb("cancel", "Cancel all its jobs that have not ended", store.cancel_batch)
    verb("pause", "Hold its waiting jobs back", store.pause_batch)
    verb("resume", "Let its held jobs run", store.resume_batch)

    @router.post("/{ticket}/retry-failed", response_model=models.Retried)
    def retry_failed(ticket: str) -> Response:
        """Run its failed jobs again. Each keeps its id, seed, name and place."""
        number = store.retry_failed(find_batch(door, ticket).ticket)
        return JSONResponse({"ticket": ticket, "retried": number})


def _refused_table(door: Door, batch: Batch) -> Iterator[bytes]:
    """The table of the rows that could not be used. SteadyError batch_not_found without one."""
    table = RefusedRows(door.inbox).table(batch)
    if table is None:
        raise SteadyError("batch_not_found", "The batch has no table of refused rows.")
    return table


def _file_of(door: Door, batch: Batch) -> Iterator[bytes]:
    """The file of ``batch``, wherever it lies. SteadyError batch_not_found without one."""
    with contextlib.suppress(OSError):
        claim = file_of(door.inbox, batch.claim or batch.ticket, batch.name, batch.suffix)
        if claim is not None:
            return sent_pieces(open_claim(claim, MAX_TABLE))
    raise SteadyError("batch_not_found", "The batch has no file.")
