"""The nouns: what a person asks (JobRequest), what became of it (Job, Batch), and the states.

Pure data. Knows nothing of files, SQL, HTTP or models.
"""

import functools
import hashlib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from watcher.modelnames import LORA_SCHEMA, MAX_LORAS, LoraChoice, lora_choices
from watcher.upscaling import UPSCALE_SCHEMA, Upscale, enlarged, upscale_of

#: Namespace of every id that is derived from a person's ``key``.
KEY_NAMESPACE = uuid.UUID("6f1a4f0e-8a55-5a0e-9b5e-2f6a3f1c7d10")

#: Largest seed: SQLite's integer, and inside what torch accepts.
MAX_SEED = 2**63 - 1

MAX_PROMPT = 4000  #: characters
MAX_STEPS = 100
MAX_GUIDANCE = 30
MAX_COUNT = 1000
MAX_REFERENCE = 500  #: characters that name a picture to start from
REJECTED, MAX_RATING = -1, 5  #: as XMP has it; 0 is none


class JobState(StrEnum):
    """Where a job stands. The words are the record's; the seed's routes know only three."""

    QUEUED = "queued"  #: recorded, waiting (also while held back)
    GENERATING = "generating"  #: handed to a worker
    COMPLETED = "completed"  #: its picture exists
    FAILED = "failed"  #: ended without a picture; ``error_code`` says why
    CANCELLED = "cancelled"  #: a person ended it

    @property
    def ended(self) -> bool:
        """It will never change by itself again."""
        return self in ENDED


ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})


