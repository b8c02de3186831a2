"""From a claimed file to recorded jobs: claim, begin, read, record.

Runs in one thread of the watcher. Every step is committed before the next begins, and
every id derives from the ticket in the claimed file's name, so a crash anywhere leaves a
file that the next start reads again into the very same jobs.

reading.py    what a file says
suspect.py    whom to blame when reading it ends the process
recording.py  what becomes of it on record; keys, repeats, batches that go on
groups.py     many small files at once
tables.py     tables, in chunks
"""

import collections
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watcher.checkpoints import reached
from watcher.errors import Failure, SteadyError, Trouble
from watcher.inbox import Claim
from watcher.intake.groups import Groups, group_of
from watcher.intake.reading import Reading
from watcher.intake.recording import Recorder
from watcher.intake.suspect import Suspect
from watcher.intake.tables import Stopped, Tables
from watcher.jobs import Batch, JobState
from watcher.log import say
from watcher.parts import Part, Shared
from watcher.suffixes import LINE_SUFFIXES

__all__ = ["Intake", "Reading"]

logger = logging.getLogger("steady.intake")

#: Readings in which the process ended; after these a file is guilty, and set aside unread.
MAX_TRIES = 2
#: Judging a million rows, or a folder of pictures, takes long enough to be hit by kills that it did
#: not cause.
MAX_TRIES_LONG = 9
AHEAD = 20_000  #: claims that may wait to be read, about a kilobyte each
_LOOK_SECONDS = 0.1  #: between looks while there is something to read
_SHORT = 1 << 20  #: bytes of a submission that is no table: read in a third of a second
_AGAIN_SECONDS = 2.0
_SWEEP_SECONDS = 60.0  #: between looks for reservations whose file never came
_SWEEP_AGE = 600_000_000  #: microseconds a reservation waits for its file


