"""A job and a batch in words for a terminal, and as the JSON of ``--json``."""

import datetime
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from watcher.commands.desk import Desk, fitted_line
from watcher.config import Config
from watcher.describe import describe_batch, describe_job, nonzero_counts, zoned_time
from watcher.jobs import Batch, Job, JobState
from watcher.log import now_us
from watcher.modelnames import lora_words

_WIDE = 500  #: characters of a line that goes into a pipe


def local_clock(moment: int | None) -> str:
    """Microseconds since 1970 as `22 Nov 23:40`, local time."""
    if moment is None:
        return ""
    return datetime.datetime.fromtimestamp(moment / 1e6).strftime("%d %b %H:%M")


def ago(moment: int, now: int) -> str:
    """A moment of the last day as `5 min ago`, an older one as :func:`local_clock` has it."""
    from watcher.pace import span_words

    seconds = (now - moment) // 1_000_000
    if seconds < 60:
        return "just now"
    return f"{span_words(seconds)} ago" if seconds < 86_400 else local_clock(moment)


#: What of a job is told only where there is something to tell.
_IF_ANY = ("held", "progress", "not_before", "error_code", "error_message", "sha256", "bytes",
           "deleted_at")  # fmt: skip


def job_json(job: Job, config: Config, pulse: dict[str, Any]) -> dict[str, Any]:
    """Everything about a job. ``path`` is absolute and null until the picture exists."""
    told = describe_job(job, zoned_time) | {
        "path": str(config.outputs / job.path) if job.pictured else None,
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
        return percent_words(at) + stopping
    if job.state is JobState.QUEUED and job.held:
        return f"held: {job.held}"
    if job.state is JobState.FAILED:
        return job.error_code or ""
    return ""


def percent_words(at: dict[str, Any]) -> str:
    """`44 %`: how far a picture is. Steps are not named: a model may need fewer than were asked."""
    return f"{100 * int(at['step']) // max(1, int(at['steps']))} %"


def job_rows(desk: Desk, jobs: Sequence[Job], pulse: dict[str, Any], *, headed: bool) -> list[str]:
    """A line for each, in columns, no wider than the terminal (if it is one, below a header)."""
    now, terminal = now_us(), sys.stdout.isatty()
    states = [str(job.state) + (f" ({n})" if (n := where(job, pulse)) else "") for job in jobs]
    width = max(12, *map(len, states))
    named = max(16, *(min(30, len(job.image_name)) for job in jobs))
    whole = shutil.get_terminal_size().columns if terminal else _WIDE
    room = max(20, whole - width - named - 28)
    rows = [
        f"{job.id[:8]}  {desk.tint(state.ljust(width), job.state)}"
        f"  {ago(job.created_at, now) if terminal else local_clock(job.created_at):<12}"
        f"  {fitted_line(job.image_name, 30):<{named}}  {fitted_line(job.request.prompt, room)}"
        for job, state in zip(jobs, states, strict=True)
    ]
    if terminal and headed:
        head = f"{'ID':<8}  {'STATE':<{width}}  {'SENT':<12}  {'PICTURE':<{named}}  PROMPT"
        rows.insert(0, desk.tint(head, "head"))
    return rows


def result_line(desk: Desk, job: Job, pulse: dict[str, Any]) -> str:
    """What became of a job, for whoever looks on: its state, its prompt, its picture or why not."""
    words = desk.tint(f"{job.state:<10}", job.state) + f"  {fitted_line(job.request.prompt, 60)}"
    if job.state is JobState.COMPLETED:
        return f"{words}  {desk.config.outputs / job.path}"
    if job.state is JobState.FAILED:
        return f"{words}  {job.error_code}: {fitted_line(job.error_message or '', 300)}"
    return f"{words}  ({note})" if (note := where(job, pulse)) else words


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
    return aligned(facts)


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
    return aligned(facts)


def aligned(facts: Sequence[tuple[str, Any]]) -> str:
    """A line for each fact that is not None: its name, then what there is to say."""
    return "\n".join(f"{name:<9} {value}" for name, value in facts if value is not None)


def _picture_path(job: Job, config: Config) -> str | None:
    if job.deleted_at:
        return f"deleted {local_clock(job.deleted_at)}"
    return str(config.outputs / job.path) if job.state is JobState.COMPLETED else None


def counts_line(counts: dict[JobState, int]) -> str:
    """`2 queued, 1 generating, 40 completed`; `none` when there is nothing."""
    return ", ".join(f"{n} {state}" for state in JobState if (n := counts.get(state, 0))) or "none"
