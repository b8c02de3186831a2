"""submit: a prompt, or files, into the inbox.

Everything is checked with the watcher's own reader before anything is written, and then only
files are written, so it works with the service down. A crash in here leaves at most a
temporary file, which the watcher sweeps.
"""

import contextlib
import glob
import hashlib
import io
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from watcher.commands.desk import Desk, command, one_line
from watcher.errors import Problem, SteadyError
from watcher.jobs import JobRequest, Limits, forwards_of, job_id_of, ticket_of_key

if TYPE_CHECKING:
    from watcher.jobfile import Parsed

_SHOWN_IDS = 1000
_LINES = ".txt"  #: one prompt a line; only here, the inbox leaves such files alone


def register(app: typer.Typer) -> None:
    """Add the command of this module to ``app``."""
    command(app)(submit)


@dataclass(frozen=True)
class Sheet:
    """One file to be: what will lie in the inbox, and what it makes."""

    data: bytes
    suffix: str
    name: str | None  #: the person's file, None for a prompt on the command line
    requests: Sequence[JobRequest]  #: at most the first thousand
    jobs: int
    key: str | None = None
    warnings: tuple[str, ...] = ()


def submit(
    desk: Desk,
    what: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT|FILE...", help="A prompt in quotes, job files, or - ."),
    ],
    key: Annotated[
        str | None, typer.Option(help="Submitting again with this key is harmless.")
    ] = None,
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
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    size: Annotated[str | None, typer.Option(help="Width and height, as in 1024x768.")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", help="Steps.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="No effect on Turbo models.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="No effect on Turbo models.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture.")] = None,
    count: Annotated[
        int | None, typer.Option(help="So many pictures, with seeds s, s+1, …")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The picture's name.")] = None,
    folder: Annotated[str | None, typer.Option(help="The picture's folder below outputs/.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="png, webp or jpeg.")] = None,
    priority: Annotated[str | None, typer.Option(help="interactive, normal or bulk.")] = None,
    not_before: Annotated[str | None, typer.Option(help="As in 2026-12-24T18:00.")] = None,
    label: Annotated[str | None, typer.Option(help="Kept and given back.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, kept and given back; may be repeated.")
    ] = None,
) -> int:
    """Put a prompt or job files into the queue; works with the service down."""
    fields: dict[str, Any] = {
        "height": height,
        "width": width,
        "size": size,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "count": count,
        "name": name,
        "folder": folder,
        "format": format_,
        "priority": priority,
        "not_before": not_before,
        "label": label,
        "metadata": _pairs(metadata),
    }
    given = {field: value for field, value in fields.items() if value is not None}
    from watcher.commands.waiting import deadline_of
    from watcher.commands.waiting import wait as until_done

    deadline = deadline_of(timeout)
    limits, known = _from_record(desk)
    sheets = list(_sheets(desk, what, given, key, kind, limits))
    if dry_run:
        _show(desk, sheets)
        return 0
    since = _last_rev(desk) if wait else 0
    tickets = [
        _send(desk, sheet, ticket, known=known) for sheet, ticket in _with_tickets(sheets, key)
    ]
    if wait:
        return until_done(desk, tickets, since, deadline)
    _mention_watcher(desk)
    return 0


# -- what was meant


def _sheets(
    desk: Desk, what: list[str], given: dict[str, Any], key: str | None, kind: str, limits: Limits
) -> Iterator[Sheet]:
    """The files to write, each fully checked. Raises SteadyError; nothing was written then."""
    paths = [path for word in what for path in _files(word)]
    if not paths:
        if len(what) > 1:
            raise SteadyError(
                "bad_request",
                f"There are no files {one_line(' '.join(what), 60)}.",
                remedy="If this is one prompt, put it in quotes.",
            )
        yield _of_prompt(what[0], given, key, limits)
        return
    for path in paths:
        data, suffix = _read(path, kind)
        with _named(str(path)):
            yield _of_file(data, suffix, path, given, limits)


def _files(word: str) -> list[Path]:
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
        if path.is_dir():
            raise SteadyError(
                "not_a_regular_file", f"{word} is a folder.", remedy="Name its files."
            )
    from watcher import jobfile

    looks = Path(word).suffix.lower() in {*jobfile.SUFFIXES, _LINES} and "\n" not in word
    found = sorted(glob.glob(word)) if looks and glob.has_magic(word) else []
    if looks and not found and " " not in word:
        raise SteadyError(
            "unreadable", f"There is no file {word}.", remedy="Check its name and folder."
        )
    return [Path(name) for name in found]


def _read(path: Path, kind: str) -> tuple[bytes, str]:
    """Content and suffix of a file or of standard input."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(), "." + kind.lower().lstrip(".")
        return path.read_bytes(), path.suffix.lower()
    except OSError as error:
        raise SteadyError("unreadable", f"{path} cannot be read: {error.strerror}.") from None


def _of_prompt(prompt: str, given: dict[str, Any], key: str | None, limits: Limits) -> Sheet:
    body = {"prompt": prompt} | given | ({"key": key} if key else {})
    return _of_body(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogateescape"), limits)


def _of_body(data: bytes, limits: Limits) -> Sheet:
    from watcher import jobfile

    return _of_parsed(data, ".json", None, jobfile.parse(data, ".json", limits))


def _of_file(data: bytes, suffix: str, path: Path, given: dict[str, Any], limits: Limits) -> Sheet:
    from watcher import jobfile

    if suffix in jobfile.LINE_SUFFIXES or suffix == _LINES:
        sheet = _of_lines(data, suffix, path, limits)
    elif suffix in jobfile.PICTURE_SUFFIXES:
        from watcher.recipe import read_recipe

        parsed = jobfile.of_recipe(read_recipe(data), limits)
        sheet = _of_parsed(data, suffix, path.name, parsed)
    elif suffix in jobfile.SUFFIXES:
        if len(data) > jobfile.MAX_BYTES:
            raise SteadyError("too_large", f"{path.name} has more than {jobfile.MAX_BYTES} bytes.")
        sheet = _of_parsed(
            data, suffix, path.name, jobfile.parse(data, suffix, limits, stem=path.stem)
        )
    else:
        raise SteadyError("unsupported_suffix", f"{path.name}: files of this kind are not read.")
    return _changed(sheet, given, limits) if given else sheet


def _of_parsed(data: bytes, suffix: str, name: str | None, parsed: "Parsed") -> Sheet:
    requests = [plan.request for plan in parsed.requests]
    warnings = dict.fromkeys([*parsed.warnings, *(w for p in parsed.requests for w in p.warnings)])
    return Sheet(data, suffix, name, requests, len(requests), parsed.key, tuple(warnings))


def _of_lines(data: bytes, suffix: str, path: Path, limits: Limits) -> Sheet:
    """A table, row by row. Rows that cannot be used are for the watcher to give back."""
    from watcher import jobfile

    rows = jobfile.read_lines(io.BytesIO(data), suffix, limits)
    requests: list[JobRequest] = []
    prompts: list[str] = []
    number = refused = 0
    problems: list[Problem] = []
    for row in rows:
        if isinstance(row, jobfile.Row):
            refused += 1
            problems += row.problems[: jobfile.MAX_PROBLEMS - len(problems)]
            continue
        number += 1
        if number <= _SHOWN_IDS:
            requests.append(row.request)
        if suffix == _LINES:
            prompts.append(row.request.prompt)
    if not number:
        raise SteadyError("all_rows_refused" if refused else "empty_file", problems=problems)
    warnings = [*rows.warnings]
    if refused:
        warnings.append(f"{refused} rows cannot be used; they come back in a .refused.csv")
    if suffix == _LINES:  # the inbox leaves plain text alone
        lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts)
        data, suffix = ("\n".join(lines) + "\n").encode(), ".jsonl"
    return Sheet(data, suffix, path.name, requests, number, None, tuple(warnings))


def _changed(sheet: Sheet, given: dict[str, Any], limits: Limits) -> Sheet:
    """The jobs of a file with the command line's fields put over them, as a file of our own."""
    if sheet.jobs > len(sheet.requests):
        raise SteadyError(
            "too_many_jobs",
            f"{sheet.name} holds {sheet.jobs} jobs; options can be put over at most {_SHOWN_IDS}.",
            remedy="Write the fields into the file.",
        )
    bodies = [
        request.model_dump(exclude_none=True, exclude={"count"}) | given
        for request in sheet.requests
    ]
    for body in bodies:
        if "size" in given:
            body.pop("width", None), body.pop("height", None)
    content: Any = bodies[0] if len(bodies) == 1 else bodies
    changed = _of_body(json.dumps(content, ensure_ascii=False).encode(), limits)
    return Sheet(
        changed.data, ".json", sheet.name, changed.requests, changed.jobs, sheet.key, sheet.warnings
    )


def _pairs(words: list[str] | None) -> dict[str, str] | None:
    if not words:
        return None
    pairs = dict(word.partition("=")[::2] for word in words if "=" in word)
    if len(pairs) != len(words):
        raise SteadyError("bad_request", "--metadata wants NAME=VALUE, each name once.")
    return pairs


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Errors of a file name it."""
    try:
        yield
    except SteadyError as error:
        import dataclasses

        problems = [
            dataclasses.replace(problem, file=problem.file or file) for problem in error.problems
        ] or [Problem(error.code, error.message, file=file)]
        raise SteadyError(
            error.code, error.message, problems=problems, remedy=error.remedy
        ) from None


# -- sending


def _with_tickets(sheets: Sequence[Sheet], key: str | None) -> list[tuple[Sheet, str]]:
    """A ticket for each file: from its key, from --key (and its name, where several), or new."""
    names = [sheet.name for sheet in sheets]
    if key and len(set(names)) < len(names):
        raise SteadyError("bad_request", "With --key every file needs a name of its own.")
    if key and len(sheets) > 1:
        base = uuid.UUID(ticket_of_key(key))
        return [(sheet, str(uuid.uuid5(base, sheet.name or ""))) for sheet in sheets]
    return [
        (sheet, ticket_of_key(own) if (own := key or sheet.key) else str(uuid.uuid4()))
        for sheet in sheets
    ]


def _send(desk: Desk, sheet: Sheet, ticket: str, *, known: bool) -> str:
    from watcher.inbox.submit import submit as put

    keyed = sheet.key is not None or uuid.UUID(ticket).version == 5
    repeat = keyed and _is_repeat(desk, sheet, ticket)
    if not repeat:
        put(desk.config.inbox, sheet.data, sheet.suffix, ticket, known=known)
    ids = [job_id_of(ticket, index) for index in range(min(sheet.jobs, _SHOWN_IDS))]
    answer: dict[str, Any] = {"ticket": ticket, "jobs": sheet.jobs, "job_ids": ids}
    words = f"{ticket}  {_pictures(sheet.jobs)}"
    if sheet.name:
        answer["file"] = sheet.name
        words += f"  {one_line(sheet.name, 60)}"
    if repeat:
        answer["duplicate"] = True
        words += "  (was submitted before; nothing new)"
    if sheet.warnings:
        answer["warnings"] = list(sheet.warnings)
    desk.answer(answer, words)
    for warning in sheet.warnings:
        desk.talk(f"  note: {warning}")
    return ticket


def _is_repeat(desk: Desk, sheet: Sheet, ticket: str) -> bool:
    """Was this key used before? Raises SteadyError ``key_conflict`` when for something else."""
    waiting = desk.config.inbox / f"api-{ticket}{sheet.suffix}"
    try:
        if waiting.read_bytes() != sheet.data:
            raise SteadyError("key_conflict")
        return True
    except OSError:
        pass
    if not desk.has_record():
        return False
    with desk.record() as store:
        known = store.batch(ticket)
    if known is None:
        return False
    if known.digest not in (None, hashlib.sha256(sheet.data).hexdigest()):
        raise SteadyError("key_conflict")
    return True


def _show(desk: Desk, sheets: Sequence[Sheet]) -> None:
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
                f"  seed {seed:<10}  {one_line(request.prompt, 80)}",
            )
        if sheet.jobs > len(sheet.requests):
            desk.talk(f"  … and {sheet.jobs - len(sheet.requests)} more")
        for warning in sheet.warnings:
            desk.talk(f"  note: {warning}")
    forwards = sum(
        forwards_of(r.num_inference_steps or 1) for sheet in sheets for r in sheet.requests
    )
    total = sum(sheet.jobs for sheet in sheets)
    desk.talk(f"{_pictures(total)}, {forwards} steps of work; nothing was queued.")


def _pictures(number: int) -> str:
    return f"{number} picture" + ("" if number == 1 else "s")


# -- what the root knows


def _from_record(desk: Desk) -> tuple[Limits, bool]:
    """What the model in use allows (before the first start: the one the settings name), and
    whether there were jobs before, so that an inbox without its mark is an absent disk.
    """
    from watcher import model

    told, known = None, False
    if desk.has_record():
        with desk.record() as store:
            told, known = store.get("model"), any(store.counts().values())
    return model.limits_known(told, desk.config), known


def _last_rev(desk: Desk) -> int:
    if not desk.has_record():
        return 0
    with desk.record() as store:
        return store.last_rev()


def _mention_watcher(desk: Desk) -> None:
    from watcher import live
    from watcher.commands.ask import no_watcher

    if not live.read(desk.config.state)["alive"]:
        desk.talk(no_watcher(desk))
