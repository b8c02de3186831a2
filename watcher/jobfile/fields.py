"""What one job may say: the single validator behind every door (:class:`Checker`).

A mapping of fields (from a file, an HTTP body, a command line or a table's row) becomes a
:class:`JobRequest` or a list of :class:`ValueFault`, each with the key, the allowed range, the
offending value apart from the message, and the nearest right name.

Text is data: braces, mark-up and special tokens such as ``<|im_end|>`` are left as they are.
Only line ends are made alike, outer blanks removed, and control characters refused.
Knows nothing of files, batches or lines.
"""

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Any

from pydantic import ValidationError

from watcher.addresses import not_allowed
from watcher.errors import SteadyError, ValueFault, did_you_mean
from watcher.jobfile.hints import (
    MAX_METADATA,
    MAX_METADATA_TEXT,
    SPELLINGS,
    TEXT_FIELDS,
    WHOLE,
    advice_for,
    allowed_for,
)
from watcher.jobfile.naming import MAX_SEGMENTS, bad_folder, bad_name, slug
from watcher.jobfile.problems import shown, shown_key
from watcher.jobfile.strictjson import Number
from watcher.jobfile.wording import control_character, translated, wrong
from watcher.jobs import (
    MAX_PROMPT,
    MAX_SEED,
    PICTURE_FIELDS,
    JobRequest,
    derived_seed,
)
from watcher.limits import Card, Limits
from watcher.modelnames import lora_words
from watcher.models.tokens import cut_of, unknown_words
from watcher.upscaling import LANCZOS, MAX_LARGE_SIDE, MULTIPLE, REFINE

_FIELDS = frozenset(JobRequest.model_fields)
_TIDIED = _FIELDS & TEXT_FIELDS
#: In these ``{name}`` is replaced.
TEXTS = ("prompt", "negative_prompt", "name", "folder", "label")
#: What a job that uses one of these asks of its model.
NEEDED = (*PICTURE_FIELDS, "lora", "upscale")
#: What says how a picture is started from.
_OF_IMAGE = ("strength", "resize", "mask_blur", "mask_invert", "mask_only", "mask_padding")
_MOST_UNKNOWN = 10  #: unknown keys named in one mapping

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ODD_BREAKS = re.compile("\r\n?")
_OUTER = " \t\n"  #: what is taken off the ends of a text; all other blanks are the person's
_POINT_NOUGHT = re.compile(r"(-?\d{1,30})\.0{1,9}", re.ASCII)
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*", re.ASCII)


def normalised(raw: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, str], list[ValueFault]]:
    """Accepted spellings (``steps``, ``size: 1024x768``) brought to field names.

    Returns the values by field name, which key of ``raw`` each came from, and what is wrong
    with the keys (unknown ones, a thing said twice). Values are not looked at but for ``size``.
    """
    raw = {key: _whole_number(value) if key in WHOLE else value for key, value in raw.items()}
    if raw.keys() <= _FIELDS:  # as in most of a million lines
        return raw, dict(zip(raw, raw, strict=True)), []
    values: dict[str, Any] = {}
    came_from: dict[str, str] = {}
    problems: list[ValueFault] = []
    unknown = 0

    def put(field: str, value: Any, key: str) -> None:
        if values.get(field) is None:
            values[field], came_from[field] = value, key
        elif value is not None:
            message = f"`{key}` and `{came_from[field]}` both say the {field}."
            problems.append(
                ValueFault("duplicate_key", message, key=key, remedy="Keep one of the two.")
            )

    for key, value in raw.items():
        if key in _FIELDS:
            put(key, value, key)
        elif key in SPELLINGS:
            put(SPELLINGS[key], value, key)
        elif key == "size" and (size := _size_word(value)):
            put("width", size[0], key)
            put("height", size[1], key)
        elif key == "size":
            problems.append(
                ValueFault(
                    "wrong_type",
                    "`size` must be WIDTHxHEIGHT.",
                    key="size",
                    value=shown(value),
                    allowed="WIDTHxHEIGHT, e.g. 1024x768 (width first)",
                    remedy="Write e.g. `size: 1024x768`, width first.",
                )
            )
        else:
            unknown += 1
            if unknown <= _MOST_UNKNOWN:
                problems.append(unknown_field(str(key), value))
    return values, came_from, problems


