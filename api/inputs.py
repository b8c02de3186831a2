"""``/inputs``: pictures that later jobs start from.

A picture is kept by its content before the answer goes out, so sending it twice is as good as
once; one that no job asks for is tidied away by ``steady prune``.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from api import models
from api.bodies import read_body
from api.door import Door
from api.errors import documented
from api.guard import FOR_GOOD
from api.images import binary
from watcher.errors import SteadyError
from watcher.suffixes import PICTURE_FORMATS

_TYPES = (*(f"image/{each.lower()}" for each in PICTURE_FORMATS), "application/octet-stream")
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

    @router.get(
        "/{sha256}",
        response_class=Response,
        responses={
            200: binary("application/octet-stream", "The picture, as it was sent."),
            **documented("file_not_found"),
        },
    )
    def get_input(sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> Response:
        """The bytes of a picture that jobs start from, as it was sent or found."""
        data = door.inputs.read(sha256)
        if data is None:
            raise SteadyError("file_not_found", "There is no picture of this sha256.")
        headers = {"Cache-Control": FOR_GOOD}
        return Response(data, media_type="application/octet-stream", headers=headers)

    def _keep(data: bytes) -> Response:
        reference, source = door.inputs.keep(data, "The picture")
        digest = reference.removeprefix("sha256:")
        answer = {"reference": reference, "sha256": digest}
        return JSONResponse(answer | {"width": source.width, "height": source.height}, 201)

    return router
