"""Who runs engines, seen from the watcher: what an executor promises and what it says.

An executor has slots, one per device. It is handed one job a slot and tells what becomes of
it; how it reaches the device is its own business. ``local.py`` keeps worker processes on this
machine: ``seat.py`` is one slot, ``child.py`` one process, ``patience.py`` when it is late.
``ray/slots.py`` keeps slots on other machines, ``ray/actor.py`` is such a slot, and
``ray/__init__.py`` (with ``ray/environment.py`` before it) the line between them. ``build.py``
chooses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from watcher.errors import SteadyError
from watcher.jobs import PICTURE_FIELDS, Job
from watcher.wire import line

Slot = int  #: 0 .. n-1, one per device

#: The files a job needs, as plain data: ``image`` and ``mask`` are paths, ``loras`` a list of
#: ``{"name", "weight", "file"}``. What it does not need is left out.
Files = Mapping[str, Any]
NO_FILES: Files = {}


_PATHS = (*PICTURE_FIELDS, "upscaler")


def relocated(files: Files, place: Callable[[str], str]) -> dict[str, Any]:
    """``files`` with ``place(path)`` for each path in it."""
    found = {name: place(files[name]) for name in _PATHS if name in files}
    loras = [{**lora, "file": place(lora["file"])} for lora in files.get("loras", ())]
    return found | ({"loras": loras} if loras else {})


@dataclass(frozen=True)
class Ready:
    """The engine is loaded; ``info`` is the EngineInfo as a dict, ``model`` the name jobs give."""

    slot: Slot
    info: dict[str, Any]
    model: str = ""


@dataclass(frozen=True)
class OfJob:
    """What happened to a job that the slot has."""

    slot: Slot
    job_id: str
    attempt: int


@dataclass(frozen=True)
class Started(OfJob):
    """The engine began this job. Until then the job had no part in what happens to its worker."""


@dataclass(frozen=True)
class Step(OfJob):
    """``done`` of ``total`` forwards are over."""

    done: int
    total: int


@dataclass(frozen=True)
class Previewed(OfJob):
    """How the job's picture looks so far: a small JPEG. Comes only for those that were looked at."""

    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class Picture(OfJob):
    """The job's picture. ``rgb`` is width x height x 3 bytes, rows from the top."""

    size: tuple[int, int]
    rgb: bytes = field(repr=False)
    timings: dict[str, Any] = field(repr=False)  #: seconds by phase, counters
    info: dict[str, Any] = field(repr=False)  #: the engine as it was for this very picture


@dataclass(frozen=True)
class Failed(OfJob):
    """The job ended without a picture; the worker lives. ``code`` is a key of ERRORS."""

    code: str
    message: str


@dataclass(frozen=True)
class Died:
    """The worker is gone, or could not be started; the executor starts another by itself.

    ``lost``: (job id, attempt, had it started?) of every job that was with it. A death counts
    against a job only when it had started and ``blame`` is set: no blame where the model or
    device is missing, or where somebody ended the worker with SIGTERM from outside.
    """

    slot: Slot
    lost: list[tuple[str, int, bool]]
    how: str
    environment: SteadyError | None = None
    blame: bool = True


Event = Ready | OfJob | Died


class Executor(Protocol):
    """What the watcher needs of whoever runs engines."""

    def start(self) -> None:
        """Begin to load, on every slot."""

    def events(self, timeout: float) -> list[Event]:
        """What happened since, in order; waits up to ``timeout`` seconds while nothing has.

        Also returns early, perhaps empty-handed, after ``wake`` or when ``wants`` changed.
        """
        ...

    def wake(self) -> None:
        """Let ``events`` return now. From any thread or signal handler."""

    def wants(self) -> list[Slot]:
        """Slots that should be given a job now, the most urgent first."""
        ...

    def unfit(self, slot: Slot) -> frozenset[str]:
        """Names of models that this slot could not load and is not to try again yet."""
        ...

    def send(self, slot: Slot, job: Job, files: Files = NO_FILES) -> None:
        """Hand a (resolved) job to a slot that ``wants`` one; ValueError otherwise.

        Where the slot has another model than the job's, its worker is ended first: that gives
        all its memory back.
        """

    def cancel(self, job_id: str) -> None:
        """End this job at its next step: Failed with code ``cancelled``, unless it was faster."""

    def look(self, job_id: str) -> None:
        """Somebody wants to see this job: Previewed may come for some seconds."""

    def stop(self, grace: float) -> None:
        """End all workers; running jobs have ``grace`` seconds to come to their end.

        Pictures that arrive meanwhile are in one last ``events(0)``. Takes at most about ``grace``
        + 2 seconds.
        """

    def status(self) -> list[dict[str, Any]]:
        """One dict per slot for live.json."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """What the workers of an executor load. ``device`` is used when no devices are listed.

    ``name``: of this model, as jobs give it. ``others``: what is loaded for jobs of other models.
    """

    engine: str
    model: str
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: str | None = None  #: a folder on this machine, for an engine's small files
    name: str = ""
    others: Mapping[str, "WorkerSpec"] = field(default_factory=dict)
    first: str = ""  #: the name of the model to begin with; this one's when left out

    def check(self) -> None:
        """SteadyError ``bad_config`` for options that are no plain data."""
        for each in (self, *self.others.values()):
            each.order(each.device)

    def of(self, model: str | None) -> "WorkerSpec":
        """What is loaded for a job of ``model``."""
        return self.others.get(model or "", self)

    def order(self, device: str) -> bytes:
        """The message that makes a worker load this."""
        what = {"engine": self.engine, "model": self.model, "device": device, "dtype": self.dtype}
        try:
            return line({"type": "load", **what, "options": dict(self.options), "keep": self.keep})
        except (TypeError, ValueError) as error:
            raise SteadyError("bad_config", f"`engine_options`: {error}.") from None
