"""The page about the API, made from its own OpenAPI document: no script, nothing from elsewhere."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, RedirectResponse, Response

from watcher.errors import ERRORS


def routes(openapi: Callable[[], dict[str, Any]], paint: Callable[..., Response]) -> APIRouter:
    """``/openapi.json``, ``/docs``; and ``/`` for those who do not accept HTML.

    ``paint`` fills a template.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    def openapi_json() -> Response:
        return JSONResponse(openapi())

    @router.get("/docs")
    def docs() -> Response:
        document = openapi()
        schemas = document["components"]["schemas"]

        def example_of(body: dict[str, Any]) -> str:
            form = body["schema"].get("$ref", "").rpartition("/")[2]
            example = body.get("example") or [e["value"] for e in body.get("examples", {}).values()]
            return _pretty(example or schemas.get(form, {}).get("example"))

        fields = {
            name: json.dumps({k: v for k, v in f.items() if k not in ("title", "description")})
            for name, f in schemas["JobRequest"]["properties"].items()
        }
        return paint(
            "docs.html",
            document=document,
            fields=fields,
            errors=ERRORS,
            example_of=example_of,
            codes_of=_codes_of,
        )

    @router.get("/")
    def start() -> Response:
        return RedirectResponse("/docs", status_code=303)

    return router


def _codes_of(answer: dict[str, Any]) -> list[str]:
    """The registered errors that an answer of this status may be."""
    bodies = answer.get("content", {}).values()
    return [code for body in bodies for code in body.get("examples", {}) if code in ERRORS]


def _pretty(value: Any) -> str:
    if not value or isinstance(value, str):
        return value or ""
    return json.dumps(value, indent=2, ensure_ascii=False)
