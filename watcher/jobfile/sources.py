"""Pictures that jobs start from, as a job file names them.

What a name leads to is asked of :class:`Pictures`; how it stands in a job is settled here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from watcher.jobfile.bundle import Bundle


@dataclass(frozen=True)
class Found:
    """A picture that was found. ``reference`` names it for ever, ``stem`` in names of others.

    ``size`` is None where it is not known yet.
    """

    reference: str
    size: tuple[int, int] | None
    stem: str
    warning: str | None = None


class Pictures(Protocol):
    """Finds pictures by name, for one reading of one file."""

    def matches(self, pattern: str) -> Sequence[str]:
        """The names that match, in order. SteadyError input_missing for none, bad_reference."""
        ...

    def find(self, name: str) -> Found:
        """SteadyError input_missing, bad_reference, bad_picture, or the environment's trouble."""
        ...

    def inside(self, bundle: Bundle) -> "Pictures":
        """The same, but what lies in ``bundle`` goes first."""
        ...

    def flush(self) -> None:
        """The file was read: what was found is to be there for its jobs."""


def spread(raw: Any, pictures: Pictures | None) -> Any:
    """``raw`` with the names that match in the place of each pattern, alone or in a list."""
    if pictures is None:
        return raw
    if isinstance(raw, list):
        lists = [pictures.matches(each) if is_pattern(each) else [each] for each in raw]
        return [name for names in lists for name in names]
    return list(pictures.matches(raw)) if is_pattern(raw) else raw


def is_pattern(raw: Any) -> bool:
    """May ``raw`` stand for several names?"""
    return isinstance(raw, str) and not {"*", "?", "["}.isdisjoint(raw) and ":" not in raw
