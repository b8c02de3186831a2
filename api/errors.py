"""What goes wrong, as HTTP says it: problem+json (RFC 9457) from the one registry.

Every error leaves through :func:`problem`, so a mishap reads the same here, on the command
line and in the inbox. What a person sent is never sent back: no value, only its place and
what would be right there.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api import dialects
from watcher.errors import ERRORS, SteadyError, ValueFault
from watcher.log import ThrottledLog

logger = logging.getLogger("steady.api")

MEDIA_TYPE = "application/problem+json"

#: Headers of every answer, errors of the server included (see guard.py for the reasons).
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with none, a form of our own would send `Origin: null`
}

_RETRY_SECONDS = 5  #: said with every 503: trouble of the surroundings is looked at again
_LONG = 200  #: characters of a person's own field name that are repeated

#: status of a framework's own refusal -> our code
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "cross_origin",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "bad_content_type",
    503: "not_ready",
}

#: pydantic's error types -> our code
_KINDS = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "json_invalid": "bad_json",
}
_OF_RANGE = ("greater", "less", "too_", "string_too", "literal", "enum")


class Refused(SteadyError):
    """A SteadyError with further members for this one answer (a job's present state)."""

    def __init__(self, error: SteadyError, **members: Any) -> None:
        super().__init__(error.code, error.message, problems=error.problems, remedy=error.remedy)
        self.members = members


def body_of(error: SteadyError) -> dict[str, Any]:
    """The members of a problem: type, title, status, detail, code, remedy, errors."""
    detail = error.message
    if error.problems and detail == error.kind.what:
        detail = error.problems[0].message
    body: dict[str, Any] = {
        "type": f"/docs#{error.code}",
        "title": error.kind.what,
        "status": error.kind.status,
        "detail": detail,
        "code": error.code,
        "remedy": error.remedy,
    }
    if error.problems:
        body["errors"] = [fault_entry(p) for p in error.problems]
    return body | (error.members if isinstance(error, Refused) else {})


def fault_entry(fault: ValueFault) -> dict[str, Any]:
    """One fault as an entry of ``errors``: where, what, what is allowed; never the value itself."""
    entry = fault.as_dict(value=False)
    entry["detail"] = entry.pop("message")
    entry.pop("file", None)
    return {k: v[:_LONG] if k in ("key", "pointer") else v for k, v in entry.items()}


def problem(
    error: SteadyError, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> Response:
    """``error`` as an answer; below ``path``s of other services in their words."""
    extra = dict(headers or {})
    if error.kind.status == 503:
        extra.setdefault("Retry-After", str(_RETRY_SECONDS))
    if error.kind.status == 401:
        extra.setdefault("WWW-Authenticate", 'Bearer realm="SteadyDiffusion"')
    foreign = dialects.answer(path, error, extra)
    return foreign or JSONResponse(body_of(error), error.kind.status, extra, MEDIA_TYPE)


def of_validation(found: Iterable[Mapping[str, Any]], *within: str) -> SteadyError:
    """What pydantic found about a query parameter, a header or ``within`` a body, in our words."""
    problems = []
    for fault in found:
        where, *path = [*within, *map(str, fault["loc"])]
        name = path[-1] if path else None
        kind = str(fault["type"])
        code = _KINDS.get(kind, "out_of_range" if kind.startswith(_OF_RANGE) else "wrong_type")
        words = f"`{name}` ({where}): {fault['msg']}." if name else f"{fault['msg']}."
        pointer = f"/{'/'.join(path)}" if name and where == "body" else None
        problems.append(ValueFault(code, words, key=name, pointer=pointer))
    return SteadyError(problems[0].code, problems=problems)


#: Tells an error to a person's browser; None for those who want the problem itself.
Page = Callable[[Request, SteadyError, Mapping[str, str]], Response | None]


def install(app: FastAPI, routers: Sequence[APIRouter], page: Page, log: ThrottledLog) -> None:
    """Make every error of ``app`` leave as a problem, or as a ``page`` where a person asks.

    ``routers`` hold its routes: a 405 names all methods of an address, not those of the
    first route that has it.
    """

    def told(
        request: Request, error: SteadyError, headers: Mapping[str, str] | None = None
    ) -> Response:
        shown = page(request, error, headers or {})
        return shown or problem(error, headers, path=request.url.path)

    def allowed(path: str) -> str:
        found = [
            route
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and route.path_regex.match(path)
        ]
        named = [route for route in found if route.path == path]
        return ", ".join(sorted({m for route in named or found for m in route.methods or ()}))

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, SteadyError)  # noqa: S101  (what it is registered for)
        if error.kind.status >= 500:
            log.say(logger, "http.trouble", logging.ERROR, code=error.code, message=error.message)
        headers = getattr(error, "headers", None)
        return told(request, error, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return told(request, of_validation(error.errors()))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code < 400:
            return Response(status_code=error.status_code, headers=error.headers)
        code = _CODES.get(error.status_code, "bad_request")
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := allowed(request.url.path)):
            headers["Allow"] = methods
        return told(request, SteadyError(code), headers)

    async def unknown(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the caller gets nothing of it.
        return problem(SteadyError("internal"), SAFE_HEADERS, path=request.url.path)

    app.add_exception_handler(SteadyError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, unknown)


def example_of(code: str) -> dict[str, Any]:
    """OpenAPI's example of a registered error."""
    return {"summary": ERRORS[code].what, "value": body_of(SteadyError(code))}


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` for the errors a route may give, an example for each code."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = ERRORS[code]
        entry = found.setdefault(
            kind.status,
            {
                "description": kind.what,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        entry["content"][MEDIA_TYPE]["examples"][code] = {"$ref": f"#/components/examples/{code}"}
    return found
