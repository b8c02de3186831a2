"""What answers look like: the documents behind the OpenAPI page.

views.py answers with the fields these models have, so what is described is what is sent. The fields
of the five first routes are the seed's own. Nothing is computed here.
"""

from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, create_model

from api.examples import COUNTS, ID, Answer, RequestBody
from watcher.describe import TOLD_APART
from watcher.jobs import JobRequest, JobState, Priority
from watcher.store import DeliveryState


class Fault(Answer):
    """One thing wrong with one value."""

    code: str
    detail: str
    key: str | None = None
    pointer: str | None = Field(None, description="JSON pointer into the body")
    line: int | None = None
    column: int | None = None
    row: int | None = None
    document: int | None = None
    allowed: str | None = None
    remedy: str | None = None


class Problem(BaseModel):
    """RFC 9457: what happened and what to do. `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str
    errors: list[Fault] | None = None
    state: str | None = Field(None, description="the job's present state, with `wrong_state`")


class Generated(Answer):
    """The seed's answer to a request for a picture."""

    job_id: str
    image_name: str
    status: Literal["generating"] = Field(examples=["generating"])


class Status(Answer):
    """The seed's status, and after its fields our own."""

    job_id: str
    image_name: str | None
    status: Literal["generating", "completed", "failed"] = Field(examples=["completed"])
    prompt: str
    height: int
    width: int
    num_inference_steps: int
    created_at: str = Field(
        description="local time, as in the seed", examples=["2026-01-21T14:30:22.123456"]
    )
    completed_at: str | None = Field(examples=["2026-01-21T14:30:45.789012"])
    error_message: str | None
    state: JobState
    position: int | None = Field(description="jobs that run before this one; 0 is next or running")
    progress: float = Field(ge=0, le=1)
    step: int | None
    steps: int
    seed: int | None
    eta_seconds: float | None
    error_code: str | None
    warnings: list[str]


def _asked() -> dict[str, Any]:
    """The fields of JobRequest that stay with a job, as answers show them."""
    shown: dict[str, Any] = {}
    for name, field in JobRequest.model_fields.items():
        if name in TOLD_APART:
            continue
        kind: Any = field.annotation
        if name in ("height", "width", "num_inference_steps", "format"):  # a job has them all
            kind = get_args(kind)[0]
        shown[name] = (kind, Field(description=_UNLIKE.get(name)))
    return shown


_UNLIKE = {"seed": "null: chosen when the job is recorded"}

#: What a person asked for that stays with the job: fields of JobRequest, by its names.
Asked: Any = create_model("Asked", __base__=Answer, **_asked())


class Links(Answer):
    """Where the parts of a job are."""

    self: str = Field(examples=[f"/jobs/{ID}"])
    image: str = Field(examples=[f"/jobs/{ID}/image"])
    thumbnail: str = Field(examples=[f"/jobs/{ID}/image?size=256"])
    events: str = Field(examples=[f"/jobs/{ID}/events"])
    batch: str = Field(examples=[f"/batches/{ID}"])


class JobView(Asked):
    """One job, whole. Times are UTC."""

    id: str
    ticket: str
    index: int
    state: JobState
    rev: int = Field(description="grows with every change of any job")
    image_name: str | None
    path: str | None = Field(description="below the outputs folder")
    final_size: str = Field(
        description="of the picture, once `upscale` is done", examples=["2048x2048"]
    )
    priority: Priority
    created_at: str
    started_at: str | None
    completed_at: str | None
    not_before: str | None
    held: str | None = Field(
        description="why it may not run yet: not_before, window, paused or input"
    )
    attempt: int
    cancel_requested: bool
    position: int | None
    progress: float
    step: int | None
    steps: int
    eta_seconds: float | None
    error_code: str | None
    error_message: str | None
    remedy: str | None
    warnings: list[str]
    sha256: str | None
    bytes: int | None
    deleted_at: str | None
    rating: int = Field(description="of a person: 1 to 5, -1 rejected, 0 none")
    facts: dict[str, Any]
    links: Links


