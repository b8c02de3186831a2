"""Bytes of a job file -> planned jobs, or an error a person can act on. Pure, no I/O.

One file holds one job (a mapping), many (a list, several YAML documents, lines of a table)
or a batch with ``defaults``, ``matrix``, ``zip``, ``sample`` and ``jobs``. Whatever the form, each
picture goes through the one validator of :mod:`watcher.fields`, so the same text as YAML,
JSON, a CSV row or a JSONL line gives the same requests.

.yaml and .json are read whole by :func:`parse`; .csv, .tsv and .jsonl can be streamed row by
row by :func:`read_lines`, from any row on, in constant memory. Nothing is remembered between
calls and nothing depends on the clock but ``{date}``, so reading again after a crash gives the
same jobs.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePath
from typing import Any, BinaryIO, Literal

from watcher import strictjson, strictyaml
from watcher.batchline import batch_line_fields, is_batch_line
from watcher.errors import Problem, SteadyError
from watcher.expand import (
    ExpansionFault,
    Product,
    Wildcards,
    digest,
    fill,
    placeholders_in,
    sampled,
    seeds_of,
    size_of,
    values_of,
    wild,
)
from watcher.fields import (
    FIELDS,
    TEXT_FIELDS,
    Checker,
    moment_of,
    normalised,
    pointer,
    refusal,
    request_of,
    resolve,
    shown,
    shown_key,
    slug,
    value_of_text,
)
from watcher.jobs import MAX_COUNT, JobRequest, Limits, Priority
from watcher.tables import RawRow, Row, Table, cells_of, decoded, dump_refused, json_rows, text_rows

__all__ = [
    "LINE_SUFFIXES",
    "MAX_BYTES",
    "PICTURE_SUFFIXES",
    "SUFFIXES",
    "Lines",
    "Parsed",
    "Planned",
    "Row",
    "dump_refused",
    "parse",
    "read_lines",
    "request_of",
    "resolve",
    "suffix_kind",
]

TREE_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
LINE_SUFFIXES = frozenset({".jsonl", ".csv", ".tsv"})
PICTURE_SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg"})
SUFFIXES = TREE_SUFFIXES | LINE_SUFFIXES | PICTURE_SUFFIXES
#: What people drop when they mean a job file.
_MEANT = frozenset(
    {
        ".txt", ".text", ".xlsx", ".xls", ".ods", ".numbers", ".docx", ".doc", ".odt", ".rtf", ".md",
        ".ndjson", ".jsonlines", ".json5", ".toml", ".yamll", ".yaml~", ".ymal", ".yam", ".jsn", ".tab",
        ".zip", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif",
    }
)  # fmt: skip

MAX_BYTES = 1 << 20  #: of a .yaml or .json
MAX_PROBLEMS = 50  #: listed in one refusal
FEW_JOBS = 20  #: files up to this many pictures wait as ``normal``, larger ones as ``bulk``

_BATCH_KEYS = frozenset(
    {"defaults", "jobs", "matrix", "zip", "sample", "expand", "on_error", "key", "resume", "count"}
)
_BATCH_MARKS = _BATCH_KEYS - {"key", "count"}
_TEXTS = ("prompt", "negative_prompt", "name", "folder", "label")
_WILD_TEXTS = ("prompt", "negative_prompt")
#: A comment may follow these in YAML: their values hold no ``#``.
_COMMENT_KEYS = frozenset(
    (set(FIELDS) - {"prompt", "negative_prompt", "label", "key", "metadata"})
    | {"steps", "size", "sample", "expand", "on_error", "resume"}
)

OnError = Literal["reject", "skip"]
Place = Callable[[Sequence[str | int]], tuple[int, int]]


def suffix_kind(name: str) -> Literal["job", "notice", "ignore"]:
    """What to do with a file of this name: read it, tell about it (plainly meant), or leave it."""
    if name.startswith((".", "#")) or name.endswith(("~", "#")):
        return "ignore"
    suffixes = [s.lower() for s in PurePath(name).suffixes]
    if not suffixes:
        return "ignore"
    if suffixes[-1] in SUFFIXES:
        return "job"
    return "notice" if suffixes[-1] in _MEANT else "ignore"


@dataclass(slots=True)
class Planned:
    """One picture to be made.

    ``request`` is checked and has all but perhaps its seed. ``stem`` is the picture's name, or
    None for ``ImgGen_HHMMSS``. ``row`` is the row or item it came from, from 1. ``not_before`` is
    in microseconds since 1970, UTC.
    """

    request: JobRequest
    stem: str | None
    warnings: tuple[str, ...]
    row: int | None
    not_before: int | None
    priority: Priority


@dataclass(frozen=True)
class Parsed:
    """A whole file: its pictures in order and what holds for all of them.

    ``refused`` rows are only there under ``on_error: skip``. ``many``: more than one picture.
    """

    requests: Sequence[Planned]
    key: str | None
    resume: bool
    on_error: OnError
    refused: Sequence[Row]
    warnings: tuple[str, ...]
    many: bool


class _Planner:
    """Turns templates (normalised values plus placeholders) into pictures."""

    def __init__(
        self, limits: Limits, now: datetime | None, salt: str, wildcards: Wildcards | None
    ) -> None:
        self.limits = limits
        self.checker = Checker(limits)
        self._date = f"{now or datetime.now().astimezone():%Y%m%d}"
        self._salt = salt
        self._wildcards = wildcards

    def multiplicity(self, values: Mapping[str, Any]) -> int:
        """How many pictures a template makes; 1 where its count is wrong (found out later)."""
        seeds = seeds_of(values.get("seed"))
        if seeds is not None:
            return size_of(seeds)
        count = values.get("count")
        good = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MAX_COUNT
        return count if good and isinstance(count, int) else 1

    def pictures(
        self, values: dict[str, Any], names: Mapping[str, str], index: int, wild_texts: bool
    ) -> list[JobRequest] | list[Problem]:
        """The pictures of one template, the first of them number ``index`` (from 0) of the file."""
        try:
            seeds = seeds_of(values.get("seed"))
            if seeds is None and not values.get("count"):
                made = self._one(values, names, index, wild_texts)
                return made if isinstance(made, list) else [made]
            return self._several(values, names, index, wild_texts, seeds)
        except ExpansionFault as fault:
            return [Problem("bad_placeholder", f"{str(fault)[0].upper()}{str(fault)[1:]}.", key="prompt")]

    def _several(
        self,
        values: dict[str, Any],
        names: Mapping[str, str],
        index: int,
        wild_texts: bool,
        seeds: Sequence[Any] | None,
    ) -> list[JobRequest] | list[Problem]:
        if seeds is not None and values.get("count") not in (None, 1):
            message = "`seed` lists several seeds and `count` asks for several pictures."
            return [Problem("bad_placeholder", message, key="count", remedy="Keep one of the two.")]
        count = self.multiplicity(values)
        if seeds is not None and not seeds:
            return [Problem("bad_placeholder", "`seed` is an empty list.", key="seed")]
        if seeds is None:
            probe = self._one(dict(values), names, index, wild_texts)
            if isinstance(probe, list):
                return probe
            if probe.seed is not None and count > 1 and "seed" in values:
                seeds = range(probe.seed, probe.seed + count)
        pictures: list[JobRequest] = []
        for number in range(count):
            each = dict(values)
            each.pop("count", None)
            if seeds is not None:
                each["seed"] = seeds[number]
            made = self._one(each, names, index + number, wild_texts)
            if isinstance(made, list):
                return made
            pictures.append(made)
        return pictures

    def _one(
        self, values: dict[str, Any], names: Mapping[str, str], index: int, wild_texts: bool
    ) -> JobRequest | list[Problem]:
        limits = self.limits
        if values.get("width") is None:
            values["width"] = limits.default_width
        if values.get("height") is None:
            values["height"] = limits.default_height
        if values.get("num_inference_steps") is None:
            values["num_inference_steps"] = limits.default_steps
        if values.get("format") is None:
            values["format"] = limits.default_format
        if values.get("count", 1) is None:
            del values["count"]
        for key in _TEXTS:
            text = values.get(key)
            if type(text) is str and "{" in text:
                values[key] = self._filled(key, text, values, names, index)
        if wild_texts:
            for key in _WILD_TEXTS:
                text = values.get(key)
                if type(text) is str:
                    values[key] = wild(text, digest(self._salt, "wild", key, index, text), self._wildcards)
        return self.checker.check(values)

    def _filled(
        self, key: str, text: str, values: dict[str, Any], names: Mapping[str, str], index: int
    ) -> str:
        used = {name: names[name] for name in set(placeholders_in(text)) if name in names}
        for name in set(placeholders_in(text)) - used.keys():
            head, _, width = name.partition(":")
            if head not in ("index", "date", "seed") or (width and not re.fullmatch("0[1-9]", width)):
                continue
            if head == "index":
                used[name] = str(index + 1).zfill(int(width or 0))
            elif head == "date":
                used[name] = self._date
            else:
                if values.get("seed") is None:
                    drawn = digest(self._salt, "seed", index, str(values.get("prompt"))[:4000])
                    values["seed"] = drawn % 2**32
                used[name] = str(values["seed"]).zfill(int(width or 0))
        if key in ("name", "folder"):
            used = {name: slug(value) for name, value in used.items()}
        return fill(text, used)


def _planned(
    request: JobRequest, checker: Checker, warnings: tuple[str, ...], row: int | None, priority: Priority
) -> Planned:
    moment = None if request.not_before is None else moment_of(request.not_before)
    own = Priority(request.priority) if request.priority is not None else priority
    return Planned(request, request.name, checker.warnings(request) + warnings, row, moment, own)


def _text_of(value: Any) -> str:
    """A value as it stands in a text: ``true``, ``1.50``, empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(getattr(value, "source", value))


