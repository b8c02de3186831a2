"""A job and a batch as plain data: what the command line, result files, HTTP and events say of them.

The one place that does it. Callers choose how times are written and add what only they know: a
place in the queue, links, the folder of the pictures. Pure; knows neither the record nor files.
"""

import datetime
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from watcher.errors import ERRORS
from watcher.jobs import ENDED, Batch, Job, JobRequest, JobState

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
    return {
        "id": job.id,
        "ticket": job.ticket,
        "index": job.index,
        "state": job.state.value,
        "rev": job.rev,
        "image_name": job.image_name or None,
        "path": job.path or None,
        "final_size": "{}x{}".format(*job.request.final_size),
        "priority": job.priority.value,
        "created_at": time(job.created_at),
        "started_at": time(job.started_at),
        "completed_at": time(job.completed_at),
        "not_before": time(job.not_before),
        "held": job.held,
        "attempt": job.attempt,
        "cancel_requested": job.cancel_requested,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "warnings": list(job.warnings),
        "sha256": job.sha256,
        "bytes": job.bytes,
        "deleted_at": time(job.deleted_at),
    }


def describe_batch(batch: Batch, time: TimeFormat) -> dict[str, Any]:
    """What the record says of a batch, its jobs not counted."""
    return {
        "ticket": batch.ticket,
        "name": batch.name,
        "source": batch.source,
        "created_at": time(batch.created_at),
        "recorded_at": time(batch.recorded_at),
        "jobs": batch.jobs,
        "axes": {name: list(values) for name, values in batch.axes.items()},
        "paused": batch.paused,
        "cancelled": batch.cancelled,
        "error": dict(batch.error) if batch.error else None,
        "warnings": list(batch.warnings),
    }


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
    facts = {name: job.facts[name] for name in _FACTS if job.facts.get(name) is not None}
    if "model" in facts:
        facts["model"] = model_name(str(facts["model"]))
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
        "facts": facts,
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


def nonzero_counts(counts: Mapping[JobState, int]) -> dict[str, int]:
    """How many jobs stand where, without the states in which none is."""
    return {state.value: number for state, number in counts.items() if number}


def model_name(model: str) -> str:
    """A hub name as it is, also out of a hub cache's path; of a folder only its last part."""
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", model):
        return model
    parts = [part for part in re.split(r"[\\/]", model) if part]
    for repository, snapshots in itertools.pairwise(parts):
        if repository.startswith("models--") and snapshots == "snapshots":
            return repository.removeprefix("models--").replace("--", "/", 1)
    if parts[-2:] == ["starter", "model"] or parts[-1:] == ["starter_model"]:
        return "starter"
    return parts[-1].lstrip("~.") if parts else ""


def _batch_state(batch: Batch, waiting: int) -> str:
    if batch.error is not None:
        return "refused"
    if batch.cancelled:
        return "cancelled"
    if batch.recorded_at is None:
        return "recording" if batch.tries else "waiting"
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