class JobPage(Answer):
    """Some jobs, newest first, and where the next ones are."""

    jobs: list[JobView]
    next: str | None = Field(description="cursor of the next page; also in the Link header")


class Accepted(Answer):
    """What a body became: a batch that the watcher will read in a moment."""

    ticket: str
    jobs: int | None = Field(description="how many; null when the watcher will count a long table")
    job_id: str | None = Field(description="of a single job")
    image_name: str | None = Field(description="of a single job")
    location: str
    warnings: list[str]
    refused: list[Fault] = Field(description="rows of a table that are left out", examples=[[]])


class Input(Answer):
    """A picture that jobs may start from. Sides are pixels, as it is seen."""

    reference: str = Field(
        description="names it as `image` or `mask` of a job", examples=[f"sha256:{'4b' * 32}"]
    )
    sha256: str = Field(examples=["4b" * 32])
    width: int
    height: int = Field(examples=[768])


class Planned(Asked):
    """One job that would be made."""

    name: str | None
    folder: str | None
    warnings: list[str]
    row: int | None


class DryRun(Answer):
    """What a body would become. Nothing was queued."""

    count: int
    key: str | None = Field(description="the body's own")
    jobs: list[Planned] = Field(description="the first hundred")
    warnings: list[str]
    refused: list[Fault] = Field(examples=[[]])


class BatchLinks(Answer):
    """Where the parts of a batch are."""

    self: str = Field(examples=[f"/batches/{ID}"])
    jobs: str = Field(examples=[f"/jobs?batch={ID}"])
    images: str = Field(examples=[f"/batches/{ID}/images.zip"])


class BatchView(Answer):
    """One accepted file or body. Times are UTC."""

    ticket: str
    name: str
    source: str
    state: Literal["waiting", "recording", "running", "paused", "done", "cancelled", "refused"] = (
        Field(examples=["running"])
    )
    created_at: str
    recorded_at: str | None
    jobs: int
    progress: dict[str, int] = Field(examples=[COUNTS])
    done: float
    eta_seconds: float | None = Field(examples=[21.5])
    axes: dict[str, list[Any]] = Field(
        description="of a plain matrix: each name with its values; jobs are in order, the last"
        " name fastest",
        examples=[{"model": ["turbo", "base"], "seed": [1, 2]}],
    )
    paused: bool
    cancelled: bool
    archived: bool
    keyed: bool
    error: dict[str, Any] | None
    warnings: list[str]
    links: BatchLinks


class BatchPage(Answer):
    """Some batches, newest first."""

    batches: list[BatchView]
    next: str | None


class Retried(Answer):
    """How many jobs are queued again."""

    ticket: str
    retried: int


class Withdrawn(Answer):
    """How many jobs waited and do so no more."""

    cancelled: int


class RunningJob(Answer):
    """A job a worker has now."""

    job_id: str
    slot: int | None
    step: int
    steps: int
    progress: float
    started_at: str | None
    eta_seconds: float | None = Field(examples=[21.5])


class Paused(Answer):
    """Who stopped the queue, and why."""

    by: str | None
    reason: str | None
    since: str | None


class QueueView(Answer):
    """The queue in numbers."""

    counts: dict[str, int]
    running: list[RunningJob]
    eta_seconds: float | None = Field(examples=[21.5])
    paused: Paused | None


class Reason(Answer):
    """One thing that is not as it should be."""

    code: str = Field(examples=["watcher_down"])
    message: str = Field(examples=["The watcher is not running, so jobs wait."])
    remedy: str = Field(examples=["Start it with `steady serve` or `steady watch`."])


class Health(Answer):
    """Alive, and how well."""

    status: Literal["healthy", "degraded"] = Field(examples=["degraded"])
    version: str
    reasons: list[Reason]
    notices: list[str] = Field(
        description="files in the inbox that people may have meant; places where settings led before"
    )
    watcher: dict[str, Any]
    model: dict[str, Any] | None
    workers: list[dict[str, Any]]


