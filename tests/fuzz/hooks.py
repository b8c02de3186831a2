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
    number = next(_numbers)
    body = case.body
    keyed = isinstance(body, dict) and isinstance(body.get("key"), str) and body["key"].strip()
    if keyed and len(body["key"]) <= 200:
        body["key"] = f"{body['key'][:190]}{number}"
    for name in [n for n in case.headers or {} if n.lower() == "idempotency-key"]:
        value = str(case.headers[name])
        if keyed:
            del case.headers[name]  # one of the two is enough; two that differ are refused
        elif _fits(value):
            case.headers[name] = f"{value}{number}"
    if isinstance(body, dict | list):
        case.body = body = _whole(body)
        _drop_blank_keys(body)


def _drop_blank_keys(value: Any) -> None:
    """What a blank key means differs between one job and a list: nothing, or a refusal."""
    for member in value if isinstance(value, list) else value.values():
        if isinstance(member, dict | list):
            _drop_blank_keys(member)
    if isinstance(value, dict) and isinstance(value.get("key"), str) and not value["key"].strip():
        del value["key"]


def _fits(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= 180
        and value.isascii()
        and value.isprintable()
        and value == value.strip()
    )


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: member if name == "guidance_scale" else _whole(member)
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [_whole(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
