"""What of a batch is there already, when its file comes again under ``resume``.

A row of the new file that asks for what a job on record asks for is that job; how often each is
asked for counts, its place in the file does not. So a row put in at the top makes one picture
and not a thousand. Pure: knows neither files nor the record.
"""

import collections
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from watcher.jobs import PICTURE_FIELDS, Job, JobRequest, JobState, derived_seed, input_job

#: What may differ without making another picture: when it runs, and under which key.
_ASIDE = {"seed", "count", "priority", "not_before", "key"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do for one row of the file; ``again`` and ``new`` both None: nothing.

    ``again``: the id of a job that ended without a picture. ``new``: the id of a new job.
    ``there``: the id of one that is there and has a name.
    ``moved``: the place of a job that is there and came from another row of the earlier file.
    """

    again: str | None = None
    new: str | None = None
    moved: int | None = None
    there: str | None = None


class _There(NamedTuple):
    """A job on record."""

    place: int
    row: int | None
    id: str | None  #: of one that ended without a picture
    named: str | None  #: the id of one with a name


class Standing:
    """The jobs of the batch ``ticket``, to be matched with the rows of its new file, each once.

    Some 300 bytes a job. Reading a file again after a crash gives the same verdicts: jobs that
    were added meanwhile are on record and match.
    """

    def __init__(self, ticket: str, jobs: Iterable[Job]) -> None:
        self._ticket = ticket
        self._there: dict[bytes, list[_There]] = {}
        self._asked: collections.Counter[bytes] = collections.Counter()
        self.next_index = 0  #: the first free place of the batch
        for job in jobs:
            self.next_index = max(self.next_index, job.index + 1)
            derived = job.request.seed == derived_seed(job.id)
            mark = _fingerprint(job.request, None if derived else job.request.seed)
            ended = job.state in (JobState.FAILED, JobState.CANCELLED)
            named = job.id if job.request.name else None
            there = _There(job.index, job.row, job.id if ended else None, named)
            self._there.setdefault(mark, []).append(there)
        for some in self._there.values():  # those that stand as they are go first
            some.sort(key=lambda each: (each.id is not None, each.place), reverse=True)

    def judge(self, request: JobRequest, row: int | None = None) -> Verdict:
        """What to do for one row; ``request`` is filled in but for its seed."""
        mark = _fingerprint(request, request.seed)
        turn = self._asked[mark]
        self._asked[mark] += 1
        if some := self._there.get(mark):
            there = some.pop()
            moved = there.place if there.row != row else None
            return Verdict(again=there.id, moved=moved, there=there.named)
        new = request.own_id(self._ticket)
        return Verdict(new=new or str(uuid.uuid5(uuid.UUID(self._ticket), f"{mark.hex()}/{turn}")))

    def gone(self) -> Iterator[int]:
        """The places of those that no row of the new file asks for any more."""
        for some in self._there.values():
            yield from (each.place for each in some if each.row is not None)


def _fingerprint(request: JobRequest, seed: int | None) -> bytes:
    """The same for requests that ask for the same; 16 bytes."""
    said = request.model_dump(exclude=_ASIDE, exclude_none=True)
    for field in PICTURE_FIELDS:  # the same before and after that picture was made
        said |= {field: source} if (source := input_job(said.get(field))) else {}
    text = json.dumps([said, seed], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
