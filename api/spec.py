"""The OpenAPI document: complete, with an example for everything, the same on every start.

FastAPI writes most of it. Added here: the job's own schema with the ranges the model in use
allows, the bodies that routes read themselves, and the errors any request may meet.
"""

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import models
from api.errors import documented
from watcher.jobs import JobRequest, Limits

_DESCRIPTION = """\
Pictures from text, one queue, nothing lost and nothing made twice.

Send a job, ask how it goes (or follow `/events`), fetch the picture. Errors are
`application/problem+json` (RFC 9457) with a stable `code` and a `remedy`. POSTs that make
jobs take an `Idempotency-Key`. A service that has a token wants it as
`Authorization: Bearer`.
"""

#: Ranges that hold for every model are in JobRequest; text forms the reader asks for are here.
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,30}"
_FORMS: dict[str, dict[str, Any]] = {
    "prompt": {"minLength": 1, "pattern": r"\S"},
    "name": {"pattern": f"^{_SEGMENT}$"},
    "folder": {"pattern": f"^{_SEGMENT}(/{_SEGMENT}){{0,2}}$"},
    "not_before": {"format": "date-time"},
}
_UNSAFE = {"post", "put", "patch", "delete"}


def job_schema(limits: Limits) -> dict[str, Any]:
    """What one job may say, with this model's ranges."""
    schema = JobRequest.model_json_schema()
    fields: dict[str, Any] = {}
    for name, member in schema["properties"].items():
        fields[name] = _plain(member) | _FORMS.get(name, {})
    for side in ("width", "height"):
        fields[side] |= {
            "minimum": limits.min_side,
            "maximum": limits.max_side,
            "multipleOf": 16,
            "default": getattr(limits, f"default_{side}"),
        }
    fields["num_inference_steps"]["default"] = limits.default_steps
    fields["format"]["default"] = limits.default_format
    fields["metadata"] = {
        "type": "object",
        "maxProperties": 20,
        "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,40}$"},
        "additionalProperties": {
            "anyOf": [
                {"type": "string", "maxLength": 80, "pattern": r"^[ -~]*$"},
                {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
                {"type": "boolean"},
                {"type": "null"},
            ]
        },
        "description": "kept and given back",
    }
    return {
        "title": "JobRequest",
        "type": "object",
        "description": "One picture. Only the prompt is required; sizes are pixels.",
        "properties": fields,
        "required": ["prompt"],
        "additionalProperties": False,
        "example": {
            "prompt": "a beautiful sunset over mountains",
            "height": limits.default_height,
            "width": limits.default_width,
            "num_inference_steps": limits.default_steps,
        },
    }


def _plain(member: dict[str, Any]) -> dict[str, Any]:
    """``anyOf [x, null]`` as x: a field that says nothing is left out, not null."""
    choices = [c for c in member.get("anyOf", ()) if c.get("type") != "null"]
    kept = {k: v for k, v in member.items() if k not in ("anyOf", "title", "default")}
    return kept | (copy.deepcopy(choices[0]) if choices else {})


def _jobs_schema() -> dict[str, Any]:
    one = {"$ref": "#/components/schemas/JobRequest"}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": 100}
    batch = {
        "type": "object",
        "description": "docs/jobs.md tells what a batch can say: matrix, zip, sample and more",
        "properties": {
            "defaults": {"type": "object"},
            "jobs": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [one, {"type": "string", "minLength": 1}]},
            },
            "matrix": {"type": "object"},
        },
        "required": ["jobs"],
    }
    return {"title": "Jobs", "oneOf": [one, many, batch]}


def openapi(app: FastAPI, limits: Limits) -> dict[str, Any]:
    """The document for ``app`` under ``limits``."""
    document = get_openapi(
        title="SteadyDiffusion",
        version=app.version,
        description=_DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    parts = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (models.Problem, models.Change, models.Pause):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= schema.pop("$defs", {})
        parts[model.__name__] = schema
    parts["JobRequest"] = job_schema(limits)
    parts["Jobs"] = _jobs_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        parts.pop(unused, None)
    document["components"]["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "only where the service has a token",
        }
    }
    for path in document["paths"].values():
        for method, operation in path.items():
            _complete(method, operation)
    return document


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Add what every operation may answer; drop FastAPI's own form of 422."""
    responses = operation["responses"]
    given = responses.get("422", {}).get("content", {})
    foreign = "HTTPValidationError" in str(given.get("application/json", {}))
    if foreign:
        del responses["422"]
    codes = ["bad_host", "unauthorized", "internal", "database_trouble"]
    codes += ["cross_origin", "too_large"] if method in _UNSAFE else []
    codes += ["wrong_type"] if foreign else []
    for status, added in documented(*codes).items():
        known = responses.setdefault(str(status), added)
        content = known.setdefault("content", {})
        for media, body in added["content"].items():
            examples = content.setdefault(media, body).setdefault("examples", {})
            for code, example in body["examples"].items():
                examples.setdefault(code, example)
    operation["responses"] = dict(sorted(responses.items()))
