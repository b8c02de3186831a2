"""OpenAI's way of asking for pictures: a generations body, and a line of its batch files.

The HTTP door (/v1) and a ``.jsonl`` dropped in the inbox read a body with the same function,
so both make the same jobs. Fields that picture services have and we have not are accepted, as
the real service accepts them, and named in the warnings where they would have changed the
picture. Knows nothing of files or HTTP.
"""

from collections.abc import Mapping
from typing import Any

from watcher.errors import Problem, SteadyError

BATCH_URL = "/v1/images/generations"
_MARKS = ("custom_id", "method", "url", "body")

#: No effect on the picture here or there: accepted without a word.
_SILENT = frozenset(
    {
        "model", "user", "response_format", "stream", "partial_images", "moderation",
        "safety_identifier", "output_compression",
    }
)  # fmt: skip
#: Values that ask for nothing special.
_USUAL = frozenset({None, "auto", "standard", "opaque", "medium", "vivid", "natural", ""})
_OURS = frozenset(
    {
        "prompt", "seed", "num_inference_steps", "guidance_scale", "negative_prompt", "name",
        "folder", "priority", "not_before", "label", "metadata", "key", "width", "height",
    }
)  # fmt: skip


def is_batch_line(value: Any) -> bool:
    """Is this a line of an OpenAI batch file (it need not be a good one)?"""
    return isinstance(value, Mapping) and "body" in value and any(m in value for m in _MARKS[:3])


def body_fields(body: Mapping[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A body of ``/v1/images/generations`` as our fields, and what of it has no effect.

    ``steps`` counts forwards there, so ``num_inference_steps`` is one more; ``size: auto`` is
    unset; ``n`` is our ``count``. Values are not checked here but for the output format.
    Raises SteadyError out_of_range for gif and svg.
    """
    fields: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in body.items():
        if key in _OURS:
            fields[key] = value
        elif key == "n":
            fields["count"] = 1 if value is None else value
        elif key == "size":
            fields["size"] = None if value == "auto" else value
        elif key == "steps":
            whole = isinstance(value, int) and not isinstance(value, bool)
            fields.setdefault("num_inference_steps", value + 1 if whole else value)
        elif key == "output_format":
            if value in ("gif", "svg"):
                allowed = "png, webp, jpeg"
                message = "`output_format` must be one of png, webp, jpeg."
                problem = Problem(
                    "out_of_range", message, key="output_format", value=repr(value), allowed=allowed
                )
                raise SteadyError("out_of_range", message, problems=[problem])
            fields["format"] = value
        elif key not in _SILENT and not (isinstance(value, str | None) and value in _USUAL):
            shown = str(key)[:60]
            shown = shown if shown.isprintable() else ascii(shown)
            warnings.append(f"{shown} has no effect here.")
    return fields, tuple(warnings[:20])


def batch_line_fields(line: Mapping[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A batch line as our fields (``custom_id`` becomes the label) and its warnings.

    Raises SteadyError bad_shape when it asks for something else than making pictures.
    """
    url, method, body = line.get("url", BATCH_URL), line.get("method", "POST"), line.get("body")
    for key, good, words in (
        ("url", url == BATCH_URL, f"`url` must be {BATCH_URL}."),
        ("method", method == "POST", "`method` must be POST."),
        ("body", isinstance(body, Mapping), "`body` must be a mapping."),
    ):
        if not good:
            raise SteadyError("bad_shape", words, problems=[Problem("bad_shape", words, key=key)])
    fields, warnings = body_fields(body if isinstance(body, Mapping) else {})
    if line.get("custom_id") is not None:
        fields["label"] = line["custom_id"]
    return fields, warnings
