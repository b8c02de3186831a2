"""Every field of a job as an option of a command, made from JobRequest itself.

Knows nothing of what a field means: its type and its description say how it is asked for.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from watcher.errors import SteadyError

_TYPES: dict[str, Any] = {
    "integer": int,
    "number": float,
    "string": str,
    "boolean": bool,
    "array": list[str],
    "object": list[str],
}
_ALSO = {"num_inference_steps": ("--num-inference-steps", "--steps")}


def with_fields(function: Callable[..., int]) -> Callable[..., int]:
    """``function`` with an option for each field; its ``fields`` is a dict of those given.

    Not for ``prompt`` and ``key``, which commands ask for in their own way.
    """
    from watcher.jobs import field_schemas

    own = inspect.signature(function, eval_str=True)
    asked = {name: said for name, said in field_schemas().items() if name not in ("prompt", "key")}

    @functools.wraps(function)
    def run(*given: Any, **named: Any) -> int:
        fields = {name: value for name in asked if (value := named.pop(name)) is not None}
        for name in fields:
            if asked[name]["type"] in ("array", "object"):
                fields[name] = _several(name, fields[name])
        return function(*given, **named, fields=fields)

    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[
            *(p for p in own.parameters.values() if p.name != "fields"),
            *(_option(name, said) for name, said in asked.items()),
        ]
    )
    return run


def _option(name: str, said: dict[str, Any]) -> inspect.Parameter:
    words = said["description"]
    if said["type"] in ("array", "object"):
        first = "NAME=VALUE, " if said["type"] == "object" else ""
        words = f"{first}{words}; may be repeated"
    option = typer.Option(*_ALSO.get(name, ()), help=f"{words[:1].upper()}{words[1:]}.")
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_TYPES[said["type"]] | None, option],
    )


def _several(name: str, words: list[str]) -> Any:
    from watcher.jobfile.cells import value_of_words

    try:
        return value_of_words(name, words)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise SteadyError("bad_request", f"{option} wants NAME=VALUE, each name once.") from None


def pairs(words: list[str]) -> dict[str, str]:
    """``["a=1", "b=2"]`` as a mapping. Raises SteadyError bad_request."""
    found = dict(word.partition("=")[::2] for word in words if "=" in word)
    if len(found) != len(words):
        raise SteadyError("bad_request", "--set wants FIELD=VALUE, each name once.")
    return found
