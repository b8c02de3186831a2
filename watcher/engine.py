"""The seam between the service and a model: what an engine is and what it may raise.

``config engine:`` names one of ours (watcher/engines/) or any ``package.module:Class`` that
keeps this protocol. Imports no torch, so an engine of one's own needs none either.
Knows no queue and no names of pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from pydantic import ConfigDict

from watcher.jobs import Feature, JobRequest


class Cancelled(Exception):
    """Raised by ``report`` when the job was cancelled; the engine lets it pass and stays usable."""


class OutOfMemory(Exception):
    """Raised by an engine after its own second way (tiled) failed too."""


class DeviceLost(Exception):
    """The device the settings name is not there, or its context is beyond repair."""

    code = "device_lost"


class ServerAway(DeviceLost):
    """Nobody answers where the pictures are made."""

    code = "server_away"


class ModelMissing(Exception):
    """The model's files are not on this machine; engines never download."""


class BadPicture(Exception):
    """What was computed is no picture: code ``non_finite``. (Of one colour: the watcher looks.)"""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built with. ``options`` is config's ``engine_options``, as given."""

    model: str  #: folder or hub name
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: Path | None = None  #: a folder for small files that spare the next start some work


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded; goes into the log, the page and every recipe. Memory is bytes.

    ``accepts``: what of a request has an effect. An engine that says nothing is given guidance
    and negative prompt, and no job that needs a file. ``sampler`` and ``schedule`` are the words
    people know them by (``Euler``, ``Karras``); None leaves them out of the recipe.
    """

    model: str
    revision: str | None
    device: str
    dtype: str
    memory: int | None = None
    attention: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    accepts: tuple[Feature, ...] = ("guidance", "negative_prompt")
    sampler: str | None = None
    schedule: str | None = None


@dataclass(frozen=True)
class Lora:
    """A LoRA file whose header was checked, and how strongly it is wanted."""

    name: str
    weight: float
    file: Path
    sha256: str | None = None  #: of the file when the job was recorded


class EngineRequest(JobRequest):
    """One job as an engine gets it: resolved, and the files it names opened and checked.

    Made only for an engine that accepts what it asks for.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    width: int  #: pixels
    height: int  #: pixels
    num_inference_steps: int
    seed: int
    job_id: str = ""  #: the same whenever this job is run
    image: Image.Image | None = None  # type: ignore[assignment]  #: RGB, width x height pixels
    mask: Image.Image | None = None  # type: ignore[assignment]  #: L, the same; white is repainted
    loras: tuple[Lora, ...] = ()  #: in order of name, no name twice


@dataclass(frozen=True)
class Result:
    """A picture, and what is true of it alone.

    ``facts`` overrides what the EngineInfo said. The recipe takes from it: ``forwards`` (else as
    many as were reported; None: nobody knows), ``cfg_scale`` as the Stable Diffusion web UI counts
    it (1 is none; else the job's ``guidance_scale`` where guidance is accepted), ``sampler``,
    ``schedule`` and ``loras`` (name, weight, sha256, tensors_sha256 of each that was used).
    ``timings`` are seconds by phase. Both must be plain data.
    """

    image: Image.Image
    facts: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)


#: How a picture looks so far, small; or what draws that, called only when somebody will see it.
Preview = Image.Image | Callable[[], Image.Image | None] | None


class Report(Protocol):
    """What an engine calls after every forward."""

    def __call__(self, done: int, total: int, preview: Preview = None) -> None:
        """``preview`` may be dropped.

        Raises Cancelled when the job was cancelled.
        """


class Engine(Protocol):
    """Makes one picture at a time, in its own process, on one device."""

    def __init__(self, settings: EngineSettings) -> None:
        """Cheap: loads nothing."""

    def load(self) -> EngineInfo:
        """Make ready. Never downloads. Raises ModelMissing, DeviceLost, OutOfMemory."""
        ...

    def generate(self, request: EngineRequest, report: Report) -> Result | Image.Image:
        """One picture, RGB, width x height pixels; a bare Image when there is no more to say.

        Raises OutOfMemory, BadPicture, DeviceLost, and lets what ``report`` raises pass.
        """
        ...

    def close(self) -> None:
        """Give everything back. Called at most once."""
