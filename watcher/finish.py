"""From pixels to a recorded picture, and from a batch's last job to its result file.

Encoding, syncing and recording run in threads of the watcher, so a worker that dies later
cannot lose a picture and the next job denoises meanwhile. Knows nothing of devices.

A crash after the picture was published leaves it with its job's id inside: the next start
adopts it. A crash in the middle of archiving is finished by the next ``announce``.
"""

import contextlib
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from watcher import executor as ex
from watcher.checkpoints import reached
from watcher.errors import ERRORS, ErrorClass, Failure, SteadyError, Trouble
from watcher.jobfile import MAX_TABLE
from watcher.jobfile.batchline import has_batch_lines, result_lines
from watcher.jobs import Batch, Job
from watcher.log import say
from watcher.parts import Part, Shared
from watcher.pictures.outputs import NameTaken, Outputs, Saved
from watcher.pictures.recipe import recipe_of
from watcher.refused import RefusedRows
from watcher.results import day_of, result_json, result_table
from watcher.store import Completion
from watcher.suffixes import FORMS, LINE_SUFFIXES

logger = logging.getLogger("steady.finish")

THREADS = 2
MOST_THREADS = 16  #: of those that wait for the disk while many devices bring pictures
MAX_WATCHER_DEATHS = 10  #: during one job, which is not tried again then
MAX_GROUP = 100  #: pictures recorded in one transaction
KEPT_SECONDS = 60.0  #: for which the pixels of a picture that cannot be saved wait for their disk
STUCK_SECONDS = 60.0  #: from one try to put a batch away to the next, after a fault of ours
_AGAIN_SECONDS = 5.0  #: after environment trouble

#: What is written beside a file: how its name ends, and its pieces.
_Beside = list[tuple[str, Iterable[bytes]]]


