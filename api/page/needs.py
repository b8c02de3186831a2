"""What needs a person: failed jobs, refused files, trouble around the service.

A person may dismiss what they have seen. That is kept in the record's settings as the rev
of each job that was dismissed (or one for all), so a job that fails again is told again.
Changes nothing else.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import models
from api.bodies import json_body, read_model
from api.door import Door, pulse_troubles
from api.errors import documented
from api.views import Views
from watcher.errors import ERRORS, SteadyError
from watcher.jobs import Batch, Job, JobState
from watcher.store import JobFilter

_KEY = "dismissed"  #: the settings key
_SHOWN = 60  #: failed jobs looked at
_FILES = 20  #: refused files looked at
_KEPT = 1000  #: single dismissals remembered; older ones fall to the mark for all


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs that share one reason."""

    code: str
    what: str
    do: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Needs:
    """What a person should look at. ``more``: there are further failed jobs."""

    failed: tuple[Job, ...]
    more: bool
    refused: tuple[Batch, ...]
    troubles: tuple[SteadyError, ...]
    notices: tuple[str, ...]

    @property
    def reasons(self) -> list[FailureGroup]:
        """The failed jobs by what went wrong, the latest first."""
        groups: dict[str, list[Job]] = {}
        for job in self.failed:
            groups.setdefault(job.error_code or "internal", []).append(job)
        return [reason_of(code, jobs) for code, jobs in groups.items()]


def reason_of(code: str, jobs: list[Job]) -> FailureGroup:
    """In the registry's words; a job's own words stay with it."""
    kind = ERRORS[code if code in ERRORS else "internal"]
    return FailureGroup(code, kind.what, kind.do, tuple(jobs))


def attention(door: Door) -> Needs:
    """Everything not yet dismissed."""
    seen = door.store.get(_KEY) or {}
    jobs = door.store.jobs(JobFilter(state=JobState.FAILED), limit=_SHOWN + 1)
    single, mark = seen.get("jobs", {}), int(seen.get("rev", 0))
    failed = [j for j in jobs if j.rev > max(mark, int(single.get(j.id, 0)))]
    gone = set(seen.get("batches", ()))
    refused = [b for b in door.store.refused(_FILES) if b.ticket not in gone]
    pulse = door.pulse()
    return Needs(
        failed=tuple(failed[:_SHOWN]),
        more=len(failed) > _SHOWN,
        refused=tuple(refused),
        troubles=tuple(pulse_troubles(pulse)),
        notices=tuple(str(n) for n in (pulse.get("inbox") or {}).get("notices", ())),
    )


def dismiss(door: Door, what: models.Dismiss) -> None:
    """Remember that these were seen. Two at once may forget one of them: it is shown again."""
    seen: dict[str, Any] = door.store.get(_KEY) or {}
    jobs: dict[str, int] = dict(seen.get("jobs", {}))
    batches: list[str] = list(seen.get("batches", ()))
    mark = int(seen.get("rev", 0))
    if what.all:
        mark, jobs = door.store.last_rev(), {}
        batches += [b.ticket for b in door.store.refused(_FILES) if b.ticket not in batches]
    for job_id in what.jobs:
        job = door.store.job(job_id)
        if job is None:
            raise SteadyError("job_not_found")
        jobs[job_id] = job.rev
    for ticket in what.batches:
        if door.store.batch(ticket) is None:
            raise SteadyError("batch_not_found")
        batches.append(ticket)
    kept = dict(list(jobs.items())[-_KEPT:])
    door.store.put(_KEY, {"rev": mark, "jobs": kept, "batches": batches[-_KEPT:]})


def routes(door: Door, views: Views) -> APIRouter:
    """``/attention``."""
    router = APIRouter(prefix="/attention", tags=["service"])

    def told() -> Response:
        found = attention(door)
        return JSONResponse(
            {
                "failed": [views.brief(job) for job in found.failed],
                "more": found.more,
                "refused": [views.batch(batch) for batch in found.refused],
                "reasons": [error.as_dict() for error in found.troubles],
                "notices": list(found.notices),
            }
        )

    @router.get("", name="attention", response_model=models.Attention)
    def what_needs_a_person() -> Response:
        """What needs a person: failed jobs and refused files nobody has dismissed, and trouble
        around the service."""
        return told()

    @router.post(
        "/dismiss",
        name="dismiss",
        response_model=models.Attention,
        responses=documented("job_not_found", "batch_not_found"),
        openapi_extra=json_body("Dismiss"),
    )
    async def dismiss_some(request: Request) -> Response:
        """Do not tell of these again. Nothing is deleted. A job that fails again is told again."""
        what = await read_model(request, models.Dismiss)
        return await run_in_threadpool(_dismiss, what)

    def _dismiss(what: models.Dismiss) -> Response:
        dismiss(door, what)
        return told()

    return router