# -- .yaml and .json


@dataclass
class _Item:
    """One template of a tree: where it stands, what it says, and where each field was said."""

    path: tuple[str | int, ...]
    raw: Any
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    wild: bool = False


@dataclass
class _Sheet:
    """One document: its items and the axes they are multiplied with."""

    place: Place
    document: int | None = None
    items: list[_Item] = field(default_factory=list)
    product: Product = field(default_factory=lambda: Product({}, {}))
    axis_paths: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    sample: int | None = None
    key: str | None = None
    resume: bool = False
    on_error: OnError | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def locate(self, problem: Problem, path: tuple[str | int, ...]) -> Problem:
        line, column = self.place(path)
        return replace(
            problem, pointer=pointer(path), line=line, column=column, document=self.document
        )

    def fault(self, code: str, message: str, path: tuple[str | int, ...], **more: Any) -> None:
        key = shown_key(str(path[-1])) if path else None
        self.problems.append(self.locate(Problem(code, message, key=key, **more), path))


def _sheet(value: Any, place: Place, document: int | None) -> _Sheet:
    sheet = _Sheet(place, document)
    if isinstance(value, list):
        sheet.items = [_item(raw, (number,)) for number, raw in enumerate(value)]
    elif isinstance(value, Mapping) and (_BATCH_MARKS & value.keys()):
        _read_batch(sheet, value)
    elif isinstance(value, Mapping):
        sheet.items = [_item(value, ())]
        key = value.get("key")
        sheet.key = key if isinstance(key, str) else None
    else:
        remedy = "Write `prompt:` before the text." if isinstance(value, str) else ""
        problem = Problem("bad_shape", "The file holds no mapping and no list.", remedy=remedy or None)
        sheet.problems.append(sheet.locate(problem, ()))
    return sheet


