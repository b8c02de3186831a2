""".yaml and .json: one job, a list, several documents, or a batch with its axes.

A :class:`Sheet` is one document understood: its templates, what they are multiplied with,
and everything wrong with it, each problem with its line; combine.py makes its jobs. Knows
nothing of files or tables.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from watcher.errors import Failure, SteadyError, ValueFault
from watcher.jobfile import strictjson, strictyaml
from watcher.jobfile.expand import (
    ExpansionFault,
    Product,
    length_of,
    placeholders_in,
    seeds_of,
    values_of,
)
from watcher.jobfile.fields import TEXTS, unknown_field
from watcher.jobfile.foreign import is_workflow
from watcher.jobfile.hints import BATCH_KEYS, KNOWN, SPELLINGS, TEXT_FIELDS
from watcher.jobfile.planner import BUILT_IN, Template, template_of, wants_wildcards
from watcher.jobfile.problems import at, pointer, refusal, shown, shown_key
from watcher.jobfile.sources import Pictures, spread
from watcher.jobfile.tables import CALL_IT, looks_like
from watcher.jobs import PICTURE_FIELDS, field_schemas

OnError = Literal["reject", "skip"]
Path = tuple[str | int, ...]

#: A mapping with one of these is a batch.
_MARKS = BATCH_KEYS - {"key", "count", "expand"}
#: Fields whose values are lists, so that an axis of theirs holds lists as well.
_LISTS = frozenset(n for n, said in field_schemas().items() if said["type"] == "array")
#: A YAML comment may follow these: their values hold no ``#``.
_COMMENT_KEYS = (KNOWN - TEXT_FIELDS - {"metadata"}) | {
    *("name", "folder", "not_before", "size", "upscale"),
    *("sample", "expand", "on_error", "resume"),
}
_TEXT_LISTS = ("jobs", "prompt", "negative_prompt", "name", "folder", "label")


@dataclass
class Item:
    """One template of a sheet, where it stands, and where each of its fields was said."""

    path: Path
    raw: Any
    template: Template
    origins: dict[str, Path]
    number: int = 0  #: among those of its sheet, as written

    @classmethod
    def of(cls, raw: Any, path: Path) -> "Item":
        """An item as it stands at ``path`` of the document."""
        template = template_of(raw)
        if isinstance(raw, str):
            return cls(path, raw, template, {})
        return cls(path, raw, template, {f: (*path, k) for f, k in template.came_from.items()})

    def path_of(self, problem: ValueFault) -> Path:
        """Where a problem with one of the item's own keys stands."""
        own = isinstance(self.raw, Mapping) and problem.key in self.raw
        return (*self.path, problem.key) if own and problem.key else self.path

    def inherit(self, base: "Item") -> None:
        """Puts the file's defaults under what the item says itself."""
        self.template.inherit(base.template)
        self.origins = base.origins | self.origins


