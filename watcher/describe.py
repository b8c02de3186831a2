"""A job and a batch as plain data: what the command line, result files, HTTP and events say of them.

The one place that does it. Callers choose how times are written and add what only they know: a
place in the queue, links, the folder of the pictures. Pure; knows neither the record nor files.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from watcher.errors import ERRORS
from watcher.jobs import ENDED, Batch, Job, JobRequest, JobState
from watcher.modelnames import model_name

TimeFormat = Callable[[int | None], str | None]


def utc_time(moment: int | None) -> str | None:
    """Microseconds since 1970 as ``2026-01-21T14:30:22.123456Z``."""
    return None if moment is None else _at(moment, datetime.UTC)[: -len("+00:00")] + "Z"


def local_time(moment: int | None) -> str | None:
    """Naive local ISO time with microseconds, as the seed writes it."""
    return None if moment is None else _at(moment, None)


def zoned_time(moment: int | None, digits: str = "milliseconds") -> str | None:
    """Local ISO time with its zone; ``digits`` as for ``datetime.isoformat``."""
    if moment is None:
        return None
    return datetime.datetime.fromtimestamp(moment / 1e6).astimezone().isoformat(timespec=digits)


def _at(moment: int, zone: datetime.tzinfo | None) -> str:
    seconds, rest = divmod(moment, 1_000_000)  # a float would round the microseconds
    at = datetime.datetime.fromtimestamp(seconds, zone).replace(microsecond=rest)
    return at.isoformat(timespec="microseconds")


def describe_job(job: Job, time: TimeFormat) -> dict[str, Any]:
    """What the record says of a job; ``path`` is below the outputs folder."""
    return _members_of(job, _OF_JOB, time) | {
        "model": job.model or job.request.model,
        "lora": job.request.lora,
        "image_name": job.image_name or None,
        "path": job.path or None,
        "final_size": "{}x{}".format(*job.request.final_size),
    }


def describe_batch(batch: Batch, time: TimeFormat) -> dict[str, Any]:
    """What the record says of a batch, its jobs not counted."""
    return _members_of(batch, _OF_BATCH, time)


#: What is told of each, by the names they have; those of moments are times.
_OF_JOB = (
    "id", "ticket", "index", "state", "rev", "image_name", "path", "priority", "created_at",
    "started_at", "completed_at", "not_before", "held", "attempt", "cancel_requested",
    "error_code", "error_message", "warnings", "sha256", "bytes", "deleted_at",
)  # fmt: skip
_OF_BATCH = (
    "ticket", "name", "source", "created_at", "recorded_at", "jobs", "axes", "paused", "cancelled",
    "error", "warnings",
)  # fmt: skip


def _members_of(noun: Job | Batch, names: Sequence[str], time: TimeFormat) -> dict[str, Any]:
    """The members of ``noun`` by these ``names``, in forms that JSON has."""
    told: dict[str, Any] = {}
    for name in names:
        value = getattr(noun, name)
        if name.endswith("_at") or name == "not_before":
            value = time(value)
        elif isinstance(value, StrEnum):
            value = value.value
        elif isinstance(value, tuple):
            value = list(value)
        told[name] = dict(value) if isinstance(value, Mapping) else value
    return told


#: Fields of a request that answers tell by other names or not at all.
TOLD_APART = frozenset({"count", "name", "folder", "priority", "not_before", "key"})

#: What of a job's facts is told.
_FACTS = (
    "model", "revision", "device", "dtype", "attention", "versions", "timings", "attempts",
    "adopted",
)  # fmt: skip


def whole_job(job: Job, time: TimeFormat) -> dict[str, Any]:
    """Everything about a job as HTTP answers it, as far as the record knows; no path of this machine.

    Of a job that ended that is all there is; of another its place and progress are not in it.
    """
    code = "cancelled" if job.state is JobState.CANCELLED else job.error_code
    done = job.state is JobState.COMPLETED
    asked = {name: getattr(job.request, name) for name in JobRequest.model_fields}
    return {name: value for name, value in asked.items() if name not in TOLD_APART} | {
        **describe_job(job, time),
        "format": job.request.format or job.path.rpartition(".")[2].replace("jpg", "jpeg"),
        "position": None,
        "progress": 1.0 if done else 0.0,
        "step": job.forwards if done else None,
        "steps": job.forwards,
        "eta_seconds": None,
        "error_code": code,
        "error_message": "cancelled" if job.state is JobState.CANCELLED else job.error_message,
        "remedy": ERRORS[code].do if code in ERRORS else None,
        "rating": job.rating,
        "facts": public(job.facts, _FACTS),
        "links": {
            "self": f"/jobs/{job.id}",
            "image": f"/jobs/{job.id}/image",
            "thumbnail": f"/jobs/{job.id}/image?size=256",
            "events": f"/jobs/{job.id}/events",
            "batch": f"/batches/{job.ticket}",
        },
    }


def whole_batch(batch: Batch, counts: Mapping[JobState, int]) -> dict[str, Any]:
    """Everything about a batch as HTTP answers it, but for how long it will still take."""
    ended = sum(counts[state] for state in ENDED)
    return describe_batch(batch, utc_time) | {
        "state": _batch_state(batch, batch.jobs - ended),
        "progress": {state.value: counts[state] for state in JobState},
        "done": round(ended / batch.jobs, 4) if batch.jobs else 0.0,
        "eta_seconds": None,
        "archived": batch.archived,
        "keyed": batch.key is not None,
        "error": _public_error(batch),
        "links": {
            "self": f"/batches/{batch.ticket}",
            "jobs": f"/jobs?batch={batch.ticket}",
            "images": f"/batches/{batch.ticket}/images.zip",
        },
    }


def public(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those members of ``entry`` that say something; of a model its name, never where it lies."""
    told = {name: entry[name] for name in names if entry.get(name) is not None}
    for name in told.keys() & {"model", "name"}:
        told[name] = model_name(str(told[name]))
    return told


def nonzero_counts(counts: Mapping[JobState, int]) -> dict[str, int]:
    """How many jobs stand where, without the states in which none is."""
    return {state.value: number for state, number in counts.items() if number}


def _batch_state(batch: Batch, waiting: int) -> str:
    if batch.error is not None:
        return "refused"
    if batch.cancelled:
        return "cancelled"
    if batch.recorded_at is None:
        return "recording" if batch.claim else "waiting"
    if waiting:
        return "paused" if batch.paused else "running"
    return "done"


def _public_error(batch: Batch) -> dict[str, Any] | None:
    """The refusal without the values people wrote (they stay in the file's own sidecar)."""
    if batch.error is None:
        return None
    body = {k: v for k, v in batch.error.items() if k != "file"}
    body["problems"] = [
        {k: v for k, v in p.items() if k != "value"} for p in batch.error.get("problems", ())
    ]
    return body