def _item(raw: Any, path: tuple[str | int, ...]) -> _Item:
    item = _Item(path, raw)
    if isinstance(raw, str):
        raw = {"prompt": raw}
    if not isinstance(raw, Mapping):
        message = "A job is a mapping with a prompt, or the prompt alone."
        item.problems.append(Problem("bad_shape", message, value=shown(raw)))
        return item
    if "expand" in raw:
        raw = dict(raw)
        item.wild = _expands(raw.pop("expand"), item.problems)
    item.values, came_from, problems = normalised(raw)
    item.problems += problems
    item.origins = {name: (*path, key) for name, key in came_from.items()}
    return item


def _expands(value: Any, problems: list[Problem]) -> bool:
    if value not in (None, "wildcards"):
        allowed = "wildcards"
        problems.append(
            Problem("out_of_range", "`expand` must be wildcards.", key="expand", value=shown(value), allowed=allowed)
        )
    return value == "wildcards"


def _read_batch(sheet: _Sheet, value: Mapping[str, Any]) -> None:
    rest = {k: v for k, v in value.items() if k not in _BATCH_KEYS}
    defaults = value.get("defaults")
    if defaults is not None and not isinstance(defaults, Mapping):
        sheet.fault("wrong_type", "`defaults` must be a mapping of fields.", ("defaults",), value=shown(defaults))
        defaults = None
    base = _item(defaults or {}, ("defaults",))
    sheet.problems += [sheet.locate(p, ("defaults", *([p.key] if p.key else []))) for p in base.problems]
    wild_found: list[Problem] = []
    all_wild = _expands(value.get("expand"), wild_found) or base.wild
    sheet.problems += [sheet.locate(p, ("expand",)) for p in wild_found]
    if value.get("count") is not None:
        base.values["count"], base.origins["count"] = value["count"], ("count",)
    jobs = value.get("jobs")
    if jobs is None and "jobs" in value:
        sheet.fault("bad_shape", "`jobs` is empty.", ("jobs",))
    elif jobs is None:
        sheet.items = [_item(rest, ())]
    elif isinstance(jobs, list):
        for key in rest:
            near = " Put it under `defaults`." if key in FIELDS or key in ("steps", "size") else ""
            sheet.fault("unknown_field", f"`{shown_key(key)}` has no place beside `jobs`.", (key,), remedy=near.strip() or "Known beside `jobs` are " + ", ".join(sorted(_BATCH_KEYS)) + ".")
        sheet.items = [_item(raw, ("jobs", number)) for number, raw in enumerate(jobs)]
        if not jobs:
            sheet.fault("bad_shape", "`jobs` is an empty list.", ("jobs",))
    else:
        sheet.fault("wrong_type", "`jobs` must be a list.", ("jobs",), value=shown(jobs))
    for item in sheet.items:
        item.values = base.values | item.values
        item.origins = base.origins | item.origins
        item.wild = item.wild or all_wild
    _read_axes(sheet, value)
    _read_settings(sheet, value)


