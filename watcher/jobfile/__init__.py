"""Bytes and suffix of a job file -> planned jobs, or an error a person can act on.

Reads no file itself: pictures and word lists come from what the caller gives (sources.py), which
may copy and note what was found.

One file holds one job (a mapping), many (a list, several YAML documents, lines of a table)
or a batch with ``defaults``, ``matrix``, ``zip``, ``sample`` and ``jobs``. Whatever the form, each
picture goes through the one validator of fields.py (its words: wording.py), so the same text as
YAML, JSON, a CSV row or a JSONL line gives the same requests.

:func:`parse` reads all that may be dropped (watcher/suffixes.py), whole: .yaml and .json by
sheets.py over strictyaml.py and strictjson.py, tables and lists by rows.py over tables.py, pictures
by their recipe. :func:`read_lines` reads tables and lists row by row.
combine.py, planner.py and expand.py make the pictures of one template. Nothing is remembered between
calls and nothing depends on the clock but ``{date}``, so reading again after a crash gives the
same jobs.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile import combine
from watcher.jobfile.bundle import ALONE, MAX_BUNDLE, Bundle
from watcher.jobfile.foreign import fitted
from watcher.jobfile.naming import numbered
from watcher.jobfile.planner import PlannedJob, Planner
from watcher.jobfile.problems import MAX_PROBLEMS, refusal, shown_key
from watcher.jobfile.rows import RowIterator
from watcher.jobfile.sheets import OnError, read_sheets
from watcher.jobfile.tables import Row, cells_of, decoded
from watcher.jobs import JobRequest, Priority
from watcher.pictures.recipe import again, read_recipe
from watcher.suffixes import FORMS, MAX_PICTURE, remedy_for

MAX_BYTES = 1 << 20  #: of a .yaml or .json
MAX_TABLE = 4 << 30  #: of a table
MAX_ROWS = 20_000  #: of a table in a bundle, which is read whole; others are streamed
FEW_JOBS = 20  #: files up to this many pictures wait as ``normal``, larger ones as ``bulk``


@dataclass(frozen=True)
class Parsed:
    """A whole file: its pictures in order and what holds for all of them.

    ``key`` is the file's (a file of one job: the job's). ``refused`` rows or items are only there
    under ``on_error: skip``.
    """

    requests: Sequence[PlannedJob]
    key: str | None
    resume: bool
    on_error: OnError
    refused: Sequence[Row]
    warnings: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)  #: see Batch


def parse(
    data: bytes, suffix: str, planner: Planner, *, stem: str = "", keyed: bool = False
) -> Parsed:
    """The whole of a job file, by a ``planner`` made for it.

    ``suffix``, one of suffixes.FORMS, decides how it is read. ``stem`` names the pictures of a file
    of many; empty leaves them unnamed. ``keyed``: a key comes from outside, so ``resume`` needs
    none.

    Raises SteadyError; under ``reject`` with every problem of the file, up to 50.
    """
    form = form_of(suffix)
    if not data.strip():
        raise SteadyError("empty_file")
    if form == "bundle":
        bundle = Bundle(data)
        data, form = bundle.job(MAX_BYTES), form_of(bundle.suffix)
        planner.finder = planner.finder and planner.finder.inside(bundle)
    if form == "picture":
        parsed = _of_picture(data, planner)
    elif form in (".yaml", ".json"):
        parsed = _of_sheets(data, form, planner, keyed)
    else:
        parsed = _of_lines(data, form, planner)
    name_all(parsed.requests, stem, len(parsed.requests))
    if planner.finder:
        planner.finder.flush()
    return parsed


def form_of(suffix: str) -> str:
    """How a file of this suffix is read. Raises SteadyError unsupported_suffix."""
    if (form := FORMS.get(suffix.lower())) is None:
        message = f"{shown_key(suffix) or 'Such'} files are not read."
        raise SteadyError("unsupported_suffix", message, remedy=remedy_for(f"file{suffix}"))
    return form


def most_bytes(suffix: str) -> int:
    """The most bytes of a file that is read whole."""
    return {"picture": MAX_PICTURE, "bundle": MAX_BUNDLE}.get(FORMS.get(suffix, ""), MAX_BYTES)


def _of_picture(data: bytes, planner: Planner) -> Parsed:
    """The job that makes a picture again. Raises SteadyError no_recipe without one."""
    recipe = read_recipe(data)
    if recipe is None or "request" not in recipe:
        raise SteadyError("no_recipe")
    fields, warnings = again(recipe), list[str]()
    if recipe.get("source") == "a1111":
        fields, warnings = fitted(recipe["request"], planner.limits)
    fields |= planner.preset.over
    model, usual = fields.get("model"), planner.limits.usual.name
    if isinstance(model, str) and planner.limits.named(model) is None:
        del fields["model"]
        warnings.append(f"The model `{shown_key(model)}` is not known here; {usual} is used.")
    card, made_by = planner.limits.card(fields), recipe.get("revision")
    if isinstance(made_by, str) and card.revision and made_by != card.revision:
        warnings.append(
            f"It was made by {shown_key(str(recipe.get('model')))} at revision"
            f" {_short(made_by)}; {card.name} is at {_short(card.revision)} here, so it will not be"
            " the same to the pixel."
        )
    parsed = _of_sheets(json.dumps(fields).encode(), ".json", planner, False)
    jobs = [replace(job, warnings=(*warnings, *job.warnings)) for job in parsed.requests]
    return replace(parsed, requests=jobs)


def _short(revision: str) -> str:
    return shown_key(revision.removeprefix("sha256:")[:12])


def _of_sheets(data: bytes, form: str, planner: Planner, keyed: bool) -> Parsed:
    if len(data) > MAX_BYTES:
        message = f"The file is larger than {MAX_BYTES // 1024} KiB."
        raise ValueFault("too_large", message).error()
    text = decoded(data)
    if not text.strip():
        raise SteadyError("empty_file")
    read = read_sheets(text, form, planner.finder)
    first = read[0]
    for sheet in read if len(read) > 1 else ():
        if sheet.resume or sheet.on_error or (sheet.key and len(sheet.items) != 1):
            message = "`key`, `resume` and `on_error` need a file of one document."
            sheet.fault("bad_shape", message, ())
    if first.resume and first.key is None and not keyed:
        remedy = "Add `key:` with a name for this batch."
        first.fault("missing_field", "`resume` needs a `key`.", ("resume",), remedy=remedy)
    problems = dict.fromkeys(p for sheet in read for p in sheet.problems)
    if problems:
        raise refusal(_by_line(problems))
    combine.inherit(read, planner.preset)
    combine.spread_items(read, planner)
    combine.choose_combinations(read, planner)

    how = next((s.on_error for s in read if s.on_error), None) or "reject"
    planned: list[PlannedJob] = []
    refused: dict[int, Row] = {}
    for number, item, made in combine.pictures(read, planner):
        faults = [m for m in made if isinstance(m, ValueFault)]
        problems |= dict.fromkeys(faults)
        if faults and how == "skip":
            cells = cells_of(item.raw)
            refused.setdefault(
                number, Row(number, faults[0].line or 1, cells, tuple(faults[:MAX_PROBLEMS]))
            )
        elif len(problems) >= MAX_PROBLEMS:
            break
        planned += [
            planner.planned(m, number, Priority.NORMAL) for m in made if isinstance(m, JobRequest)
        ]
    if problems and (how == "reject" or not planned):
        raise refusal(_by_line(problems), "" if how == "reject" else "all_rows_refused")
    if not planned:
        raise SteadyError("bad_shape")
    warnings = (*(w for sheet in read for w in sheet.warnings()), *planner.marks.warnings)
    key = first.key if len(read) == 1 else None
    plain = len(read) == len(first.items) == 1 and len(planned) == first.product.total
    axes = first.product.axes if plain and len(planned) > 1 else {}
    return Parsed(planned, key, first.resume, how, tuple(refused.values()), warnings, axes)


def _by_line(problems: Mapping[ValueFault, None]) -> list[ValueFault]:
    """In the order a person mends them."""
    return sorted(problems, key=lambda p: (p.document or 0, p.line or 0))


def _of_lines(data: bytes, form: str, planner: Planner) -> Parsed:
    """A table in a bundle."""
    most = min(planner.limits.max_lines, MAX_ROWS)
    planner.limits = replace(planner.limits, max_lines=most)
    lines = RowIterator(io.BytesIO(data), form, planner)
    planned: list[PlannedJob] = []
    refused: list[Row] = []
    try:
        for each in lines:
            if isinstance(each, PlannedJob):
                planned.append(each)
            else:
                refused.append(each)
    except SteadyError as error:
        if error.code != "too_many_jobs" or most < MAX_ROWS:
            raise
        raise SteadyError(error.code, error.message, remedy=ALONE) from None
    if not planned:
        raise no_rows([problem for row in refused for problem in row.problems])
    return Parsed(planned, None, False, "skip", refused, tuple(lines.warnings))


def no_rows(problems: Sequence[ValueFault]) -> SteadyError:
    """The error of a table of which no row can be used."""
    if problems:
        return refusal(problems, "all_rows_refused")
    return SteadyError("empty_file", "The file holds no rows.")


def name_all(planned: Sequence[PlannedJob], stem: str, count: int) -> None:
    """Gives the first pictures of a file of ``count`` the names and priorities they lack."""
    usual = Priority.NORMAL if count <= FEW_JOBS else Priority.BULK
    name_of = numbered(stem, count)
    for number, each in enumerate(planned, 1):
        if each.request.priority is None:
            each.priority = usual
        if each.stem is None:
            each.stem = name_of(number)


def read_lines(stream: BinaryIO, suffix: str, planner: Planner) -> RowIterator:
    """The rows of a table or list, one at a time: PlannedJob and refused Row.

    ``stream`` must be seekable, stand at its beginning, and is left open. The pictures have no
    names yet, and priority normal. Raises SteadyError, at once or while iterating, for what spoils
    the whole file: no header, not text, too many rows.
    """
    return RowIterator(stream, form_of(suffix), planner)
