"""One template -> one picture or many: seeds, count, placeholders, wildcards, defaults.

The last step of every file format, so a YAML item, a JSON line and a CSV row come out alike.
Knows nothing of lines or files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from watcher.errors import Failure, ValueFault
from watcher.jobfile.expand import (
    MAX_TEXT,
    ExpansionFault,
    Wildcards,
    digest,
    fill,
    length_of,
    placeholders_in,
    seeds_of,
    wild,
)
from watcher.jobfile.fields import TEXTS, Checker, moment_of, normalised
from watcher.jobfile.foreign import Marks
from watcher.jobfile.hints import SPELLINGS, allowed_for, plain_key
from watcher.jobfile.naming import slug
from watcher.jobfile.problems import shown
from watcher.jobfile.sources import Found, Pictures, spread
from watcher.jobs import MAX_COUNT, PICTURE_FIELDS, JobRequest, Priority
from watcher.limits import Card, Limits
from watcher.modelnames import lora_words

_NAMES = frozenset({"name", "folder"})
#: Fields in which ``{a|b}`` is, where wildcards are asked for.
_WILD_TEXTS = ("prompt", "negative_prompt")
_MOST_NAMED = 20_000  #: names of a file that later jobs of it may start from
_NAMED_AFTER = 40  #: characters of a prompt that stand in a name
#: Names that need no declaring.
BUILT_IN = frozenset({"index", "date", "seed", "lora", "model"})


@dataclass(slots=True)
class PlannedJob:
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


@dataclass(slots=True)
class Template:
    """What one item or row says, before expansion: values by field, and what is wrong already.

    ``came_from`` tells by which key each field was said. ``over``: of one that others inherit from,
    the values that go before what they say themselves.
    """

    values: dict[str, Any] = field(default_factory=dict)
    came_from: dict[str, str] = field(default_factory=dict)
    problems: list[ValueFault] = field(default_factory=list)
    wild: bool = False
    warnings: tuple[str, ...] = ()
    over: Mapping[str, Any] = field(default_factory=dict)

    def inherit(self, base: "Template") -> None:
        """Puts what ``base`` says under what this says itself, or over it."""
        self.values = {**base.values, **self.values, **base.over}
        self.wild = self.wild or base.wild


def template_of(raw: Any) -> Template:
    """A mapping of fields (and perhaps ``expand: wildcards``), or a prompt alone."""
    if isinstance(raw, str):
        return Template({"prompt": raw}, {"prompt": "prompt"}, _overlong({"prompt": raw}))
    if not isinstance(raw, dict):
        message = "A job is a mapping with a prompt, or the prompt alone."
        return Template(problems=[ValueFault("bad_shape", message, value=shown(raw))])
    problems: list[ValueFault] = []
    expands = False
    if "expand" in raw:
        raw = dict(raw)
        expands = wants_wildcards(raw.pop("expand"), problems)
    values, came_from, more = normalised(raw)
    return Template(values, came_from, problems + more + _overlong(values), expands)


def wants_wildcards(value: Any, problems: list[ValueFault]) -> bool:
    """Reads ``expand``; adds a problem for anything but ``wildcards`` or nothing."""
    if value is not None and value != "wildcards":
        message = "`expand` must be wildcards."
        problems.append(
            ValueFault(
                "out_of_range", message, key="expand", value=shown(value), allowed="wildcards"
            )
        )
    return bool(value == "wildcards")


def _overlong(values: Mapping[str, Any]) -> list[ValueFault]:
    """Texts no field takes, refused before they are multiplied."""
    found = []
    for key in TEXTS:
        text = values.get(key)
        if isinstance(text, str) and len(text) > MAX_TEXT:
            found.append(
                ValueFault(
                    "out_of_range",
                    f"`{key}` is far too long.",
                    key=key,
                    value=f"{len(text)} characters",
                    allowed=allowed_for(key, Card()),
                )
            )
    return found


class Planner:
    """Turns templates into pictures, for one file.

    ``salt`` (the ticket) and a picture's number decide everything that is drawn (``sample``,
    wildcards, ``{seed}``), so reading a file again gives the same pictures. ``now`` (local time)
    gives ``{date}``. ``wildcards`` looks up a list by name. ``preset`` (:func:`read_preset`) is what
    holds where the file says nothing. ``pictures`` finds what ``image`` and ``mask`` name; without
    it they stay as they are.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        now: datetime | None = None,
        salt: str = "",
        wildcards: Wildcards | None = None,
        preset: Template | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.limits = limits
        self.finder = pictures
        self._named: dict[str, Found] = {}  #: pictures of this file, by the name it gives them
        self._stem: str | None = None  #: of the picture that the one in hand starts from
        self.preset = preset or Template()
        self.salt = salt
        self.marks = Marks()  #: of other programs, in the prompts planned so far
        self.checker = Checker(limits)
        self._date = f"{now or datetime.now():%Y%m%d}"
        self._wildcards = wildcards

    def multiplicity(self, values: Mapping[str, Any]) -> int:
        """How many pictures a template makes; 1 where its count is wrong (found out later).

        Raises ExpansionFault when it lists millions of seeds.
        """
        seeds = seeds_of(values.get("seed"))
        if seeds is not None:
            return length_of(seeds)
        count = values.get("count")
        return count if type(count) is int and 1 <= count <= MAX_COUNT else 1

    def pictures(
        self, template: Template, values: dict[str, Any], names: Mapping[str, str], index: int
    ) -> list[JobRequest] | list[ValueFault]:
        """The pictures of a template, the first of them number ``index`` (from 0) of the file.

        ``values`` are the template's, with its axes' values in place, and are used up;
        ``names`` the declared placeholders.
        """
        if template.problems:
            return self._all_problems(template, values, names, index)
        try:
            seeds = seeds_of(values.get("seed"))
            if seeds is None and values.get("count") is None:
                made = self._one(values, names, index, template.wild)
                return made if isinstance(made, list) else [made]
            return self._several(values, names, index, template.wild, seeds)
        except ExpansionFault as fault:
            words = str(fault)
            message = words[:1].upper() + words[1:] + "."
            return [
                ValueFault("bad_placeholder", message, key="prompt", remedy=fault.remedy or None)
            ]

    def _all_problems(
        self, template: Template, values: dict[str, Any], names: Mapping[str, str], index: int
    ) -> list[ValueFault]:
        """What was wrong with the keys, and what is wrong with the values as well."""
        if not values:
            return template.problems
        sound = Template(values, wild=template.wild)
        more = self.pictures(sound, values, names, index)
        said = {p.key for p in template.problems}
        return template.problems + [
            m for m in more if isinstance(m, ValueFault) and m.key not in said
        ]

    def _several(
        self,
        values: dict[str, Any],
        names: Mapping[str, str],
        index: int,
        wild_texts: bool,
        seeds: Sequence[Any] | None,
    ) -> list[JobRequest] | list[ValueFault]:
        count = self.multiplicity(values)
        if seeds is not None and (why := self._bad_seeds(seeds, values.get("count"))):
            return [why]
        if seeds is None:
            probe = self._one(dict(values), names, index, wild_texts)
            if isinstance(probe, list):
                return probe
            if probe.seed is not None and values.get("seed") is not None:
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

    def _bad_seeds(self, seeds: Sequence[Any], count: Any) -> ValueFault | None:
        most = max(MAX_COUNT, self.limits.max_jobs_per_file)
        if not seeds:
            return ValueFault("bad_placeholder", "`seed` is an empty list.", key="seed")
        if length_of(seeds) > most:
            message = f"`seed` lists more than {most} seeds."
            return ValueFault("out_of_range", message, key="seed", allowed=f"at most {most} seeds")
        if count not in (None, 1):
            message = "`seed` lists several seeds and `count` asks for several pictures."
            return ValueFault(
                "bad_placeholder", message, key="count", remedy="Keep one of the two."
            )
        return None

    def spread(self, template: Template, problems: list[ValueFault]) -> Iterator[dict[str, Any]]:
        """The values of a row, once for each picture that its ``image`` matches."""
        try:
            images = spread(raw := template.values.get("image"), self.finder)
        except Failure as error:
            problems.append(error.as_fault("image", shown(raw)))
            return
        if isinstance(images, list):
            yield from ({**template.values, "image": each} for each in images)
        else:
            yield template.values

    def _start_from(
        self, values: dict[str, Any], names: Mapping[str, str], index: int
    ) -> list[ValueFault]:
        """Find the pictures a job starts from; of what it says, and in which size."""
        faults: list[ValueFault] = []
        sizes: dict[str, tuple[int, int] | None] = {}
        for key in PICTURE_FIELDS:
            name = values.get(key)
            if self.finder is None or type(name) is not str or not (name := name.strip()):
                continue
            try:
                if "{" in name:
                    name = self._filled(key, name, values, names, index)
                found = self._named.get(name) or self.finder.find(name)
            except Failure as error:
                faults.append(error.as_fault(key, shown(name)))
                continue
            values[key], sizes[key] = found.reference, found.size
            if key == "image":
                self._stem = found.stem
            if found.warning:
                self.marks.say(found.warning)
        size = sizes.get("image")
        if size and sizes.get("mask") not in (None, size):
            wide, tall = sizes["mask"] or (0, 0)
            message = f"`mask` is {wide}x{tall}, and `image` {size[0]}x{size[1]}."
            remedy = "Make both of the same size."
            faults.append(ValueFault("bad_picture", message, key="mask", remedy=remedy))
        elif size:
            self._size_of(values, size)
        return faults

    def _size_of(self, values: dict[str, Any], size: tuple[int, int]) -> None:
        """Width and height that are not said, from the picture's: its ratio, within the limits."""
        said = [values.get("width"), values.get("height")]
        if all(said) or not all(side is None or type(side) is int for side in said):
            return
        card = self.limits.card(values)
        if values.get("upscale") is not None and not (values.get("strength") or values.get("mask")):
            card = card.of_tiles
        grow = next((s / own for s, own in zip(said, size, strict=True) if s), 1.0)
        grow = min(grow, card.max_side / max(size))
        near = card.fitted(round(size[0] * grow), round(size[1] * grow))
        values["width"], values["height"] = (s or n for s, n in zip(said, near, strict=True))

    def _one(
        self, values: dict[str, Any], names: Mapping[str, str], index: int, wild_texts: bool
    ) -> JobRequest | list[ValueFault]:
        self._stem = None
        if "count" in values and values["count"] is None:
            del values["count"]
        starts = any(values.get(field) is not None for field in PICTURE_FIELDS)
        if starts and (faults := self._start_from(values, names, index)):
            return faults
        if self.limits.default_name and values.get("name") is None:
            values["name"] = self.limits.default_name
        for key in TEXTS:
            text = values.get(key)
            if type(text) is str and "{" in text:
                values[key] = self._filled(key, text, values, names, index)
        if wild_texts:
            for key in _WILD_TEXTS:
                text = values.get(key)
                if type(text) is str:
                    drawn = digest(self.salt, "wild", key, index, text)
                    values[key] = wild(text, drawn, self._wildcards)
        made = self.checker.check(values)
        return self.remembered(made) if isinstance(made, JobRequest) else made

    def remembered(self, request: JobRequest) -> JobRequest:
        """``request``, whose picture later jobs of the file may start from, by its name."""
        if request.name and len(self._named) < _MOST_NAMED:
            self._named[request.name] = Found(request.name, request.final_size, request.name)
        return request

    def _filled(
        self, key: str, text: str, values: dict[str, Any], names: Mapping[str, str], index: int
    ) -> str:
        used: dict[str, str] = {}
        for name in set(placeholders_in(text)):
            value = self._of_job(name, values) if key in _NAMES else None
            if value is None and name in names:
                value = self._declared(name, values, names[name])
            if value is None:
                value = self._built_in(name, values, index)
            if value is not None:
                used[name] = slug(value) if key in _NAMES else value
        return fill(text, used)

    def _declared(self, name: str, values: dict[str, Any], said: str) -> str | None:
        """What ``said`` by an axis or a column is, unless a field was put over it; None for what is
        built in.
        """
        field = SPELLINGS.get(plain_key(name), plain_key(name))
        if field not in self.preset.over:
            return None if name == "lora" else said  # whose values may be lists
        return None if name in BUILT_IN else str(values[field])

    def _of_job(self, name: str, values: dict[str, Any]) -> str | None:
        """What a field of the job, or the picture it starts from, is called in names."""
        if name == "image":
            return self._stem or (None if self.finder else name)  # of one nobody looks for
        if name not in ("strength", "prompt", "model"):
            return None
        self.limits.fill(values)
        value = values.get(name)
        return f"{value:g}" if isinstance(value, float) else value and str(value)[:_NAMED_AFTER]

    def _built_in(self, name: str, values: dict[str, Any], index: int) -> str | None:
        """``{index}``, ``{index:04}``, ``{date}``, ``{model}``, ``{lora}`` and ``{seed}``; else None.

        A seed that is not given and is wanted in a text is drawn here and now.
        """
        head, _, width = name.partition(":")
        if head not in BUILT_IN or (width and not re.fullmatch("0[1-9]", width)):
            return None
        if head == "date":
            return self._date
        if head == "model":
            return self.limits.card(values).name
        if head == "lora":
            return lora_words(values.get("lora"))
        if head == "seed" and values.get("seed") is None:
            values["seed"] = digest(self.salt, "seed", index, str(values.get("prompt"))) % 2**32
        return str(index + 1 if head == "index" else values["seed"]).zfill(int(width or 0))

    def planned(
        self,
        request: JobRequest,
        row: int,
        priority: Priority,
        warnings: tuple[str, ...] = (),
        *,
        idle: tuple[str, ...] | None = None,
    ) -> PlannedJob:
        """``request`` as a picture to be made; ``priority`` when it names none.

        ``idle``: what :meth:`Checker.idle` says of it, where that is known.
        """
        self.marks.look(request.prompt)
        moment = None if request.not_before is None else moment_of(request.not_before)
        own = priority if request.priority is None else Priority(request.priority)
        if idle is None:
            idle = self.checker.idle(request)
        said = self.checker.unread(request) + idle + warnings
        return PlannedJob(request, request.name, said, row, moment, own)


def keyed_apart(pictures: list[JobRequest], first: int = 1) -> list[JobRequest]:
    """Pictures of one template with a ``key`` get keys of their own: ``k``, ``k/2``, ``k/3``."""
    if len(pictures) + first < 3 or pictures[0].key is None:
        return pictures
    return [
        p if n == 1 else p.model_copy(update={"key": f"{p.key}/{n}"})
        for n, p in enumerate(pictures, first)
    ]
