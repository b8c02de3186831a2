"""list, status, cancel, retry, pause, resume: asking the record, and one guarded change each.

They work on the record directly, so they answer with the service up or down. Knows nothing of
how jobs are run.
"""

import contextlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watcher.commands.desk import Desk, command, fitted_line
from watcher.errors import SteadyError
from watcher.suffixes import JOB_SUFFIXES, suffix_of

if TYPE_CHECKING:
    from watcher.jobs import Job, JobState
    from watcher.needs import Needs
    from watcher.store import JobStore

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="Ids, or their unique beginnings.")
]


@command("list")
def list_jobs(
    desk: Desk,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            "--status",
            help="Only jobs in this state: queued, generating, completed, failed, cancelled.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Only with this in prompt, name, file, label or metadata.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch (ticket).")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    lora: Annotated[str | None, typer.Option(help="Only with this LoRA.")] = None,
    size: Annotated[str | None, typer.Option(help="Only of this size: 1024x768.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Only with this seed.")] = None,
    label: Annotated[str | None, typer.Option(help="Only with this label.")] = None,
    rating: Annotated[str | None, typer.Option(help="Only rated so: 5, 4.., rejected.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")
    ] = 20,
) -> None:
    """List jobs, newest first."""
    from watcher.chosen import rating_range, size_said
    from watcher.commands.show import job_json, job_rows
    from watcher.store import JobFilter

    only = _state_of(state) if state else None
    further = JobFilter(
        text=text,
        lora=lora,
        size=size_said(size) if size else None,
        seed=seed,
        label=label,
        rating=rating_range(rating) if rating else None,
    )
    if not desk.has_record():
        desk.talk("No jobs yet.")
        return
    pulse = desk.pulse()
    left, before, seen, total = limit, None, 0, None
    with desk.record() as store:
        if model:
            from watcher.models.cards import limits_known

            names = limits_known(desk.config, store).in_record(model)
            further = replace(further, models=names)
        wanted = replace(further, state=only, ticket=batch)
        while left > 0 and (jobs := store.jobs(wanted, before_seq=before, limit=min(left, 500))):
            if desk.as_json:
                for job in jobs:
                    desk.answer(job_json(job, desk.config, pulse), "")
            else:
                desk.answer({}, "\n".join(job_rows(desk, jobs, pulse, headed=not seen)))
            left, before, seen = left - len(jobs), jobs[-1].seq, seen + len(jobs)
        if not left and further == JobFilter():
            counts = store.progress(batch) if batch else store.counts()
            total = counts[only] if only else sum(counts.values())
    if not seen:
        desk.talk("No jobs yet." if wanted == JobFilter() else "No such jobs.")
    elif total and total > seen and sys.stdout.isatty():
        desk.talk(f"Showing {seen} of {total}; all of them: --limit {total}")


def _state_of(word: str) -> "JobState":
    from watcher.jobs import JobState

    if word in list(JobState):
        return JobState(word)
    raise SteadyError(
        "bad_request",
        f"No job is ever `{word}`.",
        remedy="Ask for queued (waiting), generating (being made), completed (the picture is"
        " there), failed (there is none) or cancelled.",
    )


@command()
def status(
    desk: Desk,
    job: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A job or batch; none: the service.")
    ] = None,
) -> int:
    """Say how a job or a batch stands; without an id, how the service does."""
    if job is None:
        return _service_status(desk)
    from watcher.commands.show import batch_json, batch_lines, job_json, job_lines

    pulse = desk.pulse()
    if desk.has_record():
        with desk.record() as store:
            with contextlib.suppress(_NotRecorded):
                found = find_job(store, job)
                batch = store.batch(found.ticket) if found.index == 0 else None
                seen, words = (
                    job_json(found, desk.config, pulse),
                    job_lines(found, desk.config, pulse),
                )
                if batch and batch.jobs > 1:
                    counts = store.progress(batch.ticket)
                    seen["batch"] = batch_json(batch, counts)
                    if found.id.startswith(job.lower()):  # not asked for by its picture's name
                        words = batch_lines(batch, counts)
                desk.answer(seen, words)
                return 0
            if batch := store.batch(job):
                counts = store.progress(batch.ticket)
                desk.answer(
                    batch_json(batch, counts) | {"state": "failed" if batch.error else "queued"},
                    f"batch     {batch.ticket}\nstate     "
                    + (f"refused: {batch.error.get('message')}" if batch.error else "being read"),
                )
                return 1 if batch.error else 0
    if _waiting_file(desk, job):
        desk.answer(
            {"id": job, "ticket": job, "state": "queued", "recorded": False},
            f"job       {job}\nstate     queued (its file waits in the inbox)",
        )
        desk.tell_if_unready()
        return 0
    raise SteadyError("job_not_found", f"There is no job, batch or picture {job}.")


