"""What changes, shown until it is done: `steady submit --wait` and `steady follow`.

On a terminal one line is drawn over and over (a bar); elsewhere every change is one line, and
with ``--json`` one object. Ctrl-C ends the looking, never the job.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watcher.commands.bar import Bar
from watcher.commands.desk import Desk, command
from watcher.errors import SteadyError

if TYPE_CHECKING:
    from watcher.jobs import Job
    from watcher.store import JobStore

_PAUSED = "The queue is paused; go on: steady resume"
_LOOK_SECONDS = 0.1
_LONELY_SECONDS = 3.0  #: without a watcher before we say so
_PAGE = 1000  #: transitions read at once


@command()
def follow(
    desk: Desk,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Stop when no job waits or runs.")
    ] = False,
    timeout: Annotated[str | None, typer.Option(help="Stop after e.g. 90s or 10m.")] = None,
) -> None:
    """Show what happens, as it happens, until Ctrl-C."""
    deadline = deadline_of(timeout)
    with desk.record() as store, Bar(desk) as bar:
        screen = Screen(desk, bar)
        rev = store.last_rev()
        while True:
            changed, rev = _changes(store, rev)
            screen.show(changed)
            counts = store.counts()
            open_jobs = sum(number for state, number in counts.items() if not state.ended)
            pulse = screen.progress(open_jobs)
            if until_idle and not open_jobs and not pulse.get("inbox", {}).get("waiting"):
                return
            _rest(deadline)


def wait(desk: Desk, tickets: Sequence[str], since: int, deadline: float | None) -> int:
    """Show the jobs of ``tickets`` until all have ended.

    ``since`` is the record's last rev before they were submitted, ``deadline`` that of
    :func:`deadline_of`. Returns 0, or 1 when a job failed or was cancelled, 2 when a file was
    refused. Raises SteadyError ``timeout``.
    """
    with Bar(desk) as bar:
        screen = Screen(desk, bar, ends=True)
        while not desk.has_record():
            screen.progress(1, 1)
            _rest(deadline)
        with desk.record() as store:
            code, rev, waiting, version = 0, since, set(tickets), None
            while True:
                if version != (version := store.data_version()):
                    ended = {ticket: _ended(screen, store, ticket) for ticket in sorted(waiting)}
                    changed, rev = _changes(store, rev)  # after that look, so that none is missed
                    screen.show(job for job in changed if job.ticket in tickets)
                    waiting = {ticket for ticket, how in ended.items() if how is None}
                    code = max([code, *(how for how in ended.values() if how is not None)])
                if not waiting:
                    screen.sum_up()
                    return code
                done, total = _done_of(store, tickets)
                screen.progress(total - done, total)
                _rest(deadline)


def _changes(store: "JobStore", rev: int) -> "tuple[list[Job], int]":
    """The jobs that changed after ``rev``, in order, and the newest rev."""
    jobs: list[Job] = []
    while page := store.since(rev, limit=_PAGE):
        jobs += page
        rev = page[-1].rev
    return jobs, rev


def _ended(screen: "Screen", store: "JobStore", ticket: str) -> int | None:
    """The exit code of a batch that is over, else None."""
    batch = store.batch(ticket)
    if batch is None or batch.recorded_at is None:
        return None
    if batch.error:
        screen.complain(SteadyError.told(batch.error))
        return 2
    counts = store.progress(ticket)
    if any(number and not state.ended for state, number in counts.items()):
        return None
    bad = any(number and state != "completed" for state, number in counts.items())
    return 1 if bad or batch.cancelled else 0


def _done_of(store: "JobStore", tickets: Sequence[str]) -> tuple[int, int]:
    done = total = 0
    for ticket in tickets:
        counts = store.progress(ticket) if store.batch(ticket) else {}
        total += max(1, sum(counts.values()))
        done += sum(number for state, number in counts.items() if state.ended)
    return done, total


def deadline_of(timeout: str | None) -> float | None:
    """``90s``, ``10m`` … from now, on the monotonic clock. Raises SteadyError ``bad_request``."""
    if timeout is None:
        return None
    from watcher.config import seconds_of

    try:
        return time.monotonic() + seconds_of(timeout)
    except ValueError as error:
        raise SteadyError("bad_request", f"--timeout: {error}.") from None


def _rest(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise SteadyError("timeout")
    time.sleep(_LOOK_SECONDS)


class Screen:
    """Where changes and the bar are shown."""

    def __init__(self, desk: Desk, bar: Bar, *, ends: bool = False) -> None:
        """``ends``: for people only how jobs end is shown, and :meth:`sum_up` counts them."""
        self._desk = desk
        self._ends = ends
        self._ended: Counter[str] = Counter()
        self._folders: set[Path] = set()
        self._began = time.monotonic()
        self._bar = bar
        self._code = self._told = ""  #: how the service stands, and what was said of it
        self._since = time.monotonic()

    def show(self, jobs: "Iterable[Job]") -> None:
        """One line (or object) for each change."""
        from watcher.commands.show import job_json, result_line

        pulse: dict[str, Any] | None = None
        for job in jobs:
            pulse = self._desk.pulse() if pulse is None else pulse
            if self._desk.as_json:
                self._desk.answer(job_json(job, self._desk.config, pulse), "")
                continue
            if job.state == "completed":
                self._folders.add((self._desk.config.outputs / job.path).parent)
            self._ended[job.state] += job.state.ended
            if job.state.ended or job.held or not self._ends:
                self._bar.wipe()
                self._desk.talk(result_line(self._desk, job, pulse))

    def sum_up(self) -> None:
        """What all of it came to: `6 pictures in 9 s -> /srv/outputs/20261126; 1 failed`."""
        from watcher.pace import span_words

        made = self._ended["completed"]
        words = f"{made} picture{'s' * (made != 1)} in {span_words(time.monotonic() - self._began)}"
        words += "".join(f" -> {folder}" for folder in sorted(self._folders)[:3])
        for state in ("failed", "cancelled"):
            if number := self._ended[state]:
                words += f"; {number} {state}"
        self._bar.wipe()
        if sum(self._ended.values()):  # else a file was refused, and that was said
            self._desk.talk(words)

    def complain(self, error: SteadyError) -> None:
        """An error of one of the files waited for."""
        self._bar.wipe()
        self._desk.complain(error)

    def progress(self, left: int, total: int | None = None) -> dict[str, Any]:
        """Draw how far it is (on a terminal); returns the watcher's pulse."""
        from watcher.commands.show import percent_words

        pulse = self._desk.pulse()
        self._mind_service(pulse)
        if not self._bar.shown:
            return pulse
        running = pulse.get("running", []) if pulse["alive"] else []
        step = sum(r["step"] / max(1, r["steps"]) for r in running)
        words = [f"{left} to go"] if total != 1 else []
        if running:
            first = running[0]
            words.append(percent_words(first) + _time_left(first, pulse))
        elif pulse["alive"]:
            words.append(_why_not(pulse))
        if total:
            share = (total - left + min(step, left)) / total
        else:
            share = step / max(1, len(running))
        self._bar.draw(share, " · ".join(w for w in words if w))
        return pulse

    def _mind_service(self, pulse: dict[str, Any]) -> None:
        """Say once, as it comes, why nothing is made: no watcher, no model, a model that loads."""
        from watcher import live

        reason = next(live.unready(pulse), None)
        code = reason.code if reason else "paused" * (pulse.get("state") == "paused")
        if code != self._code:
            self._code, self._since = code, time.monotonic()
        away = code == "watcher_down" and time.monotonic() - self._since < _LONELY_SECONDS
        if code and code != self._told and not away:
            self._told = code
            self._bar.wipe()
            self._desk.talk(_PAUSED) if code == "paused" else self._desk.tell_if_unready()


def _time_left(running: dict[str, Any], pulse: dict[str, Any]) -> str:
    """About how long the running picture still takes, told by the steps done so far."""
    started, step = running.get("started_at"), running["step"]
    if not started or not step:
        return ""
    seconds = (pulse["updated_at"] - started) / 1e6 / step * (running["steps"] - step)
    return f" · ~{seconds:.0f} s left"


def _why_not(pulse: dict[str, Any]) -> str:
    """Why nothing runs just now."""
    from watcher import live

    stands = _PAUSED if pulse.get("state") == "paused" else live.standing(pulse)
    return "begins in a moment" if stands == live.READY else stands