def _whole_number(value: Any) -> Any:
    """``512.0`` as 512, also in a list; everything else as it is."""
    if isinstance(value, Number) and (match := _POINT_NOUGHT.fullmatch(value.source)):
        return int(match[1])
    return [_whole_number(item) for item in value] if isinstance(value, list) else value


def unknown_field(key: str, value: Any) -> ValueFault:
    """The problem of a key nobody knows, with the nearest right name."""
    name = shown_key(key)
    message, remedy = f"`{name}` is not known.", advice_for(key)
    return ValueFault("unknown_field", message, key=name, value=shown(value), remedy=remedy)


def _size_word(value: Any) -> tuple[int | None, int | None] | None:
    if value is None:
        return None, None
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else None


class Checker:
    """Turns values by field name into requests, each judged by its model."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def check(self, values: dict[str, Any]) -> JobRequest | list[ValueFault]:
        """The request, or everything that is wrong with it.

        In ``values`` texts may be tidied and what was left open be filled in.
        """
        card = self.limits.fill(values)
        problems = self._tidied(values, card)
        made = self._validated(values, card)
        if isinstance(made, JobRequest):
            problems += self._beyond_types(made, card)
            return problems or (self._with_loras(made, card) if made.lora else made)
        said = {p.key for p in problems}
        return problems + [p for p in made if p.key not in said]

    def _tidied(self, values: dict[str, Any], card: Card) -> list[ValueFault]:
        """Outer blanks and odd line ends go, an empty text is unset; control characters are refused.

        What is refused is replaced, so that the rest can still be looked at.
        """
        problems: list[ValueFault] = []
        for field, text in values.items():
            if type(text) in (list, dict) and field != "metadata":
                if fault := _control_within(field, text):
                    problems.append(fault)
                    values[field] = None
                continue
            if type(text) is not str or field not in _TIDIED:
                continue
            if not text.isprintable():
                if found := _CONTROL.search(text):
                    problems.append(control_character(field, text, found.start()))
                    values[field] = "x"
                    continue
                text = _ODD_BREAKS.sub("\n", text)
            if len(text) <= MAX_PROMPT:  # blanks count as well, as every description of ours says
                text = text.strip(_OUTER) if not text.isspace() else ""
            if field in ("name", "folder"):
                text = unicodedata.normalize("NFC", text)
            values[field] = text or None
        if values.get("prompt") is None:
            message = "`prompt` is empty." if "prompt" in values else "`prompt` is missing."
            allowed, remedy = allowed_for("prompt", card), "Write what the picture should show."
            problems.append(
                ValueFault("missing_field", message, key="prompt", allowed=allowed, remedy=remedy)
            )
            values["prompt"] = "x"
        if isinstance(metadata := values.get("metadata"), dict) and (why := bad_metadata(metadata)):
            problems.append(wrong("wrong_type", f"`metadata` {why}.", "metadata", metadata, card))
            values["metadata"] = None
        return problems

    def _validated(self, values: dict[str, Any], card: Card) -> JobRequest | list[ValueFault]:
        try:
            return JobRequest.model_validate(values)
        except ValidationError as error:
            seen: dict[str | None, ValueFault] = {}
            for each in error.errors(include_url=False):
                problem = translated(each, card)
                seen.setdefault(problem.key, problem)
            return list(seen.values())

    def _beyond_types(self, request: JobRequest, card: Card) -> list[ValueFault]:
        """What pydantic cannot know: the model's sizes, names, dates."""
        problems: list[ValueFault] = []
        if request.model is not None and self.limits.named(request.model) is None:
            return [unknown_model(request.model, self.limits.names)]
        for feature in NEEDED:
            if getattr(request, feature, None) and not card.takes(feature):
                message = f"The model `{card.name}` does not take `{feature}`."
                problems.append(ValueFault(
                    "not_accepted", message, key=feature,
                    remedy="Remove it, or name another `model`: `steady model list`.",
                ))  # fmt: skip
        if request.mask is not None and request.image is None:
            remedy = "Name the picture it belongs to as `image`."
            words = "`mask` needs an `image`."
            problems.append(ValueFault("missing_field", words, key="mask", remedy=remedy))
        problems += _upscale_problems(request, card, self.limits)
        card = card.of_tiles if request.only_enlarged else card
        problems += _size_problems(request.width or 0, request.height or 0, card)
        if request.seed is not None and request.seed > MAX_SEED - request.count + 1:
            message = "`seed` plus `count` goes beyond the largest seed."
            problems.append(wrong("out_of_range", message, "seed", request.seed, card))
        if request.name is not None and (why := bad_name(request.name)):
            problems.append(_bad_name("name", request.name, why, card))
        if request.folder is not None and (why := bad_folder(request.folder)):
            problems.append(_bad_name("folder", request.folder, why, card))
        if request.not_before is not None and moment_of(request.not_before) is None:
            message, remedy = (
                "`not_before` is no date and time.",
                "Write e.g. `not_before: 2026-11-23T22:00`.",
            )
            problems.append(
                wrong("wrong_type", message, "not_before", request.not_before, card, remedy)
            )
        if request.webhook is not None:
            problems += _bad_webhook(request.webhook, self.limits)
        return problems

    def _with_loras(self, request: JobRequest, card: Card) -> JobRequest | list[ValueFault]:
        """The request with LoRAs that are there and fit, each by the digest of its file."""
        try:
            settled = self.limits.loras(request.lora or [], card)
        except SteadyError as error:
            return [error.as_fault("lora", shown(lora_words(request.lora)))]
        return request.model_copy(update={"lora": settled})

    def unread(self, request: JobRequest) -> tuple[str, ...]:
        """What of the prompt the job's model does not read."""
        folder, prompt = self.limits.card(request.__dict__).folder, request.prompt
        return tuple(w for w in (cut_of(folder, prompt), unknown_words(folder, prompt)) if w)

    def idle(self, request: JobRequest) -> tuple[str, ...]:
        """What is asked for and has no effect on the job's model, or has to wait for it."""
        card = self.limits.card(request.__dict__)
        found: list[str] = []
        if request.model is not None and card.absent is not None:
            found.append(f"The model `{card.name}` is NOT READY, so the job waits. {card.absent}")
        if request.guidance_scale and not card.takes("guidance"):
            found.append("`guidance_scale` has no effect on this model.")
        if request.negative_prompt and not card.takes("negative_prompt"):
            found.append("`negative_prompt` has no effect on this model.")
        if request.image is None:
            values = request.__dict__
            idle = [f"`{name}`" for name in _OF_IMAGE if values[name] is not None]
            if idle:
                found.append(f"{', '.join(idle)}: no effect without `image`.")
        return tuple(found)


