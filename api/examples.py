"""The bases of the API's documents: every one carries an example, made from its fields.

Nothing is computed for an answer here.
"""

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

ID = "550e8400-e29b-41d4-a716-446655440000"

COUNTS = {"queued": 7, "generating": 1, "completed": 4, "failed": 0, "cancelled": 0}

#: What examples show in a field of this name; elsewhere the field has its own, or nothing.
_SAMPLE: dict[str, Any] = {
    "archived": False,
    "attempt": 1,
    "bytes": 1048576,
    "cancel_requested": False,
    "cancelled": False,
    "completed_at": "2026-01-21T14:30:45.789012Z",
    "count": 1,
    "counts": COUNTS,
    "created_at": "2026-01-21T14:30:22.123456Z",
    "done": 0.3333,
    "facts": {"model": "Tongyi-MAI/Z-Image-Turbo", "device": "cuda:0"},
    "format": "png",
    "height": 1024,
    "id": ID,
    "image_name": "ImgGen_143022",
    "index": 0,
    "job_id": ID,
    "jobs": 12,
    "keyed": False,
    "location": f"/batches/{ID}",
    "more": False,
    "name": "cats.yaml",
    "next": "s42",
    "num_inference_steps": 9,
    "path": "20260121/ImgGen_143022.png",
    "priority": "interactive",
    "progress": 1.0,
    "prompt": "a beautiful sunset over mountains",
    "ready": True,
    "recorded_at": "2026-01-21T14:30:22.223456Z",
    "retried": 2,
    "rev": 42,
    "row": 1,
    "seed": 1234,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "slot": 0,
    "source": "file",
    "started_at": "2026-01-21T14:30:23.000001Z",
    "state": "completed",
    "step": 8,
    "steps": 8,
    "ticket": ID,
    "version": "0.1.0",
    "watcher": {"alive": False, "state": None},
    "width": 1024,
}


def example_answer(model: type[BaseModel]) -> dict[str, Any]:
    """A document of this form: every field as its own example or ``_SAMPLE`` shows it."""
    return {name: _shown_field(name, field) for name, field in model.model_fields.items()}


def _shown_field(name: str, field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    kind: Any = field.annotation
    several = get_origin(kind) is list
    inner = get_args(kind)[0] if several else kind
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return [example_answer(inner)] if several else example_answer(inner)
    return [] if several else _SAMPLE.get(name)


class Answer(BaseModel):
    """Base of all: nothing undocumented is sent, and an example shows what is."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=lambda schema, model: schema.update(example=example_answer(model)),
    )


class RequestBody(BaseModel):
    """Base of the JSON bodies that are no jobs: strict, and the example shows some of the fields."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra=lambda schema, model: schema.update(
            example={name: f.examples[0] for name, f in model.model_fields.items() if f.examples}
        ),
    )
