"""JSON read strictly: no doubled keys, no NaN, no Infinity, no numbers past a float's range.

The standard library's C scanner does the reading; it raises RecursionError on deep nesting
instead of overrunning the stack. It keeps no positions, so a :class:`JsonDocument` finds lines
afterwards, in one pass over the text and only when there is a problem to report.
Knows nothing of jobs.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, NoReturn

from watcher.errors import SteadyError, ValueFault
from watcher.jobfile.problems import refusal, shown_key

MAX_DEPTH = 16  #: mappings and lists inside each other
MAX_VALUES = 100_000  #: as many as .yaml may hold, with room
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class Number(float):
    """A float that remembers how it was written, for texts it is put into (``1e3``, ``1.50``)."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, source: str) -> "Number":
        """The number that ``source`` says. ValueError for anything else."""
        number = super().__new__(cls, source)
        number.source = source
        return number


class _Odd(ValueError):
    """Something JSON's grammar or we refuse; carries its code and the key it is about."""

    def __init__(self, code: str, message: str, key: str | None = None) -> None:
        self.code = code
        self.key = key
        super().__init__(message)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Odd("duplicate_key", f"`{shown_key(key)}` is written twice.", key)
            seen.add(key)
    return members


def _no_constant(name: str) -> NoReturn:
    raise _Odd("bad_json", f"{name} is not a number in JSON.")


def _float(text: str) -> float:
    value = Number(text)
    if not isfinite(value):
        raise _Odd("bad_json", "A number is too large.")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_float
)


def read_json(text: str) -> Any:
    """The value of ``text``.

    Raises SteadyError bad_json, duplicate_key or unsafe_yaml (nested too deeply), each with one
    problem that names line and column where they are known.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        end = min(error.pos, len(text.rstrip()))  # what is missing is missing on the last line
        row, column = line_of(text, end)
        message = f"Line {row}, column {column}: {error.msg}."
        remedy = None
        if error.msg == "Extra data" and row > 1:
            remedy = "A file holds one JSON value; many jobs go into a list, or a line each into a .jsonl."
        fault = ValueFault("bad_json", message, line=row, column=column, remedy=remedy)
        raise fault.error() from None
    except _Odd as odd:
        if odd.key is None:
            raise refusal([ValueFault(odd.code, str(odd), line=_odd_number(text))]) from None
        found = [m.start() for m in re.finditer(re.escape(f'"{odd.key}"') + r"\s*:", text)]
        # where it stands for the second time, when it stands exactly twice
        line = line_of(text, found[1])[0] if len(found) == 2 else None
        fault = ValueFault(odd.code, str(odd), key=shown_key(odd.key), line=line)
        raise refusal([fault]) from None
    except ValueError:  # a whole number of thousands of digits
        fault = ValueFault("bad_json", "A number is too large.", line=_odd_number(text))
        raise refusal([fault]) from None
    except RecursionError:
        raise _too_deep() from None
    # Most lines of a million are too short, or hold too few brackets, to be too much.
    if len(text) > MAX_VALUES or text.count("{") + text.count("[") > MAX_DEPTH:
        _refuse_depth(value)
    return value


def line_of(text: str, position: int) -> tuple[int, int]:
    """Line and column, from 1, of a character position."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _odd_number(text: str) -> int | None:
    """The line of the first NaN, Infinity or number past a float's range."""
    for match in _TOKEN.finditer(text):
        if match[0].lstrip("-") in ("NaN", "Infinity") or _beyond_floats(match[0]):
            return line_of(text, match.start())[0]
    return None


def _beyond_floats(token: str) -> bool:
    try:
        return token[0] in "-0123456789" and not isfinite(float(token))
    except ValueError:
        return False


def _too_deep() -> SteadyError:
    return ValueFault("unsafe_yaml", f"Nested deeper than {MAX_DEPTH} levels.").error()


def _refuse_depth(value: Any) -> None:
    """Depth and number of values, without recursion: later readers may recurse over what passes."""
    level, values = [value] if isinstance(value, list | dict) else [], 0
    for _ in range(MAX_DEPTH):
        for container in level:
            values += len(container)
        if values > MAX_VALUES:
            raise ValueFault("too_large", "The file holds too many values.").error()
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise _too_deep()


class JsonDocument:
    """A JSON text with its value; places are found on demand."""

    def __init__(self, text: str) -> None:
        self.value = read_json(text)
        self._text = text
        self._index: dict[tuple[str | int, ...], int] = {}
        self._scan = _positions(text, self._index)
        self._starts: list[int] = []

    def place(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Line and column, from 1, of the key or item at ``path``; of its nearest parent otherwise."""
        if not self._starts:
            self._starts = [0] + [m.end() for m in re.finditer("\n", self._text)]
        steps = tuple(path)
        while steps not in self._index and next(self._scan, None) is not None:
            pass
        while steps and steps not in self._index:
            steps = steps[:-1]
        position = self._index.get(steps, 0)
        line = bisect_right(self._starts, position)
        return line, position - self._starts[line - 1] + 1


_INDEXED_DEPTH = 4  #: /jobs/6/metadata/artist


def _positions(text: str, found: dict[tuple[str | int, ...], int]) -> Iterator[int]:
    """Writes into ``found`` where keys and items stand in valid JSON ``text``, one a step.

    To a depth of _INDEXED_DEPTH.
    """
    found[()] = len(text) - len(text.lstrip())
    path: list[str | int] = []  # the step taken in every open container
    objects: list[bool] = []
    awaiting_key = False
    for match in _TOKEN.finditer(text):
        mark = match[0]
        if mark in ("}", "]"):
            path.pop()
            objects.pop()
            awaiting_key = False
        elif mark == ",":
            if objects[-1]:
                awaiting_key = True
            elif isinstance(path[-1], int):
                path[-1] += 1
        elif mark != ":":
            if awaiting_key:
                path[-1] = json.loads(mark)
            if objects and len(path) <= _INDEXED_DEPTH and (awaiting_key or not objects[-1]):
                found[tuple(path)] = match.start()
                yield match.start()
            awaiting_key = mark == "{" and not awaiting_key
            if mark in ("{", "["):
                objects.append(mark == "{")
                path.append("" if mark == "{" else 0)
