"""What needs a person: failed jobs by their reason, refused files, trouble around the service.

What somebody dismissed on the page is not told again, until it happens again; nor is a refused
file that lies in ``refused/`` no more. Reads only.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.errors import ERRORS, SteadyError
from watcher.inbox import lies_refused
from watcher.jobs import Batch, Job
from watcher.live import pulse_troubles

if TYPE_CHECKING:
    from watcher.store import JobStore

_MOST_FAILED = 60  #: failed jobs told
_MOST_FILES = 20  #: refused files told …
_FILES_LOOKED_AT = 100  #: … of so many, some of which may lie there no more


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
    lacking: tuple[Batch, ...]  #: tables of which rows came back
    troubles: tuple[SteadyError, ...]
    notices: tuple[str, ...]

    @property
    def reasons(self) -> list[FailureGroup]:
        """The failed jobs by what went wrong, the latest first."""
        return reasons_of(self.failed)


def reasons_of(failed: Iterable[Job]) -> list[FailureGroup]:
    """Failed jobs by what went wrong, in the registry's words; a job's own words stay with it."""
    groups: dict[str, list[Job]] = {}
    for job in failed:
        groups.setdefault(job.error_code or "internal", []).append(job)
    kinds = {code: ERRORS[code if code in ERRORS else "internal"] for code in groups}
    return [FailureGroup(c, kinds[c].what, kinds[c].do, tuple(groups[c])) for c in groups]


def needs_of(store: "JobStore", pulse: dict[str, Any], inbox: Path) -> Needs:
    """Everything not yet dismissed; ``pulse``: the watcher's."""
    failed = store.failed(_MOST_FAILED + 1)
    there = (
        batch
        for batch in store.refused(_FILES_LOOKED_AT)
        if not batch.error
        or lies_refused(inbox, batch.claim or batch.ticket, batch.name, batch.suffix)
    )
    files = list(itertools.islice(there, _MOST_FILES))
    return Needs(
        failed=tuple(failed[:_MOST_FAILED]),
        more=len(failed) > _MOST_FAILED,
        refused=tuple(batch for batch in files if batch.error),
        lacking=tuple(batch for batch in files if not batch.error),
        troubles=tuple(pulse_troubles(pulse)),
        notices=tuple(str(n) for n in (pulse.get("inbox") or {}).get("notices", ())),
    )