@dataclass
class Sheet:
    """One document. ``number`` counts documents from 1 and is None when there is only one."""

    place: Callable[[Path], tuple[int, int]]
    number: int | None = None
    batch: bool = False
    items: list[Item] = field(default_factory=list)
    product: Product = field(default_factory=lambda: Product({}, {}))
    axes: dict[str, Path] = field(default_factory=dict)
    sample: int | None = None
    many: bool = False  #: it has an item for each picture that matches a pattern
    key: str | None = None
    resume: bool = False
    on_error: OnError | None = None
    problems: list[ValueFault] = field(default_factory=list)
    chosen: Sequence[int] = ()

    def located(self, problem: ValueFault, path: Path) -> ValueFault:
        """``problem`` with line, column, document and pointer of ``path``."""
        line, column = self.place(path)
        said, document = path[-1] if path else None, self.number
        return at(problem, said, pointer=pointer(path), line=line, column=column, document=document)

    def fault(self, code: str, message: str, path: Path, **more: Any) -> None:
        """Notes something wrong with the sheet itself."""
        key = shown_key(str(path[-1])) if path else None
        self.problems.append(self.located(ValueFault(code, message, key=key, **more), path))

    def matching(self, raw: Any, path: Path, pictures: Pictures | None) -> Any:
        """``raw`` with the names that match for each pattern; a fault at ``path`` for none."""
        try:
            return spread(raw, pictures)
        except Failure as error:
            self.fault(error.code, error.message, path, value=shown(raw), remedy=error.remedy)
            return raw

    def warnings(self) -> list[str]:
        """Names that are declared and not used, and placeholders that look misspelt."""
        if not self.axes:
            return []
        texts = [item.template.values.get(key) for item in self.items for key in TEXTS]
        used = {n for t in texts if isinstance(t, str) for n in placeholders_in(t)}
        said = []
        for name in [n for n in self.axes if n not in used and n not in KNOWN][:10]:
            said.append(f"`{shown_key(name)}` is declared and used in no text.")
        for name in sorted(used - self.axes.keys() - BUILT_IN)[:10]:
            near = difflib.get_close_matches(name, list(self.axes)[:50], n=1, cutoff=0.7)
            if near:
                said.append(
                    f"{{{shown_key(name)}}} is not declared and stays text; is {{{near[0]}}} meant?"
                )
        return said


def read_sheets(text: str, suffix: str, pictures: Pictures | None = None) -> list[Sheet]:
    """The sheets of a file's text. Raises SteadyError for what cannot be read at all."""
    bare = text.rstrip()
    if (fence := _FENCE.match(text)) and bare.endswith("```"):  # a chat's; lines keep their numbers
        text = "\n" + bare[fence.end() : -3]
    kind = looks_like(text.lstrip().partition("\n")[0])
    if suffix == ".json":
        if kind in (".yaml", ".csv"):
            raise SteadyError("bad_json", "The file holds no JSON.", remedy=CALL_IT[kind])
        document = strictjson.JsonDocument(text)
        return [_sheet(document.value, document.place, None, pictures)]
    try:
        documents = strictyaml.read_yaml(
            text, text_keys=TEXT_FIELDS, comment_keys=_COMMENT_KEYS, text_lists=_TEXT_LISTS
        )
    except SteadyError as error:
        if error.code == "bad_yaml" and (slip := _slip(text)):
            raise refusal([slip]) from None
        raise
    if kind == ".csv" and any(isinstance(d.value, str) for d in documents):
        raise SteadyError("bad_shape", "The file holds a table.", remedy=CALL_IT[kind])
    if (slip := _slip(text)) and any(_is_slip(d.value) for d in documents):
        raise refusal([slip])
    filled = [(n, d) for n, d in enumerate(documents, 1) if d.value is not None]
    if not filled:
        raise SteadyError("empty_file")
    several = len(filled) > 1
    return [_sheet(d.value, d.place, n if several else None, pictures) for n, d in filled]


_FENCE = re.compile(r"\s*```[\w-]*[ \t]*\r?\n")
#: A field's name, and behind it something that only looks like a colon and a blank.
_SLIP = re.compile(
    r"^([ \t]*(?:- +)?)([A-Za-z_]+)(\uff1a|:(?=[^\s\x85])|:(?=[\u00a0\u2007\u202f\u3000]))", re.M
)


def _slip(text: str) -> ValueFault | None:
    """The first place where a colon is none or lacks its blank, so that no field is seen."""
    for match in _SLIP.finditer(text):
        name, mark = match[2], match[3]
        if name not in KNOWN and name not in BATCH_KEYS:
            continue
        odd = mark if mark != ":" else text[match.end()]
        line, column = strictjson.line_of(text, match.end() - (mark != ":"))
        which = f"`{odd}` (U+{ord(odd):04X})" if not odd.isascii() else f"`{odd}`"
        what = "instead of a colon" if mark != ":" else "instead of a blank after the colon"
        message = f"{which} stands behind `{name}` {what} (column {column})."
        remedy = f"Write `{name}: ` with an ordinary colon and blank."
        return ValueFault("bad_yaml", message, key=name, line=line, column=column, remedy=remedy)
    return None