def _read_settings(sheet: _Sheet, value: Mapping[str, Any]) -> None:
    sample, key, resume, on_error = (value.get(k) for k in ("sample", "key", "resume", "on_error"))
    if sample is not None:
        if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
            sheet.fault("wrong_type", "`sample` must be a whole number, at least 1.", ("sample",), value=shown(sample), allowed="whole number, at least 1")
        else:
            sheet.sample = sample
    if key is not None:
        if isinstance(key, str) and 0 < len(key) <= 200:
            sheet.key = key
        else:
            sheet.fault("wrong_type", "`key` must be text of 1 to 200 characters.", ("key",), value=shown(key))
    if resume is not None and not isinstance(resume, bool):
        sheet.fault("wrong_type", "`resume` must be true or false.", ("resume",), value=shown(resume), allowed="true, false")
    sheet.resume = resume is True
    if on_error in ("reject", "skip"):
        sheet.on_error = on_error
    elif on_error is not None:
        sheet.fault("out_of_range", "`on_error` must be reject or skip.", ("on_error",), value=shown(on_error), allowed="reject, skip")
    if sheet.resume and sheet.key is None:
        sheet.fault("missing_field", "`resume` needs a `key`.", ("resume",), remedy="Add `key:` with a name for this batch.")


def _read_axes(sheet: _Sheet, value: Mapping[str, Any]) -> None:
    axes: dict[str, dict[str, Sequence[Any]]] = {"matrix": {}, "zip": {}}
    for kind, read in axes.items():
        raw = value.get(kind)
        if raw is None:
            continue
        if not isinstance(raw, Mapping):
            sheet.fault("wrong_type", f"`{kind}` must be a mapping of names to lists.", (kind,), value=shown(raw))
            continue
        for name, values in raw.items():
            path = (kind, name)
            label = shown_key(name)
            if name in ("index", "date", "count") or not re.fullmatch(r"[^{}|:]{1,80}", name):
                sheet.fault("bad_placeholder", f"`{label}` cannot be a name under `{kind}`.", path)
            elif name in sheet.axis_paths:
                sheet.fault("duplicate_key", f"`{label}` stands under `matrix` and `zip`.", path)
            elif size_of(several := values_of(values)) == 0:
                sheet.fault("bad_placeholder", f"`{label}` has no values.", path)
            elif isinstance(values, list) and any(isinstance(v, list | dict) for v in values):
                sheet.fault("wrong_type", f"`{label}` must list plain values.", path, value=shown(values))
            else:
                read[name] = several
                sheet.axis_paths[name] = path
    lengths = {name: size_of(values) for name, values in axes["zip"].items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"`{shown_key(n)}` has {length}" for n, length in list(lengths.items())[:8])
        sheet.fault("bad_placeholder", f"The lists under `zip` differ in length: {said}.", ("zip",), remedy="Give them the same length.")
        axes["zip"] = {}
    sheet.product = Product(axes["matrix"], axes["zip"])


