"""A job and a batch as plain data: what the command line, result files, HTTP and events say of them.

The one place that does it. Callers choose how times are written and add what only they know: a
place in the queue, links, the folder of the pictures. Pure; knows neither the record nor files.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from watcher.jobs import Batch, Job, JobState

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
        "paused": batch.paused,
        "cancelled": batch.cancelled,
        "error": dict(batch.error) if batch.error else None,
        "warnings": list(batch.warnings),
    }


def nonzero_counts(counts: Mapping[JobState, int]) -> dict[str, int]:
    """How many jobs stand where, without the states in which none is."""
    return {state.value: number for state, number in counts.items() if number}