def _is_slip(value: Any) -> bool:
    """Was such a place read as a text, alone or in a list?"""
    items = value if isinstance(value, list) else [value]
    if isinstance(value, Mapping) and isinstance(value.get("jobs"), list):
        items = value["jobs"]
    return any(isinstance(item, str) and _slip(item) for item in items)


def _sheet(
    value: Any,
    place: Callable[[Path], tuple[int, int]],
    number: int | None,
    pictures: Pictures | None,
) -> Sheet:
    sheet = Sheet(place, number)
    if isinstance(value, Mapping) and is_workflow(value):
        instead = "Write the prompt, size, steps and seed you want as a job of ours."
        sheet.fault("bad_shape", "This is a ComfyUI workflow, not a job.", (), remedy=instead)
    elif isinstance(value, list):
        sheet.items = _items(value, ())
    elif isinstance(value, Mapping) and (_MARKS & value.keys()):
        _read_batch(sheet, value, pictures)
    elif isinstance(value, Mapping):
        sheet.items = [Item.of(value, ())]
        key = value.get("key")
        sheet.key = (key.strip() or None) if isinstance(key, str) else None  # as the field is read
    else:
        remedy = "Write `prompt:` before the text." if isinstance(value, str) else None
        sheet.fault("bad_shape", "The file holds no mapping and no list.", (), remedy=remedy)
    return sheet


def _items(raws: Sequence[Any], path: Path) -> list[Item]:
    items = [Item.of(raw, (*path, number)) for number, raw in enumerate(raws)]
    for number, item in enumerate(items):
        item.number = number
    return items


# -- a batch


def _read_batch(sheet: Sheet, value: Mapping[str, Any], pictures: Pictures | None) -> None:
    sheet.batch = True
    base = _read_defaults(sheet, value)
    rest = {key: v for key, v in value.items() if key not in BATCH_KEYS}
    jobs = value.get("jobs")
    if "jobs" not in value:
        sheet.items = [Item.of(rest, ())]
    else:
        for key in list(rest)[:10]:
            problem = unknown_field(key, rest[key])
            if key in KNOWN:
                problem = replace(
                    problem,
                    message=f"`{shown_key(key)}` has no place beside `jobs`.",
                    remedy="Put it under `defaults`.",
                )
            sheet.problems.append(sheet.located(problem, (key,)))
        if isinstance(jobs, list) and jobs:
            sheet.items = _items(jobs, ("jobs",))
        else:
            code = "wrong_type" if jobs else "bad_shape"
            message = "`jobs` must be a list of jobs." if jobs else "`jobs` is empty."
            sheet.fault(code, message, ("jobs",), value=shown(jobs), allowed="list of jobs")
    for item in sheet.items:
        item.inherit(base)
    _read_axes(sheet, value, pictures)
    _read_settings(sheet, value)


def _read_defaults(sheet: Sheet, value: Mapping[str, Any]) -> Item:
    """What holds for every job of the batch: ``defaults``, ``expand`` and ``count``."""
    defaults = value.get("defaults")
    if defaults is not None and not isinstance(defaults, Mapping):
        message = "`defaults` must be a mapping of fields."
        sheet.fault("wrong_type", message, ("defaults",), value=shown(defaults))
        defaults = None
    base = Item.of(defaults or {}, ("defaults",))
    sheet.problems += [sheet.located(p, base.path_of(p)) for p in base.template.problems]
    if base.template.values.get("key") is not None:
        message = "A `key` under `defaults` would be the same for every job."
        remedy = "Write it beside `jobs`, for the whole file."
        sheet.fault("bad_placeholder", message, ("defaults", "key"), remedy=remedy)
    wild: list[ValueFault] = []
    base.template.wild |= wants_wildcards(value.get("expand"), wild)
    sheet.problems += [sheet.located(p, ("expand",)) for p in wild]
    if value.get("count") is not None:
        base.template.values["count"], base.origins["count"] = value["count"], ("count",)
    return base


