"""The record's rows as answers: the seed's words for its routes, everything for ours.

Changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from api import models
from api.door import Door
from watcher.describe import local_time, utc_time, whole_batch, whole_job
from watcher.jobs import Batch, Job, JobRequest, JobState

#: the record's five words -> the seed's three
SEED_WORDS = {
    JobState.QUEUED: "generating",
    JobState.GENERATING: "generating",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}


def rounded(seconds: float | None) -> float | None:
    """Seconds to a tenth: no guess is better."""
    return None if seconds is None else round(seconds, 1)


def _told(model: type[BaseModel], told: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What ``model`` describes, no more and no less: from ``more``, else from ``told``."""
    values = {**told, **more}
    return {name: values[name] for name in model.model_fields}


class Views:
    """Rows of the record, told."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._store = door.store

    def _standing(self, job: Job, *, place: bool = True) -> dict[str, Any]:
        """Its place, how far it is, and how long it will take.

        Without its ``place``, which is costly, that of a running one alone.
        """
        progress, step, steps = self._progress(job)
        unread = job.seq == 0 and job.state is JobState.QUEUED  # not in the queue yet
        position = self._door.position(job) if place and not unread else None
        known = place or job.state is JobState.GENERATING
        return {
            "position": position,
            "progress": progress,
            "step": step,
            "steps": steps,
            "eta_seconds": rounded(self._door.eta(job, position)) if known else None,
        }

    def _progress(self, job: Job) -> tuple[float, int | None, int]:
        """Fraction done, forwards done (None while unknown), forwards in all."""
        steps = job.forwards
        if job.state is JobState.COMPLETED:
            return 1.0, steps, steps
        if job.state is not JobState.GENERATING:
            return 0.0, 0 if job.state is JobState.QUEUED else None, steps
        entry = self._door.running(job.id)
        if entry is None or entry.get("attempt") != job.attempt:
            return 0.0, 0, steps
        return entry["progress"], int(entry["step"]), steps

    def status(self, job: Job) -> dict[str, Any]:
        """The seed's answer to ``GET /status/{job_id}``, then our own fields."""
        return _told(
            models.Status,
            whole_job(job, local_time),
            job_id=job.id,
            status=SEED_WORDS[job.state],
            **self._standing(job),
        )

    def asked(self, request: JobRequest) -> dict[str, Any]:
        """The fields of ``request`` that answers show."""
        told = {name: getattr(request, name) for name in models.Asked.model_fields}
        return told | {"format": request.format or self._door.config.image_format}

    def job(self, job: Job, *, place: bool = True) -> dict[str, Any]:
        """Everything about one job; ``place=False`` leaves the costly position out."""
        return _told(
            models.JobView,
            whole_job(job, utc_time),
            format=job.request.format or self._door.config.image_format,
            **self._standing(job, place=place),
        )

    def brief(self, job: Job) -> dict[str, Any]:
        """The same without what costs a look at the whole queue: for lists and events."""
        return self.job(job, place=False)

    def batch(self, batch: Batch) -> dict[str, Any]:
        """Everything about one batch, its jobs counted."""
        told = whole_batch(batch, self._store.progress(batch.ticket))
        left = self._door.batch_seconds(batch.ticket) if told["done"] < 1 else None
        return _told(models.BatchView, told, eta_seconds=rounded(left))

    def queue(self) -> dict[str, Any]:
        """Counts, what runs, when all is done, and who paused it."""
        counts = self._store.counts()
        paused = self._store.get("paused") or None
        left = self._door.all_seconds(counts[JobState.QUEUED])
        running = []
        for entry in self._door.under_way():
            job = self._store.job(entry["job_id"])
            own = self._door.left(job, entry) if job else None
            started, eta = utc_time(entry.get("started_at")), rounded(own)
            more = {"slot": entry.get("slot"), "started_at": started, "eta_seconds": eta}
            running.append(_told(models.RunningJob, entry, **more))
        return {
            "counts": {state.value: counts[state] for state in JobState},
            "running": running,
            "eta_seconds": rounded(left),
            "paused": paused
            and {name: paused.get(name) for name in ("by", "reason")}
            | {"since": utc_time(paused.get("since"))},
        }
