"""Many small files at once: their rows share one transaction, their jobs another.

A file alone costs two commits and their waits for the disk, which is nothing to whoever drops
one and an hour for a night of a hundred thousand. A group is what lies there already: nobody
waits for it to fill.

The next start after a crash in here reads the file that was being read alone: so one that kills its
reader goes on to be set aside by itself and takes nobody along.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from watcher.checkpoints import reached
from watcher.errors import Failure
from watcher.inbox import Claim
from watcher.intake.recording import Recorder, recording
from watcher.jobs import Batch
from watcher.log import say
from watcher.parts import Part
from watcher.store import Recording
from watcher.suffixes import TREE_SUFFIXES

logger = logging.getLogger("steady.intake")

FILES = 256  #: in a group
SMALL = 32 << 10  #: bytes of a file that may be in one …
BYTES = 512 << 10  #: … and of all of them
JOBS = 2000  #: recorded in one transaction
SECONDS = 0.25  #: of reading between two transactions


def group_of(claims: Iterable[Claim]) -> list[Claim]:
    """Those at the head of ``claims`` that may be taken together, one at least."""
    group: list[Claim] = []
    left = BYTES
    for claim in itertools.islice(claims, FILES):
        left -= claim.size
        if group and (left < 0 or not _is_small(claim) or claim.source != group[0].source):
            break
        group.append(claim)
        if not _is_small(claim):
            break
    return group


def _is_small(claim: Claim) -> bool:
    return claim.size <= SMALL and (claim.suffix in TREE_SUFFIXES or claim.starts)


class Groups(Part):
    """Records groups of small files.

    ``alone`` takes one file the usual way: whatever is out of the ordinary about a file is left
    to it.
    """

    def __init__(self, recorder: Recorder, *, alone: Callable[[Claim], None]) -> None:
        super().__init__(recorder.shared)
        self._recorder = recorder
        self._alone = alone

    def take(self, claims: Sequence[Claim]) -> None:
        """Record or refuse them all, in order. Raises SteadyError of class environment."""
        with self._recorder.suspect.taking([claim.ticket for claim in claims]):
            self._take(claims)

    def _take(self, claims: Sequence[Claim]) -> None:
        begun = self._store.begin_readings(
            [
                {"claim": c.ticket, "name": c.name, "suffix": c.suffix, "source": c.source}
                for c in claims
            ]
        )
        reached("group_begun")
        read: list[tuple[Claim, Recording]] = []
        since = time.monotonic()

        def record() -> None:
            nonlocal since
            if read:
                reached("group_read")
                self._store.record_all([each for _, each in read])
                reached("group_recorded")
                for claim, each in read:
                    say(logger, "file.recorded", ticket=each.ticket, name=claim.name,
                        jobs=len(each.jobs))  # fmt: skip
                read.clear()
                self._wake()
            since = time.monotonic()

        for claim in claims:
            made = self._made(claim, begun.get(claim.ticket))
            if made is not None:
                read.append((claim, made))
                jobs = sum(len(each.jobs) for _, each in read)
                if jobs < JOBS and time.monotonic() - since < SECONDS:
                    continue
            record()  # those before it first: the order in which files came is kept
            if made is None:
                self._alone(claim)
        record()

    def _made(self, claim: Claim, batch: Batch | None) -> Recording | None:
        """What a plain file becomes; None for one that is anything else: refused, keyed, resumed."""
        if batch is None or batch.recorded_at is not None or batch.tries:
            return None
        try:
            with self._recorder.suspect.reading(claim.ticket):
                parsed, digest = self._recorder.reading.whole(claim, batch)
        except Failure:
            return None
        if parsed.key is not None or parsed.resume or claim.resumes is not None or parsed.refused:
            return None
        return recording(batch, parsed, digest, self._recorder.jobs(batch, parsed.requests))