def _read_settings(sheet: Sheet, value: Mapping[str, Any]) -> None:
    sample, key, resume, on_error = (value.get(k) for k in ("sample", "key", "resume", "on_error"))
    if type(sample) is int and sample >= 1:
        sheet.sample = sample
    elif sample is not None:
        allowed = "whole number, at least 1"
        message = f"`sample` must be a {allowed}."
        sheet.fault("wrong_type", message, ("sample",), value=shown(sample), allowed=allowed)
    if isinstance(key, str) and 0 < len(key.strip()) <= 200 and key.isprintable():
        sheet.key = key.strip()
    elif key is not None:
        allowed = "text of 1 to 200 characters"
        message = f"`key` must be {allowed}."
        sheet.fault("wrong_type", message, ("key",), value=shown(key), allowed=allowed)
    if resume is not None and not isinstance(resume, bool):
        message = "`resume` must be true or false."
        sheet.fault("wrong_type", message, ("resume",), value=shown(resume), allowed="true, false")
    sheet.resume = resume is True
    if on_error == "reject" or on_error == "skip":
        sheet.on_error = on_error
    elif on_error is not None:
        message = "`on_error` must be reject or skip."
        sheet.fault(
            "out_of_range", message, ("on_error",), value=shown(on_error), allowed="reject, skip"
        )


def _read_axes(sheet: Sheet, value: Mapping[str, Any], pictures: Pictures | None) -> None:
    axes: dict[str, dict[str, Sequence[Any]]] = {"matrix": {}, "zip": {}}
    for kind, read_axes in axes.items():
        raw = value.get(kind)
        if isinstance(raw, Mapping):
            for name, values in raw.items():
                path = (kind, name)
                if SPELLINGS.get(name, name) in PICTURE_FIELDS:
                    values = sheet.matching(values, path, pictures)
                elif name == "seed":
                    values = _axis_of_seeds(values)
                code, why = _bad_axis(name, values, name in sheet.axes)
                if why:
                    shown_values = shown(values) if code != "duplicate_key" else None
                    message = f"`{shown_key(name)}` under `{kind}` {why}."
                    sheet.fault(code, message, path, value=shown_values)
                else:
                    read_axes[name] = values_of(values)
                    sheet.axes[name] = path
        elif raw is not None:
            message = f"`{kind}` must be a mapping of names to lists."
            sheet.fault("wrong_type", message, (kind,), value=shown(raw))
    lengths = {name: length_of(values) for name, values in axes["zip"].items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(
            f"`{shown_key(n)}` has {length}" for n, length in list(lengths.items())[:8]
        )
        message = f"The lists under `zip` differ in length: {said}."
        sheet.fault("bad_placeholder", message, ("zip",), remedy="Give them the same length.")
        axes["zip"] = {}
    sheet.product = Product(axes["matrix"], axes["zip"])


def _axis_of_seeds(values: Any) -> Any:
    """``values`` with every seed of the ranges in it, so that they are counted. SteadyError."""
    try:
        return seeds_of(values) or values
    except ExpansionFault as fault:
        raise SteadyError("too_many_jobs", f"{fault}") from None


def _bad_axis(name: str, values: Any, known: bool) -> tuple[str, str]:
    """A code and why an axis cannot be used; two empty texts when it can."""
    if (
        name in BATCH_KEYS
        or name in ("index", "date")
        or not re.fullmatch(r"[^{}|:\s]{1,80}", name)
    ):
        return "bad_placeholder", "cannot be a name"
    if known:
        return "duplicate_key", "stands under `matrix` as well"
    if values is None or length_of(several := values_of(values)) == 0:
        return "bad_placeholder", "has no values"
    if isinstance(several, range):
        return "", ""
    lists = SPELLINGS.get(name, name) in _LISTS
    if not lists and any(isinstance(v, list | dict) for v in several):
        return "wrong_type", "must list plain values"
    return "", ""
