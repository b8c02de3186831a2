"""What one job may say: the single validator behind every door.

A mapping of fields (from a file, an HTTP body, a command line or a table's row) becomes a
:class:`JobRequest` or a list of :class:`Problem`, each with the key, the allowed range, the
offending value apart from the message, and the nearest right name, also for what other
programs call a thing.

Text is data: braces, special tokens such as ``<|im_end|>`` and mark-up are left as they are.
Only line ends are made alike, outer blanks removed, and control characters refused.
Knows nothing of files, batches or lines.
"""

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from math import isfinite
from typing import Any

from pydantic import ValidationError

from watcher.errors import Problem, SteadyError
from watcher.jobs import (
    MAX_COUNT,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    JobRequest,
    Limits,
    derived_seed,
)

FIELDS: tuple[str, ...] = tuple(JobRequest.model_fields)
MULTIPLE = 16  #: pixels; what sides must be multiples of
MAX_NAME = 80  #: characters of a name or a folder's segment
MAX_NAME_BYTES = 200  #: the same in UTF-8, so that suffixes still fit into 255
MAX_SEGMENTS = 3
MAX_METADATA = 50  #: keys
MAX_METADATA_TEXT = 4000  #: characters of all keys and values together

#: Keys whose value is free text or read from text: an unquoted YAML value stays text.
TEXT_FIELDS = frozenset(
    {"prompt", "negative_prompt", "name", "folder", "label", "key", "not_before", "size"}
)

_WHOLE = frozenset({"width", "height", "num_inference_steps", "seed", "count"})

#: What other programs and people call our fields.
_ALSO_CALLED = {
    "prompt": "text description caption positive positive_prompt prompts input content",
    "negative_prompt": "negative neg neg_prompt negativeprompt uc undesired negative_text",
    "num_inference_steps": "num_steps step sampling_steps inference_steps n_steps iterations",
    "guidance_scale": "cfg cfg_scale guidance scale cfgscale guidance_rescale distilled_cfg",
    "count": "n batch_size n_iter num_images num_images_per_prompt images batch_count batch "
    "samples num_samples runs repeat repeats times copies num_outputs amount number",
    "size": "resolution dimensions image_size dims wxh output_size",
    "width": "w image_width x",
    "height": "h image_height y",
    "seed": "noise_seed random_seed seeds rng_seed",
    "name": "filename file_name output output_name outfile out image_name save_as title",
    "folder": "output_dir dir directory out_dir outdir path subfolder output_folder album",
    "format": "output_format ext extension file_format image_format type filetype suffix",
    "priority": "prio urgency order",
    "not_before": "schedule run_at at start start_at delay after when scheduled_at",
    "label": "id custom_id tag tags row_id ref reference",
    "metadata": "meta extra extras user info data",
    "key": "idempotency_key idempotencykey request_id unique_id",
}
_NAMES_FOR = {also: ours for ours, names in _ALSO_CALLED.items() for also in names.split()}
#: What others have and we have not, with the reason.
_NOT_HERE = {
    "sampler sampler_name sampler_index scheduler scheduler_type sampling_method": (
        "The model comes with one sampler and one schedule; remove it."
    ),
    "aspect_ratio aspect ar ratio": "Give `width` and `height`, or `size: 1024x768`.",
    "model checkpoint sd_model_checkpoint model_name ckpt base_model": (
        "The model is chosen in config.yaml (`model`), not by a job; remove it."
    ),
    "lora loras adapter": "LoRAs are not supported; remove it.",
    "image init_image init_images image_url mask strength denoising_strength denoise": (
        "Pictures are made from text alone; remove it."
    ),
    "webhook callback callback_url webhook_url notify": (
        "Jobs name no addresses; use `on_batch_done` in config.yaml, or follow /events."
    ),
    "quality hd style response_format user background moderation": (
        "Only the OpenAI door (/v1) takes it; remove it."
    ),
    "clip_skip vae eta tiling restore_faces enable_hr hires_fix upscale upscaler": (
        "This model has no such thing; remove it."
    ),
}
_REASONS = {name: why for names, why in _NOT_HERE.items() for name in names.split()}

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ODD_BREAKS = re.compile("\r\n?|[\x0b\x0c]")
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.I)
_PICTURE = re.compile(r"\.(png|jpe?g|webp)$", re.I)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 78
_short.maxdict = _short.maxlist = 4
_short.maxlevel = 3


def shown(value: Any) -> str:
    """A value for ``Problem.value``: at most 80 characters, without control characters."""
    text = _short.repr(value)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 80 else text[:77] + "..."


def shown_key(key: str) -> str:
    """A key for messages and pointers: at most 60 characters, printable."""
    text = key[:60]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=512)
def advice_for(key: str, extra: tuple[str, ...] = ()) -> str:
    """What to write instead of an unknown ``key``; ``extra`` names are known here as well."""
    plain = re.sub(r"[\s-]+", "_", key[:60].strip()).lower()
    if plain in FIELDS or plain in extra or plain in ("steps", "size"):
        return f"Write `{plain}`."
    if plain in _NAMES_FOR:
        ours = _NAMES_FOR[plain]
        return f"Here it is called `{ours}`" + (", e.g. `size: 1024x768`." if ours == "size" else ".")
    if plain in _REASONS:
        return _REASONS[plain]
    known = [*FIELDS, "steps", "size", *extra]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    return f"Did you mean `{near[0]}`?" if near else "Remove it; known are " + ", ".join(known) + "."


def allowed_for(field: str, limits: Limits) -> str:
    """The allowed range of ``field`` in words."""
    sides = f"{limits.min_side}..{limits.max_side} in steps of {MULTIPLE}"
    return {
        "prompt": f"text of 1 to {MAX_PROMPT} characters",
        "negative_prompt": f"text of at most {MAX_PROMPT} characters",
        "width": sides,
        "height": sides,
        "size": f"WIDTHxHEIGHT, each {sides}, at most {limits.max_pixels} pixels",
        "num_inference_steps": f"whole number, 1..{MAX_STEPS}",
        "guidance_scale": "number, 0..30",
        "seed": f"whole number, 0..{MAX_SEED}",
        "count": f"whole number, 1..{MAX_COUNT}",
        "name": f"letters, digits, `.`, `_`, `-`, at most {MAX_NAME}",
        "folder": f"1 to {MAX_SEGMENTS} names with `/` between them",
        "format": "png, webp, jpeg",
        "priority": "interactive, normal, bulk",
        "not_before": "date and time, e.g. 2026-11-23T22:00 or 2026-11-23T22:00+01:00",
        "label": "text of at most 500 characters",
        "key": "text of 1 to 200 characters",
        "metadata": f"mapping of at most {MAX_METADATA} names to text, numbers, true/false or null, "
        f"{MAX_METADATA_TEXT} characters in all",
    }[field]


def normalised(raw: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, str], list[Problem]]:
    """Accepted spellings brought to field names.

    Returns the values by field name, which key of ``raw`` each came from, and what is wrong
    with the keys (unknown ones, a thing said twice). Values are not looked at but for ``size``.
    """
    values: dict[str, Any] = {}
    came_from: dict[str, str] = {}
    problems: list[Problem] = []

    def put(field: str, value: Any, key: str) -> None:
        if field in values and values[field] is not None and value is not None:
            message = f"`{key}` and `{came_from[field]}` both say the {field}."
            problems.append(Problem("duplicate_key", message, key=key, remedy="Keep one of the two."))
        elif field not in values or values[field] is None:
            values[field], came_from[field] = value, key

    for key, value in raw.items():
        if key in JobRequest.model_fields:
            put(key, value, key)
        elif key == "steps":
            put("num_inference_steps", value, key)
        elif key == "size":
            size = (None, None) if value is None else _size(value)
            if size is None:
                problems.append(
                    Problem(
                        "wrong_type",
                        "`size` must be WIDTHxHEIGHT.",
                        key="size",
                        value=shown(value),
                        allowed="WIDTHxHEIGHT, e.g. 1024x768 (width first)",
                        remedy="Write e.g. `size: 1024x768`, width first.",
                    )
                )
            else:
                put("width", size[0], key)
                put("height", size[1], key)
        else:
            name = shown_key(str(key))
            advice = advice_for(str(key)[:60])
            message = f"`{name}` is not known."
            problems.append(Problem("unknown_field", message, key=name, remedy=advice))
            if len(problems) >= 50:
                break
    return values, came_from, problems