def _service_status(desk: Desk) -> int:
    from watcher import live
    from watcher.commands.show import aligned, counts_line
    from watcher.needs import Needs, needs_of
    from watcher.pace import queue_seconds, span_words

    pulse = desk.pulse()
    counts: dict[JobState, int] = {}
    paused: Any = None
    needs: Needs | None = None
    seconds = None
    if desk.has_record():
        with desk.record() as store:
            counts, paused = store.counts(), store.get("paused")
            needs, workers = needs_of(store, pulse, desk.config.inbox), pulse.get("workers", ())
            left = sum(number for each, number in counts.items() if not each.ended)
            usual = (pulse.get("model") or {}).get("name") or ""
            if left:
                seconds = queue_seconds(store, left, workers, usual, desk.config.cooldown)
    alive = pulse["alive"]
    state = str(pulse.get("state")) if alive else "stopped"
    said = pulse if alive else {}
    notices = (said.get("inbox") or {}).get("notices", [])
    stands = live.standing(pulse)
    unready = stands.startswith("NOT READY")
    words = [
        ("watcher", desk.tint(stands, "bad") if alive and unready else state),
        ("paused", paused and f"{paused.get('reason') or 'by hand'}; go on: steady resume"),
        ("", None if stands == live.READY or unready else stands),
        ("page", live.page_address(desk.config.state)),
        ("model", (said.get("model") or {}).get("name")),
        ("jobs", counts_line(counts)),
        ("", None if alive else _waiting_words(desk)),
        ("", None if seconds is None else f"all done in about {span_words(seconds)}"),
        *(("note", notice) for notice in said.get("notices", ())),
    ]
    lines = [aligned(words)]
    if needs and (wanted := _needs_lines(needs, unready=unready)):
        lines += [desk.tint("needs you", "head"), aligned(wanted)]
    desk.answer(
        {
            "watcher": state,
            "ready": stands == live.READY,
            "counts": {str(k): v for k, v in counts.items()},
            "model": said.get("model"),
            "paused": paused,
            "trouble": said.get("trouble", []),
            "warnings": said.get("warnings", []),
            "notices": notices,
            "refused": [batch.ticket for batch in needs.refused] if needs else [],
            "eta_seconds": None if seconds is None else round(seconds, 1),
        },
        "\n".join(lines),
    )
    if not alive:
        desk.tell_if_unready()
    return 0 if alive and not said.get("trouble") else 4


def _needs_lines(needs: "Needs", *, unready: bool) -> list[tuple[str, str]]:
    """What a person should look at, each with what to do; ``unready``: the first was said before."""
    lines = [("  trouble", f"{error}") for error in needs.troubles[1 if unready else 0 :]]
    for batch in needs.refused:
        why = fitted_line((batch.error or {}).get("message", ""), 200)
        lines.append(("  refused", f"{fitted_line(batch.name, 60)}: {why} See inbox/refused."))
    for batch in needs.lacking:
        rows = f"{batch.refused_rows} row{'s' * (batch.refused_rows != 1)} cannot be used"
        lines.append(("  refused", f"{fitted_line(batch.name, 60)}: {rows}; see its .refused.csv."))
    for group in needs.reasons:
        number = f"{len(group.jobs)}{'+' if needs.more else ''}"
        show = f"steady status {group.jobs[0].id[:8]}"
        lines.append(("  failed", f"{number}: {group.what} {group.do} One of them: {show}"))
    return lines + [("  left", fitted_line(notice, 200)) for notice in needs.notices]


