"""submit: a prompt, or files, into the inbox.

Everything is checked with the watcher's own reader before anything is written, and then only
files are written, so it works with the service down. A crash in here leaves at most a
temporary file, which the watcher sweeps.
"""

import contextlib
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watcher.commands.desk import Desk, command, fitted_line
from watcher.commands.fields import pairs, with_fields
from watcher.errors import SteadyError, ValueFault
from watcher.suffixes import JOB_SUFFIXES, suffix_of

if TYPE_CHECKING:
    from watcher.jobs import JobRequest
    from watcher.limits import Limits
    from watcher.store import JobStore
    from watcher.submission import Body, Plan, Reader

_SHOWN_IDS = 1000


@dataclass(frozen=True)
class Submission:
    """One file to be: what will lie in the inbox, and what it makes."""

    body: "Body"
    name: str | None  #: the person's file, None for a prompt on the command line
    plan: "Plan"

    @property
    def jobs(self) -> int:
        """How many pictures it makes."""
        return self.plan.count or 0

    @property
    def requests(self) -> "list[JobRequest]":
        """What they are to show; at most of the first thousand."""
        return [planned.request for planned in self.plan.requests[:_SHOWN_IDS]]

    @property
    def warnings(self) -> list[str]:
        """What is to be told before it is queued."""
        refused = self.plan.refused_rows
        words = (
            f"{refused} of its rows cannot be used: see the .refused.csv that comes to inbox/done/"
        )
        return [*self.plan.warnings, *([words] if refused else [])]


@command(options=with_fields)
def submit(
    desk: Desk,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT|FILE...", help="A prompt in quotes, job files, or - ."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RATING",
            help='The pictures you rated so, as in "rating>=4", again with what else is said here:'
            " --upscale 2 makes them larger as they are, --count 4 four variations of each.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Submitting again with this key is harmless.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="With the key of before: only what is missing or changed."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the pictures are made.")] = False,
    timeout: Annotated[
        str | None, typer.Option(help="With --wait: at most e.g. 90s or 10m.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be made.")
    ] = False,
    kind: Annotated[
        str,
        typer.Option("--type", help="What - holds: txt (a prompt a line), yaml, json, jsonl, csv."),
    ] = "txt",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE for every job, as in width=768; may be repeated."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Width and height, as in 1024x768.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A file of presets/: what holds where nothing else is said.")
    ] = None,
    *,
    fields: dict[str, Any],
) -> int:
    """Put a prompt or job files into the queue; works with the service down."""
    from watcher.commands.waiting import deadline_of, wait as until_done
    from watcher.inputs import Inputs
    from watcher.models.cards import limits_known
    from watcher.submission import Reader, preset_named

    deadline = deadline_of(timeout)
    given = _by_field(set_ or [], size) | fields
    with desk.record_if_any() as store:
        # before the first start: what the model allows that the settings name
        limits, since = limits_known(desk.config, store), store.last_rev() if store else 0
        usual = preset_named(preset, desk.config.presets, limits) if preset is not None else None
        reader = Reader(limits, desk.root, Inputs(desk.config, store), key, usual)
        given = _with_pictures(given, reader)
        if from_ is None:
            sheets = list(_sheets(what or [], given, preset, kind, reader))
        else:
            sheets = [_of_chosen(desk, from_, what or [], given, reader)]
        if dry_run:
            _show(desk, sheets, limits)
            return 0
        if resume and not all(sheet.plan.key for sheet in sheets):
            raise SteadyError("bad_request", "--resume wants the --key of the batch to go on with.")
        tickets = [_send(desk, sheet, store, resume=resume) for sheet in sheets]
    if wait:
        return until_done(desk, tickets, since, deadline)
    desk.tell_if_unready()
    return 0


def _with_pictures(given: dict[str, Any], reader: "Reader") -> dict[str, Any]:
    """``given`` with the pictures that --image and --mask name by their path sent along."""
    from watcher.jobs import PICTURE_FIELDS

    sent = dict(given)
    for name in given.keys() & PICTURE_FIELDS:
        path = Path(given[name])
        with contextlib.suppress(OSError):  # what is no path is a name that the watcher knows
            if path.is_file():
                reference, _ = reader.inputs.keep(path.read_bytes(), str(path))
                sent[name] = f"{reference} {path.name}"
    return sent


# -- what was meant


def _sheets(
    what: list[str], given: dict[str, Any], preset: str | None, kind: str, reader: "Reader"
) -> Iterator[Submission]:
    """The files to write, each fully checked. Raises SteadyError; nothing was written then."""
    from watcher.submission import Body

    paths = [path for word in what for path in _files_named(word)]
    if not paths:
        if not what:
            raise SteadyError("bad_request", "submit wants a prompt, a job file or --from.")
        if len(what) > 1:
            raise SteadyError(
                "bad_request",
                f"There are no files {fitted_line(' '.join(what), 60)}.",
                remedy="If this is one prompt, put it in quotes.",
            )
        fields = {"prompt": what[0]} | given | ({"key": reader.key} if reader.key else {})
        data = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
        yield _sheet_of(Body(data, ".json", ""), None, {}, preset, reader)
        return
    if reader.key and len({path.name for path in paths}) < len(paths):
        raise SteadyError("bad_request", "With --key every file needs a name of its own.")
    for path in paths:
        data, piped = _content(path), str(path) == "-"
        suffix = "." + kind.lower().lstrip(".") if piped else ""
        one = replace(reader, beside=None if piped else path.parent,
                      file=path.name if len(paths) > 1 else "")  # fmt: skip
        with _errors_name_file(str(path)):
            yield _sheet_of(Body.of(data, path.name, suffix), path.name, given, preset, one)


def _of_chosen(
    desk: Desk, rating: str, what: list[str], given: dict[str, Any], reader: "Reader"
) -> Submission:
    """A new batch made of rated pictures; ``what`` may be another prompt for all of them."""
    from watcher.chosen import made_of, rating_range
    from watcher.store import JobFilter
    from watcher.submission import Body

    if len(what) > 1:
        raise SteadyError("bad_request", "With --from there is one prompt for all, in quotes.")
    given = given | ({"prompt": what[0]} if what else {})
    wanted = JobFilter(pictured=True, rating=rating_range(rating))
    with desk.record() as store:
        made = made_of(store.all_jobs(wanted), given)
    if not made:
        raise SteadyError("bad_request", f"No picture is rated so: {rating}.")
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made)
    body = Body(lines.encode(), ".jsonl", "chosen")
    return Submission(body, "chosen.jsonl", reader.plan(body))


def _files_named(word: str) -> list[Path]:
    """The files ``word`` names: itself, standard input, or those a pattern matches.

    Empty when it reads like a prompt. Raises SteadyError when it reads like a file that is
    not there.
    """
    path = Path(word)
    if word == "-":
        return [path]
    with contextlib.suppress(OSError, ValueError):  # a prompt may be too long for a file name
        if path.is_file():
            return [path]
        if word.strip() and path.is_dir():
            raise SteadyError(
                "not_a_regular_file", f"{word} is a folder.", remedy="Name its files."
            )
    looks = suffix_of(word) in JOB_SUFFIXES and "\n" not in word
    found = sorted(glob.glob(word)) if looks and glob.has_magic(word) else []
    if looks and not found and " " not in word:
        raise SteadyError(
            "unreadable", f"There is no file {word}.", remedy="Check its name and folder."
        )
    return [Path(name) for name in found]


def _content(path: Path) -> bytes:
    """Content of a file or of standard input."""
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise SteadyError("unreadable", f"{path} cannot be read: {error.strerror}.") from None


def _by_field(set_: list[str], size: str | None) -> dict[str, Any]:
    """What ``--set`` and ``--size`` say, by field, each value as its field wants it. SteadyError."""
    from watcher.jobfile.cells import reader_of
    from watcher.jobfile.fields import normalised
    from watcher.jobfile.problems import refusal

    words = pairs(set_) | ({} if size is None else {"size": size})
    values, _, problems = normalised(words)
    if problems:
        raise refusal(problems)
    return {
        name: reader_of(name)(said) if isinstance(said, str) else said
        for name, said in values.items()
    }


def _sheet_of(
    body: "Body", name: str | None, given: dict[str, Any], preset: str | None, reader: "Reader"
) -> Submission:
    if given or preset is not None:
        body, plan = reader.changed(body.under(preset, given), given)
    elif (plan := reader.plan(body)).beside:
        body, plan = reader.changed(body, {})
    return Submission(body, name, plan)


