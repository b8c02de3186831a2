"""The seam between the service and a model: what an engine is and what it may raise.

``config engine:`` names ``zimage`` (watcher/zimage/) or any ``package.module:Class`` that
keeps this protocol. Imports no torch, so an engine of one's own needs none either.
Knows no
queue, no files and no names of pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from watcher.jobs import JobRequest


class Cancelled(Exception):
    """Raised by ``on_step`` when the job was cancelled; the engine lets it pass and stays usable."""


class OutOfMemory(Exception):
    """Raised by an engine after its own second way (tiled) failed too."""


class DeviceLost(Exception):
    """The device the settings name is not there, or its context is beyond repair."""


class ModelMissing(Exception):
    """The model's files are not on this machine; engines never download."""


class BadPicture(Exception):
    """Non-finite numbers (code ``non_finite``) or one constant colour (``blank_picture``)."""

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


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded; goes into the log, the page and every recipe. Memory is bytes."""

    model: str
    revision: str | None
    device: str
    dtype: str
    memory: int | None = None
    attention: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Makes one picture at a time, in its own process, on one device."""

    def __init__(self, settings: EngineSettings) -> None:
        """Cheap: loads nothing."""

    def load(self) -> EngineInfo:
        """Make ready. Never downloads. Raises ModelMissing, DeviceLost, OutOfMemory."""
        ...

    def generate(self, request: JobRequest, on_step: Callable[[int, int], None]) -> Image.Image:
        """One picture of ``request`` (resolved), RGB, width x height pixels.

        ``on_step(done, total)`` is called after every forward and may raise Cancelled.
        Raises OutOfMemory, BadPicture, DeviceLost.
        """
        ...

    def close(self) -> None:
        """Give everything back. Called at most once."""
