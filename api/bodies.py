"""Bodies as they arrive: their type, their bytes, their key; and the answer to those taken."""

from typing import Annotated, Any

from fastapi import Header
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.errors import fault_entry
from api.submit import MAX_KEY, MEDIA_TYPES, Submitted
from watcher import jobfile
from watcher.errors import SteadyError
from watcher.submission import Body
from watcher.suffixes import FORMS, remedy_for, suffix_of

KEY = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="makes a repeat of this request harmless, also after a restart",
        examples=["order-4711"],
    ),
]

REPLAYED = "Idempotency-Replayed"


def media_type(request: Request) -> str:
    """The body's type in lower case, without parameters; empty when none is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, *types: str) -> bytes:
    """The body, if it is of one of ``types``. Raises SteadyError bad_content_type.

    A body without a type is refused too: a page of another site may send such a one.
    """
    given = media_type(request)
    if given not in types and not (given.endswith("+json") and "application/json" in types):
        raise SteadyError("bad_content_type", remedy=f"Send {' or '.join(types)}.")
    return await unpacked(request)


async def read_file(request: Request, filename: str) -> Body:
    """The body as a job file. ``filename``'s suffix decides how it is read, then its type.

    Text that begins as JSON is JSON: that is how ``fetch`` sends it when no type is said.
    Raises SteadyError bad_content_type for anything else.
    """
    given = media_type(request)
    suffix = ".json" if given.endswith("+json") else MEDIA_TYPES.get(given, "")
    named = suffix_of(filename) in FORMS and not given.startswith("multipart/")
    if not named and not suffix:
        known = f"Send {', '.join(MEDIA_TYPES)}; or name the file, as in ?filename=jobs.csv."
        raise SteadyError("bad_content_type", remedy=remedy_for(filename) if filename else known)
    data = await unpacked(request)
    if suffix == ".txt" and jobfile.begins_as_json(data[:200].decode("utf-8-sig", "replace")):
        suffix = ".json"
    return Body.of(data, filename, suffix)


async def unpacked(request: Request) -> bytes:
    """The bytes of the body. Raises SteadyError bad_content_type for a packed one."""
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        words = f"The body is packed ({packed[:20]})."
        raise SteadyError("bad_content_type", words, remedy="Send it as it is, not packed.")
    return await request.body()


def replay_headers(done: Submitted) -> dict[str, str]:
    """Headers that tell a repeat of a key from the first time."""
    return {REPLAYED: "true"} if done.replayed else {}


def accepted(done: Submitted) -> Response:
    """202: what became of a body, and where to ask (`models.Accepted`)."""
    batch, plan = done.batch, done.plan
    one = plan.count == 1 if plan else batch.jobs == 1
    location = f"/jobs/{batch.ticket}" if one else f"/batches/{batch.ticket}"
    answer = {
        "ticket": batch.ticket,
        "jobs": plan.count if plan else batch.jobs,
        "job_id": batch.ticket if one else None,
        "image_name": batch.image_name if one else None,
        "location": location,
        "warnings": list(plan.warnings if plan else batch.warnings),
        "refused": [fault_entry(p) for p in plan.refused] if plan else [],
    }
    return JSONResponse(answer, 202, replay_headers(done) | {"Location": location})


def json_body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its own JSON body."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }
