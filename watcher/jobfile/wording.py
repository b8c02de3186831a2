"""What is wrong with a field's value, in words a person can act on.

Says what the value must be, how one of that kind usually comes about, and the nearest right one.
Finds nothing wrong itself: fields.py and pydantic do.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from watcher.errors import ValueFault, did_you_mean
from watcher.jobfile.hints import TEXT_FIELDS, WHOLE, allowed_for, kind_of, schema_words
from watcher.jobfile.problems import shown
from watcher.jobs import field_schemas

if TYPE_CHECKING:
    from watcher.limits import Card

_ROUNDED = re.compile(r"\d([.,]\d+)?[eE]\+?\d{1,3}", re.ASCII)


def wrong(
    code: str, message: str, key: str, given: Any, card: "Card", remedy: str | None = None
) -> ValueFault:
    """A fault of the field ``key``, with the value that was given and what its model allows."""
    value, allowed = shown(given), allowed_for(key, card)
    return ValueFault(code, message, key=key, value=value, allowed=allowed, remedy=remedy)


def translated(error: Any, card: "Card") -> ValueFault:
    """One pydantic error. The value is kept apart from the message."""
    field = str(error["loc"][0])
    kind, given = error["type"], error.get("input")
    allowed = allowed_for(field, card)
    if kind == "missing" and len(error["loc"]) == 1:
        return ValueFault("missing_field", f"`{field}` is missing.", key=field, allowed=allowed)
    code, remedy = "out_of_range", None
    bounds = error.get("ctx", {})
    if len(error["loc"]) > 1 or field == "upscale":
        message = f"`{field}` must be {allowed}."  # something inside a value of several parts
    elif "gt" in bounds:
        message = f"`{field}` must be above {bounds['gt']:g}."
    elif "ge" in bounds or "le" in bounds:
        message = f"`{field}` must be " + _bound(bounds, "ge", "le") + "."
        if field in ("width", "height"):
            message = f"`{field}` must be {card.min_side}..{card.max_side}."
        if field == "seed" and given == -1:
            remedy = "Leave `seed` out for a new one each time."
    elif "max_length" in bounds or "min_length" in bounds:
        words = _bound(bounds, "min_length", "max_length")
        of = "characters" if field in TEXT_FIELDS else "entries"
        message = f"`{field}` must have {words} {of}."
        if isinstance(given, str) and len(given) > 60:
            return ValueFault(
                code, message, key=field, value=f"{len(given)} characters", allowed=allowed
            )
    elif kind == "value_error":
        message = str(bounds["error"])
    elif kind == "literal_error":
        message = f"`{field}` must be one of {allowed}."
        remedy = _nearest_word(given, allowed)
    else:
        code, message = "wrong_type", f"`{field}` must be {_kind(field)}."
        remedy = _mend(field, given)
    return wrong(code, message, field, given, card, remedy)


def _kind(field: str) -> str:
    said = field_schemas()[field]
    if said["type"] in ("object", "array"):
        return f"a {schema_words(said)}"
    kind = kind_of(said)
    return kind if said["type"] in ("string", "boolean") else f"a {kind}"


def _bound(bounds: Mapping[str, Any], low: str, high: str) -> str:
    words, bound = ("at least", bounds[low]) if low in bounds else ("at most", bounds[high])
    return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"


def _nearest_word(given: Any, allowed: str) -> str | None:
    if not isinstance(given, str):
        return None
    word = given[:40].lower().lstrip(".")
    word = {"jpg": "jpeg", "low": "bulk", "high": "interactive"}.get(word, word)
    return did_you_mean(word, allowed.split(", ")) or None


def _mend(field: str, given: Any) -> str | None:
    """How a value of the wrong type usually came about, and what to do."""
    if field in WHOLE and isinstance(given, str):
        if field == "seed" and given.lower() in ("random", "auto", "-1"):
            return "Leave `seed` out for a new one each time."
        if _ROUNDED.fullmatch(given):
            return "A spreadsheet has rounded this number; format the column as text and write it anew."
        return "Write the digits alone, without quotes, leading zeros or units."
    if field in WHOLE and isinstance(given, float):
        return "Write it without a point or exponent."
    if field in WHOLE and isinstance(given, list):
        return "Several seeds go into a file, as `seed: [1, 2]`, or under `matrix`."
    if field in TEXT_FIELDS and isinstance(given, list | dict):
        return "Put the text in quotes; `[` and `{` begin a list or mapping otherwise."
    if field in TEXT_FIELDS and isinstance(given, bool | int | float):
        return "Put it in quotes."
    return None


def control_character(field: str, text: str, position: int) -> ValueFault:
    """What stands in ``text`` at ``position`` and has no place there."""
    point = ord(text[position])
    lone = 0xD800 <= point <= 0xDFFF
    what = "half of a surrogate pair" if lone else "the control character"
    misread = lone or 0x80 <= point <= 0x9F
    return ValueFault(
        "encoding" if lone else "wrong_type",
        f"`{field}` holds {what} U+{point:04X} at character {position + 1}.",
        key=field,
        value=shown(text),
        allowed="text without control characters",
        remedy="Save the text as UTF-8." if misread else "Remove it.",
    )
