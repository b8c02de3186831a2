"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): two things it cannot know.

Every request gets a key of its own: one that comes again with another body is refused,
rightly, and that would be all the fuzzer ever learned about POST. And a whole number is
written as one: to JSON Schema 9.0 is an integer, to a job file it is a mistake.
"""

import itertools
from typing import Any

import schemathesis

_numbers = itertools.count()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    for name in [n for n in case.headers or {} if n.lower() == "idempotency-key"]:
        value = str(case.headers[name])
        if (
            0 < len(value) <= 180
            and value.isascii()
            and value.isprintable()
            and value == value.strip()
        ):
            case.headers[name] = f"{value}{next(_numbers)}"
    if isinstance(case.body, dict | list):
        case.body = _whole(case.body)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: member if name == "guidance_scale" else _whole(member)
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [_whole(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
