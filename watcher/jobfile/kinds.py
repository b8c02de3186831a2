"""Rows that say what an earlier row said but for words of their own: judged once for all of them.

Of a million rows most differ in their prompt, seed or label alone. What such a row becomes is what
the first of its kind became, with its own words in their place. Knows nothing of how rows are read.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from watcher.jobfile.fields import TEXTS, bad_metadata
from watcher.jobfile.naming import bad_name
from watcher.jobs import MAX_COUNT, MAX_SEED, PICTURE_FIELDS, JobRequest, Priority, field_schemas

if TYPE_CHECKING:
    from watcher.jobfile.planner import PlannedJob, Planner, Template

_MOST = 1000  #: kinds that are remembered


def _is_plain(most: int, text: Any) -> bool:
    """Is ``text`` one of at most so many characters that is taken as it stands?"""
    return (
        type(text) is str
        and 0 < len(text) <= most
        and text.isprintable()
        and "{" not in text
        and text[0] != " " != text[-1]
    )


def _is_plain_name(text: Any) -> bool:
    return type(text) is str and text.isascii() and not bad_name(text)


def _is_plain_metadata(value: Any) -> bool:
    return (
        type(value) is dict
        and {type(name) for name in value} <= {str}
        and {type(each) for each in value.values()} <= {str, int, bool}
        and not bad_metadata(value)
    )


#: What each row has of its own, and when it is right whatever else the row says.
_OWN: dict[str, Callable[[Any], bool]] = {
    **{
        field: partial(_is_plain, field_schemas()[field]["maxLength"])
        for field in ("prompt", "negative_prompt", "label", "key")
    },
    "seed": lambda seed: type(seed) is int and 0 <= seed <= MAX_SEED - MAX_COUNT,
    "name": _is_plain_name,
    "metadata": _is_plain_metadata,
}

#: What rows of a kind share: fields with their values, and the names of those of their own.
Kind = tuple[Any, ...]


class Kinds:
    """What became of one row of each kind, of one file."""

    def __init__(self, planner: "Planner") -> None:
        self._planner = planner
        self._seen: dict[Kind, tuple[JobRequest, tuple[str, ...]]] = {}

    def of(self, template: "Template") -> tuple[Kind, dict[str, Any]]:
        """The kind of a row that says ``template``, and what is its own.

        An empty kind where the row has to be looked at by itself.
        """
        values = template.values
        named = self._planner.limits.default_name  # with placeholders
        if named or template.wild or template.problems or template.warnings:
            return (), {}
        kind: list[Any] = []
        own: dict[str, Any] = {}
        for field, value in values.items():
            if value is None or (passes := _OWN.get(field)) is None:
                # 1, 1.0 and True are equal, and a field takes but one of them
                kind += field, type(value), repr(value) if isinstance(value, list | dict) else value
            elif passes(value):
                kind.append(field)
                own[field] = value
            else:
                return (), {}
        found = tuple(kind)
        return (found, own) if found in self._seen or _is_settled(values) else ((), {})

    def again(self, kind: Kind, own: Mapping[str, Any], row: int) -> "PlannedJob | None":
        """The picture of a row of a known ``kind``; None for the first of its kind."""
        if (seen := self._seen.get(kind)) is None:
            return None
        like, idle = seen
        request = self._planner.remembered(like.but(own))
        return self._planner.planned(request, row, Priority.NORMAL, idle=idle)

    def keep(self, kind: Kind, made: "PlannedJob") -> None:
        """Remember the one picture of a row for the others of its kind."""
        if kind:
            if len(self._seen) >= _MOST:
                self._seen.clear()
            self._seen[kind] = made.request, self._planner.checker.idle(made.request)


def _is_settled(values: Mapping[str, Any]) -> bool:
    """Are ``values`` the same in every row: no placeholders in them, no pictures to be found?"""
    texts = (values.get(field) for field in TEXTS)
    return not any(type(text) is str and "{" in text for text in texts) and all(
        values.get(field) is None for field in PICTURE_FIELDS
    )
