"""The OpenAPI document: complete, with an example for everything, the same on every start.

FastAPI writes most of it. Added here: the job's own schema with the ranges the model in use
allows, the bodies that routes read themselves, and the errors any request may meet.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import models
from api.errors import MEDIA_TYPE, documented, example_of
from watcher.jobs import MAX_COUNT, MAX_SEED, field_schemas, text_fields
from watcher.limits import Limits

_DESCRIPTION = """\
Pictures from text, one queue, nothing lost and nothing made twice.

Send a job, ask how it goes (or follow `/events`), fetch the picture. Errors are
`application/problem+json` (RFC 9457) with a stable `code` and a `remedy`. POSTs that make
jobs take an `Idempotency-Key`. A service that has a token wants it as
`Authorization: Bearer`.
"""

_CONTROL = r"\x00-\x08\x0e-\x1f\x7f-\x9f"
_TEXT = f"^[^{_CONTROL}]*$"
_BLANK = "[ \t\r\n]*"
_NAME = r"[\w-]([\w.-]{0,78}[\w-])?"

#: Ranges that hold for every model are in JobRequest; what the reader asks of texts is here.
_FORMS: dict[str, dict[str, Any]] = {
    "prompt": {"minLength": 1, "pattern": rf"^[^{_CONTROL}]*[^{_CONTROL}\s][^{_CONTROL}]*$"},
    "name": {"pattern": f"^{_BLANK}({_NAME})?{_BLANK}$"},
    "folder": {"pattern": f"^{_BLANK}({_NAME}(/{_NAME}){{0,2}})?{_BLANK}$"},
    "not_before": {"anyOf": [{"format": "date-time"}, {"maxLength": 0}, {"type": "null"}]},
    "metadata": {
        "maxProperties": 50,
        "propertyNames": {"pattern": _TEXT},
        "additionalProperties": {
            "anyOf": [
                {"type": "string", "pattern": _TEXT},
                {"type": "number", "minimum": -MAX_SEED, "maximum": MAX_SEED},
                {"type": "boolean"},
                {"type": "null"},
            ]
        },
    },
}
_UNSAFE = {"post", "put", "patch", "delete"}


#: What an operation may answer because it has this parameter.
_OF_PARAMETERS = {
    "job_id": ("job_not_found",),
    "ticket": ("batch_not_found",),
    "Idempotency-Key": ("key_conflict", "queue_full", "disk_full", "folder_gone", "stopping"),
}


def job_schema(limits: Limits) -> dict[str, Any]:
    """What one job may say, with this model's ranges."""
    card = limits.usual
    texts = {name: {"pattern": _TEXT} for name in text_fields()}
    fields = {
        name: copy.deepcopy(member | _FORMS.get(name, texts.get(name, {})))
        for name, member in field_schemas().items()
    }
    for side in ("width", "height"):
        fields[side] |= {
            "minimum": card.min_side,
            "maximum": card.max_side,
            "multipleOf": 16,
            "default": getattr(card, f"default_{side}"),
        }
    fields["num_inference_steps"]["default"] = card.default_steps
    fields["format"]["default"] = limits.default_format
    fields["key"].pop("minLength", None)  # an empty text says nothing, as everywhere
    fields["upscale"]["type"] = ["string", "number", "object"]
    for name, field in fields.items():
        if name != "prompt":  # null says nothing, like a field left out
            types = field["type"]
            field["type"] = [*([types] if isinstance(types, str) else types), "null"]
            if "enum" in field:
                field["enum"] = [*field["enum"], None]
    return {
        "title": "JobRequest",
        "type": "object",
        "description": "One picture. Only the prompt is required; sizes are pixels.",
        "properties": fields,
        "required": ["prompt"],
        "additionalProperties": False,
        "example": {
            "prompt": "a beautiful sunset over mountains",
            "height": card.default_height,
            "width": card.default_width,
            "num_inference_steps": card.default_steps,
        },
    }


def _jobs_schema() -> dict[str, Any]:
    one = {"$ref": "#/components/schemas/JobRequest"}
    some = {"type": ["object", "null"]}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}
    batch = {
        "type": "object",
        "description": "many jobs from few words; JSON Schema cannot say all its rules",
        "properties": {
            "defaults": some | {"description": "fields of every job that does not say them"},
            "jobs": {
                "type": "array",
                "minItems": 1,
                "items": {"anyOf": [one, {"type": "string", "minLength": 1}]},
            },
            "matrix": some | {"description": "names and their values: every combination"},
            "zip": some | {"description": "names and their values, taken side by side"},
            "sample": {"type": ["integer", "null"], "minimum": 1},
            "expand": {"enum": ["wildcards", None]},
            "on_error": {"enum": ["reject", "skip", None]},
            "key": {"type": ["string", "null"], "minLength": 1, "maxLength": 200},
            "resume": {"type": ["boolean", "null"]},
            "count": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_COUNT},
        },
        "required": ["jobs"],
        "additionalProperties": False,
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
    for model in (models.Again, models.Problem, models.Change, models.Pause, models.Dismiss):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= schema.pop("$defs", {})
        parts[model.__name__] = schema
    parts["JobRequest"] = job_schema(limits)
    parts["OneJob"] = copy.deepcopy(parts["JobRequest"]) | {"title": "OneJob"}
    parts["OneJob"]["properties"]["count"]["maximum"] = 1
    parts["OneJob"]["properties"]["seed"] = _seeds(parts["OneJob"]["properties"]["seed"], most=1)
    parts["JobRequest"]["properties"]["seed"] = _seeds(parts["JobRequest"]["properties"]["seed"])
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
    used = {code for path in document["paths"].values() for code in _codes(path)}
    document["components"]["examples"] = {code: example_of(code) for code in sorted(used)}
    return document


def _seeds(one: dict[str, Any], most: int = MAX_COUNT) -> dict[str, Any]:
    """A seed, or a list of them: that many pictures."""
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": most}]}


def _codes(path: dict[str, Any]) -> Iterator[str]:
    for operation in path.values():
        for answer in operation["responses"].values():
            yield from answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Tell it by its function's words, add what any may answer; drop FastAPI's form of 422."""
    first, *more = re.split(
        r"(?<=[.?]) ", " ".join(operation.pop("description").split()), maxsplit=1
    )
    operation |= {"summary": first.rstrip("."), **({"description": more[0]} if more else {})}
    responses = operation["responses"]
    given = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(given.get("application/json", {})):
        del responses["422"]
    codes = ["bad_host", "unauthorized", "internal", "database_trouble"]
    codes += ["cross_origin", "too_large"] if method in _UNSAFE else []
    codes += ["wrong_type"] if operation.get("parameters") else []
    codes += ["bad_content_type", "bad_request", "wrong_type"] if "requestBody" in operation else []
    for parameter in operation.get("parameters", ()):
        codes += _OF_PARAMETERS.get(parameter["name"], ())
    for status, added in documented(*codes).items():
        known = responses.setdefault(str(status), added)
        content = known.setdefault("content", {})
        for media, body in added["content"].items():
            examples = content.setdefault(media, body).setdefault("examples", {})
            for code, example in body["examples"].items():
                examples.setdefault(code, example)
    operation["responses"] = dict(sorted(responses.items()))