class Priority(StrEnum):
    """The class a job waits in; within a class by rank, then in order of arrival."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def level(self) -> int:
        """0 goes first."""
        return _LEVELS[self]


_LEVELS = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BULK: 2}

ImageFormat = Literal["png", "webp", "jpeg"]
#: What a job may ask of an engine beside a prompt, a size, steps and a seed.
Feature = Literal["image", "mask", "lora", "guidance", "negative_prompt", "preview", "upscale"]
#: Fields of a request that name a picture; the engine gets its pixels.
PICTURE_FIELDS = ("image", "mask")
#: format -> file suffix
SUFFIXES: dict[str, str] = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}


def _optional(description: str) -> Any:
    """A field that may be left out; the words are the option's help and the API's description."""
    return Field(None, description=description)


class JobRequest(BaseModel):
    """What a person asks: one job of a file, a body or a command line.

    Only ``prompt`` is required. Width and height are pixels. Ranges that depend on the
    model (sides, pixels) are checked by ``jobfile`` against the model's card (limits.py); those here
    hold for every model. A request is *resolved* once width, height,
    num_inference_steps and seed are all set: only such requests are recorded and run.

    A new field needs its line here and its row in docs/job-files.md. Readers, range in words,
    option of `steady submit`, HTTP and recipe follow from its type and description.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=False)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    height: Annotated[int, Field(ge=16)] | None = _optional("pixels, a multiple of 16")
    width: Annotated[int, Field(ge=16)] | None = _optional("pixels, a multiple of 16")
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = _optional("steps")
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] | None = (
        _optional("no effect on Turbo models")
    )
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = _optional(
        "no effect on Turbo models"
    )
    model: Annotated[str, Field(max_length=100)] | None = _optional("its name in config.yaml")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = _optional(
        "the same seed gives the same picture"
    )
    lora: (
        Annotated[
            list[LoraChoice],
            Field(max_length=MAX_LORAS),
            BeforeValidator(lora_choices),
            WithJsonSchema(LORA_SCHEMA),
        ]
        | None
    ) = _optional("NAME or NAME:WEIGHT of a file in loras/")
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = Field(
        1, description="so many pictures, with seeds s, s+1 and on"
    )
    name: str | None = _optional("the picture's name")
    folder: str | None = _optional("the picture's folder below outputs/")
    format: ImageFormat | None = _optional("of the file: png, webp or jpeg")
    priority: Literal["interactive", "normal", "bulk"] | None = _optional(
        "how soon: interactive, normal or bulk"
    )
    #: ISO 8601 as given; local time when it names no zone
    not_before: str | None = _optional("as in 2026-12-24T18:00")
    label: Annotated[str, Field(max_length=500)] | None = _optional("kept and given back")
    metadata: dict[str, str | int | float | bool | None] | None = _optional("kept and given back")
    key: Annotated[str, Field(min_length=1, max_length=200)] | None = _optional(
        "asking again with this key is harmless"
    )
    image: Annotated[str, Field(max_length=MAX_REFERENCE)] | None = _optional(
        "the picture to start from, by its name"
    )
    mask: Annotated[str, Field(max_length=MAX_REFERENCE)] | None = _optional(
        "a picture of the same view, white where it is to be painted anew"
    )
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = _optional(
        "how far from `image`: a little above 0, and 1 for nothing of it"
    )
    resize: Literal["crop", "pad", "stretch"] | None = _optional(
        "how `image` is brought to the size: crop, pad or stretch"
    )
    mask_blur: Annotated[int, Field(ge=0, le=64)] | None = _optional(
        "pixels over which the edge of `mask` fades"
    )
    mask_invert: bool | None = _optional("paint anew what is black in `mask`")
    mask_only: bool | None = _optional(
        "draw what `mask` covers at the whole size, then put it back"
    )
    mask_padding: Annotated[int, Field(ge=0, le=512)] | None = _optional(
        "pixels around `mask` that `mask_only` draws with it"
    )
    upscale: (
        Annotated[Upscale, BeforeValidator(upscale_of), WithJsonSchema(UPSCALE_SCHEMA)] | None
    ) = _optional("make it larger: FACTOR, and how (refine, lanczos or a file in upscalers/)")
    webhook: Annotated[str, Field(max_length=1000)] | None = _optional(
        "an address that is told when the job ends; config.yaml must allow its host"
    )

    def but(self, values: Mapping[str, Any]) -> "JobRequest":
        """The same with other values, which are known to be right."""
        made = object.__new__(JobRequest)  # model_copy takes three times as long
        for name, value in (
            ("__dict__", {**self.__dict__, **values}),
            ("__pydantic_fields_set__", self.__pydantic_fields_set__ | values.keys()),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(made, name, value)
        return made

    def own_id(self, ticket: str) -> str | None:
        """The id that its key gives it in the batch ``ticket`` as in any other; None without a key,
        and with the key of the batch itself.
        """
        own = ticket_of_key(self.key) if self.key else ticket
        return None if own == ticket else own

    @property
    def strength_used(self) -> float:
        """The part of the steps by which the input is redrawn; 1 where there is none."""
        return 1.0 if self.image is None or self.strength is None else self.strength

    @property
    def lora_names(self) -> str:
        """The LoRAs whose files it needs, in order of name: ``ink, neon``; "" for none."""
        return ", ".join(choice["name"] for choice in self.lora or () if choice["weight"])

    @property
    def only_enlarged(self) -> bool:
        """Is the input taken as it is, to be made larger?"""
        return self.image is not None and self.upscale is not None and self.strength is None

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the picture, when it is done."""
        return enlarged(self.width or 0, self.height or 0, self.upscale)


@functools.cache
def field_schemas() -> dict[str, dict[str, Any]]:
    """Each field of a request as JSON schema, without the null that means "not said"."""
    members = JobRequest.model_json_schema()["properties"]
    return {name: _without_null(member) for name, member in members.items()}


def _without_null(member: dict[str, Any]) -> dict[str, Any]:
    """``anyOf [x, null]`` as x."""
    choices = [c for c in member.get("anyOf", ()) if c.get("type") != "null"]
    kept = {k: v for k, v in member.items() if k not in ("anyOf", "title", "default")}
    return kept | (choices[0] if choices else {})


def text_fields() -> frozenset[str]:
    """The fields that take any words."""
    said = field_schemas().items()
    return frozenset(n for n, s in said if s["type"] == "string" and "enum" not in s)


def input_digest(reference: str | None) -> str | None:
    """The sha256 of a picture to start from, where that is known: ``sha256:…``, then a blank and
    what people call it."""
    match = re.match(r"sha256:([0-9a-f]{64})(?= |$)", reference or "")
    return match[1] if match else None


def input_job(reference: str | None) -> str | None:
    """The id of the job whose picture is started from: ``job:…``, perhaps behind its sha256."""
    match = re.fullmatch(r"(?:sha256:[0-9a-f]{64} )?job:([0-9a-f-]{36})", reference or "")
    return match[1] if match else None


def derived_seed(job_id: str) -> int:
    """The seed of a job whose request names none: 32 bits, the same whenever it is asked."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")


