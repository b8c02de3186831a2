"""JSON read strictly: no doubled keys, no NaN, no Infinity, no numbers past a float's range.

The standard library's C scanner does the reading; it raises RecursionError on deep nesting
instead of overrunning the stack. It keeps no positions, so :func:`place` finds the line of a
value afterwards, and only when there is a problem to report. Knows nothing of jobs.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NoReturn

from watcher.errors import Problem, SteadyError
from watcher.strictyaml import line_of

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


class _Fault(ValueError):
    """A value JSON's grammar or we refuse; carries its code."""

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
                shown = ascii(key[:60])[1:-1] if not key.isprintable() else key[:60]
                raise _Fault("duplicate_key", f"`{shown}` is written twice.", shown)
            seen.add(key)
    return members


def _constant(name: str) -> NoReturn:
    raise _Fault("bad_json", f"{name} is not a number in JSON.")


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise _Fault("bad_json", "A number is too large.")
    return value


def _int(text: str) -> int:
    if len(text) > 400:
        raise _Fault("bad_json", "A number is too large.")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant, parse_float=_float)
#: ``parse_int`` in Python costs on every number, so only texts with long digit runs pay it.
_CAREFUL = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_constant, parse_float=_float, parse_int=_int
)
_LONG = re.compile(r"[0-9]{400}")


def read(text: str) -> Any:
    """The value of ``text``. Raises SteadyError bad_json, duplicate_key or unsafe_yaml (nested too
    deeply), each with one problem that names line and column where they are known."""
    try:
        return (_CAREFUL if _LONG.search(text) else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        line, column = error.lineno, error.colno
        message = f"Line {line}, column {column}: {error.msg}."
        problem = Problem("bad_json", message, line=line, column=column)
        raise SteadyError("bad_json", message, problems=[problem]) from None
    except _Fault as fault:
        found = None
        if fault.key is not None:
            found = [m.start() for m in re.finditer(re.escape(json.dumps(fault.key)) + r"\s*:", text)]
        line_column = line_of(text, found[-1]) if found and len(found) == 2 else (None, None)
        problem = Problem(
            fault.code, str(fault), key=fault.key, line=line_column[0], column=line_column[1]
        )
        raise SteadyError(fault.code, str(fault), problems=[problem]) from None
    except RecursionError:
        message = "The JSON is nested too deeply."
        raise SteadyError("unsafe_yaml", message, problems=[Problem("unsafe_yaml", message)]) from None


def place(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Line and column, from 1, of the key or item at ``path`` in valid JSON ``text``; of its
    nearest parent when there is no such thing. One pass over the tokens before it."""
    position = len(text) - len(text.lstrip())
    frames: list[_Frame] = []
    for match in _TOKEN.finditer(text) if path else ():
        token, top = match[0], frames[-1] if frames else None
        if token in ("}", "]"):
            if top is None or top.step is not None:
                break  # the container on the path ends here: its parent's place it is
            frames.pop()
        elif token == ",":
            if top is not None:
                top.index, top.awaiting_key = top.index + 1, top.is_object
        elif token == ":":
            if top is not None:
                top.awaiting_key = False
        else:
            if top is not None and top.step is not None and not top.found:
                here = json.loads(token) if top.awaiting_key else None if top.is_object else top.index
                if here is not None and here == top.step:
                    position, top.found = match.start(), True
                    if len(frames) == len(path):
                        break
            if token in ("{", "["):
                depth = len(frames)
                follow = top is None or (top.found and frames[-1].step is not None and not top.entered)
                if top is not None and top.found:
                    top.entered = True
                frames.append(_Frame(token == "{", path[depth] if follow else None))
    return line_of(text, position)


@dataclass
class _Frame:
    """A container the scan is inside of; ``step`` is set while it lies on the path."""

    is_object: bool
    step: str | int | None
    index: int = 0
    awaiting_key: bool = field(init=False)
    found: bool = False
    entered: bool = False

    def __post_init__(self) -> None:
        self.awaiting_key = self.is_object