@contextlib.contextmanager
def _errors_name_file(file: str) -> Iterator[None]:
    """Errors of a file name it."""
    try:
        yield
    except SteadyError as error:
        problems = [replace(problem, file=problem.file or file) for problem in error.problems] or [
            ValueFault(error.code, error.message, file=file)
        ]
        raise SteadyError(
            error.code, error.message, problems=problems, remedy=error.remedy
        ) from None


# -- sending


def _send(desk: Desk, sheet: Submission, store: "JobStore | None", *, resume: bool) -> str:
    from watcher.jobfile.naming import slug

    plan, body, ticket = sheet.plan, sheet.body, sheet.plan.ticket
    resume = resume or plan.resume
    # After jobs of before an inbox without its mark is the mount point of an absent disk.
    known = store is not None and any(store.counts().values())
    name = sheet.name if sheet.name and sheet.name != "-" else ""
    if sheet.name is None and sheet.jobs > 1:  # pictures are called by their prompt and a number
        stem = slug(sheet.requests[0].prompt[:40])
        name = stem and stem + body.suffix
    repeat = plan.key is not None and not resume and _is_repeat(desk.config.inbox, sheet, store)
    try:
        if not repeat:
            body.publish(desk.config.inbox, ticket, name=name, known=known, resumes=resume)
    except SteadyError:
        if store is not None and not resume:
            store.sweep(ticket)
        raise
    answer: dict[str, Any] = {"ticket": ticket, "jobs": sheet.jobs, "job_ids": plan.ids}
    words = f"{ticket}  {_count_pictures(sheet.jobs)}"
    if sheet.name:
        answer["file"] = sheet.name
        words += f"  {fitted_line(sheet.name, 60)}"
    if repeat:
        answer["duplicate"] = True
        words += "  (was submitted before; nothing new)"
    if sheet.warnings:
        answer["warnings"] = sheet.warnings
    desk.answer(answer, words)
    for warning in sheet.warnings:
        desk.talk(f"  note: {warning}")
    return ticket


def _is_repeat(inbox: Path, sheet: Submission, store: "JobStore | None") -> bool:
    """Was this key used before? Where it was not, its batch is reserved, if there is a record; a
    crash after that leaves what the next submission finishes. SteadyError key_conflict.
    """
    plan, body = sheet.plan, sheet.body
    waiting = [*inbox.glob(f"api-{plan.ticket}*")]
    before = store.repeated(plan.ticket, body.digests) if store else None
    if before is not None:
        return bool(waiting or before.claim or before.recorded_at)
    with contextlib.suppress(OSError):  # claimed in this moment: the same ticket runs once
        for path in waiting:  # from before the first start
            if path.read_bytes() != body.data:
                raise SteadyError("key_conflict")
            return True
    if store is not None:
        store.reserve(
            plan.ticket, name=f"api-{plan.ticket}{body.suffix}", suffix=body.suffix,
            source="cli", digest=body.digest, key=plan.key, image_name=False,
        )  # fmt: skip
    return False


def _show(desk: Desk, sheets: Sequence[Submission], limits: "Limits") -> None:
    """The expansion as a table: what each job would be, and how many there are."""
    number = 0
    for sheet in sheets:
        for request in sheet.requests:
            number += 1
            body = request.model_dump(exclude_none=True)
            size = f"{request.width or '?'}x{request.height or '?'}"
            seed = "any" if request.seed is None else str(request.seed)
            desk.answer(
                body,
                f"{number:>5}  {size:<9}  {request.num_inference_steps or '?':>3} steps"
                f"  seed {seed:<10}  {fitted_line(request.prompt, 80)}",
            )
        if sheet.jobs > len(sheet.requests):
            desk.talk(f"  … and {sheet.jobs - len(sheet.requests)} more")
        for warning in sheet.warnings:
            desk.talk(f"  note: {warning}")
    sizes = [(*r.final_size, limits.forwards(r)) for sheet in sheets for r in sheet.requests]
    total = sum(sheet.jobs for sheet in sheets)
    seconds = None
    if desk.has_record():
        from watcher.pace import Pace, span_words

        with desk.record() as store:
            seconds = Pace(store.durations()).queue(sizes, total, rest=desk.config.cooldown)
    time = "" if seconds is None else f", about {span_words(round(seconds))}"
    desk.talk(f"{_count_pictures(total)}{time}; nothing was queued.")


def _count_pictures(number: int) -> str:
    return f"{number} picture" + ("" if number == 1 else "s")