class Finisher(Part):
    """Two threads (more when pictures queue) that encode and publish pictures, one that records
    them, one that archives batches.

    Whatever was published while the last group was being recorded is recorded as one group, in
    one transaction: a lone picture never waits, and hundreds of devices do not queue for the disk.

    ``keep`` is called with jobs whose pictures lie in their places, before the record says so;
    ``told`` when the record has something new for others.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        outputs: Outputs,
        keep: Callable[[Sequence[Job]], None] = lambda _jobs: None,
        told: Callable[[], None] = lambda: None,
        address: str = "",
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        super().__init__(shared)
        self._refused = RefusedRows(self._inbox.folder)
        self._stuck_seconds = stuck_seconds
        self._address = address  #: where the door serves pictures
        self._outputs = outputs
        self._keep = keep
        self._told = told
        self.recovered = False  #: before that, what runs by the record is not ours
        #: How jobs ended, in the order in which they were drawn, for whoever counts failures. None:
        #: with a picture; open for those that are among ``jobs``.
        self.verdicts: dict[tuple[str, int], ErrorClass | None] = {}
        self._work: queue.Queue[tuple[Job, ex.Picture] | None] = queue.Queue()
        #: Id and attempt of those whose pictures have arrived and are not recorded yet.
        self.jobs: set[tuple[str, int]] = set()
        self._bell = threading.Event()
        self._announcing = False
        self._leaving = threading.Event()  #: what cannot be recorded is left to the next start
        self._stopping = threading.Event()
        self._durable = 0  #: jobs up to this ``seq`` are on record whatever happens
        #: Batches that met a fault of ours: when to try again (monotonic), and what it was.
        self._stuck: dict[str, tuple[float, SteadyError]] = {}
        self._threads = [self._thread(i) for i in range(THREADS)]
        #: Those whose picture lies in its place, as the record does not have them yet.
        self._published: queue.Queue[Job | None] = queue.Queue()
        self._recorder = threading.Thread(target=self._record_all, name="record")
        self._announcer = threading.Thread(target=self._announce_all, name="announce")

    def start(self) -> None:
        """Begin; batches an earlier process left are announced first."""
        for thread in (*self._threads, self._recorder, self._announcer):
            thread.start()
        self.announce()

    def recover(self) -> None:
        """Settle what is found in ``generating`` at a start: the jobs of a watcher that died.

        A picture that was published is adopted; else the job waits again in its old place.
        """
        for job in self._store.generating():
            try:
                saved = self._outputs.adopt(job)
            except Failure:  # its folder leads elsewhere now: said when its turn comes
                saved = None
            if saved is not None:
                self._keep([replace(job, sha256=saved.sha256)])
                self._store.complete(
                    job.id, job.attempt, sha256=saved.sha256, bytes=saved.bytes,
                    facts={"adopted": True},
                )  # fmt: skip
                say(logger, "job.adopted", job_id=job.id, path=job.path)
            elif job.watcher_deaths + 1 >= MAX_WATCHER_DEATHS:
                self._store.fail(job.id, job.attempt, "watcher_crashed", "")
            else:
                self._store.release(job.id, job.attempt, why="the service died", watcher_death=True)
                say(logger, "job.recovered", job_id=job.id, attempt=job.attempt)
        self.recovered = True

    def stop(self) -> None:
        """Finish what has arrived, then end the threads."""
        self._leaving.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._published.put(None)
        self._recorder.join()
        self._stopping.set()
        self._bell.set()
        self._announcer.join()

    @property
    def busy(self) -> int:
        """How many pictures have arrived and are not recorded yet."""
        return len(self.jobs)

    @property
    def idle(self) -> bool:
        """Nothing is being finished, recorded or announced."""
        return not self.jobs and not self._bell.is_set() and not self._announcing

    @property
    def stuck(self) -> list[dict[str, Any]]:
        """Why batches could not be put away for a fault of ours; the log has more."""
        return [error.as_dict() for _, error in list(self._stuck.values())]

    def finish(self, job: Job, picture: ex.Picture) -> None:
        """Take the pixels of ``job``; returns at once. One thread only, which also stops."""
        self.jobs.add(job.who)
        self.verdicts[job.who] = None
        self._work.put((job, picture))
        if self._work.qsize() > 2 * len(self._threads) and len(self._threads) < MOST_THREADS:
            self._threads.append(self._thread(len(self._threads)))
            self._threads[-1].start()

    def _thread(self, number: int) -> threading.Thread:
        return threading.Thread(target=self._finish_all, name=f"finish-{number}")

    def announce(self) -> None:
        """Some batch may have ended: write result files soon."""
        self._bell.set()

    # -- pictures

    def _finish_all(self) -> None:
        while (item := self._work.get()) is not None:
            job, picture = item
            published = self._finish_one(job, picture)
            if published is None:
                self._over(job)
            else:
                self._published.put(published)

    def _over(self, *jobs: Job) -> None:
        self.jobs.difference_update(job.who for job in jobs)
        self.announce()
        self._wake()

    def _finish_one(self, job: Job, picture: ex.Picture) -> Job | None:
        """None: that was all, there is nothing left to record."""
        code = ""
        try:
            return self._finish(job, picture)
        except Trouble as error:  # its disk does not come back, or we are to stop
            why = error.message
        except SteadyError as error:
            code, why = error.code, error.message
        except Exception as error:  # around one job: what is saved next is saved all the same
            logger.exception("job.failed", extra={"facts": {"job_id": job.id}})
            code, why = "internal", f"{type(error).__name__} while saving"
        try:
            self._let_go(job, code, why)
        except Trouble as error:  # only while stopping, see _insist
            say(logger, "job.unsettled", logging.WARNING, job_id=job.id, why=error.message)
        return None

    def _finish(self, job: Job, picture: ex.Picture) -> Job:
        begun = time.monotonic()
        image = Image.frombytes("RGB", picture.size, picture.rgb)
        if all(low == high for low, high in image.getextrema()):  # type: ignore[misc]
            raise SteadyError("blank_picture")
        facts = {**picture.info, "timings": dict(picture.timings)}
        if job.seq > self._durable:  # else a picture could outlive the row that names it
            self._durable = self._insist(self._store.sync)
        job, saved = self._save(job, image, picture)
        facts["timings"]["save"] = round(time.monotonic() - begun, 4)
        return replace(job, sha256=saved.sha256, bytes=saved.bytes, facts=facts)

    def _record_all(self) -> None:
        ended = False
        while not ended:
            group = [self._published.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < MAX_GROUP:
                    group.append(self._published.get_nowait())
            ended = None in group
            published = [each for each in group if each is not None]
            if published:
                self._record(published)
                self._over(*published)
                self._told()

    def _record(self, group: list[Job]) -> None:
        completions = [
            Completion(job.id, job.attempt, str(job.sha256), job.bytes or 0, job.facts)
            for job in group
        ]
        try:
            self._insist(lambda: self._keep(group))
            done = self._insist(lambda: self._store.complete_many(completions))
        except Trouble as error:  # only while stopping
            say(logger, "jobs.unsettled", logging.WARNING, jobs=len(group), why=error.message)
            return
        for job in done:
            reached("completed")
            if job is not None:
                say(logger, "job.completed", job_id=job.id, path=job.path, bytes=job.bytes)

    def _save(self, job: Job, image: Image.Image, picture: ex.Picture) -> tuple[Job, Saved]:
        while True:
            try:
                recipe = recipe_of(job, picture.info, picture.timings)
                save = functools.partial(self._outputs.save, job, image, recipe)
                return job, self._insist(save, "finish", KEPT_SECONDS)
            except NameTaken:
                renamed = self._insist(functools.partial(self._store.rename, job.id, job.attempt))
                if renamed is None:
                    raise SteadyError("internal", "The job was taken away while saving.") from None
                self._insist(self._store.sync)
                say(logger, "job.renamed", job_id=job.id, old=job.path, new=renamed.path)
                job = renamed

    def _let_go(self, job: Job, code: str, why: str) -> None:
        """Record that there is no picture: the job has failed so, or without a code waits again."""
        store, who = self._store, job.who
        if not code:
            self._insist(lambda: store.release(*who, why=why))
            self.verdicts.pop(who, None)
            say(logger, "job.released", logging.WARNING, job_id=job.id, why=why)
        elif self._insist(lambda: store.fail(*who, code, why)) is not None:
            self.verdicts[who] = ERRORS[code].klass
            say(logger, "job.failed", logging.ERROR, job_id=job.id, code=code, message=why)

    def _insist(
        self, write: Callable[[], Any], owner: str = "record", patience: float = math.inf
    ) -> Any:
        """Write to the record or the disk, waiting out their troubles: pixels in hand are worth it.

        While stopping it tries once: a restart finds the published picture.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return write()
            except Trouble as error:
                self._troubles.report(owner, error, seconds=_AGAIN_SECONDS)
                if self._leaving.is_set() or time.monotonic() >= deadline:
                    raise
                self._leaving.wait(0.5)

    # -- batches

    def _announce_all(self) -> None:
        while True:
            rung = self._bell.wait(timeout=2.0)
            self._announcing = True
            self._bell.clear()
            try:
                self._archive_ended()
            except Trouble as error:
                self._troubles.report("archive", error, seconds=_AGAIN_SECONDS)
            finally:
                self._announcing = False
            if rung:
                self._wake()
            if self._stopping.is_set():
                return

    def _archive_ended(self) -> None:
        ended = self._store.unarchived()
        if ended:  # a file that left .claimed is never read again
            self._store.sync()
        for batch in ended:
            if batch.ticket in self._stuck and time.monotonic() < self._stuck[batch.ticket][0]:
                continue
            try:
                self.archive(batch)
                self._stuck.pop(batch.ticket, None)
            except Trouble:
                raise
            except Exception as error:  # around one batch: the others are put away all the same
                words = f"The batch `{batch.name}` cannot be put away: {error}"
                again = time.monotonic() + self._stuck_seconds
                self._stuck[batch.ticket] = again, SteadyError("internal", words)
                logger.exception("batch.stuck", extra={"facts": {"ticket": batch.ticket}})

    def archive(self, batch: Batch) -> None:
        """Move the batch's file to done/, write the result beside it, set ``archived``.

        What came by the command or over HTTP is removed; of it only the rows that could not be
        used come to done/. Each step may be done again: a crash between any two is finished by the
        next call.
        """
        place, day = (
            (batch.claim or batch.ticket, batch.name, batch.suffix),
            day_of(batch.created_at),
        )
        table = self._refused.table(batch)
        # Where rows were refused before they were kept, their table lies there already, and stays.
        lost = table is None and batch.refused_rows
        beside: _Beside = [] if lost else [(".refused.csv", table or ())]
        if batch.error is None and batch.source == "file":
            beside += self._openai_files(batch)
            if batch.suffix in LINE_SUFFIXES:
                rows = result_table(self._store, self._inbox.folder, batch)
                beside.append((f"{batch.suffix}.result.csv", rows))
            counts = self._store.progress(batch.ticket)
            result = result_json(batch, counts, self._store.jobs_in_order(batch.ticket))
            beside.append((f"{batch.suffix}.result.json", result))
            self._inbox.archive(*place, day=day, beside=beside)
        elif batch.error is None:
            self._inbox.discard(place[0])
            if batch.refused_rows:
                self._inbox.archive(*place, day=day, beside=beside)
        reached("archived_files")
        if self._store.archived(batch.ticket):
            reached("archived")
            say(logger, "batch.done", ticket=batch.ticket, name=batch.name)
            self._told()

    def _openai_files(self, batch: Batch) -> Iterator[tuple[str, Iterable[bytes]]]:
        """What OpenAI gives back for a batch file of its form, as files beside ours."""
        if FORMS.get(batch.suffix) != ".jsonl":
            return
        claim = self._inbox.find(batch.claim or batch.ticket, batch.name, batch.suffix)
        if claim is None:
            return
        with self._inbox.open_stream(claim, MAX_TABLE) as stream:
            if not has_batch_lines(stream):
                return

        def url_of(job: Job) -> str:
            return f"{self._address}/jobs/{job.id}/image"

        for end, good in ((".output.jsonl", True), (".errors.jsonl", False)):
            yield end, result_lines(self._store.jobs_by_row(batch.ticket), url_of, good=good)
