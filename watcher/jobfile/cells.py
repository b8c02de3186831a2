"""What the text of a cell, or of a word on the command line, means for a field.

A table knows no types: ``768.0`` is how a spreadsheet writes a whole number. What cannot be read
stays text, for the validator to refuse with the text as it was written. Knows nothing of rows.
"""

import re
from collections.abc import Callable
from typing import Any

from watcher.jobfile.hints import WHOLE


def value_of_text(field: str, text: str) -> Any:
    """What a table's cell or a command-line word means for ``field``: the type the field wants.

    Empty is unset (None). What cannot be read stays text, for the validator to refuse.
    """
    return reader_of(field)(text)


def reader_of(field: str) -> Callable[[str], Any]:
    """:func:`value_of_text` for one field, for those who read a million of its cells."""
    return _READERS.get(field, _text_of_cell)


def _long_text(text: str) -> str | None:
    return None if text.isspace() else text or None


def _text_of_cell(text: str) -> str | None:
    return text.strip() or None


def _word(text: str) -> str | None:
    return text.strip().lower() or None


def _whole(text: str) -> int | str | None:
    if text.isdecimal() and text.isascii() and len(text) < 40:
        return int(text)
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,30}(\.0{1,9})?", text, re.ASCII):  # spreadsheets write 768.0
        return int(text.partition(".")[0])
    return text or None


def _number(text: str) -> float | str | None:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}([.,]\d{1,9})?", text, re.ASCII):
        return float(text.replace(",", "."))
    return text or None


_READERS: dict[str, Callable[[str], Any]] = {
    "prompt": _long_text,
    "negative_prompt": _long_text,
    **dict.fromkeys(WHOLE, _whole),
    "guidance_scale": _number,
    "format": _word,
    "priority": _word,
}