class _Reading:
    """Reads a tree format: documents -> pictures."""

    def __init__(self, planner: _Planner, data: bytes, suffix: str) -> None:
        self._planner = planner
        self._limits = planner.limits
        if len(data) > MAX_BYTES:
            message = f"The file is larger than {MAX_BYTES // 1024} KiB."
            raise SteadyError("too_large", message, problems=[Problem("too_large", message)])
        text = decoded(data)
        if not text.strip():
            raise SteadyError("empty_file")
        self.sheets = self._sheets(text, suffix)

    def _sheets(self, text: str, suffix: str) -> list[_Sheet]:
        if suffix == ".json":
            value = strictjson.read(text)
            return [_sheet(value, lambda path: strictjson.place(text, path), None)]
        documents = strictyaml.read(
            text,
            text_keys=TEXT_FIELDS,
            comment_keys=_COMMENT_KEYS,
            text_lists=("jobs", "prompt", "negative_prompt"),
        )
        filled = [(n, d) for n, d in enumerate(documents, 1) if d.value is not None]
        if not filled:
            raise SteadyError("empty_file")
        several = len(filled) > 1
        return [_sheet(d.value, d.place, n if several else None) for n, d in filled]

    def refuse_too_many(self) -> None:
        """Counts the pictures before any is built."""
        total = 0
        for sheet in self.sheets:
            try:
                each = [self._planner.multiplicity(item.values) for item in sheet.items]
            except ExpansionFault as fault:
                raise SteadyError("too_many_jobs", f"{fault}") from None
            combinations = sheet.product.total
            if sheet.sample is not None and sheet.sample < combinations * len(each):
                total += sheet.sample * min(each, default=1)
            else:
                total += combinations * sum(each)
        if total > self._limits.max_jobs_per_file:
            message = f"The file makes {total} jobs; {self._limits.max_jobs_per_file} are allowed."
            problem = Problem("too_many_jobs", message, allowed=f"at most {self._limits.max_jobs_per_file}")
            raise SteadyError("too_many_jobs", message, problems=[problem])

    def pictures(self, salt: str) -> Iterator[tuple[_Item, int, list[JobRequest] | list[Problem]]]:
        """Every template in order with its pictures or its problems (located)."""
        index, number = 0, 0
        for sheet in self.sheets:
            total = sheet.product.total * len(sheet.items)
            chosen: Sequence[int] = range(total)
            if sheet.sample is not None and sheet.sample < total:
                canon = json.dumps([i.raw for i in sheet.items], sort_keys=True, default=str)
                chosen = sampled(total, sheet.sample, digest(salt, "sample", canon))
            for which in chosen:
                at, combination = divmod(which, sheet.product.total)
                item = sheet.items[at]
                if item.problems:
                    made: list[JobRequest] | list[Problem] = [
                        sheet.locate(p, (*item.path, p.key) if p.key else item.path)
                        for p in item.problems
                    ]
                else:
                    made = self._pictures_of(sheet, item, sheet.product[combination], index)
                yield item, number + at, made
                index += sum(isinstance(m, JobRequest) for m in made)
            number += len(sheet.items)

    def _pictures_of(
        self, sheet: _Sheet, item: _Item, combination: dict[str, Any], index: int
    ) -> list[JobRequest] | list[Problem]:
        ours = {k: v for k, v in combination.items() if k in FIELDS or k in ("steps", "size")}
        values, origins = dict(item.values), item.origins
        if ours:
            more, came_from, problems = normalised(ours)
            if problems:
                return [sheet.locate(p, sheet.axis_paths.get(p.key or "", ())) for p in problems]
            values |= more
            origins = origins | {f: sheet.axis_paths[k] for f, k in came_from.items()}
        names = {name: _text_of(value) for name, value in combination.items()}
        made = self._planner.pictures(values, names, index, item.wild)
        problems = [m for m in made if isinstance(m, Problem)]
        if not problems:
            return made
        located = []
        for problem in problems:
            path = origins.get(problem.key or "", item.path)
            key = path[-1] if path and problem.key in origins else problem.key
            located.append(sheet.locate(replace(problem, key=str(key) if key else None), path))
        return located


