"""OpenAI's Batch API: upload a ``.jsonl``, let it run, fetch the output and error files.

A batch is an ordinary batch of the queue; the same file dropped in the inbox makes the same jobs.
Uploaded files and what a client said with a batch are kept by uploads.py; output and error files
are written from the record whenever they are asked for, so they are never out of date and take no
room.
"""

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, Response, StreamingResponse

from api import dialects, links
from api.bodies import KEY, fault, json_object, media_type, read_body
from api.compat.calls import Attempt, Calls
from api.compat.uploads import Shelf
from api.door import Door
from watcher.errors import SteadyError
from watcher.jobfile.batchline import BATCH_URL, refused_lines, result_lines
from watcher.jobs import Batch, Job, JobState
from watcher.log import now_us
from watcher.refused import RefusedRows
from watcher.submission import NOT_IN_NAMES, Body

MAX_FILE = 200 << 20  #: bytes of an upload, as there
ROOM = MAX_FILE + (1 << 20)  #: … with what multipart puts around it
_DAY = 24 * 3600
_CHUNK = 1 << 20
_PAGE = 1000
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_BATCH_ID = re.compile(r"batch_([0-9a-f]{32})")
_RESULT_ID = re.compile(r"file-(output|error)-([0-9a-f]{32})")

Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[str | None, Query(max_length=100)]


def routes(door: Door, calls: Calls, token: str | None) -> APIRouter:
    """Everything below ``/v1/files`` and ``/v1/batches``."""
    router = APIRouter(prefix="/v1", tags=["openai"], include_in_schema=False)
    shelf = Shelf(door.config.uploads)
    results = Results(door, shelf, token)
    _file_routes(router, shelf, results, door)
    _batches(router, shelf, results, door, calls)
    return router


def _file_routes(router: APIRouter, shelf: Shelf, results: "Results", door: Door) -> None:
    @router.post("/files")
    async def upload(request: Request) -> Response:
        """Keep a file until a batch is made of it."""
        if media_type(request) != "multipart/form-data":
            raise SteadyError("bad_content_type", remedy="Send multipart/form-data.")
        async with request.form(max_files=1, max_fields=20) as form:
            purpose, file = form.get("purpose"), form.get("file")
            if purpose != "batch":
                raise fault("out_of_range", "purpose", "must be batch")
            if not isinstance(file, UploadFile):
                raise fault("missing_field", "file", "is missing")
            name = NOT_IN_NAMES.sub("", file.filename or "")[:180] or "batch.jsonl"
            name = name.encode("utf-8", "replace").decode()
            note = await run_in_threadpool(shelf.keep, file.file, name)
        return _json_answer(note)

    def find(ident: str) -> dict[str, Any]:
        note = shelf.note(ident) if _FILE_ID.fullmatch(ident) else None
        if note is None:
            raise SteadyError("file_not_found")
        return note

    @router.get("/files")
    def files(purpose: str | None = None, after: After = None, limit: Limit = 10_000) -> Response:
        notes = shelf.notes("file-") if purpose in (None, "batch") else []
        return _listing(notes, after, limit)

    @router.get("/files/{ident}")
    def file(ident: str, request: Request) -> Response:
        result = results.file(ident, links.base_of(door.config, request))
        return _json_answer(result or find(ident))

    @router.get("/files/{ident}/content")
    def content(ident: str, request: Request) -> Response:
        """As it is read or written: memory stays small however long it is."""
        lines = results.lines(ident, links.base_of(door.config, request))
        if lines is not None:
            return StreamingResponse(_blocks(lines), media_type="application/octet-stream")
        find(ident)
        return FileResponse(shelf.path(ident), media_type="application/octet-stream")

    @router.delete("/files/{ident}")
    def delete(ident: str) -> Response:
        """Running batches are not touched: their lines are in the record."""
        find(ident)
        shelf.drop(ident)
        return _json_answer({"id": ident, "object": "file", "deleted": True})