Whole = Annotated[
    str | None, typer.Option("--batch", metavar="TICKET", help="All of this batch (its ticket).")
]


@command()
def cancel(
    desk: Desk,
    jobs: Ids = None,
    batch: Whole = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="All that wait; what runs goes on.")
    ] = False,
) -> int:
    """Cancel jobs: a waiting one at once, a running one after its current step."""
    if waiting:
        if jobs or batch:
            raise SteadyError("bad_request", "Give ids, --batch or --waiting, one of them.")
        with desk.record() as store:
            number = store.withdraw_all()
        unread = _waiting_words(desk)
        words = f"{number} cancelled" + (f"; not taken yet: {unread}" if unread else "")
        desk.answer({"cancelled": number}, words)
        return 0
    if batch is not None:
        from watcher.commands.show import counts_line
        from watcher.jobs import JobState

        with desk.record() as store:
            ticket = ticket_of(store, batch)
            counts = store.progress(ticket)
            found = store.cancel_batch(ticket)
        number = counts[JobState.QUEUED] + counts[JobState.GENERATING]
        if not number and found.recorded_at:
            raise SteadyError(
                "wrong_state",
                f"Nothing of this batch is left to cancel: {counts_line(counts)}.",
                remedy=f"What failed can be run again: steady retry --batch {ticket}"
                if counts[JobState.FAILED]
                else "",
            )
        desk.answer({"ticket": ticket, "cancelled": number}, f"{ticket} {number} cancelled")
        return 0 if not jobs else _each(desk, jobs, _cancel_one)
    return _each(desk, jobs or [], _cancel_one)


@command()
def retry(
    desk: Desk,
    jobs: Ids = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every job that failed.")] = False,
    batch: Whole = None,
) -> int:
    """Run failed or cancelled jobs again, with the same seed and name."""
    if sum(map(bool, (jobs, failed, batch))) > 1:
        raise SteadyError("bad_request", "Give ids, --failed or --batch, one of them.")
    if batch is not None:
        with desk.record() as store:
            ticket = ticket_of(store, batch)
            number = store.retry_failed(ticket)
        desk.answer({"ticket": ticket, "retried": number}, f"{number} queued again")
        return 0
    if failed:
        return _retry_failed(desk)
    return _each(desk, jobs or [], _retry_one)


@command()
def pause(
    desk: Desk,
    reason: Annotated[str | None, typer.Option(help="Words for the others.")] = None,
    batch: Whole = None,
) -> None:
    """Start no further job until `steady resume`; also over restarts."""
    if batch is not None:
        with desk.record() as store:
            ticket = store.pause_batch(ticket_of(store, batch)).ticket
        desk.answer({"ticket": ticket, "paused": True}, f"{ticket} waits until it is resumed")
        return
    with desk.record() as store:
        store.put("paused", {"by": "person", "reason": reason, "since": store.now()})
    desk.answer({"paused": True}, "Paused: the picture in hand is finished, no other begins.")


@command()
def resume(desk: Desk, batch: Whole = None) -> None:
    """Go on after `steady pause`, or after the queue paused itself."""
    if batch is not None:
        with desk.record() as store:
            ticket = store.resume_batch(ticket_of(store, batch)).ticket
        desk.answer({"ticket": ticket, "paused": False}, f"{ticket} goes on")
        return
    with desk.record() as store:
        store.drop("paused")
    desk.answer({"paused": False}, "The queue goes on.")
    desk.tell_if_unready()


class _NotRecorded(SteadyError):
    """No row of the record has this id; its file may still wait in the inbox."""