def _upscale_problems(request: JobRequest, card: Card, limits: Limits) -> list[ValueFault]:
    """What of `upscale` the model or the largest size forbids, or has no file."""
    if request.upscale is None:
        return []
    allowed = allowed_for("upscale", card)
    try:
        if (method := request.upscale.get("method", LANCZOS)) not in (LANCZOS, REFINE):
            limits.upscaler(method)
    except SteadyError as error:
        return [error.as_fault("upscale")]
    if request.upscale.get("method") == REFINE and not card.takes("image"):
        message = f"`upscale`: the model `{card.name}` cannot redraw a picture."
        remedy = "Write e.g. `upscale: 2 lanczos`."
        fault = ValueFault("not_accepted", message, key="upscale", allowed=allowed, remedy=remedy)
    elif max(request.final_size) > MAX_LARGE_SIDE:
        width, height = request.final_size
        message = f"`upscale` makes a picture of {width}x{height}."
        fault = ValueFault("out_of_range", message, key="upscale", allowed=allowed)
    else:
        return []
    return [fault]


def unknown_model(name: str, names: list[str]) -> ValueFault:
    """The problem of a model that nobody knows, with the nearest right name."""
    known = ", ".join(names)
    return ValueFault(
        "model_not_found",
        "`model` is no name that is known here.",
        key="model",
        value=shown(name),
        allowed=known,
        remedy=did_you_mean(name, names, f"Take one of: {known}."),
    )


