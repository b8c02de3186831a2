"""``/inputs``: pictures that later jobs start from.

A picture is kept by its content before the answer goes out, so sending it twice is as good as
once; one that no job asks for is tidied away by ``steady prune``.
"""

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from api import models
from api.bodies import read_body
from api.door import Door
from api.errors import documented
from watcher.errors import SteadyError

_TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/bmp",
    "image/tiff",
    "image/gif",
    "image/avif",
    "application/octet-stream",
)
_PICTURE = {"schema": {"type": "string", "contentMediaType": "image/png"}}


def routes(door: Door) -> APIRouter:
    """Everything below ``/inputs``."""
    router = APIRouter(prefix="/inputs", tags=["jobs"])

    @router.post(
        "",
        status_code=201,
        response_model=models.Input,
        responses=documented("bad_picture", "too_large", "bad_content_type"),
        openapi_extra={
            "requestBody": {"required": True, "content": dict.fromkeys(_TYPES, _PICTURE)}
        },
    )
    async def send_input(request: Request) -> Response:
        """Send a picture that jobs may start from: its bytes are the body. The answer names it by
        its content, for `image` or `mask` of a job. Sending it again is harmless."""
        data = await read_body(request, *_TYPES)
        return await run_in_threadpool(_keep, data)

    def _keep(data: bytes) -> Response:
        try:
            reference, source = door.inputs.keep(data)
        except SteadyError as error:
            raise SteadyError(error.code, f"The picture {error.message}") from None
        digest = reference.removeprefix("sha256:")
        answer = {"reference": reference, "sha256": digest}
        return JSONResponse(answer | {"width": source.width, "height": source.height}, 201)

    return router