def _size(value: Any) -> tuple[int, int] | None:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else None


class Checker:
    """Turns normalised values into requests for one set of limits; remembers sizes it has passed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._good_sizes: set[tuple[int, int]] = set()
        self._quiet = limits.guidance and limits.negative_prompt

    def check(self, values: dict[str, Any]) -> JobRequest | list[Problem]:
        """The request, or everything that is wrong. ``values`` are by field name and may be changed."""
        prompt = values.get("prompt")
        if type(prompt) is str and len(values) == 1 and not _CONTROL.search(prompt):
            stripped = prompt.strip()
            if stripped and "\r" not in stripped:
                values["prompt"] = stripped
                return self._validated(values)
        problems = self._cleaned(values)
        if not problems:
            made = self._validated(values)
            if isinstance(made, JobRequest):
                problems = self._beyond_types(made)
                if not problems:
                    return made
            else:
                problems = made
        return problems

    def _validated(self, values: dict[str, Any]) -> JobRequest | list[Problem]:
        try:
            return JobRequest.model_validate(values)
        except ValidationError as error:
            return [self._translated(e) for e in error.errors(include_url=False)]

    def _cleaned(self, values: dict[str, Any]) -> list[Problem]:
        """Texts tidied in place; refuses empty prompts and control characters."""
        problems: list[Problem] = []
        for field in ("prompt", "negative_prompt", "label", "name", "folder", "key", "not_before"):
            text = values.get(field)
            if type(text) is not str:
                continue
            if found := _CONTROL.search(text):
                problems.append(_control(field, text, found.start()))
                continue
            values[field] = _ODD_BREAKS.sub("\n", text).strip()
        if values.get("prompt") is None or values["prompt"] == "":
            problems.append(
                Problem(
                    "missing_field",
                    "`prompt` is missing." if "prompt" not in values else "`prompt` is empty.",
                    key="prompt",
                    allowed=allowed_for("prompt", self.limits),
                    remedy="Write what the picture should show.",
                )
            )
            values["prompt"] = "-"  # so that the rest can still be looked at
        if isinstance(values.get("metadata"), Mapping):
            problems += self._metadata(values["metadata"])
        if problems:
            rest = self._validated(values)
            if isinstance(rest, list):
                said = {p.key for p in problems}
                problems += [p for p in rest if p.key not in said]
            else:
                problems += self._beyond_types(rest)
        return problems

    def _metadata(self, metadata: Mapping[Any, Any]) -> list[Problem]:
        def problem(message: str, code: str = "wrong_type") -> list[Problem]:
            return [
                Problem(
                    code,
                    message,
                    key="metadata",
                    value=shown(metadata),
                    allowed=allowed_for("metadata", self.limits),
                )
            ]

        if len(metadata) > MAX_METADATA:
            return problem(f"`metadata` has {len(metadata)} names.", "out_of_range")
        length = 0
        for name, value in metadata.items():
            if isinstance(value, float) and not isfinite(value):
                return problem("`metadata` holds a number that is not finite.")
            if not isinstance(value, str | int | float | None):
                return problem("`metadata` holds something other than text, number, true/false or null.")
            if isinstance(value, int) and abs(value) > MAX_SEED:
                return problem("`metadata` holds a number that is too large.", "out_of_range")
            for text in (name, value):
                if isinstance(text, str):
                    length += len(text)
                    if _CONTROL.search(text):
                        return problem("`metadata` holds a control character.")
        if length > MAX_METADATA_TEXT:
            return problem(f"`metadata` is {length} characters long.", "out_of_range")
        return []

    def _beyond_types(self, request: JobRequest) -> list[Problem]:
        """What pydantic cannot know: the model's sizes, names, dates."""
        limits = self.limits
        width = limits.default_width if request.width is None else request.width
        height = limits.default_height if request.height is None else request.height
        problems: list[Problem] = []
        if (width, height) not in self._good_sizes:
            problems = self._size_problems(width, height)
            if not problems and len(self._good_sizes) < 10_000:
                self._good_sizes.add((width, height))
        if request.seed is not None and request.seed + request.count - 1 > MAX_SEED:
            message = "`seed` plus `count` goes beyond the largest seed."
            problems.append(
                Problem("out_of_range", message, key="seed", value=shown(request.seed), allowed=allowed_for("seed", limits))
            )
        if request.name is not None and (why := bad_name(request.name)):
            problems.append(self._bad_name("name", request.name, why))
        if request.folder is not None:
            segments = request.folder.split("/")
            why = (
                f"has more than {MAX_SEGMENTS} segments"
                if len(segments) > MAX_SEGMENTS
                else next((w for w in map(bad_name, segments) if w), "")
            )
            if why:
                problems.append(self._bad_name("folder", request.folder, why))
        if request.not_before is not None and moment_of(request.not_before) is None:
            problems.append(
                Problem(
                    "wrong_type",
                    "`not_before` is no date and time.",
                    key="not_before",
                    value=shown(request.not_before),
                    allowed=allowed_for("not_before", limits),
                    remedy="Write e.g. `not_before: 2026-11-23T22:00`.",
                )
            )
        return problems

    def _size_problems(self, width: int, height: int) -> list[Problem]:
        limits = self.limits
        problems = []
        for key, side in (("width", width), ("height", height)):
            if not limits.min_side <= side <= limits.max_side:
                problems.append(
                    Problem(
                        "out_of_range",
                        f"`{key}` must be {limits.min_side}..{limits.max_side}.",
                        key=key,
                        value=shown(side),
                        allowed=allowed_for(key, limits),
                    )
                )
            elif side % MULTIPLE:
                near = nearest_sides(side, limits)
                problems.append(
                    Problem(
                        "size_not_multiple_of_16",
                        f"`{key}` must be a multiple of {MULTIPLE}.",
                        key=key,
                        value=shown(side),
                        allowed=allowed_for(key, limits),
                        remedy="Take " + " or ".join(map(str, near)) + ".",
                    )
                )
        if not problems and width * height > limits.max_pixels:
            shrink = (limits.max_pixels / (width * height)) ** 0.5
            fitting = [max(limits.min_side, int(s * shrink) // MULTIPLE * MULTIPLE) for s in (width, height)]
            problems.append(
                Problem(
                    "out_of_range",
                    f"Width times height must be at most {limits.max_pixels} pixels.",
                    key="width",
                    value=f"{width}x{height}",
                    allowed=allowed_for("size", limits),
                    remedy=f"Take e.g. {fitting[0]}x{fitting[1]}.",
                )
            )
        return problems

    def _bad_name(self, key: str, text: str, why: str) -> Problem:
        parts = [s for s in (slug(p) for p in text.split("/" if key == "folder" else "\0")) if s]
        better = "/".join(parts[:MAX_SEGMENTS])
        return Problem(
            "bad_name",
            f"`{key}` {why}.",
            key=key,
            value=shown(text),
            allowed=allowed_for(key, self.limits),
            remedy=f"Write e.g. `{key}: {better}`." if better and better != text else None,
        )

    def _translated(self, error: Any) -> Problem:
        """One pydantic error in our words. The value is kept apart from the message."""
        field = str(error["loc"][0]) if error["loc"] else "prompt"
        kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
        allowed = allowed_for(field, self.limits) if field in JobRequest.model_fields else None
        code, remedy = "wrong_type", None
        if kind == "missing":
            return Problem("missing_field", f"`{field}` is missing.", key=field, allowed=allowed)
        if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
            code = "out_of_range"
            bound = context.get("ge", context.get("le", context.get("gt", context.get("lt"))))
            which = "at least" if kind.startswith("greater") else "at most"
            message = f"`{field}` must be {which} {bound}."
            if field in ("width", "height"):
                message = f"`{field}` must be {self.limits.min_side}..{self.limits.max_side}."
            if field == "seed" and given == -1:
                remedy = "Leave `seed` out for a new one each time."
        elif kind in ("string_too_long", "string_too_short"):
            code = "out_of_range"
            bound = context.get("max_length", context.get("min_length"))
            which = "at most" if kind == "string_too_long" else "at least"
            message = f"`{field}` must have {which} {bound} characters."
            given = f"{len(given)} characters: {given[:50]}" if isinstance(given, str) else given
        elif kind == "literal_error":
            code = "out_of_range" if isinstance(given, str) else "wrong_type"
            message = f"`{field}` must be one of {allowed}."
            if isinstance(given, str):
                wanted = {"jpg": "jpeg"}.get(given.lower().lstrip("."), given.lower().lstrip("."))
                near = difflib.get_close_matches(wanted[:40], (allowed or "").split(", "), n=1)
                remedy = f"Did you mean `{near[0]}`?" if near else None
        elif field in _WHOLE:
            message = f"`{field}` must be a whole number."
            if field == "seed" and isinstance(given, str) and given.lower() in ("random", "auto"):
                remedy = "Leave `seed` out for a new one each time."
            elif isinstance(given, str):
                remedy = "Write the number without quotes or leading zeros."
        elif field == "guidance_scale":
            message = f"`{field}` must be a number."
        elif field == "metadata":
            message = "`metadata` must be a mapping of names to text, numbers, true/false or null."
        else:
            message = f"`{field}` must be text."
            if isinstance(given, list | dict):
                remedy = "Put the text in quotes; `[` and `{` begin a list or mapping otherwise."
            elif isinstance(given, bool | int | float):
                remedy = "Put it in quotes."
        return Problem(code, message, key=field, value=shown(given), allowed=allowed, remedy=remedy)

    def filled(self, request: JobRequest) -> dict[str, Any]:
        """What is to be set where ``request`` is silent: width, height, steps, format."""
        limits, update = self.limits, {}
        if request.width is None:
            update["width"] = limits.default_width
        if request.height is None:
            update["height"] = limits.default_height
        if request.num_inference_steps is None:
            update["num_inference_steps"] = limits.default_steps
        if request.format is None:
            update["format"] = limits.default_format
        return update

    def warnings(self, request: JobRequest) -> tuple[str, ...]:
        """Fields that are set and have no effect on the model in use."""
        if self._quiet:
            return ()
        found = []
        if request.guidance_scale and not self.limits.guidance:
            found.append("guidance_scale has no effect on this model.")
        if request.negative_prompt and not self.limits.negative_prompt:
            found.append("negative_prompt has no effect on this model.")
        return tuple(found)


def _control(field: str, text: str, position: int) -> Problem:
    point = ord(text[position])
    lone = 0xD800 <= point <= 0xDFFF
    what = "half of a surrogate pair" if lone else "the control character"
    looks = "Save the text as UTF-8." if 0x80 <= point <= 0x9F or lone else "Remove it."
    return Problem(
        "encoding" if lone else "wrong_type",
        f"`{field}` holds {what} U+{point:04X} at character {position + 1}.",
        key=field,
        value=shown(text),
        remedy=looks,
    )


def nearest_sides(side: int, limits: Limits) -> list[int]:
    """The one or two nearest allowed sides."""
    below = side // MULTIPLE * MULTIPLE
    return [s for s in (below, below + MULTIPLE) if limits.min_side <= s <= limits.max_side]


def bad_name(text: str) -> str:
    """Why ``text`` cannot be a file's or folder's name on every system; empty when it can."""
    if not text:
        return "has an empty part"
    if text[0] == "." or text[-1] == ".":
        return "begins or ends with a dot"
    if len(text) > MAX_NAME or len(text.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME} characters ({MAX_NAME_BYTES} bytes)"
    if _RESERVED.fullmatch(text):
        return "is reserved on Windows"
    if _PICTURE.search(text):
        return "has a picture's suffix, which `format` decides"
    for number, character in enumerate(text):
        if character in "._-" or character.isalnum():
            continue
        # marks belong to letters in many scripts (Devanagari, Thai, decomposed accents)
        if number and unicodedata.category(character)[0] == "M":
            continue
        return "may hold letters, digits, `.`, `_` and `-` only"
    return ""


def slug(text: str) -> str:
    """The nearest usable name: other characters become ``-``; may be empty."""
    kept = "".join(
        c if c in "._-" or c.isalnum() or unicodedata.category(c)[0] == "M" else "-"
        for c in _PICTURE.sub("", text[: 4 * MAX_NAME])
    )
    kept = re.sub(r"-{2,}", "-", kept).strip("-.")[:MAX_NAME]
    while len(kept.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        kept = kept[:-1]
    kept = kept.strip("-.")
    if kept and unicodedata.category(kept[0])[0] == "M":
        kept = kept[1:]
    return f"_{kept}" if _RESERVED.fullmatch(kept) else kept


def moment_of(text: str) -> int | None:
    """An ISO 8601 date and time as microseconds since 1970 UTC; local when it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.astimezone()
        return int(moment.timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


def value_of_text(field: str, text: str) -> Any:
    """What a table's cell or a command-line word means for ``field``: the type the field wants.

    Empty is unset. What cannot be read stays text, for the validator to refuse.
    """
    text = text if field in ("prompt", "negative_prompt") else text.strip()
    if not text or text.isspace():
        return None
    if field in _WHOLE:
        if text.isdecimal() and text.isascii() and len(text) < 40:
            return int(text)
        if re.fullmatch(r"[+-]?\d{1,30}(\.0+)?", text, re.ASCII):  # spreadsheets write 768.0
            return int(text.partition(".")[0])
        return text
    if field == "guidance_scale":
        try:
            number = float(text.replace(",", ".")) if len(text) < 40 else None
        except ValueError:
            number = None
        return text if number is None else number
    if field in ("format", "priority"):
        return text.lower()
    return text


def request_of(raw: Mapping[Any, Any], limits: Limits, *, text: bool = False) -> JobRequest:
    """The one validator: a mapping of fields -> a request with what was given (nothing filled in).

    ``text=True``: every value is text (command line) and is read as its field wants.
    Raises SteadyError with up to 50 problems and the first one's code.
    """
    if not isinstance(raw, Mapping):
        raise SteadyError("bad_shape", "A job is a mapping of fields.")
    if text:
        raw = {k: value_of_text("num_inference_steps" if k == "steps" else k, v) if isinstance(v, str) else v for k, v in raw.items()}
    values, came_from, problems = normalised(raw)
    made = Checker(limits).check(values)
    if isinstance(made, JobRequest) and not problems:
        return made
    if not isinstance(made, JobRequest):
        problems += made
    raise refusal([_pointed(p, came_from) for p in problems])


def _pointed(problem: Problem, came_from: Mapping[str, str]) -> Problem:
    key = came_from.get(problem.key or "", problem.key or "")
    return replace(problem, pointer=pointer((key,)) if key else None)


def pointer(path: tuple[str | int, ...]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(
        "/" + (str(s) if isinstance(s, int) else shown_key(s).replace("~", "~0").replace("/", "~1"))
        for s in path
    )


def refusal(problems: list[Problem], code: str = "") -> SteadyError:
    """One error for all ``problems``: the first one's code, words and remedy, and how many more."""
    first = problems[0]
    where = f"Row {first.row}: " if first.row else f"Line {first.line}: " if first.line else ""
    message = where + first.message
    if len(problems) > 1:
        message += f" ({len(problems) - 1} more)"
    return SteadyError(code or first.code, message, problems=problems[:50], remedy=first.remedy or "")


def resolve(request: JobRequest, limits: Limits, job_id: str) -> JobRequest:
    """``request`` with width, height, steps, format and seed set; the seed comes from ``job_id``
    when none is given, so asking again gives the same."""
    update = Checker(limits).filled(request)
    if request.seed is None:
        update["seed"] = derived_seed(job_id)
    return request.model_copy(update=update) if update else request
