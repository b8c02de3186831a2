"""Long lists in pages: the cursor, the next link, and the days and texts that narrow them.

A cursor names the row after which a page begins, so rows that come meanwhile never shift one.
"""

import contextlib
import datetime
import urllib.parse
from typing import Annotated, Any

from fastapi import Query, Request

from watcher.errors import ValueFault

Cursor = Annotated[
    str | None,
    Query(pattern="^s[0-9]{1,18}$", description="`next` of the page before", examples=["s42"]),
]


def day(what: str) -> Any:
    """A query parameter that takes a day or a time."""
    return Query(
        max_length=40,
        description=f"{what}; a day or an ISO 8601 time, local unless it names a zone",
        examples=["2026-01-21"],
        json_schema_extra={"format": "date-time"},
    )


Limit = Annotated[int, Query(ge=1, le=500, description="rows on a page")]


RATING = Annotated[
    str | None,
    Query(
        max_length=20,
        description="a rating, or several: 4.., 2..3, rejected",
        examples=["4.."],
        json_schema_extra={
            "pattern": r"^((>=|<=|=)?-?\d|-?\d\.\.(-?\d)?|\.\.-?\d|\d\+|rejected)?$"
        },
    ),
]


SIZE = Annotated[
    str | None,
    Query(
        max_length=20,
        description="width and height of the picture",
        examples=["1024x768"],
        json_schema_extra={"pattern": r"^([0-9]{1,5}x[0-9]{1,5})?$"},
    ),
]


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def moment_bound(name: str, text: str | None, *, end: bool = False) -> int | None:
    """A day or a time as microseconds UTC; with ``end`` a bare day counts to its last moment.

    Raises SteadyError out_of_range.
    """
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.upper())
    except ValueError:
        words = f"`{name}` must be a day or an ISO 8601 time."
        allowed = "2026-01-21, 2026-01-21T14:30 or 2026-01-21T14:30:00+02:00"
        raise ValueFault("out_of_range", words, key=name, allowed=allowed).error() from None
    with contextlib.suppress(OverflowError):
        if end and len(text) <= 10:
            moment += datetime.timedelta(days=1)
    try:
        # Not astimezone: a local time that the clock leaps over in spring would come out an hour early.
        aware = (
            moment
            if moment.tzinfo
            else datetime.datetime.fromtimestamp(moment.timestamp(), datetime.UTC)
        )
    except (OverflowError, ValueError, OSError):  # at the ends of the calendar
        aware = moment.replace(tzinfo=datetime.UTC)
    return (aware - _EPOCH) // datetime.timedelta(microseconds=1)


def cursor_of(seq: int) -> str:
    """The mark after the row ``seq``; opaque to callers."""
    return f"s{seq}"


def seq_of(cursor: str | None) -> int | None:
    """What :func:`cursor_of` wrote (the parameter's pattern was checked before)."""
    return None if cursor is None else int(cursor[1:])


def without_nul(text: str | None) -> str | None:
    """``text`` without NUL, which no text in the record holds and not every database takes."""
    return text.replace("\0", "") if text is not None else None


def link_of(request: Request, following: str | None) -> dict[str, str]:
    """The Link header to the next page (RFC 8288), with the same filter."""
    if following is None:
        return {}
    query = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
    target = urllib.parse.urlencode([*query, ("cursor", following)])
    return {"Link": f'<{request.url.path}?{target}>; rel="next"'}