class Intake(Part):
    """Turns claims into batches. ``announce`` is called when one of them may be put away."""

    def __init__(
        self,
        shared: Shared,
        *,
        reading: Reading,
        state: Path,
        max_queued: int,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(shared)
        self._max_queued = max_queued
        self._announce = announce
        self._stopping = threading.Event()
        self._suspect = suspect = Suspect(state / "reading")
        reading.inputs.blameless = suspect.reading
        self._recorder = recorder = Recorder(shared, reading=reading, suspect=suspect)
        self._tables = Tables(recorder, state=state, stopping=self._stopping, between=self._between)
        self._groups = Groups(recorder, alone=self.take)
        self._claims: collections.deque[Claim] = collections.deque()
        self._tried = suspect.left()
        self._swept = float("-inf")
        self._look_at = 0.0  #: when to look again although there is something to read
        self._size = 0.0  #: bytes of the table that is being read; a file's is beyond all
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake")

    def start(self) -> None:
        """Begin, with the claims an earlier process left."""
        self._claims.extend(self._inbox.leftovers())
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended: after the file in hand, or the chunk of a table."""
        self._stopping.set()
        self._inbox.ring()
        self._thread.join()

    @property
    def quiet(self) -> bool:
        """Nothing is waiting to be claimed, settling or being read (for --once)."""
        return self._quiet.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = self._turn()
            except Trouble as error:
                if self._troubles.report("intake", error, seconds=_AGAIN_SECONDS * 2):
                    say(logger, "intake.trouble", logging.ERROR, code=error.code,
                        message=error.message)  # fmt: skip
                self._stopping.wait(_AGAIN_SECONDS)
                continue
            if not busy and not self._stopping.is_set():
                if self._inbox.settling == 0:
                    self._quiet.set()
                self._inbox.wait()

    def _turn(self) -> bool:
        """Claim what is ready and take a part of it. True when there is more to do."""
        self._claim()
        if not self._claims:
            self._sweep()
            return False
        self._quiet.clear()
        self._count_tries()
        group = group_of(self._claims)
        for _ in group:
            self._claims.popleft()
        try:
            if len(group) > 1:
                self._groups.take(group)
            else:
                self.take(group[0])
        except SteadyError:
            self._claims.extendleft(reversed(group))
            raise
        return True

    def _between(self) -> None:
        """Take the submissions that go before the table that is being read, and go on with it.

        A table of half its size does, and may be interrupted in turn; of other documents, which
        cannot be, those that are soon read. Called at every row; looks as seldom as any other
        look. Raises SteadyError of class environment.
        """
        if time.monotonic() < self._look_at:
            return
        self._claim()
        while (claim := next(filter(self._goes_first, self._claims), None)) is not None:
            self._claims.remove(claim)
            try:
                self.take(claim)
            except SteadyError:
                self._claims.appendleft(claim)
                raise

    def _goes_first(self, claim: Claim) -> bool:
        table = claim.suffix in LINE_SUFFIXES
        if claim.resumes is not None:  # perhaps the batch of the table itself
            return False
        return claim.source != "file" and claim.size <= (self._size / 2 if table else _SHORT)

    def _claim(self) -> None:
        """Claim what is ready, ahead of the reading: who asks over HTTP goes before files.

        A backlog of files would else keep a person at the screen waiting, and the watch of the
        inbox unmended.
        """
        begun = time.monotonic()
        if self._claims and begun < self._look_at:
            return
        left = self._max_queued - self._store.counts()[JobState.QUEUED]
        room = min(AHEAD - len(self._claims), left)
        found = self._inbox.scan(max(0, room))
        self._claims.extend(claim for claim in found if claim.source == "file")
        self._claims.extendleft(claim for claim in reversed(found) if claim.source != "file")
        now = time.monotonic()
        self._look_at = now + max(_LOOK_SECONDS, 5 * (now - begun))

    def _count_tries(self) -> None:
        """Count a try of the files over which the last process ended, before anything is read."""
        if self._tried:
            self._store.count_tries(self._tried)
            self._suspect.forget()
            self._tried = []

    def _sweep(self) -> None:
        """Drop reservations of somebody who died before the file could be published.

        Old ones only, and only while the folder itself says that the file is not there.
        """
        if time.monotonic() - self._swept < _SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        for batch in self._store.stale_reservations(_SWEEP_AGE):
            if not self._inbox.holds(batch.ticket):
                self._store.sweep(batch.ticket)
                say(logger, "reservation.swept", ticket=batch.ticket)

    # -- one file

    def take(self, claim: Claim) -> None:
        """Record or refuse one claimed file.

        Raises SteadyError of class environment: the claim then stays where it is and is
        taken again later.
        """
        with self._suspect.taking([claim.ticket]), contextlib.suppress(Stopped):
            self._take(claim)
        self._wake()

    def _take(self, claim: Claim) -> None:
        batch = self._store.begin_reading(
            claim.ticket, name=claim.name, suffix=claim.suffix, source=claim.source
        )
        reached("begun")
        if batch.error is not None:
            self._set_aside(claim, batch, dict(batch.error))
        elif batch.recorded_at is not None:
            self._already(claim, batch)
        elif batch.tries >= (MAX_TRIES_LONG if self._is_long(claim) else MAX_TRIES):
            self._refuse(claim, batch, SteadyError("crashed_service"))
        else:
            try:
                self._read(claim, batch)
            except Failure as error:
                self._refuse(claim, batch, error)

    def _is_long(self, claim: Claim) -> bool:
        return claim.suffix in LINE_SUFFIXES or bool(self._store.inputs_of(claim.ticket))

    def _already(self, claim: Claim, batch: Batch) -> None:
        """A file whose recording survived a crash, or one that comes once more.

        A person's file is put away, whatever the record says, unless it lies in ``done/``: its
        batch may have ended while ``inbox`` led elsewhere.
        """
        if batch.archived and (claim.source != "file" or self._inbox.put_away(claim)):
            self._inbox.discard(claim.ticket)
            say(logger, "file.duplicate", ticket=batch.ticket, name=claim.name)
        else:
            if batch.archived:
                self._store.unarchive(batch.ticket)
            self._announce()

    def _read(self, claim: Claim, batch: Batch) -> None:
        if claim.suffix in LINE_SUFFIXES:
            outer, self._size = self._size, math.inf if claim.source == "file" else claim.size
            try:
                self._tables.record(claim, batch)
            finally:
                self._size = outer
        else:
            self._recorder.whole(claim, batch)

    # -- setting aside

    def _refuse(self, claim: Claim, batch: Batch, error: SteadyError) -> None:
        problems = [dataclasses.replace(p, file=p.file or claim.name) for p in error.problems]
        full = SteadyError(error.code, error.message, problems=problems, remedy=error.remedy)
        body = {"file": claim.name, "ticket": batch.ticket} | full.as_dict()
        self._store.refuse(claim.ticket, body)
        say(logger, "file.refused", logging.WARNING, name=claim.name, code=error.code,
            message=error.message)  # fmt: skip
        self._set_aside(claim, batch, body)

    def _set_aside(self, claim: Claim, batch: Batch, body: dict[str, Any]) -> None:
        self._store.sync()  # a file that left .claimed is never read again
        self._inbox.refuse(claim, body)
        self._store.archived(batch.ticket)
