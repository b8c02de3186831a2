"""The page about the API, made from its own OpenAPI document: no script, nothing from elsewhere."""

import html
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse, Response

from watcher.errors import ERRORS

STATIC = Path(__file__).parents[1] / "page" / "static"


def routes(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """``/docs``; and ``/`` for those who do not accept HTML."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    def docs() -> Response:
        return HTMLResponse("".join(_body_of(openapi())))

    @router.get("/")
    def start() -> Response:
        return RedirectResponse("/docs", status_code=303)

    return router


def _escaped(value: Any) -> str:
    return html.escape(str(value))


def _body_of(document: dict[str, Any]) -> Iterator[str]:
    yield (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>SteadyDiffusion: the API</title>'
        '<link rel="stylesheet" href="/static/docs.css"><main><h1>SteadyDiffusion: the API</h1>'
    )
    for part in document["info"]["description"].split("\n\n"):
        yield f"<p>{_escaped(part)}</p>"
    yield '<p><a href="/openapi.json">openapi.json</a></p><h2>Addresses</h2>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(method.upper(), path, operation, document)
    yield "<h2>What a job may say</h2><dl>"
    for name, field in document["components"]["schemas"]["JobRequest"]["properties"].items():
        rules = {k: v for k, v in field.items() if k not in ("title", "description")}
        yield f"<dt><code>{_escaped(name)}</code></dt><dd>{_escaped(json.dumps(rules))}</dd>"
    yield "</dl><h2>Errors</h2><dl>"
    for code, kind in ERRORS.items():
        yield (
            f'<dt id="{_escaped(code)}"><code>{_escaped(code)}</code> {kind.status}</dt>'
            f"<dd>{_escaped(kind.what)} {_escaped(kind.do)}</dd>"
        )
    yield "</dl></main></html>"


def _operation(
    method: str, path: str, operation: dict[str, Any], document: dict[str, Any]
) -> Iterator[str]:
    yield (
        f'<details id="{_escaped(operation["operationId"])}"><summary><b>{method}</b> '
        f"<code>{_escaped(path)}</code> {_escaped(operation.get('summary', ''))}</summary>"
        f"<p>{_escaped(operation.get('description', ''))}</p>"
    )
    if operation.get("parameters"):
        yield "<dl>"
        for parameter in operation["parameters"]:
            yield (
                f"<dt><code>{_escaped(parameter['name'])}</code> in {_escaped(parameter['in'])}</dt>"
                f"<dd>{_escaped(parameter.get('description', ''))}</dd>"
            )
        yield "</dl>"
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        form = body["schema"].get("$ref", "").rpartition("/")[2]
        example = body.get("example") or [e["value"] for e in body.get("examples", {}).values()]
        example = example or document["components"]["schemas"].get(form, {}).get("example")
        if example:
            yield f"<p>Body: {_escaped(media)}</p><pre>{_escaped(_pretty(example))}</pre>"
    yield "<ul>"
    for status, answer in operation["responses"].items():
        codes = [
            code
            for body in answer.get("content", {}).values()
            for code in body.get("examples", {})
            if code in ERRORS
        ]
        links = " ".join(f'<a href="#{_escaped(c)}">{_escaped(c)}</a>' for c in codes)
        yield f"<li>{_escaped(status)} {links or _escaped(answer.get('description', ''))}</li>"
    yield "</ul></details>"


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
