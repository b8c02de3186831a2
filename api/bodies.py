"""Bodies as they arrive: their type, their bytes, their key; and the answer to those taken."""

from typing import Annotated, Any

from fastapi import Header
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.errors import entry_of
from api.submit import MAX_KEY, Submitted
from watcher.errors import SteadyError

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


async def read(request: Request, *types: str) -> bytes:
    """The body, if it is of one of ``types``. Raises SteadyError bad_content_type.

    A body without a type is refused too: a page of another site may send such a one.
    """
    given = media_type(request)
    if given not in types and not (given.endswith("+json") and "application/json" in types):
        raise SteadyError("bad_content_type")
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
        "warnings": plan.said() if plan else list(batch.warnings),
        "refused": [entry_of(p) for p in plan.refused] if plan else [],
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
