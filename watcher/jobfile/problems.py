"""Problems and where they stand: pointers, rows, and one refusal for many problems.

Knows nothing of fields or formats.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

from watcher.errors import SteadyError, ValueFault

MAX_PROBLEMS = 50  #: listed in one refusal

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 78
_short.maxdict = _short.maxlist = 4
_short.maxlevel = 3


def shown(value: Any) -> str:
    """A value for ``ValueFault.value``: at most 80 characters, printable."""
    try:
        text = _short.repr(value)
    except ValueError:  # an int of thousands of digits
        text = "a number of thousands of digits"
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 80 else text[:77] + "..."


def shown_key(key: str) -> str:
    """A key for messages and pointers: at most 60 characters, printable."""
    text = key[:60]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + shown_key(str(s)).replace("~", "~0").replace("/", "~1") for s in path)


def at(problem: ValueFault, said: str | int | None, **place: Any) -> ValueFault:
    """``problem`` at its ``place`` (members of a fault), by the name the person used for it.

    ``said``: the key or column where it stands (``steps``, ``Width``); an item has a number, and
    no name.
    """
    if isinstance(said, str) and problem.key is not None and said != problem.key:
        name = place["key"] = shown_key(said)
        if name.lower() != "size":
            place["message"] = problem.message.replace(f"`{problem.key}`", f"`{name}`", 1)
    # a table may have very many bad rows, and `dataclasses.replace` takes three times as long
    return ValueFault(**{**vars(problem), **place})


def refusal(problems: Sequence[ValueFault], code: str = "") -> SteadyError:
    """One error for all ``problems``: the first one's code, words and remedy, and how many more."""
    first = problems[0]
    where = f"Row {first.row}: " if first.row else f"Line {first.line}: " if first.line else ""
    message = first.message if first.message.startswith(where) else where + first.message
    if len(problems) > 1:
        message += f" ({len(problems) - 1} more)"
    remedy = first.remedy or "" if not code or code == first.code else ""
    return SteadyError(code or first.code, message, problems=problems[:MAX_PROBLEMS], remedy=remedy)
