"""Bodies as they arrive: their type, their bytes, their key and single parameters."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.errors import of_validation
from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.strictjson import MAX_VALUES, read_json

Given = TypeVar("Given", bound=BaseModel)

MAX_KEY = 200
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


async def read_model(request: Request, model: type[Given]) -> Given:
    """The JSON body as a ``model``. Raises SteadyError with the faulty keys."""
    data = await read_body(request, "application/json")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise of_validation(error.errors(), "body") from None


async def unpacked(request: Request) -> bytes:
    """The bytes of the body. Raises SteadyError bad_content_type for a packed one."""
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        words = f"The body is packed ({packed[:20]})."
        raise SteadyError("bad_content_type", words, remedy="Send it as it is, not packed.")
    return await request.body()


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON body as a mapping. Raises SteadyError as :func:`json_object` does."""
    return await run_in_threadpool(json_object, await read_body(request, "application/json"))


def json_object(data: bytes) -> dict[str, Any]:
    """The body as a mapping. Raises SteadyError encoding, bad_json, duplicate_key, bad_shape,
    too_large."""
    if data.count(b",") > MAX_VALUES:  # reading them all would hold up every other request
        raise SteadyError("too_large", "The body holds too many values.")
    try:
        value = read_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SteadyError("encoding", "The body is not UTF-8 text.") from None
    if not isinstance(value, dict):
        words = "The body must be a JSON mapping."
        raise SteadyError("bad_shape", words, remedy="Send e.g. a mapping with a prompt.")
    return value


def json_body(schema: str, *, required: bool = True) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its own JSON body of the component ``schema``."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": required, "content": content}}


def whole(
    raw: Mapping[str, Any], name: str, low: int | None = None, high: int | None = None
) -> int | None:
    """``raw[name]`` if it is a whole number in the range; None when unset. Else SteadyError."""
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise fault("wrong_type", name, "must be a whole number")
    if low is not None and high is not None and not low <= value <= high:
        raise fault("out_of_range", name, f"must be {low}..{high}")
    return value


def choice(raw: Mapping[str, Any], name: str, *words: str) -> None:
    """SteadyError out_of_range unless ``raw[name]`` is unset or one of ``words``."""
    value = raw.get(name)
    if value is not None and value not in words:
        raise fault("out_of_range", name, f"must be one of {', '.join(words)}")


def fault(code: str, name: str, words: str) -> SteadyError:
    """A refusal of one parameter, by its name."""
    return SteadyError(code, problems=[ValueFault(code, f"`{name}` {words}.", key=name)])
