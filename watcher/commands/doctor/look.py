"""What a check is given and what it gives back."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from watcher.commands.desk import Desk
from watcher.errors import SteadyError

if TYPE_CHECKING:
    from watcher.jobs import Job
    from watcher.limits import Card, Limits
    from watcher.store import JobStore

_Answer = TypeVar("_Answer")

OK, NOTE, FAIL = "ok", "note", "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found; ``mend`` is what to type or do about it."""

    check: str
    level: str
    message: str
    mend: str | None = None


def _devices() -> dict[str, Any]:
    from watcher import models

    return models.describe_devices(memory=True)


@dataclass(frozen=True)
class Machine:
    """What the checks ask of the machine itself."""

    devices: Callable[[], dict[str, Any]] = _devices  #: as ``models.describe_devices``
    now: Callable[[], float] = time.time
    kernel: Path = Path("/proc/sys")
    installed: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None


class Look:
    """What several checks share, looked up once."""

    def __init__(self, desk: Desk, machine: Machine) -> None:
        self.desk = desk
        self.machine = machine
        self.config = desk.config

    @cached_property
    def devices(self) -> dict[str, Any] | None:
        """What torch sees; None when it does not answer (which ``program.torch`` says)."""
        try:
            return self.machine.devices()
        except SteadyError as error:
            self.torch_trouble = error
            return None

    @cached_property
    def names(self) -> list[str]:
        """The devices that are there, best first."""
        from watcher import models

        return models.names_of(self.devices) if self.devices is not None else []

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What the record says about the model; empty before the first start."""
        return self._recorded(lambda store: dict(store.get("model") or {}), {})

    @cached_property
    def newest(self) -> "list[Job]":
        """The latest jobs on record."""
        return self._recorded(lambda store: store.jobs(limit=50), [])

    def _recorded(self, ask: "Callable[[JobStore], _Answer]", nothing: _Answer) -> _Answer:
        try:
            with self.desk.record_if_any() as store:
                return ask(store) if store else nothing
        except SteadyError:
            return nothing  # ``root.record`` says so

    @cached_property
    def model(self) -> str:
        """Its name; ``auto`` while nothing is decided."""
        name = self.config.model
        return name if name != "auto" else str(self.setting.get("name", "auto"))

    @cached_property
    def limits(self) -> "Limits":
        """What jobs may be, with that name for the root's own model."""
        from watcher.models.cards import limits_for

        return limits_for(self.config, self.model)

    @property
    def card(self) -> "Card | None":
        """The root's own model; None while nothing is decided."""
        undecided = self.model == "auto" and self.config.engine == "zimage"
        return None if undecided else self.limits.usual

    @cached_property
    def device(self) -> str:
        """The first device that is used."""
        wanted = next(iter(self.config.devices), self.config.device)
        if wanted == "auto":
            wanted = str(self.setting.get("device") or "auto")
        if wanted == "auto" and self.names:
            wanted = self.names[0]
        return wanted

    @cached_property
    def watched(self) -> bool:
        """Does a watcher live here?"""
        from watcher import root

        return root.held(self.config.state / "lock")