def find_job(store: "JobStore", text: str) -> "Job":
    """The job with this id, this unique beginning of an id, or this image name.

    Raises SteadyError ``job_not_found``, or ``bad_request`` when several ids begin so.
    """
    exact = store.job(text)
    if exact:
        return exact
    hexadecimal = set(text.lower()) <= set("0123456789abcdef-") and len(text) >= 4
    near = store.prefix(text.lower(), limit=2) if hexadecimal else []
    if len(near) > 1:
        raise SteadyError(
            "bad_request", f"Several ids begin with {text}.", remedy="Write more of the id."
        )
    found = near[0] if near else store.job_by_image(text)
    if found is None:
        raise _NotRecorded("job_not_found", f"There is no job {text}.")
    return found


def ticket_of(store: "JobStore", text: str) -> str:
    """The batch with this ticket or of the job named so. SteadyError ``batch_not_found``."""
    if store.batch(text):
        return text
    try:
        return find_job(store, text).ticket
    except _NotRecorded:
        raise SteadyError("batch_not_found", f"There is no batch {text}.") from None


def _each(desk: Desk, ids: list[str], change: Any) -> int:
    """``change`` every id; the worst exit code. One that fails does not stop the others."""
    if not ids:
        raise SteadyError("bad_request", "No id was given.", remedy="`steady list` shows the ids.")
    code = 0
    with desk.record() as store:
        for one in ids:
            try:
                change(desk, store, one)
            except SteadyError as error:
                desk.complain(error)
                code = max(code, error.kind.exit)
    return code


def _cancel_one(desk: Desk, store: "JobStore", one: str) -> None:
    try:
        job = store.cancel(find_job(store, one).id)
    except _NotRecorded:
        _cancel_unread(desk, store, one)
        return
    at_once = job.state == "cancelled"
    desk.answer(
        {"id": job.id, "state": str(job.state), "cancel_requested": not at_once},
        f"{job.id} " + ("cancelled" if at_once else "stops after its current step"),
    )


def _cancel_unread(desk: Desk, store: "JobStore", ticket: str) -> None:
    """Cancel what was submitted and not yet read: take its file back, or mark its batch."""
    if store.batch(ticket):
        store.cancel_batch(ticket)
    else:
        file = _waiting_file(desk, ticket)
        if file is None:
            raise SteadyError("job_not_found", f"There is no job {ticket}.")
        try:
            file.unlink()
        except FileNotFoundError:  # claimed this moment: it is in the record soon
            raise SteadyError("wrong_state", remedy="It is just being read: try again.") from None
    desk.answer({"id": ticket, "state": "cancelled"}, f"{ticket} cancelled")


def _waiting_words(desk: Desk) -> str | None:
    """What lies in the inbox for a watcher that does not run; None when that is nothing."""
    names = [path.name for path in desk.config.inbox.glob("*.*")]
    number = sum(suffix_of(each) in JOB_SUFFIXES and each[0] != "." for each in names)
    return (
        f"{number} file{'s' * (number > 1)} in the inbox, for a watcher to read" if number else None
    )


def _waiting_file(desk: Desk, ticket: str) -> Path | None:
    """The submitted file of ``ticket`` while nobody has taken it."""
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ticket):
        return None
    return next(desk.config.inbox.glob(f"api-*{ticket}*.*"), None)


def _retry_one(desk: Desk, store: "JobStore", one: str) -> None:
    job = store.retry(find_job(store, one).id)
    desk.answer({"id": job.id, "state": str(job.state)}, f"{job.id} queued again")


def _retry_failed(desk: Desk) -> int:
    from watcher.jobs import JobState
    from watcher.store import JobFilter

    if not desk.has_record():
        return 0
    number, before = 0, None
    with desk.record() as store:
        while jobs := store.jobs(JobFilter(state=JobState.FAILED), before_seq=before, limit=500):
            before = jobs[-1].seq
            for job in jobs:
                with contextlib.suppress(SteadyError):  # somebody else was faster
                    store.retry(job.id)
                    number += 1
                    if desk.as_json:
                        desk.answer({"id": job.id, "state": "queued"}, "")
    if not desk.as_json:
        desk.answer({}, f"{number} queued again")
    return 0