def job_ids_of(ticket: str) -> Callable[[int, JobRequest | None], str]:
    """How the jobs of a batch are called, by place and request: by the request's own key; else the
    first by the ticket, the others by an id that derives from it.

    The ticket is in the claimed file's name, so a file that is read again after a crash becomes
    the very same jobs.

    A UUID of version 8: its first 32 bits count on from the ticket's, the rest is a digest of
    ticket and index. So a batch's ids lie side by side in the record's index: a long file grows it
    at one place, and is recorded in half the time that ids all over it take.
    """
    of_ticket = hashlib.sha1(uuid.UUID(ticket).bytes, usedforsecurity=False)
    first = int(ticket[:8], 16)

    def id_of(index: int, request: JobRequest | None) -> str:
        if request and (own := request.own_id(ticket)):
            return own
        if index == 0:
            return ticket
        digest = of_ticket.copy()
        digest.update(b"%d" % index)
        x = digest.hexdigest()
        count, variant = (first + index) & 0xFFFFFFFF, "89ab"[int(x[16], 16) & 3]
        return f"{count:08x}-{x[8:12]}-8{x[13:16]}-{variant}{x[17:20]}-{x[20:32]}"

    return id_of


def ticket_of_key(key: str, file: str = "") -> str:
    """The ticket of a batch (or id of a job) that a person named by ``key``; ``file``: the name of
    one of several files that were handed in under it."""
    ticket = uuid.uuid5(KEY_NAMESPACE, key)
    return str(uuid.uuid5(ticket, file) if file else ticket)


@dataclass(frozen=True)
class Job:
    """What happened to one job: a row of the record. Times are microseconds since 1970, UTC."""

    seq: int
    id: str
    ticket: str  #: its batch
    index: int  #: its place in the batch, from 0
    state: JobState
    rev: int  #: grows with every transition of any job
    request: JobRequest  #: resolved
    image_name: str
    folder: str  #: below outputs/, without slashes at the ends
    path: str  #: below outputs/: <folder>/<image_name>.<suffix>
    priority: Priority
    created_at: int
    forwards: int  #: transformer calls its picture takes
    row: int | None = None  #: the row or item of its file, from 1; None for a job of before
    #: by name; None while it waits and names none: then it is the root's
    model: str | None = None
    rating: int = 0  #: a person's: REJECTED, 0 none, 1..MAX_RATING
    attempt: int = 0  #: claims so far; fences every later write
    deaths: int = 0  #: worker deaths between start and pixels
    watcher_deaths: int = 0
    held: str | None = None  #: why it may not run yet: not_before | paused | input
    not_before: int | None = None
    cancel_requested: bool = False
    started_at: int | None = None
    completed_at: int | None = None  #: when it ended, however it ended
    error_code: str | None = None
    error_message: str | None = None
    sha256: str | None = None  #: of the picture file
    bytes: int | None = None
    deleted_at: int | None = None  #: picture deleted by a person
    warnings: tuple[str, ...] = ()
    #: model, device, timings, what each attempt said
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def who(self) -> tuple[str, int]:
        """Which job, and for the how manieth time: id and attempt."""
        return self.id, self.attempt

    @property
    def pictured(self) -> bool:
        """Is there a picture? Then the job is never run again."""
        return self.state is JobState.COMPLETED and self.deleted_at is None


@dataclass(frozen=True)
class Batch:
    """What one accepted file or POST became. Times are microseconds since 1970, UTC."""

    ticket: str
    claim: str | None  #: ticket in the claimed file's name; differs only for keyed batches
    name: str  #: the file's name for people (never used as a path); over HTTP without its suffix
    suffix: str
    source: str  #: file | http | cli
    created_at: int
    digest: str | None = None  #: sha256 of the content
    key: str | None = None
    image_name: str | None = None  #: reserved for job 0 by the API
    tries: int = 0  #: readings in which the process ended
    next_line: int = 0  #: line formats: rows recorded so far
    refused_rows: int = 0  #: rows of a table (or items) that could not be used
    jobs: int = 0  #: jobs recorded so far
    recorded_at: int | None = None  #: all of it is in the record
    cancelled: bool = False
    paused: bool = False
    archived: bool = False  #: done/ and result file are written (or the api- file removed)
    error: Mapping[str, Any] | None = None  #: set when the file was refused
    #: of a plain matrix: each name with its values; jobs are in order, the last name fastest
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