def _batches(router: APIRouter, shelf: Shelf, results: "Results", door: Door, calls: Calls) -> None:
    @router.post("/batches")
    async def create(request: Request, idempotency_key: KEY = None) -> Response:
        data = await read_body(request, "application/json")
        attempt = Attempt.of(request.headers)
        ticket = await run_in_threadpool(_create, data, idempotency_key, attempt)
        return _json_answer(await run_in_threadpool(results.batch, ticket))

    def _create(data: bytes, key: str | None, attempt: Attempt | None) -> str:
        raw = json_object(data)
        note = _batch_fields(raw)
        known = _FILE_ID.fullmatch(note["input_file_id"])
        upload = shelf.note(note["input_file_id"]) if known else None
        if upload is None:
            raise SteadyError("file_not_found", "There is no such `input_file_id`.")
        try:
            content = shelf.path(upload["id"]).read_bytes()
        except OSError:
            raise SteadyError("file_not_found") from None

        def before(ticket: str) -> None:
            ident = _batch_id(ticket)
            if shelf.note(ident) is None:
                shelf.write(ident, {"id": ident, "created_at": now_us() // 1_000_000, **note})

        call = calls.begin(
            Body(content, ".jsonl", upload["filename"]),
            # without a word about tries every call is one of its own
            key=key if key or attempt else f"batch/{uuid.uuid4()}",
            attempt=attempt,
            asked=b"batch\0" + data,
            before=before,
        )
        calls.leave(call, hung_up=False)
        return call.ticket

    @router.get("/batches")
    def batches(after: After = None, limit: Limit = 20) -> Response:
        notes = [
            note
            for note in shelf.notes("batch_")
            if door.store.batch(_ticket_of(note["id"])) is not None
        ]
        return _listing(notes, after, limit, results.told)

    @router.get("/batches/{ident}")
    def one(ident: str) -> Response:
        return _json_answer(results.batch(_ticket_of(ident)))

    @router.post("/batches/{ident}/cancel")
    def cancel(ident: str) -> Response:
        """Lines that have not started never will; the others' results can be fetched."""
        ticket = results.find(_ticket_of(ident)).ticket
        door.store.cancel_batch(ticket)
        return _json_answer(results.batch(ticket))


def _batch_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a client says with a batch. Raises SteadyError with the parameter."""
    ident, endpoint = raw.get("input_file_id"), raw.get("endpoint")
    window, metadata = raw.get("completion_window", "24h"), raw.get("metadata")
    if not isinstance(ident, str):
        raise fault("missing_field", "input_file_id", "must be the id of an uploaded file")
    if endpoint != BATCH_URL:
        raise fault("out_of_range", "endpoint", f"must be {BATCH_URL}")
    if not isinstance(window, str) or len(window) > 40:
        raise fault("out_of_range", "completion_window", "must be a time such as 24h")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(isinstance(v, str) and len(v) <= 512 for v in metadata.values())
    ):
        raise fault("wrong_type", "metadata", "must be at most 16 names with texts")
    return {
        "input_file_id": ident,
        "endpoint": endpoint,
        "completion_window": window,
        "metadata": metadata,
    }


class Results:
    """Batches as OpenAI tells them, and their output and error files."""

    def __init__(self, door: Door, shelf: Shelf, token: str | None) -> None:
        self._door = door
        self._store = door.store
        self._shelf = shelf
        self._token = token

    def find(self, ticket: str) -> Batch:
        """Raises SteadyError batch_not_found, also for batches that came in by another door."""
        batch = self._store.batch(ticket)
        if batch is None or self._shelf.note(_batch_id(ticket)) is None:
            raise SteadyError("batch_not_found")
        return batch

    def batch(self, ticket: str) -> dict[str, Any]:
        """OpenAI's Batch object."""
        note = self._shelf.note(_batch_id(ticket))
        if note is None:
            raise SteadyError("batch_not_found")
        return self.told(note)

    def told(self, note: Mapping[str, Any]) -> dict[str, Any]:
        """OpenAI's Batch object by what was noted at its making."""
        batch = self.find(_ticket_of(note["id"]))
        counts = self._store.progress(batch.ticket)
        made = counts[JobState.COMPLETED]
        failed = counts[JobState.FAILED] + counts[JobState.CANCELLED] + batch.refused_rows
        status = _status(batch, counts)
        over = status in ("completed", "cancelled")
        ended = self._ended(batch) if over else None
        hexed = batch.ticket.replace("-", "")
        return {
            "object": "batch",
            **note,
            "status": status,
            "errors": _errors(batch),
            "output_file_id": f"file-output-{hexed}" if over and made else None,
            "error_file_id": f"file-error-{hexed}" if over and failed else None,
            "in_progress_at": batch.recorded_at and batch.recorded_at // 1_000_000,
            "expires_at": note["created_at"] + _DAY,
            "finalizing_at": ended,
            "completed_at": ended if status == "completed" else None,
            "failed_at": batch.recorded_at and batch.recorded_at // 1_000_000
            if status == "failed"
            else None,
            "cancelled_at": ended if status == "cancelled" else None,
            "request_counts": {
                "total": batch.jobs + batch.refused_rows,
                "completed": made,
                "failed": failed,
            },
            "warnings": list(batch.warnings),
        }

    def _ended(self, batch: Batch) -> int:
        _, last = self._store.span(batch.ticket)
        return (last or batch.recorded_at or now_us()) // 1_000_000

    def file(self, ident: str, base: str) -> dict[str, Any] | None:
        """OpenAI's File object of an output or error file; None for other ids."""
        lines = self.lines(ident, base)
        match = _RESULT_ID.fullmatch(ident)
        if lines is None or match is None:
            return None
        return {
            "id": ident,
            "object": "file",
            "bytes": sum(map(len, lines)),
            "created_at": self.find(_dashed(match[2])).created_at // 1_000_000,
            "filename": f"batch_{match[2]}_{match[1]}.jsonl",
            "purpose": "batch_output",
            "status": "processed",
        }

    def lines(self, ident: str, base: str) -> Iterator[bytes] | None:
        """The lines of the output or error file ``ident``; None for other ids."""
        match = _RESULT_ID.fullmatch(ident)
        if match is None:
            return None
        kind, ticket = match[1], _dashed(match[2])
        batch = self.find(ticket)  # at once, not when the first line is sent

        def url_of(job: Job) -> str:
            return links.url_of(job, base, self._token)

        jobs = self._store.jobs_by_row(ticket)
        lines = result_lines(jobs, url_of, good=kind == "output")
        if kind == "error" and batch.refused_rows:
            refused = RefusedRows(self._door.inbox).of(ticket)
            return itertools.chain(lines, refused_lines(refused))
        return lines


def _status(batch: Batch, counts: Mapping[JobState, int]) -> str:
    if batch.error is not None:
        return "failed"
    open_ = counts[JobState.QUEUED] + counts[JobState.GENERATING]
    if batch.cancelled:
        return "cancelling" if open_ else "cancelled"
    if batch.recorded_at is None:
        return "in_progress" if batch.jobs else "validating"
    return "in_progress" if open_ else "completed"


def _errors(batch: Batch) -> dict[str, Any] | None:
    if batch.error is None:
        return None
    problems = batch.error.get("problems") or [batch.error]
    return {
        "object": "list",
        "data": [
            {
                "code": p.get("code"),
                "message": p.get("message"),
                "param": p.get("key"),
                "line": p.get("line"),
            }
            for p in problems
        ],
    }


def _blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The same in larger pieces: each piece sent costs a hop between threads."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _CHUNK:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def _listing(
    notes: list[dict[str, Any]],
    after: str | None,
    limit: int,
    told: Callable[[dict[str, Any]], dict[str, Any]] = lambda note: note,
) -> Response:
    ids = [note["id"] for note in notes]
    begin = ids.index(after) + 1 if after in ids else 0
    page = [told(note) for note in notes[begin : begin + limit]]
    return _json_answer(
        {
            "object": "list",
            "data": page,
            "has_more": begin + limit < len(notes),
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
    )


def _json_answer(body: Mapping[str, Any]) -> Response:
    # in ASCII: metadata may hold half a character, which UTF-8 cannot say
    headers = {dialects.REQUEST_ID: dialects.new_request_id()}
    return Response(json.dumps(body), headers=headers, media_type="application/json")


def _batch_id(ticket: str) -> str:
    return f"batch_{ticket.replace('-', '')}"


def _ticket_of(ident: str) -> str:
    """Raises SteadyError batch_not_found for what cannot be an id of ours."""
    match = _BATCH_ID.fullmatch(ident)
    if match is None:
        raise SteadyError("batch_not_found")
    return _dashed(match[1])


def _dashed(digits: str) -> str:
    return str(uuid.UUID(digits))
