"""A job and a batch in words for a terminal, and as the JSON of ``--json``."""

import datetime
import shutil
import sys
from typing import Any

from watcher.commands.desk import fitted_line
from watcher.config import Config
from watcher.describe import describe_batch, describe_job, nonzero_counts, zoned_time
from watcher.jobs import Batch, Job, JobState
from watcher.modelnames import lora_words

_WIDE = 500  #: characters of a line that goes into a pipe


def local_clock(moment: int | None) -> str:
    """Microseconds since 1970 as `22 Nov 23:40`, local time."""
    if moment is None:
        return ""
    return datetime.datetime.fromtimestamp(moment / 1e6).strftime("%d %b %H:%M")


#: What of a job is told only where there is something to tell.
_IF_ANY = ("held", "progress", "not_before", "error_code", "error_message", "sha256", "bytes",
           "deleted_at")  # fmt: skip


def job_json(job: Job, config: Config, pulse: dict[str, Any]) -> dict[str, Any]:
    """Everything about a job. ``path`` is absolute and null until the picture exists."""
    done = job.state is JobState.COMPLETED and not job.deleted_at
    told = describe_job(job, zoned_time) | {
        "path": str(config.outputs / job.path) if done else None,
        "request": job.request.model_dump(exclude_none=True),
        "seed": job.request.seed,
        "progress": progress(job, pulse),
    }
    return {name: value for name, value in told.items() if value is not None or name not in _IF_ANY}


def batch_json(batch: Batch, counts: dict[JobState, int]) -> dict[str, Any]:
    """Everything about a batch and how many of its jobs stand where."""
    return describe_batch(batch, zoned_time) | {
        "recorded": batch.recorded_at is not None,
        "counts": nonzero_counts(counts),
    }


def progress(job: Job, pulse: dict[str, Any]) -> dict[str, int] | None:
    """Steps done and asked for, while a worker has the job."""
    if job.state is not JobState.GENERATING:
        return None
    for running in pulse.get("running", ()) if pulse.get("alive") else ():
        if running["job_id"] == job.id:
            return {"step": running["step"], "steps": running["steps"]}
    return {"step": 0, "steps": job.forwards}


def where(job: Job, pulse: dict[str, Any]) -> str:
    """How a job stands, in a few words."""
    if job.state is JobState.GENERATING and (at := progress(job, pulse)):
        stopping = ", stopping" if job.cancel_requested else ""
        return f"step {at['step']} of {at['steps']}{stopping}"
    if job.state is JobState.QUEUED and job.held:
        return f"held: {job.held}"
    if job.state is JobState.FAILED:
        return job.error_code or ""
    return ""


def job_row(job: Job, pulse: dict[str, Any]) -> str:
    """One line of a list, no wider than the terminal (if it is one)."""
    state = str(job.state) + (f" ({note})" if (note := where(job, pulse)) else "")
    head = f"{job.id[:8]}  {state:<12}  {local_clock(job.created_at):<12}  {job.image_name:<16}  "
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    return head + fitted_line(job.request.prompt, max(20, width - len(head)))


def job_lines(job: Job, config: Config, pulse: dict[str, Any]) -> str:
    """Everything a person wants to know about one job."""
    asked = job.request
    state = str(job.state) + (f" ({note})" if (note := where(job, pulse)) else "")
    facts: list[tuple[str, Any]] = [
        ("job", job.id),
        ("batch", job.ticket if job.index else None),
        ("state", state),
        ("prompt", fitted_line(asked.prompt, 400)),
        (
            "size",
            "{} x {}, ".format(*asked.final_size)
            + f"{asked.num_inference_steps} steps, seed {asked.seed}",
        ),
        ("model", job.model or asked.model),
        ("LoRAs", lora_words(asked.lora) if asked.lora else None),
        ("label", fitted_line(asked.label, 100) if asked.label else None),
        ("created", local_clock(job.created_at)),
        ("ended", local_clock(job.completed_at) or None),
        ("attempts", job.attempt if job.attempt > 1 else None),
        ("error", f"{job.error_code}: {job.error_message}" if job.error_code else None),
        ("picture", _picture_path(job, config)),
        *(("warning", fitted_line(warning, 300)) for warning in job.warnings),
    ]
    return _aligned(facts)


def batch_lines(batch: Batch, counts: dict[JobState, int]) -> str:
    """Everything a person wants to know about a batch of several jobs."""
    stands = "cancelled" if batch.cancelled else "paused" if batch.paused else None
    facts: list[tuple[str, Any]] = [
        ("batch", batch.ticket),
        ("file", fitted_line(batch.name, 200)),
        ("state", stands),
        ("jobs", f"{batch.jobs}: {counts_line(counts)}"),
        ("refused", f"{batch.refused_rows} rows" if batch.refused_rows else None),
        ("created", local_clock(batch.created_at)),
        *(("warning", fitted_line(warning, 300)) for warning in batch.warnings),
        ("each", f"steady list --batch {batch.ticket}"),
    ]
    return _aligned(facts)


def _aligned(facts: list[tuple[str, Any]]) -> str:
    return "\n".join(f"{name:<9} {value}" for name, value in facts if value is not None)


def _picture_path(job: Job, config: Config) -> str | None:
    if job.deleted_at:
        return f"deleted {local_clock(job.deleted_at)}"
    return str(config.outputs / job.path) if job.state is JobState.COMPLETED else None


def counts_line(counts: dict[JobState, int]) -> str:
    """`2 queued, 1 generating, 40 completed`; `none` when there is nothing."""
    return ", ".join(f"{n} {state}" for state in JobState if (n := counts.get(state, 0))) or "none"
