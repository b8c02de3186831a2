"""The same errors in the words of other services, for clients made for those.

Below ``/v1`` OpenAI's error object, below ``/sdapi`` the one of the Stable Diffusion web UI
(A1111); everywhere else the problem of errors.py. What is said comes from the one registry;
only the members' names and some codes and statuses are the other service's.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from watcher.errors import ErrorClass, SteadyError

OPENAI = "/v1/"
A1111 = "/sdapi/"

REQUEST_ID = "x-request-id"
#: OpenAI's clients try 408, 409, 429 and everything from 500 on three times, but for this.
NO_RETRY = {"x-should-retry": "false"}

_CODES = {"unauthorized": "invalid_api_key"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def answer(path: str, error: SteadyError, headers: Mapping[str, str]) -> Response | None:
    """``error`` as the clients of ``path`` read it; None where a problem is what they read."""
    if path.startswith(OPENAI):
        given = {REQUEST_ID: new_request_id()}
        lasting = error.kind.klass is not ErrorClass.ENVIRONMENT and error.kind.status >= 500
        if lasting or error.kind.status == 409:  # it would end the same way
            given |= NO_RETRY
        given |= headers
        return JSONResponse({"error": openai_error(error)}, openai_status(error), given)
    if path.startswith(A1111):
        return JSONResponse(_a1111_body(error), error.kind.status, dict(headers))
    return None


def new_request_id() -> str:
    """Names one answer, so that a person can ask about it."""
    return f"req_{uuid.uuid4().hex}"


def words(error: SteadyError) -> str:
    """What happened and what to do, in one line; of several faults the first."""
    if error.problems and error.message == error.kind.what:
        first = error.problems[0]
        text = f"{first.message} {first.remedy or ''}".strip()
        if not first.remedy and first.allowed and first.allowed not in first.message:
            text += f" Allowed: {first.allowed}."
        return text
    return str(error)


def openai_status(error: SteadyError) -> int:
    """Bad parameters are 400 there."""
    return 400 if error.kind.status == 422 else error.kind.status


def openai_error(error: SteadyError) -> dict[str, Any]:
    """``{"message", "type", "param", "code"}``: all four are attributes of the client's exception."""
    status = openai_status(error)
    usual = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "message": words(error),
        "type": _TYPES.get(status, usual),
        "param": next((p.key for p in error.problems if p.key), None),
        "code": _CODES.get(error.code, error.code),
    }


def _a1111_body(error: SteadyError) -> dict[str, Any]:
    return {
        "error": error.code,
        "detail": words(error),
        "body": "",
        "errors": "; ".join(p.message for p in error.problems) or error.message,
    }