def _size_problems(width: int, height: int, card: Card) -> list[ValueFault]:
    problems = []
    for key, side in (("width", width), ("height", height)):
        if not card.min_side <= side <= card.max_side:
            code, remedy = "out_of_range", None
            message = f"`{key}` must be {card.min_side}..{card.max_side}."
        elif side % MULTIPLE:
            code = "size_not_multiple_of_16"
            message = f"`{key}` must be a multiple of {MULTIPLE}."
            below = side // MULTIPLE * MULTIPLE
            near = [s for s in (below, below + MULTIPLE) if card.min_side <= s <= card.max_side]
            remedy = f"Take {' or '.join(map(str, near))}."
        else:
            continue
        problems.append(wrong(code, message, key, side, card, remedy))
    if not problems and width * height > card.max_pixels:
        fits = card.fitted(width, height)
        problems.append(
            ValueFault(
                "out_of_range",
                f"Width times height must be at most {card.max_pixels} pixels.",
                key="width",
                value=f"{width}x{height}",
                allowed=allowed_for("size", card),
                remedy=f"Take e.g. {fits[0]}x{fits[1]}.",
            )
        )
    return problems


def _bad_webhook(url: str, limits: Limits) -> list[ValueFault]:
    reason = not_allowed(url, limits.webhook_hosts)
    if reason is None:
        return []
    remedy = "The operator of the service lists the hosts that may be named: `webhook_hosts`."
    message = f"`webhook` {reason}"
    return [ValueFault("out_of_range", message, key="webhook", remedy=remedy)]


def _bad_name(key: str, text: str, why: str, card: Card) -> ValueFault:
    parts = [slug(p) for p in (text.split("/") if key == "folder" else [text])]
    better = "/".join([p for p in parts if p][:MAX_SEGMENTS])
    remedy = f"Write e.g. `{key}: {better}`." if better and better != text else None
    return wrong("bad_name", f"`{key}` {why}.", key, text, card, remedy)


def _control_within(field: str, value: list[Any] | dict[Any, Any]) -> ValueFault | None:
    """The first control character in the texts of a list or a mapping."""
    for text in value if isinstance(value, list) else (*value, *value.values()):
        if isinstance(text, str) and (found := _CONTROL.search(text)):
            return control_character(field, text, found.start())
    return None


def bad_metadata(metadata: Mapping[Any, Any]) -> str:
    """Why ``metadata`` is refused; empty when it is fine. Types are also pydantic's matter."""
    if len(metadata) > MAX_METADATA:
        return f"has more than {MAX_METADATA} names"
    length = 0
    for name, value in metadata.items():
        if not isinstance(value, str | int | float | None):
            return "holds something other than text, number, true/false or null"
        if isinstance(value, int | float) and (abs(value) > MAX_SEED or not isfinite(value)):
            return "holds a number that is too large"
        for text in (name, value):
            if isinstance(text, str):
                length += len(text)
                if _CONTROL.search(text):
                    return "holds a control character"
    return f"is longer than {MAX_METADATA_TEXT} characters" if length > MAX_METADATA_TEXT else ""


# -- times


def moment_of(text: str) -> int | None:
    """An ISO 8601 date and time as microseconds since 1970 UTC; local when it names no zone.

    A local time that the clock leaps over in spring is the one as long after the leap.
    """
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


def seeded(request: JobRequest, job_id: str) -> JobRequest:
    """``request`` with a seed: its own, or the one of ``job_id``, so asking again gives the same."""
    if request.seed is not None:
        return request
    return request.but({"seed": derived_seed(job_id)})
