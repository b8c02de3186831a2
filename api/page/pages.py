"""What each page is filled with: one method a page, read from the record and the pulse.

Decides nothing about how it looks: that is the templates' affair. Changes nothing.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.door import Door, Kept
from api.errors import body_of
from api.guard import accepts_html
from api.page import paint
from api.page.album import curl_of, started_from, yaml_of
from api.page.charts import HOUR, hour_of, plots_of
from api.page.paint import filled
from api.page.shown import (
    FIELDS_OF,
    Chosen,
    RunningRow,
    by_day,
    captions_of,
    kept_of,
    months_of,
    prompts_for,
    sizes_of,
    table_of,
)
from api.paging import cursor_of, seq_of
from watcher import live
from watcher.chosen import again_of, begun_with, needs_new_seed, smaller_size
from watcher.describe import public, whole_batch
from watcher.errors import ERRORS, SteadyError
from watcher.jobs import ENDED, Batch, Job, JobState
from watcher.limits import Card, Limits
from watcher.log import now_us
from watcher.modelnames import model_name
from watcher.models.loras import fitting_loras
from watcher.needs import needs_of, reasons_of
from watcher.pace import span_words
from watcher.pictures.sheet import Grid
from watcher.program import installed_version
from watcher.refused import RefusedRows
from watcher.store import JobFilter
from watcher.suffixes import FORMS
from watcher.upscaling import MAX_LARGE_SIDE, USUAL_FACTOR

_NEXT = 5  #: waiting jobs shown on the first page
_QUEUE = 60  #: … and on the queue's own
_PICTURES = 60
_FIRST_PICTURES = 24
_SHEET = 96  #: places on one page of a batch
_BATCHES = 40
_TIMED = 20_000  #: jobs of a batch whose times are looked at
_FAILED = 40  #: failed jobs of a batch that are told
_HOURS = 24
_DEAD_SHOWN = 5  #: deliveries that were given up
_HOURS_SECONDS = 30.0  #: for which the figures of the last hours are kept
_MONTHS_SECONDS = 5.0
_LORAS_SECONDS = 5.0
_LOOK_SECONDS = 0.5  #: for which the page waits for them
_LORAS = 24  #: of one model, that are offered
_OF_MODEL = ("device", "dtype", "attention", "memory", "revision", "details", "versions")
_TYPICAL_BYTES = 1_500_000  #: of a picture, while none was made


class Pages:
    """Everything the templates are filled with."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._store = door.store
        paint.compiled()
        self._version = installed_version() or "0.0.0"
        self._hours = Kept(
            lambda: self._store.hours(hour_of(now_us()) - (_HOURS - 1) * HOUR), _HOURS_SECONDS
        )
        self._months = Kept(lambda: months_of(self._store), _MONTHS_SECONDS)
        self._loras = Kept(self._loras_offered, _LORAS_SECONDS)

    # -- what every page has

    def frame(self, here: str, title: str = "") -> dict[str, Any]:
        """The head of each page: where we are, the queue in numbers, what is wrong."""
        counts = self._store.counts()
        pulse = self._door.pulse()
        paused = self._store.get("paused") or None
        waiting = counts[JobState.QUEUED]
        head = [] if here != "now" else [f"{waiting:,} queued"] * bool(waiting)
        running = self.running() if here == "now" else []
        if left := self._door.all_seconds(waiting) if here == "now" and not paused else None:
            head.insert(0, f"{span_words(round(left))} left")
        if running and running[0].step is not None:
            head.insert(0, f"{running[0].percent}%")
        words = " · ".join(head) or paint.one_line(title, 80)
        return {
            "here": here,
            "title": f"{words} — SteadyDiffusion" if words else "SteadyDiffusion",
            "counts": {state.value: n for state, n in counts.items()},
            "paused": paused,
            "alive": pulse["alive"],
            "unready": next(live.unready(pulse), None),
            "pulse": pulse,
            "model": self._model(pulse),
            "version": self._version,
            "accepted": ",".join(FORMS),
            "seen": json.dumps(self._door.summary(), ensure_ascii=False),
            "running": running,
        }

    def _model(self, pulse: Mapping[str, Any]) -> dict[str, Any]:
        told = pulse.get("model") or self._store.get("model") or {}
        unsaid = {"name": None, "starter": False, "why": None}
        return unsaid | public(told, ("name", "starter", "why", *_OF_MODEL))

    # -- what runs

    def running(self) -> list[RunningRow]:
        """The jobs that were handed out, those with steps first."""
        found = [self._running(job) for job in self._store.generating()[:16]]
        return sorted(found, key=lambda r: r.step is None)

    def _running(self, job: Job) -> RunningRow:
        entry = self._door.running(job.id)
        if entry is not None and entry.get("attempt") != job.attempt:
            entry = None
        steps = job.forwards
        return RunningRow(
            job=job,
            step=int(entry["step"]) if entry else None,
            steps=max(1, int(entry["steps"])) if entry else steps,
            left=self._door.left(job, entry),
            preview=entry.get("preview") if entry else None,
        )

    def _again_words(self, job: Job) -> str:
        """Why a job that waits or runs was begun before."""
        for note in reversed(job.facts.get("attempts") or ()):
            return f"begun again: {note.get('why')}"
        return ""

    # -- the pages

    def now(self, origin: str | None, start: str | None) -> Response:
        """What runs, what waits, what needs a person, a place for new prompts, the latest."""
        found = needs_of(self._store, self._door.pulse(), self._door.inbox)
        values = self.frame("now")
        waiting = values["counts"]["queued"]
        held = self._store.held()
        pictures = self._store.jobs(JobFilter(pictured=True), limit=_FIRST_PICTURES)
        limits = self._door.limits()
        form, others = self._form(origin, start), self._others(limits)
        features = [
            each for each in FIELDS_OF if any(c.takes(each) for c in (limits.usual, *others))
        ]
        newest = self._store.batches(limit=1)
        return filled(
            "now.html",
            **values,
            upcoming=self._store.upcoming(_NEXT),
            classes=self._store.ready_by_class(),
            held=held,
            queue_seconds=self._door.all_seconds(waiting - held),
            attention=found,
            smaller=self._smaller(found.failed),
            card=limits.usual,
            others=others,
            sizes=sizes_of(limits.usual),
            form=form,
            kept=kept_of(form, features, self._door.config.image_format, models=len(others)),
            after=newest[0].ticket if newest else "nothing",
            prompts=prompts_for(starter=bool(values["model"]["starter"])),
            features=features,
            loras=self._loras(),
            days=by_day(pictures),
            again=self._again_words,
        )

    def _others(self, limits: Limits) -> list[Card]:
        """The models that are offered beside the usual one: those here, and those of config.yaml."""
        known = self._door.config.models
        return [c for name, c in limits.others.items() if c.absent is None or name in known]

    def _loras_offered(self) -> dict[str, list[str]]:
        """The first LoRAs that fit each of the models that are offered, by its name: of a large
        collection more of them each time the page is looked at."""
        config, limits = self._door.config, self._door.limits()
        offered = (limits.usual, *self._others(limits))
        until = time.monotonic() + _LOOK_SECONDS
        return {card.name: fitting_loras(config, card, until)[:_LORAS] for card in offered}

    def _form(self, origin: str | None, start: str | None) -> dict[str, Any]:
        """What the form for new pictures says first: an old job to edit, one to start from, or nothing."""
        job = self._store.job(start or origin or "")
        if job is not None and start:
            return {name: value for name, value in begun_with(job).items() if name != "seed"}
        return {} if job is None else again_of(job.request, new_seed=needs_new_seed(job))

    def _smaller(self, failed: Sequence[Job]) -> dict[str, tuple[int, int]]:
        """For jobs that did not fit: the size that may."""
        card = self._door.limits().usual
        sizes = {
            job.id: smaller_size(job.request, card)
            for job in failed
            if job.error_code in ("out_of_memory", "timed_out")
        }
        return {job_id: size for job_id, size in sizes.items() if size is not None}

    def queue(self) -> Response:
        """All that waits, in the order in which it will run."""
        values = self.frame("now", "Queue")
        held = self._store.held()
        return filled(
            "queue.html",
            **values,
            upcoming=self._store.upcoming(_QUEUE),
            held_jobs=self._store.held_back(50),
            held=held,
            classes=self._store.ready_by_class(),
            queue_seconds=self._door.all_seconds(values["counts"]["queued"] - held),
            again=self._again_words,
        )

    def pictures(self, chosen: Chosen) -> Response:
        """The gallery: newest first, by day, in pages that new pictures never shift."""
        limits = self._door.limits()
        others = [card.name for card in self._others(limits)]
        wanted = chosen.filter(limits.in_record)
        rows = self._store.jobs(wanted, before_seq=seq_of(chosen.cursor), limit=_PICTURES + 1)
        following = cursor_of(rows[_PICTURES - 1].seq) if len(rows) > _PICTURES else None
        batch = self._store.batch(chosen.batch) if chosen.batch else None
        return filled(
            "pictures.html",
            **self.frame("pictures", "Pictures"),
            chosen=chosen,
            models=dict.fromkeys(filter(None, (limits.usual.name, *others, chosen.model))),
            days=by_day(rows[:_PICTURES]),
            months=self._months(),
            batch=batch,
            older=chosen.address(following) if following else None,
            newest=chosen.address(None) if chosen.cursor else None,
        )

    def job(self, job_id: str, base: str) -> Response:
        """One job: its picture, everything about it, and how to make it again."""
        job = self._door.find(job_id)
        older, newer = self._store.neighbours(job.seq) if job.seq else (None, None)
        batch = self._store.batch(job.ticket)
        state = job.state
        request = again_of(job.request)
        running = self._running(job) if state is JobState.GENERATING else None
        position = self._door.position(job) if state is JobState.QUEUED and job.seq else None
        code = "cancelled" if state is JobState.CANCELLED else job.error_code
        title = paint.one_line(job.request.prompt, 60) or job.image_name
        values = self.frame("pictures", title)
        return filled(
            "job.html",
            **values,
            job=job,
            run=running,
            ready=job.pictured,
            position=position,
            eta=self._door.eta(job, position),
            kind=ERRORS.get(code) if code else None,
            batch=batch,
            older=older,
            newer=newer,
            yaml=yaml_of(request),
            curl=curl_of(request, base, token=self._door.config.token is not None),
            timings=[
                (name, float(seconds))
                for name, seconds in (job.facts.get("timings") or {}).items()
                if name in ("encode", "denoise", "decode", "total") and seconds is not None
            ],
            attempts=job.facts.get("attempts") or [],
            model_name=model_name(str(job.facts.get("model") or job.model or "")),
            versions=job.facts.get("versions") or {},
            waited=_seconds(job.created_at, job.started_at),
            took=_seconds(job.started_at, job.completed_at),
            smaller=smaller_size(job.request, self._door.limits().usual),
            larger=max(job.request.final_size) * USUAL_FACTOR <= MAX_LARGE_SIDE,
            started=started_from(job.request),
        )

    def batch(self, ticket: str, after: int) -> Response:
        """One file or body: how far it is, its pictures in order, what failed and why."""
        batch = self._store.batch(ticket)
        if batch is None:
            raise SteadyError("batch_not_found")
        progress = self._store.progress(ticket)
        ended = sum(progress[state] for state in ENDED)
        rows = self._store.jobs_of(ticket, after_index=after, limit=_SHEET + 1)
        failed = self._store.failed_of(ticket, _FAILED) if progress[JobState.FAILED] else []
        waiting = batch.jobs - ended
        span = self._store.span(ticket) if not waiting and batch.jobs <= _TIMED else None
        bad = RefusedRows(self._door.inbox).of(batch.ticket) if batch.refused_rows else ()
        columns, refused = table_of(bad)
        captions = captions_of([job.request for job in rows[:_SHEET]])
        return filled(
            "batch.html",
            **self.frame("batches", self.called(batch)),
            batch=batch,
            called=self.called(batch),
            told=whole_batch(batch, progress),
            progress={state.value: n for state, n in progress.items()},
            ended=ended,
            waiting=waiting,
            eta=self._door.batch_seconds(batch.ticket) if waiting else None,
            rows=rows[:_SHEET],
            captions={job.id: words for job, words in zip(rows, captions, strict=False)},
            took=_seconds(*span) if span else None,
            columns=columns,
            refused=refused,
            grid=Grid.of(batch.axes) if after < 0 and len(rows) <= _SHEET else None,
            steps={r.job.id: r for r in self.running()} if waiting else {},
            following=rows[_SHEET - 1].index if len(rows) > _SHEET else None,
            before=max(-1, after - _SHEET) if after >= 0 else None,
            latest=max(-1, ended - _SHEET // 2) if progress[JobState.COMPLETED] else None,
            reasons=reasons_of(failed),
            smaller=self._smaller(failed),
        )

    def batches(self, before: str | None) -> Response:
        """The files and bodies that came, newest first."""
        rows = self._store.batches(before=before, limit=_BATCHES + 1)
        return filled(
            "batches.html",
            **self.frame("batches", "Batches"),
            batches=[(b, self.called(b), self._store.progress(b.ticket)) for b in rows[:_BATCHES]],
            older=rows[_BATCHES - 1].ticket if len(rows) > _BATCHES else None,
            newest=before is not None,
        )

    def called(self, batch: Batch) -> str:
        """What people know a batch by: its file's name, or of a single request the prompt."""
        if batch.source != "file" and batch.jobs == 1:
            job = self._store.job(batch.ticket)
            if job is not None:
                return job.request.prompt
        return batch.name or "untitled"

    def system(self) -> Response:
        """How the service itself is: model, device, disk, workers, inbox, pace, versions."""
        values = self.frame("system", "System")
        pulse = values["pulse"]
        made = self._store.jobs(JobFilter(pictured=True), limit=100)
        sizes = sorted(job.bytes for job in made if job.bytes)
        typical = sizes[len(sizes) // 2] if sizes else _TYPICAL_BYTES
        try:
            disk = shutil.disk_usage(self._door.outputs)
        except OSError:
            disk = None
        hours = {h.start: h for h in self._hours()}
        first = hour_of(now_us()) - (_HOURS - 1) * HOUR
        bars = [hours.get(first + n * HOUR) for n in range(_HOURS)]
        return filled(
            "system.html",
            **values,
            troubles=list(self._door.unready()),
            workers=list(pulse.get("workers", ())) if pulse["alive"] else [],
            inbox=pulse.get("inbox") or {},
            moved=pulse.get("notices") or (),
            disk=disk,
            room=max(0, disk.free - self._door.config.min_free_disk) // typical if disk else 0,
            typical=typical,
            python=sys.version.split()[0],
            plots=plots_of(bars, first),
            hours=[(first + n * HOUR, hour) for n, hour in enumerate(bars) if hour],
            card=self._door.limits().usual,
            versions=(made[0].facts.get("versions") or {}) if made else {},
            uptime=_seconds(pulse.get("started_at"), now_us()) if pulse["alive"] else None,
            untold=[e for e in live.pulse_troubles(pulse) if e.code == "undelivered"],
            dead=self._store.deliveries(state="dead", limit=_DEAD_SHOWN),
            told=len(self._store.listening()),
            config=self._door.config,
        )

    def error(
        self, request: Request, error: SteadyError, headers: Mapping[str, str]
    ) -> Response | None:
        """What went wrong, as a page; None for those who did not ask for one."""
        if not accepts_html(request.headers):
            return None
        return filled(
            "error.html",
            error.kind.status,
            headers,
            here="",
            title=f"{error.kind.what} — SteadyDiffusion",
            number=error.kind.status,
            what=body_of(error)["detail"],
            do=error.remedy,
        )


def _seconds(begin: int | None, end: int | None) -> float | None:
    return None if begin is None or end is None else max(0.0, (end - begin) / 1e6)
