"""What the text of a cell, or of a word on the command line, means for a field.

A table knows no types: ``768.0`` is how a spreadsheet writes a whole number. What cannot be read
stays text, for the validator to refuse with the text as it was written. Knows nothing of rows.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from watcher.errors import SteadyError
from watcher.jobfile import strictjson
from watcher.jobs import field_schemas


def reader_of(field: str) -> Callable[[str], Any]:
    """Reads a table's cell or a command-line word as ``field`` wants it: in its type.

    Empty is unset (None). What cannot be read stays text, for the validator to refuse.
    """
    return _reader(field, field_schemas().get(field, {}))


def value_of_words(field: str, words: Sequence[str]) -> Any:
    """What an option of ``field`` means that was given once or several times.

    A list has an entry for each word, a mapping is said as ``NAME=VALUE``. Raises ValueError for a
    word without ``=``, or a name said twice.
    """
    said = field_schemas()[field]
    if said["type"] == "array":
        item = _reader("", said["items"])
        return [item(word) for word in words]
    item = _reader("", said["additionalProperties"])
    found = {name: item(value) for name, _, value in (word.partition("=") for word in words)}
    if len(found) < len(words) or not all("=" in word for word in words):
        raise ValueError(field)
    return found


def _reader(field: str, said: Mapping[str, Any]) -> Callable[[str], Any]:
    """The reader of what a schema says; text for a choice of several types."""
    if "enum" in said:
        return _word_cell
    match said.get("type"):
        case "integer":
            return _whole_cell
        case "number":
            return _number_cell
        case "boolean":
            return _flag_cell
        case "object":
            return _json
        case "array":
            return functools.partial(_list, _reader("", said["items"]))
    return _long_text if field in _LONG else _text_of_cell


def _long_text(text: str) -> str | None:
    return None if text.isspace() else text or None


def _text_of_cell(text: str) -> str | None:
    return text.strip(" \t\r\n") or None  # other blanks are the person's, as in every format


def _word_cell(text: str) -> str | None:
    return text.strip().lower() or None


def _whole_cell(text: str) -> int | str | None:
    if text.isdecimal() and text.isascii() and len(text) < 40:
        return int(text)
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,30}(\.0{1,9})?", text, re.ASCII):  # spreadsheets write 768.0
        return int(text.partition(".")[0])
    return text or None


def _number_cell(text: str) -> float | str | None:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}([.,]\d{1,9})?", text, re.ASCII):
        return float(text.replace(",", "."))
    return text or None


def _flag_cell(text: str) -> bool | str | None:
    text = text.strip()
    return _FLAGS.get(text.lower(), text) if text else None


def _json(text: str) -> Any:
    try:
        return strictjson.read_json(text) if text.strip() else None
    except SteadyError:
        return text.strip()


def _list(item: Callable[[str], Any], text: str) -> Any:
    """A JSON list, or entries with commas between them."""
    if text.lstrip().startswith("["):
        return _json(text)
    return [item(part) for part in text.split(",")] if text.strip() else None


_LONG = ("prompt", "negative_prompt")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