def parse(
    data: bytes,
    suffix: str,
    limits: Limits,
    *,
    stem: str = "",
    now: datetime | None = None,
    salt: str = "",
    wildcards: Wildcards | None = None,
    priority: Priority | None = None,
    on_error: OnError | None = None,
) -> Parsed:
    """The whole of a job file.

    ``suffix`` decides the format (``.yaml .yml .json .jsonl .csv .tsv`` and ``.txt``, one prompt a
    line). ``stem`` names the pictures of a file of many; empty leaves them unnamed. ``now`` gives
    ``{date}``. ``salt`` (the ticket) varies what is drawn: ``sample``, wildcards, ``{seed}``.
    ``wildcards`` looks up a list by name. ``priority`` and ``on_error`` replace the defaults, not
    what the file says.

    Raises SteadyError; under ``reject`` with every problem of the file, up to 50.
    """
    suffix = suffix.lower()
    if not data.strip():
        raise SteadyError("empty_file")
    if suffix in TREE_SUFFIXES:
        return _parse_tree(data, suffix, _Planner(limits, now, salt, wildcards), stem, salt, priority, on_error)
    lines = read_lines(io.BytesIO(data), suffix, limits, stem="", now=now, salt=salt, wildcards=wildcards)
    planned: list[Planned] = []
    refused: list[Row] = []
    problems: list[Problem] = []
    for each in lines:
        if isinstance(each, Planned):
            planned.append(each)
        else:
            refused.append(each)
            problems += each.problems
            if on_error == "reject" and len(problems) >= MAX_PROBLEMS:
                break
    if problems and (on_error == "reject" or not planned):
        raise refusal(problems, "" if on_error == "reject" else "all_rows_refused")
    if not planned:
        raise SteadyError("empty_file")
    return _parsed(planned, None, False, on_error or "skip", refused, tuple(lines.warnings), stem, priority)


def _parse_tree(
    data: bytes,
    suffix: str,
    planner: _Planner,
    stem: str,
    salt: str,
    priority: Priority | None,
    on_error: OnError | None,
) -> Parsed:
    reading = _Reading(planner, data, suffix)
    sheets = reading.sheets
    problems = {p: None for sheet in sheets for p in sheet.problems}
    if len(sheets) > 1:
        for sheet in sheets:
            if sheet.key is not None and len(sheet.items) != 1 or sheet.resume or sheet.on_error:
                message = "`key`, `resume` and `on_error` need a file of one document."
                problems[sheet.locate(Problem("bad_shape", message), ())] = None
    if problems:
        raise refusal(list(problems))
    reading.refuse_too_many()
    how = next((s.on_error for s in sheets if s.on_error), None) or on_error or "reject"
    planned: list[Planned] = []
    refused: dict[int, Row] = {}
    for item, number, made in reading.pictures(salt):
        faults = [m for m in made if isinstance(m, Problem)]
        if faults:
            problems |= dict.fromkeys(faults)
            if how == "skip":
                refused.setdefault(number, Row(number + 1, faults[0].line or 1, cells_of(item.raw), tuple(faults[:MAX_PROBLEMS])))
            elif len(problems) >= MAX_PROBLEMS:
                break
        for request in made:
            if isinstance(request, JobRequest):
                planned.append(_planned(request, planner.checker, (), number + 1, Priority.NORMAL))
    if problems and (how == "reject" or not planned):
        raise refusal(list(problems), "" if how == "reject" else "all_rows_refused")
    if not planned:
        raise SteadyError("bad_shape")
    key = sheets[0].key if len(sheets) == 1 else None
    warnings = tuple(w for sheet in sheets for w in sheet.warnings)
    return _parsed(planned, key, sheets[0].resume, how, list(refused.values()), warnings, stem, priority)