class ModelView(Answer):
    """A model that jobs may name, and what it allows."""

    name: str = Field(examples=["starter"])
    usual: bool = Field(description="of jobs that name none", examples=[True])
    engine: str = Field(examples=["zimage"])
    ready: bool = Field(description="are its files here, as far as is known?")
    message: str | None = Field(description="what is missing")
    remedy: str | None = Field(description="what to do about it")
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float | None
    max_side: int = Field(examples=[1024])
    max_pixels: int = Field(examples=[1048576])
    accepts: list[str] | None = Field(
        description="what of a job has an effect; null while nobody knows", examples=[["lora"]]
    )


class ModelList(Answer):
    """The models that jobs may name, the usual one first."""

    models: list[ModelView]


class LoraView(Answer):
    """A LoRA file. A digest is null until there was time to compute it."""

    name: str = Field(examples=["ink"])
    bytes: int = Field(examples=[1184104])
    sha256: str | None
    tensors_sha256: str | None = Field(description="of what follows the header; 12 digits: AutoV3")
    family: str | None = Field(description="what the file says it was made for")
    trigger_words: list[str] = Field(description="what the file says; never added to a prompt")
    models: list[str] = Field(description="those of this root that it fits", examples=[["starter"]])


class LoraList(Answer):
    """The LoRAs that jobs may name."""

    loras: list[LoraView]


class Readiness(Answer):
    """May jobs be made right now?"""

    ready: Literal[True]


class DeliveryView(Answer):
    """One event for one receiver. Times are UTC."""

    id: str = Field(examples=["msg_550e8400e29b41d4a716446655440000"])
    type: str = Field(examples=["job.completed"])
    endpoint: str = Field(
        description="without what stands behind its ?",
        examples=["https://hooks.example.com/pictures"],
    )
    ticket: str | None
    job_id: str | None
    state: DeliveryState = Field(examples=["delivered"])
    attempts: int = Field(examples=[1])
    created_at: str
    next_at: str | None = Field(description="when it is tried next")
    ended_at: str | None = Field(description="when it was delivered or given up")
    last_status: int | None = Field(description="of HTTP", examples=[204])
    last_error: str | None


class DeliveryPage(Answer):
    """Some deliveries, newest first."""

    deliveries: list[DeliveryView]
    next: str | None


class Tested(Answer):
    """How many receivers hear of the test."""

    told: int = Field(examples=[1])


class Attention(Answer):
    """What needs a person."""

    failed: list[JobView] = Field(description="jobs that failed, the newest sixty", examples=[[]])
    more: bool = Field(description="are there further ones?")
    refused: list[BatchView] = Field(description="files of which nothing could be made")
    reasons: list[Reason] = Field(examples=[[]])
    notices: list[str]


class Change(RequestBody):
    """A job's new place in the queue, or what a person thinks of its picture."""

    priority: Priority | None = Field(None, examples=["interactive"])
    position: Literal["front", "back"] | None = Field(None, examples=["front"])
    rating: int | None = Field(
        None, ge=-1, le=5, description="1 to 5, -1 rejects, 0 takes either back"
    )


class Again(RequestBody):
    """Pictures to make a new batch of, and what is to be another way."""

    ids: list[str] = Field(
        min_length=1, max_length=1000, examples=[["00000000-0000-4000-8000-000000000000"]]
    )
    fields: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of a job, put over what each said",
        examples=[{"upscale": 2}],
    )
    seeds: Literal["same", "new"] = "same"


class Pause(RequestBody):
    """Why the queue is paused (optional)."""

    reason: str | None = Field(None, max_length=500, examples=["GPU is needed"])


class Dismiss(RequestBody):
    """What was seen: jobs by id, refused files by ticket, or everything."""

    jobs: list[str] = Field(default_factory=list, max_length=200, examples=[[ID]])
    batches: list[str] = Field(default_factory=list, max_length=200)
    all: bool = False
