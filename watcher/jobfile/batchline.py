"""OpenAI's way of asking for pictures, a generations body and a line of its batch files, and
of answering: an ImagesResponse and the lines of a batch's output and error files.

The HTTP door (/v1) and a ``.jsonl`` dropped in the inbox read a body with the same function,
so both make the same jobs. Fields that picture services have and we have not are accepted, as
the real service accepts them, and named in the warnings where they would have changed the
picture. Knows nothing of files or HTTP.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from watcher.errors import ERRORS, SteadyError, ValueFault
from watcher.jobfile import strictjson
from watcher.jobfile.problems import shown_key
from watcher.jobfile.tables import Row
from watcher.jobs import Job, JobRequest, JobState
from watcher.limits import Limits

BATCH_URL = "/v1/images/generations"
_BLANK_LINES = 100  #: before the first line that says something
_MAX_LINE = 1 << 20
_MARKS = ("custom_id", "method", "url", "body")

#: No effect on the picture here or there: accepted without a word.
_SILENT = frozenset(
    {
        "user", "response_format", "stream", "partial_images", "moderation",
        "safety_identifier", "output_compression",
    }
)  # fmt: skip
#: Values that ask for nothing special.
_USUAL = frozenset({None, "auto", "standard", "opaque", "medium", "vivid", "natural", ""})
#: ``n`` and ``output_format`` say the other two.
_OURS = frozenset(JobRequest.model_fields) - {"count", "format"}


def is_batch_line(value: Any) -> bool:
    """Is this a line of an OpenAI batch file (it need not be a good one)?"""
    return isinstance(value, dict) and "body" in value and any(m in value for m in _MARKS[:3])


def has_batch_lines(stream: BinaryIO) -> bool:
    """Does this .jsonl begin with a line of an OpenAI batch file?"""
    for _ in range(_BLANK_LINES):
        text = stream.readline(_MAX_LINE).decode("utf-8-sig", "replace").strip()
        if text:
            try:
                return is_batch_line(strictjson.read_json(text))
            except SteadyError:
                return False
    return False


def body_fields(body: Mapping[Any, Any], limits: Limits) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A body of ``/v1/images/generations`` as our fields, and what of it has no effect.

    ``steps`` counts forwards there, which the model counts as it does; ``size: auto`` is
    unset; ``n`` is our ``count``. Values are not checked here but for the output format.
    Raises SteadyError out_of_range for gif and svg.
    """
    fields: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in body.items():
        if key == "model":  # their own models' names are sent by every program of theirs
            fields |= {key: value} if isinstance(value, str) and limits.named(value) else {}
        elif key in _OURS:
            fields[key] = value
        elif key == "n":
            fields["count"] = 1 if value is None else value
        elif key == "size":
            fields["size"] = None if value == "auto" else value
        elif key == "steps":
            whole = isinstance(value, int) and not isinstance(value, bool)
            steps = limits.card(body).steps(value) if whole else value
            fields.setdefault("num_inference_steps", steps)
        elif key == "output_format":
            if value in ("gif", "svg"):
                allowed = "png, webp, jpeg"
                message = f"`output_format` must be one of {allowed}."
                raise ValueFault(
                    "out_of_range", message, key="output_format", value=repr(value), allowed=allowed
                ).error()
            fields["format"] = value
        elif key not in _SILENT and not (isinstance(value, str | None) and value in _USUAL):
            warnings.append(f"{shown_key(str(key))} has no effect here.")
    return fields, tuple(warnings[:20])


def batch_line_fields(
    line: Mapping[Any, Any], limits: Limits
) -> tuple[dict[str, Any], tuple[str, ...]]:
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
            raise ValueFault("bad_shape", words, key=key).error()
    fields, warnings = body_fields(body if isinstance(body, Mapping) else {}, limits)
    if line.get("custom_id") is not None:
        fields["label"] = line["custom_id"]
    return fields, warnings


# -- what OpenAI's clients get back


def images_body(
    jobs: Sequence[Job], data: Sequence[Mapping[str, Any]], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """OpenAI's ImagesResponse for ``jobs`` of one request; ``data``: b64_json or url of each.

    With the seed of each picture, the ids of the jobs, and what of the request had no effect.
    """
    first = jobs[0]
    noted = [*warnings, *(w for job in jobs for w in job.warnings)]
    return {
        "created": max(job.completed_at or job.created_at for job in jobs) // 1_000_000,
        "data": [
            {**entry, "revised_prompt": None, "seed": job.request.seed}
            for job, entry in zip(jobs, data, strict=True)
        ],
        **look_of(first),
        "usage": USAGE,
        "job_id": first.id,
        "job_ids": [job.id for job in jobs],
        "warnings": list(dict.fromkeys(noted)),
    }


#: Pictures are not counted in tokens here; the clients want the figures.
USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}


def look_of(job: Job) -> dict[str, Any]:
    """How OpenAI names the looks of a picture. Sizes are width x height."""
    request = job.request
    return {
        "output_format": request.format or "png",
        "size": "{}x{}".format(*request.final_size),
        "quality": "auto",
        "background": "opaque",
    }


def result_lines(
    jobs: Iterable[Job], url_of: Callable[[Job], str], *, good: bool
) -> Iterator[bytes]:
    """The lines of a batch's output file (``good``) or of its error file.

    ``jobs`` come in the order of their rows; where these are not known, jobs of one line are those
    that share its custom_id. Jobs of one line (``n``) stand in one line again. A line of which
    some pictures failed counts as good and has the others.
    """

    def line_of(job: Job) -> tuple[int | None, str]:
        return job.row, (job.request.label or job.id) if job.row is None else ""

    for _, group in itertools.groupby(jobs, key=line_of):
        some = list(group)
        made = [job for job in some if job.state is JobState.COMPLETED]
        if bool(made) is not good or not all(job.state.ended for job in some):
            continue
        first = some[0]
        head = {
            "id": f"batch_req_{first.id.replace('-', '')}",
            "custom_id": first.request.label,
        }
        if made:
            body = images_body(made, [{"url": url_of(job), "picture": job.path} for job in made])
            answer = {"status_code": 200, "request_id": first.id, "body": body}
            yield _line({**head, "response": answer, "error": None})
        else:
            code = "cancelled" if first.state is JobState.CANCELLED else first.error_code
            kind = ERRORS[code if code in ERRORS else "internal"]
            error = {"code": code, "message": first.error_message or kind.what}
            body = {"error": {**error, "type": "server_error", "param": None}}
            answer = {"status_code": kind.status, "request_id": first.id, "body": body}
            yield _line({**head, "response": answer, "error": error})


def refused_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Error file lines for those lines of the input of which no job could be made."""
    for row in rows:
        problem = row.problems[0]
        error = {"code": problem.code, "message": problem.message, "param": problem.key}
        body = {"error": {**error, "type": "invalid_request_error"}}
        yield _line(
            {
                "id": f"batch_req_line_{row.number}",
                "custom_id": row.cells.get("custom_id"),
                "line": row.line,
                "response": {"status_code": 400, "request_id": None, "body": body},
                "error": error,
            }
        )


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