def _parsed(
    planned: list[Planned],
    key: str | None,
    resume: bool,
    on_error: OnError,
    refused: list[Row],
    warnings: tuple[str, ...],
    stem: str,
    priority: Priority | None,
) -> Parsed:
    """Names and priorities, which need the number of pictures."""
    many = len(planned) > 1
    usual = priority or (Priority.NORMAL if len(planned) <= FEW_JOBS else Priority.BULK)
    digits, base = max(4, len(str(len(planned)))), slug(stem)[:60]
    for number, each in enumerate(planned, 1):
        if each.request.priority is None:
            each.priority = usual
        if each.stem is None and many and base:
            each.stem = f"{base}_{number:0{digits}d}"
    return Parsed(planned, key, resume, on_error, refused, warnings, many)


# -- .csv, .tsv, .jsonl, .txt


def read_lines(
    stream: BinaryIO,
    suffix: str,
    limits: Limits,
    *,
    start: int = 1,
    first_index: int = 0,
    stem: str = "",
    digits: int = 4,
    priority: Priority = Priority.NORMAL,
    now: datetime | None = None,
    salt: str = "",
    wildcards: Wildcards | None = None,
) -> "Lines":
    """The rows of a line format, one at a time: an iterator of Planned and refused Row.

    ``stream`` must be seekable, stand at its beginning, and is left open. To go on after a
    crash, give the first ``start`` row wanted and the number of pictures made by the rows before
    (``first_index``). ``stem`` and ``digits`` name the pictures (empty: unnamed).
    Raises SteadyError for what spoils the whole file: no header, not text, too many rows.
    """
    return Lines(
        stream, suffix.lower(), limits, start, first_index, stem, digits, priority,
        _Planner(limits, now, salt, wildcards),
    )  # fmt: skip


