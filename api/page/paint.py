"""How the page is painted and sent: the templates, their filters, and files that never change by themselves.

Everything a person wrote goes through Jinja's autoescaping; only :func:`ticks` makes markup of
text, piece by piece escaped. Knows nothing of the record.
"""

import datetime
import functools
import gzip
import hashlib
import mimetypes
import re
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import override

from api.guard import ASKED, FOR_GOOD, accepts_html
from watcher.addresses import without_query
from watcher.chosen import MOST_CHOSEN
from watcher.pace import span_words

HERE = Path(__file__).parent
STATIC = HERE / "static"
_MANIFEST = "application/manifest+json"  #: not every system knows it

#: Characters that steer the direction of text, or none at all: a title must not obey them.
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


class ForBrowsers(APIRoute):
    """A route that is only there for those who accept HTML; sends no byte more than it must."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def light(request: Request) -> Response:
            return lightened(await handle(request), request.headers)

        return light

    @override
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE and not accepts_html(Headers(scope=scope)):
            return Match.NONE, {}
        return match, child


def lightened(answer: Response, headers: Headers, kept: str = ASKED) -> Response:
    """The page with less to send: nothing when the browser has it (304), else packed."""
    if answer.status_code != 200:
        return answer
    tag = f'W/"{hashlib.sha256(bytes(answer.body)).hexdigest()[:24]}"'
    told = {"ETag": tag, "Cache-Control": kept, "Vary": "Accept, Accept-Encoding"}
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=told)
    answer.headers.update(told)
    if "gzip" in headers.get("accept-encoding", ""):
        answer.body = gzip.compress(bytes(answer.body), 5, mtime=0)
        answer.headers.update({"Content-Encoding": "gzip", "Content-Length": str(len(answer.body))})
    return answer


@functools.cache
def _files() -> dict[str, tuple[bytes, str]]:
    """The page's own files and their types, read at once: of one version, whatever comes."""
    return {
        path.name: (path.read_bytes(), mimetypes.guess_type(path.name)[0] or _MANIFEST)
        for path in STATIC.glob("*.*")
    }


@functools.cache
def _version() -> str:
    """A short name of what the files hold, so that a new version is never mixed with an old one."""
    total = hashlib.sha256()
    for _, (data, _) in sorted(_files().items()):
        total.update(data)
    return total.hexdigest()[:10]


async def static(request: Request) -> Response:
    """One of the page's own files: of this version for good, else asked about each time (304)."""
    found = _files().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    kept = FOR_GOOD if request.path_params.get("version") == _version() else ASKED
    return lightened(Response(found[0], media_type=found[1]), request.headers, kept)


# -- words for numbers


def local(us: int | None) -> datetime.datetime | None:
    """Microseconds UTC as a naive local time."""
    return None if us is None else datetime.datetime.fromtimestamp(us // 1_000_000)


def day_words(us: int) -> str:
    """``Today``, ``Yesterday`` or ``Saturday, 21 November 2026``."""
    day = datetime.datetime.fromtimestamp(us // 1_000_000).date()
    distance = (datetime.date.today() - day).days
    if distance in (0, 1):
        return ("Today", "Yesterday")[distance]
    return f"{day:%A}, {day.day} {day:%B %Y}"


def when(us: int | None) -> str:
    """``14:32``, with its day when that is not today."""
    moment = local(us)
    if moment is None:
        return ""
    distance = (datetime.date.today() - moment.date()).days
    if distance == 0:
        return f"{moment:%H:%M}"
    if distance == 1:
        return f"yesterday {moment:%H:%M}"
    year = "" if moment.year == datetime.date.today().year else f" {moment:%Y}"
    return f"{moment.day} {moment:%b}{year}, {moment:%H:%M}"


def stamp(us: int | None) -> str:
    """For ``<time datetime>``: local ISO time."""
    moment = local(us)
    return "" if moment is None else moment.isoformat(timespec="seconds")


def left(seconds: float | None) -> str:
    """How long it will still take, no more exact than it is known."""
    if seconds is None:
        return ""
    return (
        "a moment left"
        if seconds < 1
        else f"about {span_words(round(seconds))} left".replace(".0", "")
    )


def size(count: int | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return (
                f"{value:.0f}\u00a0{unit}"
                if value >= 10 or unit == "B"
                else f"{value:.1f}\u00a0{unit}"
            )
        value /= 1000
    raise AssertionError(count)


def number(value: int) -> str:
    """``1,204``."""
    return f"{value:,}"


def count(value: int, one: str) -> str:
    """``1 picture``, ``1,204 pictures``."""
    return f"{value:,} {one}{'s' * (value != 1)}"


def one_line(text: str, most: int = 200) -> str:
    """``text`` for a title or a picture's description: one line, nothing that steers, cut."""
    line = " ".join(_STEERING.sub(" ", text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def ticks(text: str) -> markupsafe.Markup:
    """``text`` with what stands between backticks as code; everything in it is escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one of them stands alone: it is just a character
        return markupsafe.escape(text)
    code = markupsafe.Markup("<code>{}</code>")
    pieces = [code.format(p) if n % 2 else markupsafe.escape(p) for n, p in enumerate(parts)]
    return markupsafe.Markup("").join(pieces)


# -- templates


@functools.cache
def compiled() -> jinja2.Environment:
    """Compile all templates at once: of one version, whatever comes."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters |= {
        "count": count,
        "day": day_words,
        "left": left,
        "number": number,
        "plain": one_line,
        "size": size,
        "span": span_words,
        "stamp": stamp,
        "ticks": ticks,
        "when": when,
        "without_query": without_query,
    }
    templates.globals["files"] = f"/static/{_version()}"
    templates.globals["most_chosen"] = MOST_CHOSEN
    for name in templates.list_templates():
        templates.get_template(name)
    return templates


def filled(
    template: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """Fill the page ``template`` with ``values``."""
    text = compiled().get_template(template).render(values)
    return HTMLResponse(text, status, {"Vary": "Accept"} | dict(headers or {}))
