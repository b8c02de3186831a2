"""Names of pictures and folders that work on every file system.

Letters of any script, digits, ``.``, ``_`` and ``-``; nothing hidden, nothing Windows or commands
reserve. Knows nothing of files: paths are put together elsewhere, from names that passed here.
"""

import re
import unicodedata
from collections.abc import Callable

MAX_NAME = 80  #: characters of a name or a folder's segment
MAX_SEGMENTS = 3  #: of a folder
MAX_NAME_BYTES = 200  #: of a name in UTF-8, so that suffixes still fit into 255

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.I)
_PICTURE = re.compile(r"\.(png|jpe?g|webp)$", re.I)


def bad_folder(text: str) -> str:
    """Why ``text`` cannot be a folder below outputs/; empty when it can."""
    segments = text.split("/")
    if len(segments) > MAX_SEGMENTS:
        return f"has more than {MAX_SEGMENTS} parts"
    return next((why for why in map(bad_name, segments) if why), "")


def bad_name(text: str) -> str:
    """Why ``text`` cannot be a file's or folder's name on every system; empty when it can."""
    if not text:
        return "has an empty part"
    if text[0] == "." or text[-1] == ".":
        return "begins or ends with a dot"
    if text[0] == "-":
        return "begins with `-`, which commands take for an option"
    if len(text) > MAX_NAME or len(text.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME} characters ({MAX_NAME_BYTES} bytes)"
    if not all(_may_stand(c, first=not number) for number, c in enumerate(text)):
        return "may hold letters, digits, `.`, `_` and `-` only"
    if _RESERVED.fullmatch(text):
        return "is reserved on Windows"
    if _PICTURE.search(text):
        return "has a picture's suffix, which `format` decides"
    return ""


def _may_stand(character: str, *, first: bool) -> bool:
    if character in "._-" or character.isalnum():
        return True
    # marks belong to letters in many scripts (Devanagari, Thai, decomposed accents)
    return not first and unicodedata.category(character)[0] == "M"


def numbered(stem: str, count: int) -> Callable[[int], str | None]:
    """What the pictures of a file of ``count`` are called, by their number from 1.

    None: nothing, for a file of one picture or without a stem.
    """
    base, digits = slug(stem)[:60], max(4, len(str(count)))
    if count < 2 or not base:
        return lambda _number: None
    return lambda number: f"{base}_{str(number).zfill(digits)}"


def slug(text: str) -> str:
    """The nearest usable name: other characters become ``-``. May be empty."""
    text = unicodedata.normalize("NFC", _PICTURE.sub("", text[: 4 * MAX_NAME]))
    kept = "".join(c if _may_stand(c, first=not n) else "-" for n, c in enumerate(text))
    kept = re.sub(r"-{2,}", "-", kept).strip("-.")[:MAX_NAME]
    while len(kept.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        kept = kept[:-1]
    kept = kept.strip("-.")
    while kept and bad_name(kept):
        if _RESERVED.fullmatch(kept):
            return f"_{kept[: MAX_NAME - 1]}"
        kept = _PICTURE.sub("", kept).rstrip(".") if _PICTURE.search(kept) else kept[1:]
    return kept