class Lines:
    """The iterator :func:`read_lines` returns; ``warnings`` hold for the whole file."""

    def __init__(
        self,
        stream: BinaryIO,
        suffix: str,
        limits: Limits,
        start: int,
        first_index: int,
        stem: str,
        digits: int,
        priority: Priority,
        planner: _Planner,
    ) -> None:
        self.warnings: list[str] = []
        self._start = start
        self._index = first_index
        self._base = slug(stem)[:60]
        self._digits = digits
        self._priority = priority
        self._planner = planner
        self._limits = limits
        self._columns: list[tuple[int, str, str]] = []  # cell, field, header
        self._extra: list[tuple[int, str]] = []  # cell, header: goes to metadata
        self._header: list[str] = []
        if suffix in (".csv", ".tsv"):
            table = Table(stream, suffix)
            self._read_header(table.header)
            self._rows = table.rows()
        elif suffix == ".jsonl":
            self._rows = json_rows(stream)
        elif suffix == ".txt":
            self._rows = text_rows(stream)
        else:
            raise SteadyError("unsupported_suffix", f"Files ending in {shown_key(suffix)!r} are not read.")
        self._each = self._work()

    def __iter__(self) -> "Iterator[Planned | Row]":
        return self._each

    def __next__(self) -> "Planned | Row":
        return next(self._each)

    def _read_header(self, header: list[str]) -> None:
        self._header = header
        seen: dict[str, str] = {}
        for cell, name in enumerate(header):
            plain = re.sub(r"[\s-]+", "_", name.lower())
            if plain in ("", "error"):
                continue
            known = {"steps": "num_inference_steps", "id": "label"}.get(plain, plain)
            if known == "label" and "label" in seen and plain == "id":
                self._extra.append((cell, name))
                continue
            if known in seen:
                message = f"The columns `{shown_key(seen[known])}` and `{shown_key(name)}` say the same."
                raise SteadyError("duplicate_key", message, problems=[Problem("duplicate_key", message, key=shown_key(name), line=1)])
            seen[known] = name
            if known in FIELDS or known in ("size", "expand"):
                self._columns.append((cell, known, name))
            else:
                self._extra.append((cell, name))
        if "prompt" not in seen:
            named = ", ".join(shown_key(n) for n in header[:12])
            message = f"There is no `prompt` column; the first row names {named}."
            problem = Problem("bad_csv", message, key="prompt", line=1, remedy="Write a first row that names the columns, one of them `prompt`.")
            raise SteadyError("bad_csv", message, problems=[problem], remedy=problem.remedy or "")

    def _work(self) -> "Iterator[Planned | Row]":
        rows = 0
        for raw in self._rows:
            rows += 1
            if rows > self._limits.max_lines:
                message = f"The file has more than {self._limits.max_lines} rows."
                raise SteadyError("too_many_jobs", message, problems=[Problem("too_many_jobs", message)])
            if raw.number < self._start:
                continue
            values, names, warnings, wild_texts, problems = self._read(raw)
            made = problems or self._planner.pictures(values, names, self._index, wild_texts)
            if made and isinstance(made[0], Problem):
                yield self._refused(raw, [m for m in made if isinstance(m, Problem)])
                continue
            for request in made:
                if not isinstance(request, JobRequest):
                    continue
                planned = _planned(request, self._planner.checker, warnings, raw.number, self._priority)
                self._index += 1
                if self._index > self._limits.max_lines:
                    message = f"The file makes more than {self._limits.max_lines} jobs."
                    raise SteadyError("too_many_jobs", message, problems=[Problem("too_many_jobs", message)])
                if planned.stem is None and self._base:
                    planned.stem = f"{self._base}_{self._index:0{self._digits}d}"
                yield planned

    def _read(
        self, raw: RawRow
    ) -> tuple[dict[str, Any], Mapping[str, str], tuple[str, ...], bool, list[Problem]]:
        if raw.problem is not None:
            return {}, {}, (), False, [raw.problem]
        if self._header:
            return self._read_cells(raw)
        value, warnings = raw.value, ()
        if is_batch_line(value):
            try:
                value, warnings = batch_line_fields(value)
            except SteadyError as error:
                return {}, {}, (), False, list(error.problems)
        item = _item(value, ())
        return item.values, {}, warnings, item.wild, item.problems

    def _read_cells(
        self, raw: RawRow
    ) -> tuple[dict[str, Any], Mapping[str, str], tuple[str, ...], bool, list[Problem]]:
        cells = raw.cells
        problems: list[Problem] = []
        if len(cells) > len(self._header):
            if any(c.strip() for c in cells[len(self._header) :]):
                message = f"The row has {len(cells)} cells, the header {len(self._header)}."
                problems.append(Problem("bad_csv", message, remedy="Put a text that holds the separator in quotes."))
        else:
            cells = cells + [""] * (len(self._header) - len(cells))
        given: dict[str, Any] = {}
        for cell, name, _ in self._columns:
            if cells[cell]:
                value = value_of_text(name, cells[cell])
                if value is not None:
                    given[name] = value
        if self._extra:
            extra = {name: cells[cell] for cell, name in self._extra if cells[cell]}
            if extra:
                given["metadata"] = extra
        item = _item(given, ()) if "size" in given or "expand" in given else None
        if item is not None:
            return item.values, self._names(cells), (), item.wild, problems + item.problems
        return given, self._names(cells) if "{" in given.get("prompt", "{") or self._named else {}, (), False, problems

    _named = False

    def _names(self, cells: list[str]) -> dict[str, str]:
        return {name: cells[number] for number, name in enumerate(self._header) if name}

    def _refused(self, raw: RawRow, problems: list[Problem]) -> Row:
        if self._header:
            shown_cells = dict(zip(self._header, raw.cells, strict=False))
        else:
            shown_cells = {"prompt": raw.text} if raw.problem else cells_of(raw.value)
        named = {name: header for _, name, header in self._columns}
        located = tuple(
            replace(p, key=named.get(p.key or "", p.key), row=raw.number, line=raw.line + (p.line or 1) - 1)
            for p in problems[:MAX_PROBLEMS]
        )
        return Row(raw.number, raw.line, shown_cells, located)
